# Removes tasks and sessions. BASE AGE
enter_base "$1" || give_up done
say() { answer "$1" "$2"; }
answer done
expire "$2" say
