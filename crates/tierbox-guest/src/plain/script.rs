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
/// `F` is what the names of its FIFOs, and of the files with its output, begin with: `D`, or that of the shell which runs it ([`KEPT`]).
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
  read -r W S F keep <"$D.pid"
  set -- $keep
  helpers=" $2 $3 $4 $5 "
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
now() {
  if { read -r at rest </proc/uptime; } 2>/dev/null; then up=$((${at%.*}*100+1${at#*.}-100)); else up=$((up+step)); fi
}
over() {
  if endit "kill $1"; then
    slay
    echo "$D" 1<>"$F.k"
  fi
}
pause() {
  step=$2
  [ $1 -ge $step ] || step=$1
  case $step in ?) sleep 0.0$step;; *) sleep 0.$step;; esac || sleep 1
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
  o=${upto1:-$((o))}; e=${upto2:-$((e))}
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

/// Whoever asks what became of a command that a [kept shell](KEPT) ran finds what it printed there, and then the shell's last words,
/// which say how long they are in `done`. They come a moment after it, at the end unless somebody still prints.
pub(super) const WHOLE: &str = r#"
tail_of() {
  [ -e "$1" ] || ln "$2" "$1" 2>/dev/null
  rounds=0
  while [ $rounds -lt 200 ]; do
    rounds=$((rounds+1))
    upto=0
    [ ! -s "$1" ] || upto=$(wc -c <"$1")
    upto=$((upto-$3))
    [ $upto -lt 0 ] || case $(tail -c +$((upto+1)) "$1" | head -c 40) in *"$mark"*) return 0;; esac
    [ $((rounds%50)) -ne 20 ] || ! searched "$1" || return 0
    sleep 0.01 || sleep 1
  done
  upto=
}
searched() {
  line=$(grep -an "$mark" "$1" | head -n 1)
  line=${line%%:*}
  [ -n "$line" ] || return 1
  upto=$(head -n $((line-1)) "$1" | wc -c)
  upto=$((upto-1))
}
whole() {
  [ -s "$D.done" ] || return 0
  read -r mark cut1 cut2 began ended note <"$D.done"
  [ -s "$D.pid" ] && read -r W S F rest <"$D.pid"
  tail_of "$D.o" "$F.o" $cut1
  upto1=$upto
  tail_of "$D.e" "$F.e" $cut2
  upto2=$upto
  echo "$began $ended" >"$D.times"
  echo "$note" >"$D.note"
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
much() {
  for f in "$D.o" "$D.e"; do
    if [ -n "$MOST" ] && [ -s "$f" ] && [ $(wc -c <"$f") -ge $CAP ]; then
      MOST=
      over output
    fi
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
clock() {
  up=0
  step=0
  due=
  if [ -n "$TIMEOUT" ]; then now; due=$((up+TIMEOUT)); fi
  seen=
  while [ ! -e "$D.done" ] && { [ -d "/proc/$W" ] || [ -n "$due" ]; }; do
    left=15
    if [ -n "$due" ]; then
      now
      left=$((due-up))
      if [ $left -le 0 ]; then
        due=
        left=15
        over timeout
      fi
    fi
    pause $left 15
    if [ -e "$D.x" ]; then
      if [ -n "$seen" ]; then kill -USR1 $W || exit 0; fi
      seen=1
    elif [ -n "$MOST" ]; then
      much
    fi
  done
}
F=$D
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
  echo "$W $S $F $W $c1 $c2 $clock" >"$D.pid"
  read -r began rest </proc/uptime
  if [ -e "$D.end" ]; then
    : >"$D.1" 2>"$D.2"
    ran=
  else
    ran=1
    printf 'LEADS=%s\n%s\n' "$SETSID" @SCRIPT@ 2>/dev/null | ( [ ! -e "$D.end" ] || exit 1
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
      read -r W S F rest <"$D.pid"
      if [ "$F" != "$D" ]; then
        for f in o e; do [ -e "$D.$f" ] || ln "$F.$f" "$D.$f"; done 2>/dev/null
        [ -z "$MOST" ] || much
      fi
      if [ ! -d "/proc/$W" ] && [ ! -e "$D.done" ]; then
        endit "lost"
        slay
        for ack in "$D.a1" "$D.a2"; do [ ! -p "$ack" ] || echo end 1<>"$ack"; done
        : >"$D.done"
      fi
    fi
    sleep 0.2 || sleep 1
  done
  whole
  report
else
  echo "tierbox-plain 1 end=gone; note=; times=; out=0; err=0;"
fi
"#;

/// What readies a shell that is kept for commands of one user, one after the other ([`kept`](super::kept)): `K` is what the names of its
/// files begin with, `MARK` what it then says on both streams.
///
/// Its FIFOs, their readers and its clock serve all of its commands: a program for each would take longer than many a command. The
/// readers keep what comes in files, for whoever asks when the line has dropped, and then hand it on, so that nothing of it comes to a
/// file that the next command begins anew; they go on without the line, and as long as somebody holds a FIFO. Nobody but root can read from the FIFOs, so that the mark which ends a command's output gets
/// where it belongs; until then it is nowhere but in the shell. The clock waits on a FIFO for the next
/// command that has a limit, and looks at it twice a second; a limit below ten seconds has a clock of its own.
///
/// Who may still hold a FIFO is one of those that began since the command did, and has it open, or was begun by such a one meanwhile;
/// where numbers do not tell, or after a second, all are looked at. (Whoever is the same user can open another command's streams by
/// procfs, in a kept shell as elsewhere.) A shell whose FIFO is held says so, and serves no other command.
pub(super) const KEPT: &str = r#"
umask 077
cd /
TIERBOX_KEPT=1
F=$K
carry() {
  trap '' PIPE
  ulimit -c 0
  ulimit -f $BLOCKS
  exec tee -a /proc/self/fd/3 3>&1 >>"$1" 2>/dev/null
}
limit() {
  while [ ! -e "$D.end" ]; do
    now
    left=$(($1-up))
    if [ $left -le 0 ]; then
      over timeout
      break
    fi
    pause $left $2
  done
}
watch() {
  while read -r D due; do limit $due 50; done
}
holds() {
  case " $W $c1 $c2 " in *" ${1#/proc/} "*) return;; esac
  for f in "$1"/fd/*; do
    if [ "$f" -ef "$K.1" ] || [ "$f" -ef "$K.2" ]; then held=1
    elif [ ! -e "$f" ] && [ -L "$f" ]; then held=${held:-maybe}; fi
  done
  [ -r "$1/fd" ] || [ ! -d "$1" ] || held=${held:-maybe}
}
look() {
  held=
  p=$last
  read -r l l l l at </proc/loadavg
  if [ $at -lt $p ] || [ $((at-p)) -ge 300 ] || [ $((up-since)) -ge 100 ]; then
    for one in /proc/[0-9]*; do holds $one; done
    p=$at
  fi
  turns=0
  while read -r l l l l at </proc/loadavg && [ $at -ne $p ]; do
    turns=$((turns+1))
    if [ $turns -gt 8 ] || [ $at -lt $p ]; then
      held=${held:-maybe}
      return
    fi
    while [ $p -lt $at ]; do
      p=$((p+1))
      [ ! -d /proc/$p ] || holds /proc/$p
    done
  done
}
tell() {
  said="
$MARK $1
"
  printf '%s' "$said" >&6
  printf '
%s
' "$MARK" >&7
}
own() { echo "$W - $K $W $c1 $c2 $clock $mine" >"$D.pid"; }
ready() {
  : >"$K.o"
  : >"$K.e"
  : >"$K.m"
  if ! claim; then
    tell taken
    return 1
  fi
  now
  began=$at
  since=$up
  mine=
  case $TIMEOUT in
  '') own;;
  ?|??|???)
    ( limit $((up+TIMEOUT)) 15 ) </dev/null 2>/dev/null 5>&- 6>&- 7>&- 9>&- &
    mine=$!
    own;;
  *)
    # Without its clock this shell ends here, and that it has is seen by its number.
    own
    echo "$D $((up+TIMEOUT))" >&5;;
  esac
  read -r l l l l last </proc/loadavg
  [ -e "$D.end" ] || return 0
  finish
  return 1
}
finish() {
  now
  ended=$at
  end=
  if [ $# -gt 0 ]; then
    by=exit
    [ ! -s "$K.m" ] || by=signal
    end="$by $1"
    if endit "$end"; then
      [ -z "$TIDY" ] || slay
    else
      end=
      word=
      until [ "$word" = "$D" ]; do read -r word <&9; done
    fi
  fi
  [ -n "$end" ] || read -r end <"$D.end"
  note=
  if [ -s "$D.n" ]; then
    while read -r word rest; do [ "$word" = session ] || note="$word $rest"; done <"$D.n"
  fi
  look
  tries=0
  while [ "$held" = 1 ] && [ $tries -lt 2 ]; do
    tries=$((tries+1))
    pause 15 15
    now
    look
  done
  said="end=$end; note=$note; times=$began $ended; held=$held;"
  echo "$MARK $((${#said}+${#MARK}+3)) $((${#MARK}+2)) $began $ended $note" >"$D.done"
  tell "$said"
}
begin() {
  command -v tee >/dev/null && [ / -ef / ] && [ -p /proc/self/fd/1 ] && [ -w /proc/self/fd/1 ] && [ -p /proc/self/fd/2 ] && [ -w /proc/self/fd/2 ] && [ -d /proc/1 ] && read -r l l l l at </proc/loadavg || return 1
  : >"$K.o"
  : >"$K.e"
  mkfifo -m 622 "$K.1" "$K.2" && mkfifo -m 600 "$K.k" "$K.t" || return 1
  read -r line </proc/self/stat
  W=${line%% *}
  ( carry "$K.o" ) <"$K.1" &
  c1=$!
  ( carry "$K.e" ) <"$K.2" >&2 &
  c2=$!
  exec 6>"$K.1" 7>"$K.2" >/dev/null 2>>"$K.m"
  ( watch ) <"$K.t" 2>/dev/null 6>&- 7>&- &
  clock=$!
  exec 5>"$K.t" 9<>"$K.k"
  # Other shells than these may put the text of a here-document into a file.
  here=1
  [ -z "${BASH_VERSION-}${KSH_VERSION-}${YASH_VERSION-}${ZSH_VERSION-}" ] || here=
  tell there
}
begin || exit 1
"#;

/// A command in such a shell. Its own shell reads its script from a pipe, as in [`WRAPPER`]; that needs no process where the shell
/// has here-documents in pipes and the script is short.
pub(super) const IN_KEPT: &str = r#"
if ready; then
script=@SCRIPT@
@FEED@if [ -n "$here" ] && [ ${#script} -lt 4000 ]; then
( [ ! -e "$D.end" ] || exit 1; launch ) 8<@STDIN@ 4<&- >&6 2>&7 3>"$D.n" 5>&- 6>&- 7>&- 9>&- <<END
LEADS=$SETSID
$script
END
else
printf 'LEADS=%s\n%s\n' "$SETSID" "$script" 2>/dev/null | ( [ ! -e "$D.end" ] || exit 1; launch ) 8<@STDIN@ 4<&- >&6 2>&7 3>"$D.n" 5>&- 6>&- 7>&- 9>&-
fi
@FED@finish $?
fi
"#;

/// Makes ready to become the command. `CWD`, `SEARCH`, `LEADS` (whether this leads a session of its own), `KNOWN` and the arguments are
/// set.
///
/// Programs that cannot be executed are told apart before: the shell and `env` would run a text as a script, and say the same for
/// several causes. A shell reads a line byte by byte, and an executable's first is long: one that was `KNOWN` to be one before, in a
/// place that the command's user cannot write to, is not read again.
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
elf=
dir=${found%/*}
case $found in
/*) [ ! -w "$found" ] && [ ! -w "${dir:-/}" ] || KNOWN=;;
*) KNOWN=;;
esac
if [ -z "$KNOWN" ] && [ -r "$found" ]; then { IFS= read -r line <"$found"; } 2>/dev/null
case $line in
'#!'*)
  set -f; old=$IFS; IFS='	 '
  for inter in ${line#??}; do break; done
  IFS=$old; set +f
  [ -e "$inter" ] || cannot 2 "$1: its interpreter does not exist" 127;;
?ELF*) elf=1;;
*) cannot 8 "$1: not a program" 126;;
esac
fi
[ -z "$LEADS" ] || echo "session $$" >&3
[ -z "$elf" ] || echo elf >&3
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
    read -r W S F rest <"$D.pid"
    if [ -d "/proc/$W" ] && [ ! -e "$D.done" ]; then echo "$D" 1<>"$F.k"; fi
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
    use crate::plain::shells_here;

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
        for shell in shells_here() {
            let dir = tempfile::tempdir().unwrap();
            let said = cancelled_in_between(shell, dir.path());
            assert!(said.starts_with("tierbox-plain 1 end=kill cancelled; "), "{shell:?}: {said}");
        }
    }
}
