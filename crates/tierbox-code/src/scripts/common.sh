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

# Writes what comes into a file of its own, whatever else a task left there.
record() {
    if [ -L "$1" ] || [ ! -f "$1" ]; then remove "$1" || return 1; fi
    cat >"$1"
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

# Removes tasks and sessions whose last run is at least so many seconds ago, and calls `$2 KIND NAME` for each. Only names
# that are hashes are ever touched.
expire() {
    told=$2
    if [ "$1" -gt 0 ]; then
        touch -d "@$(($(date +%s) - $1))" .expiry
        set -- ! -newer .expiry
    else
        set --
    fi
    for kind in tasks sessions; do
        find ".$kind" -type f "$@" | while IFS= read -r record; do
            hash=${record##*/}
            is_hash "$hash" || continue
            case $kind in
                tasks) name=$hash directory=$hash ;;
                sessions) name=$(head -c 256 "$record") directory=s-$hash ;;
            esac
            if remove "$directory"; then
                rm -f "$record"
                "$told" "$kind" "$name"
            else
                "$told" failed "$directory"
            fi
        done
    done
    rm -f .expiry
}

# Tells of every file below the current directory but the code's: hash, size, name. A hash takes time: huge files have none.
list() {
    find . -type f ! -name '.task-????????????????*' -exec /bin/sh -c '
        for file do
            size=$(stat -c %s "$file" 2>/dev/null || wc -c <"$file" 2>/dev/null) || size=
            hash=
            if [ -n "$size" ] && [ "$size" -le 268435456 ] && [ -r "$file" ]; then
                hash=$(sha256sum <"$file" 2>/dev/null) || hash=
            fi
            printf "%s\0" "${hash%% *}" "$((size + 0))" "${file#./}"
        done' sh {} +
}
