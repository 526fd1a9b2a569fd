# Gives the files of a task. BASE HASH list|all|one [NAME]
# For `list` name and size of each; else names, sizes and contents of many at a time, and then whether that was all.
hash=$2
enter_base "$1" || give_up no-task
# A pipe in the place of a record would never end.
[ -f ".tasks/$hash" ] && [ ! -L ".tasks/$hash" ] || give_up no-task
place=$(head -c 32 ".tasks/$hash" 2>/dev/null) || give_up no-task
case $place in
    .) give_up no-directory ;;
    "$hash") ;;
    s-*) is_hash "${place#s-}" || give_up no-task ;;
    *) give_up no-task ;;
esac
is_directory "$base/$place" && cd "$base/$place" 2>/dev/null || give_up no-task
give='
    group() {
        for size in $sizes; do
            file=$1
            shift
            [ -r "$file" ] || continue
            answer file "$size" "${file#./}"
            [ "$size" -eq 0 ] || set -- "$@" "$file"
        done
        answer contents 0 ""
        # With none it would read the input.
        [ $# -eq 0 ] || cat "$@" 2>/dev/null
        answer end 0 ""
    }'"$in_groups"
case $3 in
    one)
        [ -f "./$4" ] || give_up no-file
        [ -r "./$4" ] || give_up unreadable
        answer files
        echo 0 | /bin/sh -c "$give" sh "./$4"
        ;;
    all)
        answer files
        each_file 0 0 "$give"
        ;;
    *)
        answer files
        list -1 -1
        ;;
esac
