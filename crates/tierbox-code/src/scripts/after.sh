# Tells what a task left. BASE HASH PLACE SESSION_HASH ROOM ROOM
hash=$2
enter_base "$1" || give_up no-base
touch ".tasks/$hash" ${4:+".sessions/$4"} 2>/dev/null || :
is_directory "$base/$3" && cd "$base/$3" || give_up no-directory
answer files
list "$5" "$6"
