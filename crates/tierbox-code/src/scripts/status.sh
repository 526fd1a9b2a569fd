# How tasks stand: tasks, sessions, KiB used, KiB free, base, then a program for each name. BASE (COUNT PROGRAM…)…
given=$1
shift
where() {
    # Which of the first $1 names is a program here.
    count=$1
    shift
    while [ "$count" -gt 0 ]; do
        found=$(locate "$1")
        if [ -n "$found" ]; then printf %s "$found"; return; fi
        count=$((count - 1))
        shift
    done
}
if enter_base "$given"; then
    set -- "$(find .tasks -type f | wc -l)" "$(find .sessions -type f | wc -l)" "$(du -sk . 2>/dev/null | head -n 1 | cut -f 1)" "$@"
else
    case $given in /*) base=$given ;; *) base=$start/$given ;; esac
    set -- 0 0 0 "$@"
fi
free=$(df -Pk . 2>/dev/null | tail -n 1 | { read -r _ _ _ kib _ && echo "$kib"; }) || free=
answer status "$(($1))" "$(($2))" "$((${3:-0}))" "$free" "$base"
shift 3
while [ $# -gt 0 ]; do
    answer "$(where "$@")"
    count=$1
    shift
    shift "$count"
done
