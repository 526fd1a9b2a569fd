# Gives the files of a task: name, size and as many bytes, for each. BASE HASH [NAME]
hash=$2
enter_base "$1" || give_up no-task
place=$(head -c 32 ".tasks/$hash" 2>/dev/null) || give_up no-task
case $place in
    .) give_up no-directory ;;
    "$hash") ;;
    s-*) is_hash "${place#s-}" || give_up no-task ;;
    *) give_up no-task ;;
esac
is_directory "$base/$place" && cd "$base/$place" 2>/dev/null || give_up no-task
if [ $# -gt 2 ]; then
    [ -f "./$3" ] || give_up no-file
    [ -r "./$3" ] || give_up unreadable
    set -- "./$3"
    answer files
else
    answer files
    set --
fi
give='
    for file do
        [ -r "$file" ] || continue
        size=$(stat -c %s "$file" 2>/dev/null || wc -c <"$file")
        size=$((size + 0))
        printf "%s\0" "${file#./}" "$size"
        # As many bytes as were announced, should the file shrink meanwhile.
        { head -c "$size" "$file"; head -c "$size" /dev/zero; } | head -c "$size"
    done'
if [ $# -gt 0 ]; then
    /bin/sh -c "$give" sh "$1"
else
    find . -type f ! -name '.task-????????????????*' -exec /bin/sh -c "$give" sh {} +
fi
