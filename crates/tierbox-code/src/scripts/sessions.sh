# Lists sessions: name, directory, seconds since the last task. BASE
enter_base "$1" || give_up sessions
answer sessions
now=$(date +%s)
for record in .sessions/*; do
    hash=${record##*/}
    [ -f "$record" ] && is_hash "$hash" || continue
    touched=$(stat -c %Y "$record" 2>/dev/null) || touched=$now
    answer "$(head -c 256 "$record")" "$base/s-$hash" "$((now - touched))"
done
