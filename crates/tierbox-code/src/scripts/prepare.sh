# Makes a task's directory and its files. Stdin: the code and the input files, one after the other.
# BASE HASH PLACE SESSION SESSION_HASH CODE_FILE EXPIRY PROGRAMS PROGRAM… SIZE (NAME SIZE)…
base=$1 hash=$2 place=$3 session=$4 session_hash=$5 code=$6 expiry=$7 programs=$8
shift 8
program=
while [ "$programs" -gt 0 ]; do
    if [ -z "$program" ]; then
        found=$(command -v "$1" 2>/dev/null) || found=
        case $found in /*) program=$found ;; esac
    fi
    programs=$((programs - 1))
    shift
done
[ -n "$program" ] || give_up no-runtime
case $base in /*) ;; *) base=$start/$base ;; esac
mkdir -p "$base/.tasks" "$base/.sessions" || give_up no-base
enter_base "$base" || give_up no-base
quiet() { :; }
# What cannot be removed now is told by a clean-up that somebody asks for.
[ "$expiry" -eq 0 ] || (expire "$expiry" quiet) </dev/null >/dev/null 2>&1 || :

printf %s "$place" >".tasks/$hash" || give_up no-space
if [ -n "$session_hash" ]; then
    printf %s "$session" >".sessions/$session_hash" || give_up no-space
fi
case $place in
    .) own=$base/$hash directory=$start ;;
    *) own=$base/$place directory=$own ;;
esac
state=fresh
[ ! -d "$own" ] || state=used
mkdir -p "$own" || give_up no-space
input=$base/.input.$$
part=$own/.part.$$
trap 'rm -f "$input" "$part"' EXIT
cat >"$input" || give_up no-space

offset=1
put() {
    [ ! -d "$1" ] || give_up is-directory
    tail -c "+$offset" "$input" | head -c "$2" >"$part" || give_up no-space
    mv -f "$part" "$1" || give_up no-space
    offset=$((offset + $2))
}
put "$own/$code" "$1"
shift
while [ $# -gt 0 ]; do
    case $1 in */*) mkdir -p "$directory/${1%/*}" || give_up no-space ;; esac
    put "$directory/$1" "$2"
    shift 2
done
rm -f "$input" "$part"
cd "$directory"
answer ready "$program" "$(pwd -P)" "$own/$code" "$state"
if [ "$state" = used ] && [ "$place" != . ]; then list; fi
