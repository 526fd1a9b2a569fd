# Becomes a program under resource limits. CPU ADDRESS_SPACE FILE_SIZE OPEN_FILES PROGRAM ARGUMENT…
limit() {
    [ -z "$2" ] && return
    # Where the hard limit is lower, it is stricter than what is asked for.
    ulimit "$1" "$2" 2>/dev/null && return
    hard=$(ulimit -H "$1")
    [ "$hard" != unlimited ] && [ "$hard" -le "$2" ] && return
    echo "tierbox: this machine cannot set the limit \`ulimit $1 $2\`" >&2
    exit 125
}
limit -t "$1"
limit -v "$2"
limit -f "$3"
limit -n "$4"
shift 4
exec "$@"
