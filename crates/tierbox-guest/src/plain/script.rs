//! What runs in the machine: POSIX shell, and tools that both coreutils and busybox have.

/// The search path of our own tools. The command never sees it.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Goes before every script.
pub(super) const PRELUDE: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; LC_ALL=C; export PATH LC_ALL\n";

/// How a command ends and is killed. `D` is what the names of its files begin with, of which
///
/// - `c` is the claim;
/// - `end` is made by whoever ends it first and says how: nobody overwrites it;
/// - `pid` names the wrapper, the command's session, and what must not be killed;
/// - `k` tells the wrapper that somebody else has killed all there was: it must not start tools before that, which belong to its
///   session too;
/// - `G` is its cgroup, or empty: all in it dies with it, whatever it left its session and its parents for;
/// - `n` is what the command's shell noted before it became the command;
/// - `o` and `e` are what it printed; `done` says that both are complete;
/// - `x` says that it has ended, so that those who write `o` and `e` are not waited for much longer;
/// - `a1` and `a2` let those who write `o` and `e` go on, where they must not be far ahead of whoever reads.
///
/// Whatever needs no program is done without one: on slow machines each takes longer than many a command.
pub(super) const LIFE: &str = r#"
claim() {
  set -C
  if true 2>/dev/null >"$D.c"; then set +C; return 0; fi
  set +C
  return 1
}
endit() {
  set -C
  if echo "$1" 2>/dev/null >"$D.end"; then set +C; return 0; fi
  set +C
  return 1
}
ended() {
  [ -n "$G" ] && [ -d "$G" ] || return 0
  rounds=0
  while [ $rounds -lt 200 ]; do
    rounds=$((rounds+1))
    list=
    while read -r pid; do list="$list $pid"; done <"$G/cgroup.procs"
    [ -n "$list" ] || return 0
    if [ -e "$G/cgroup.kill" ]; then echo 1 >"$G/cgroup.kill"
    else
      echo FROZEN >"$G/freezer.state"
      kill -KILL $list
      while read -r pid; do kill -KILL $pid; done <"$G/cgroup.procs"
      echo THAWED >"$G/freezer.state"
    fi 2>/dev/null
    [ $rounds -lt 5 ] || sleep 0.01 || sleep 1
  done
}
slay() {
  ended
  walk
  ended
}
walk() {
  [ -s "$D.pid" ] || return 0
  read -r W S keep <"$D.pid"
  set -- $keep
  helpers=" $2 $3 $4 "
  if [ "$S" = - ]; then
    S=
    if [ -s "$D.n" ]; then read -r word pid <"$D.n"; [ "$word" != session ] || S=$pid; fi
  fi
  rounds=0
  while [ $rounds -lt 50 ]; do
    rounds=$((rounds+1))
    list=
    tree=" $W "
    grown=1
    while [ -n "$grown" ]; do
      grown=
      for p in /proc/[0-9]*; do
        pid=${p#/proc/}
        case " $keep $tree" in *" $pid "*) continue;; esac
        { read -r line <"$p/stat"; } 2>/dev/null || continue
        line=${line##*) }
        set -- $line
        case $1 in Z|X) continue;; esac
        case $helpers in *" $2 "*) continue;; esac
        if [ -n "$S" ] && [ "$4" = "$S" ]; then :
        else case $tree in *" $2 "*) ;; *) continue;; esac; fi
        tree="$tree$pid "
        list="$list $pid"
        grown=1
        kill -STOP $pid 2>/dev/null
      done
    done
    [ -n "$list" ] || return 0
    kill -KILL $list 2>/dev/null
  done
}
"#;

/// Tells how it ended and prints what it printed, as far as that goes inline.
pub(super) const REPORT: &str = r#"
report() {
  end=; note=; times=
  [ ! -s "$D.end" ] || read -r end <"$D.end"
  [ ! -s "$D.note" ] || read -r note <"$D.note"
  [ ! -s "$D.times" ] || read -r times <"$D.times"
  o=0; e=0
  [ ! -s "$D.o" ] || o=$(wc -c <"$D.o")
  [ ! -s "$D.e" ] || e=$(wc -c <"$D.e")
  o=$((o)); e=$((e))
  if [ $o -ge $CAP ] || [ $e -ge $CAP ]; then end="kill output"; fi
  echo "tierbox-plain 1 end=$end; note=$note; times=$times; out=$o; err=$e;"
  left=$INLINE
  if [ $o -gt 0 ]; then
    [ $o -le $left ] || o=$left
    head -c $o "$D.o"
    left=$((left-o))
  fi
  if [ $e -gt 0 ] && [ $left -gt 0 ]; then
    [ $e -le $left ] || e=$left
    head -c $e "$D.e"
  fi
}
"#;

/// Runs a command once: the file `c` of its name is the claim. Whoever finds it there waits for what became of it.
///
/// The command runs in the foreground, because shells make those in the background ignore SIGINT. Its shell reads its script from a
/// pipe: it is in no argument and no file. Its output goes through FIFOs and not to files, because a program may open `/dev/stderr`
/// anew, which would cut a file. Their readers may not write files much longer than `CAP`: a command that prints more meets a closed
/// pipe, or the clock, and is told as killed for its output. Where output is read while it runs, they stop `WINDOW` bytes ahead of the
/// reader, who lets them go on by the offset that was read; the end of the command lets them go to the end. Where something that the
/// command left holds a FIFO open, its reader is not waited for to the end, but until it sleeps, as it does when all that was written
/// is read: on a busy machine it may not even have begun. A message of the shell tells a signal from an exit status above 128; of
/// SIGINT and SIGPIPE it says nothing.
///
/// Whoever ends the command writes `end` before it looks for processes. So what is to become the command looks for `end` when it is a
/// process: one that was made too late to be found goes by itself.
///
/// One clock looks after everything: the time limit in hundredths of a second, the length of the output, and, from the end of the
/// command on, how long its readers are waited for. It goes on where the wrapper was killed, until the limit.
pub(super) const WRAPPER: &str = r#"
umask 077
cd /
bound() { ulimit -c 0; [ -z "$BLOCKS" ] || ulimit -f $BLOCKS; }
copy() {
  bound
  [ -n "$WINDOW" ] || exec cat >"$1"
  : >"$1"
  size=0
  open=$WINDOW
  while dd bs=65536 count=64 >>"$1"; do
    now=$(wc -c <"$1")
    [ $((now)) -gt $size ] || exit 0
    size=$((now))
    while [ $size -ge $open ]; do
      read -r word <&6 || exit 1
      [ "$word" != end ] || exec cat >>"$1"
      open=$((word+WINDOW))
    done
  done
}
drained() {
  rounds=0
  while [ $rounds -lt 200 ]; do
    rounds=$((rounds+1))
    quiet=1
    for p in $1 $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
      { read -r line <"/proc/$p/stat"; } 2>/dev/null || continue
      case ${line##*) } in R*|D*) quiet=;; esac
    done
    [ -z "$quiet" ] || return 0
    sleep 0.01 || sleep 1
  done
}
now() {
  if { read -r at rest </proc/uptime; } 2>/dev/null; then up=$((${at%.*}*100+1${at#*.}-100)); else up=$((up+step)); fi
}
over() {
  if endit "kill $1"; then
    slay
    echo slain >&9
  fi
}
clock() {
  up=0
  step=0
  due=
  if [ -n "$TIMEOUT" ]; then now; due=$((up+TIMEOUT)); fi
  seen=
  while [ ! -e "$D.done" ] && { [ -d "/proc/$W" ] || [ -n "$due" ]; }; do
    step=15
    if [ -n "$due" ]; then
      now
      left=$((due-up))
      if [ $left -le 0 ]; then
        due=
        over timeout
      elif [ $left -lt $step ]; then step=$left; fi
    fi
    case $step in ?) pause=0.0$step;; *) pause=0.$step;; esac
    sleep $pause || sleep 1
    if [ -e "$D.x" ]; then
      if [ -n "$seen" ]; then kill -USR1 $W || exit 0; fi
      seen=1
    elif [ -n "$MOST" ]; then
      for f in "$D.o" "$D.e"; do
        if [ -n "$MOST" ] && [ -s "$f" ] && [ $(wc -c <"$f") -ge $CAP ]; then
          MOST=
          over output
        fi
      done
    fi
  done
}
if claim; then
  exec 2>"$D.m"
  [ -z "$G" ] || mkdir "$G"
  if ! mkfifo -m 666 "$D.1" "$D.2" "$D.k" "$D.a1" "$D.a2" || { [ -n "$G" ] && [ ! -d "$G" ]; }; then
    echo "fail" >"$D.end"
    : >"$D.done"
    report
    exit 0
  fi
  exec 5<&0 6<>"$D.a1" 7<>"$D.a2" 9<>"$D.k"
  read -r line </proc/self/stat
  W=${line%% *}
  line=${line##*) }
  set -- $line
  S=-
  [ "$4" != $W ] || { S=$W; SETSID=; }
  ( copy "$D.o" ) <"$D.1" >/dev/null 2>&1 5<&- 7>&- 9>&- &
  c1=$!
  ( copy "$D.e" ) <"$D.2" >/dev/null 2>&1 5<&- 6<&7 7>&- 9>&- &
  c2=$!
  ( clock ) </dev/null >/dev/null 2>&1 5<&- 6>&- 7>&- &
  clock=$!
  echo "$W $S $W $c1 $c2 $clock" >"$D.pid"
  read -r began rest </proc/uptime
  if [ -e "$D.end" ]; then
    : >"$D.1" 2>"$D.2"
    ran=
  else
    ran=1
    printf 'SETSID=%s\n%s\n' "$SETSID" @SCRIPT@ 2>/dev/null | ( [ ! -e "$D.end" ] || exit 1
[ -z "$G" ] || echo 0 >"$G/cgroup.procs" || { echo "never group" >&3; exit 1; }
@LAUNCH@ ) 8<@STDIN@ >"$D.1" 2>"$D.2" 3>"$D.n" 5<&- 6>&- 7>&- 9>&-
  fi
  status=$?
  echo end >&6
  echo end >&7
  read -r ended rest </proc/uptime
  by=exit
  [ ! -s "$D.m" ] || by=signal
  if endit "$by $status"; then
    [ -z "$TIDY" ] || slay
  elif [ -n "$ran" ]; then
    read -r word <&9
  fi
  [ -z "$G" ] || rmdir "$G" 2>/dev/null
  late=
  trap 'late=1' USR1
  : >"$D.x"
  [ -n "$late" ] || wait $c1
  [ -n "$late" ] || wait $c2
  kill $clock
  trap '' USR1
  [ -z "$late" ] || { drained $c1; drained $c2; }
  echo "$began $ended" >"$D.times"
  if [ -s "$D.n" ]; then
    while read -r word rest; do [ "$word" = session ] || echo "$word $rest"; done <"$D.n" >"$D.note"
  fi
  : >"$D.done"
  report
elif [ -e "$D.c" ]; then
  until [ -e "$D.done" ]; do
    if [ -s "$D.pid" ]; then
      read -r W rest <"$D.pid"
      if [ ! -d "/proc/$W" ] && [ ! -e "$D.done" ]; then
        endit "lost"
        slay
        for ack in "$D.a1" "$D.a2"; do [ ! -p "$ack" ] || echo end 1<>"$ack"; done
        : >"$D.done"
      fi
    fi
    sleep 0.2 || sleep 1
  done
  report
else
  echo "tierbox-plain 1 end=gone; note=; times=; out=0; err=0;"
fi
"#;

/// Makes ready to become the command. `CWD`, `SEARCH`, `SETSID` and the arguments are set.
///
/// Programs that cannot be executed are told apart before: the shell and `env` would run a text as a script, and say the same for
/// several causes.
pub(super) const BECOME: &str = r#"
never() { echo "never $1" >&3; exit 1; }
cannot() { echo "cannot $1" >&3; printf 'tierbox: %s: %s\n' "$1" "$2" >&2; exit $3; }
cd "$CWD" 2>/dev/null || never cwd
umask 022
ulimit -c 0 2>/dev/null
case $1 in
*/*) found=$1;;
*)
  found=; second=
  set -f; old=$IFS; IFS=:
  for dir in $SEARCH; do
    [ -n "$dir" ] || dir=.
    if [ -f "$dir/$1" ]; then
      if [ -x "$dir/$1" ]; then found=$dir/$1; break; fi
      [ -n "$second" ] || second=$dir/$1
    fi
  done
  IFS=$old; set +f
  [ -n "$found" ] || found=$second
  [ -n "$found" ] || cannot 2 "$1: not found in PATH" 127;;
esac
if [ ! -e "$found" ]; then
  where=${found%/*}
  while [ -n "$where" ] && [ ! -e "$where" ] && [ "$where" != "${where%/*}" ]; do where=${where%/*}; done
  if [ -d "$where" ] && [ ! -x "$where" ]; then cannot 13 "$1: permission denied" 126; fi
  cannot 2 "$1: no such file" 127
fi
[ ! -d "$found" ] && [ -x "$found" ] || cannot 13 "$1: permission denied" 126
line=
if [ -r "$found" ]; then { IFS= read -r line <"$found"; } 2>/dev/null
case $line in
'#!'*)
  set -f; old=$IFS; IFS='	 '
  for inter in ${line#??}; do break; done
  IFS=$old; set +f
  [ -e "$inter" ] || cannot 2 "$1: its interpreter does not exist" 127;;
?ELF*) ;;
*) cannot 8 "$1: not a program" 126;;
esac
fi
if [ -n "$SETSID" ]; then read -r me rest </proc/self/stat; echo "session $me" >&3; fi
"#;

/// Ends a command by its id: records why, unless something ended it before, and kills its tree.
pub(super) const CANCEL: &str = r#"
umask 077
if claim; then
  echo "never" >"$D.end"
  : >"$D.done"
elif [ ! -e "$D.done" ]; then
  ! endit "kill $REASON" || :
  i=0
  until [ -s "$D.end" ] || [ $i -gt 100000 ]; do i=$((i+1)); done
  read -r word reason <"$D.end"
  if [ "$word $reason" = "kill $REASON" ] && [ -s "$D.pid" ]; then
    slay
    read -r W rest <"$D.pid"
    if [ -d "/proc/$W" ] && [ ! -e "$D.done" ]; then echo slain >"$D.k"; fi
  fi
fi
"#;

/// What of a command's output is there that was not read yet; waits a while for some. `O` and `E` are what was read of the streams that
/// are wanted, `OA` and `EA` how far their copiers were let go before, `DRAIN` the streams that nobody will read.
pub(super) const FOLLOW: &str = r#"
let_go() { echo $2 1<>"$D.a$1"; }
size() { s=0; [ ! -s "$1" ] || s=$(wc -c <"$1"); s=$((s)); }
drained=
n=0
while :; do
  more=
  os=0; es=0
  if [ -p "$D.a2" ]; then
    for f in $DRAIN; do let_go $f 4611686018427387904; drained=$drained$f; done
    DRAIN=
  fi
  if [ -n "$O" ]; then
    size "$D.o"; os=$s
    if [ $O -gt $OA ] && [ $os -ge $((OA+WINDOW)) ]; then let_go 1 $O; OA=$O; fi
    [ $os -le $O ] || more=1
  fi
  if [ -n "$E" ]; then
    size "$D.e"; es=$s
    if [ $E -gt $EA ] && [ $es -ge $((EA+WINDOW)) ]; then let_go 2 $E; EA=$E; fi
    [ $es -le $E ] || more=1
  fi
  [ -z "$O$E" ] && [ -z "$DRAIN" ] && break
  [ -z "$more" ] && [ ! -e "$D.done" ] && [ $n -lt $ROUNDS ] || break
  n=$((n+1))
  sleep 0.2 || sleep 1
done
over=; [ ! -e "$D.done" ] || over=1
left=$INLINE
part() { c=0; if [ -n "$1" ] && [ $2 -gt $1 ]; then c=$(($2-$1)); [ $c -le $left ] || c=$left; left=$((left-c)); fi; }
part "$O" $os; oc=$c
part "$E" $es; ec=$c
echo "tierbox-live 1 out=$oc; err=$ec; sizes=$os $es; let=$OA $EA; drained=$drained; over=$over;"
[ $oc = 0 ] || tail -c +$((O+1)) "$D.o" | head -c $oc
[ $ec = 0 ] || tail -c +$((E+1)) "$D.e" | head -c $ec
"#;

#[cfg(test)]
mod unit {
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn start(shell: &[&str], script: &str) -> Child {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let limit = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < limit, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Cancels a command when its wrapper has seen that nothing ended it, and has not made its process yet.
    fn cancelled_in_between(shell: &[&str], dir: &Path) -> String {
        let name = dir.join("command").display().to_string();
        let after = "  else\n    ran=1\n";
        assert_eq!(WRAPPER.matches(after).count(), 1);
        let wrapper = WRAPPER
            .replace(after, &format!("{after}: >\"$D.here\"; until [ -e \"$D.go\" ]; do sleep 0.01; done\n"))
            .replace("@STDIN@", "/dev/null")
            .replace("@LAUNCH@", "/bin/sh")
            .replace("@SCRIPT@", "'exec sleep 1000'");
        let settings = "G=; SETSID=; INLINE=4096; TIMEOUT=; CAP=4096; BLOCKS=; MOST=; WINDOW=; TIDY=";
        let mut running = start(shell, &format!("{PRELUDE}D={name}; {settings}\n{LIFE}{REPORT}{wrapper}"));
        until("the wrapper comes there", || dir.join("command.here").exists());
        let ended = start(shell, &format!("{PRELUDE}D={name}; G=; REASON=cancelled\n{LIFE}{CANCEL}")).wait().unwrap();
        assert!(ended.success());
        std::fs::write(dir.join("command.go"), "").unwrap();
        until("the command ends", || running.try_wait().unwrap().is_some());
        std::io::read_to_string(running.stdout.take().unwrap()).unwrap()
    }

    #[test]
    fn who_is_made_after_the_kill_goes_by_itself() {
        for shell in [["sh"].as_slice(), &["busybox", "sh"], &["bash"]] {
            let dir = tempfile::tempdir().unwrap();
            if Command::new(shell[0]).args(&shell[1..]).args(["-c", ":"]).status().is_ok_and(|status| status.success()) {
                let said = cancelled_in_between(shell, dir.path());
                assert!(said.starts_with("tierbox-plain 1 end=kill cancelled; "), "{shell:?}: {said}");
            }
        }
    }
}
