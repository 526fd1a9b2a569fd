# The head of every script. Nothing in here is put together from what a caller says: all of it comes as arguments.
set -eu
umask 077
LC_ALL=C
export LC_ALL
start=$PWD
answer() { printf '%s\0' "$@"; }
give_up() { answer "$1"; exit 0; }

# A directory itself, and no link that a task put into the place of one.
is_directory() { [ -d "$1" ] && [ ! -L "$1" ]; }

# Makes a directory where none is, whatever else a task left there, and has its owner enter it.
make_directory() {
    # A task beside this one may make it at the same time.
    is_directory "$1" || { rm -f "$1" && mkdir "$1"; } 2>/dev/null || is_directory "$1" || return 1
    [ -r "$1" ] && [ -w "$1" ] && [ -x "$1" ] || chmod u+rwx "$1" 2>/dev/null || :
}

# Writes a text into a file of its own, whatever else a task left there.
record() {
    if [ -L "$1" ] || [ ! -f "$1" ]; then remove "$1" || return 1; fi
    printf %s "$2" 2>/dev/null >"$1"
}

# Goes into the directory of the tasks' directories, or says that there is none.
enter_base() {
    # One below the working directory is our own, and no link; the profile may have made another one.
    case $1 in
        /*) base=$1 ;;
        *) base=$start/$1; [ ! -L "$base" ] || return 1 ;;
    esac
    is_directory "$base/.tasks" && is_directory "$base/.sessions" && cd "$base" || return 1
    base=$(pwd -P)
    [ "$base" != / ]
}

# The program of a name, as an absolute path; nothing if there is none. A shell's own `command -v` may name what is built into it.
locate() {
    case $1 in
        /*) [ ! -f "$1" ] || [ ! -x "$1" ] || printf %s "$1" ;;
        */*) ;;
        *)
            rest=${PATH:-/usr/local/bin:/usr/bin:/bin}:
            while [ -n "$rest" ]; do
                found=${rest%%:*}/$1
                rest=${rest#*:}
                case $found in /*) if [ -f "$found" ] && [ -x "$found" ]; then printf %s "$found"; return; fi ;; esac
            done
            ;;
    esac
}

is_hash() {
    case $1 in *[!0-9a-f]*) return 1 ;; esac
    [ ${#1} -eq 16 ]
}

# Removes something below the base, also a directory whose modes forbid it.
remove() {
    rm -rf "./$1" 2>/dev/null && return
    chmod -R u+rwx "./$1" 2>/dev/null || :
    rm -rf "./$1" 2>/dev/null
}

# Makes room for something below the base, whatever stands there.
clear() {
    [ ! -e "./$1" ] && [ ! -L "./$1" ] || remove "$1"
}

# Removes tasks and sessions whose last run is at least so many seconds ago, and calls `$2 KIND NAME` for each. Only names
# that are hashes are ever touched.
expire() {
    told=$2
    # Of this clean-up alone: for a moment it is as new as what another one must not take.
    mark=.expiry.$$
    if [ "$1" -gt 0 ]; then
        clear "$mark" || return 1
        touch -d "@$(($(date +%s) - $1))" "$mark"
        set -- ! -newer "$mark"
    else
        set --
    fi
    find .tasks .sessions -type f "$@" | while IFS= read -r record; do
        hash=${record##*/}
        is_hash "$hash" || continue
        case $record in
            .tasks/*) kind=tasks name=$hash directory=$hash ;;
            *) kind=sessions name=$(head -c 256 "$record") directory=s-$hash ;;
        esac
        if remove "$directory"; then
            rm -f "$record"
            "$told" "$kind" "$name"
        else
            "$told" failed "$directory"
        fi
    done
    rm -f "$mark"
}

# Gives every file below the current directory but the code's to a script as its arguments, so many at a time that no machine runs
# out of room. What cannot be entered, and what goes away meanwhile, is no reason to tell of nothing.
#
# The script reads a line from its input for each 200 files, and tells that there are more where there is none left. In that line is
# how many bytes of them may be hashed: a hash takes time.
each_file() {
    groups=51 allowances=$1
    while [ "$groups" -gt 1 ]; do
        groups=$((groups - 1))
        allowances="$allowances
$2"
    done
    find . -type f ! -name '.task-????????????????*' -exec /bin/sh -c "$3" sh {} + 2>/dev/null <<EOF || answer unreadable 0 ""
$allowances
EOF
}

# Calls `group` for 200 files at a time, of which all that follow `facts` are there. It knows `new_line`, and how many words there were.
in_groups='
    new_line="
"
    IFS=$new_line
    set -f
    answer() { printf "%s\0" "$@"; }
    count() { counted=$#; }
    some() {
        # One more group is one too many: whoever looks for files is ended.
        if ! read -r room; then answer many 0 ""; kill "$PPID"; exit; fi
        for file do
            shift
            if [ -f "$file" ]; then set -- "$@" "$file"; else answer unreadable 0 ""; fi
        done
        [ $# -gt 0 ] || return 0
        sizes=$(stat -c %s "$@" 2>/dev/null)
        count $sizes
        # One went away at this moment. Which one is not known.
        if [ "$counted" -eq $# ]; then group "$@"; else answer unreadable 0 ""; fi
    }
    words= number=0
    while [ "$number" -lt 200 ]; do
        number=$((number + 1))
        words="$words \"\${$number}\""
    done
    while [ $# -gt 200 ]; do
        eval "some $words"
        shift 200
    done
    some "$@"
'

# Tells of every file below the current directory but the code's: size and name, and later hash and name. $1 bytes are hashed of the
# first 200 files, $2 of each 200 that follow.
list() {
    each_file "$1" "$2" '
    group() {
        for size in $sizes; do
            file=$1
            shift
            answer "" "$size" "${file#./}"
            [ -r "$file" ] && [ "$size" -le "$room" ] || continue
            case $file in
                *"$new_line"*)
                    # A program for each such file: that takes as long as a mebibyte.
                    [ "$room" -ge $((size + 1048576)) ] || continue
                    room=$((room - size - 1048576))
                    hash=$(sha256sum <"$file" 2>/dev/null) && answer "${hash%% *}" "" "${file#./}"
                    ;;
                *)
                    room=$((room - size))
                    set -- "$@" "$file"
                    ;;
            esac
        done
        [ $# -gt 0 ] || return 0
        hashes=$(sha256sum "$@" 2>/dev/null)
        count $hashes
        [ "$counted" -eq $# ] || return 0
        for hash in $hashes; do
            hash=${hash%% *}
            # A backslash in front says that one in the name is written twice.
            answer "${hash#\\}" "" "${1#./}"
            shift
        done
    }'"$in_groups"
}
