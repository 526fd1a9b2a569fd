# Makes a task's directory and its files. Stdin: the code and the input files, one after the other.
# BASE HASH PLACE SESSION SESSION_HASH CODE_FILE EXPIRY ROOM ROOM PROGRAMS PROGRAM… SIZE (NAME SIZE)…
base=$1 hash=$2 place=$3 session=$4 session_hash=$5 code=$6 expiry=$7 room=$8
shift 8
more_room=$1 programs=$2
shift 2
program=
while [ "$programs" -gt 0 ]; do
    [ -n "$program" ] || program=$(locate "$1")
    programs=$((programs - 1))
    shift
done
[ -n "$program" ] || give_up no-runtime
given=$base
case $given in
    /*) ;;
    *)
        base=$start/$given
        [ ! -L "$base" ] || rm -f "$base" || give_up no-base
        ;;
esac
[ -d "$base" ] || mkdir -p "$base" 2>/dev/null || give_up no-base
for records in .tasks .sessions; do
    make_directory "$base/$records" || give_up no-base
done
enter_base "$given" || give_up no-base
quiet() { :; }
# What cannot be removed now is told by a clean-up that somebody asks for.
[ "$expiry" -eq 0 ] || (expire "$expiry" quiet) </dev/null >/dev/null 2>&1 || :

record ".tasks/$hash" "$place" || give_up no-space
[ -z "$session_hash" ] || record ".sessions/$session_hash" "$session" || give_up no-space
case $place in
    .) name=$hash directory=$start ;;
    *) name=$place directory=$base/$place ;;
esac
own=$base/$name
state=fresh
! is_directory "$own" || state=used
make_directory "$own" || give_up no-space
input=$base/.input.$$
part=$own/.part.$$
# Our own names are nobody's to keep, not even as directories.
clear ".input.$$" && clear "$name/.part.$$" || give_up no-space
# The same task may start beside this one: its file is replaced, and never away.
[ ! -d "$own/$code" ] || remove "$name/$code" || give_up no-space
trap 'rm -f "$input" "$part"' EXIT
cat >"$input" || give_up no-space

offset=1
put() {
    [ ! -d "$1" ] || give_up is-directory
    tail -c "+$offset" "$input" | head -c "$2" >"$part" || give_up no-space
    mv -f "$part" "$1" || give_up no-space
    offset=$((offset + $2))
}
# Says why no directory can be made for a file.
blocked() {
    above=$1
    while [ "$above" != "${above%/*}" ]; do
        above=${above%/*}
        if [ -e "$directory/$above" ] && [ ! -d "$directory/$above" ]; then give_up is-file; fi
    done
    give_up no-space
}
if [ $# -eq 1 ]; then
    # All that came is the code.
    mv -f "$input" "$own/$code" || give_up no-space
else
    put "$own/$code" "$1"
fi
shift
while [ $# -gt 0 ]; do
    case $1 in */*) mkdir -p "$directory/${1%/*}" 2>/dev/null || blocked "$1" ;; esac
    put "$directory/$1" "$2"
    shift 2
done
[ ! -e "$input" ] || rm -f "$input" "$part"
trap - EXIT
cd "$directory"
answer ready "$program" "$(pwd -P)" "$own/$code" "$state"
if [ "$state" = used ] && [ "$place" != . ]; then list "$room" "$more_room"; fi
