# What the scripts of engines with a daemon have in common. To be sourced; `answers` tells whether the daemon does, and `$socket` is
# where a daemon that speaks Docker's API listens.

answers() { curl -sf --max-time 2 --unix-socket "$socket" http://engine/_ping >/dev/null 2>&1; }

# Installs the packages of the programs that are missing, each given as program:package.
install_missing() {
  local missing=() pair
  for pair in "$@"; do
    type -P "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [ "${#missing[@]}" = 0 ] && return
  export DEBIAN_FRONTEND=noninteractive
  # No daemon of the host's is started: the tests bring their own.
  local policy=/usr/sbin/policy-rc.d
  [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; trap "rm -f $policy" EXIT; }
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# Waits for at most 30 s until a command succeeds.
wait_for() {
  local end=$((SECONDS + 30))
  until "$@"; do
    if [ "$SECONDS" -ge "$end" ]; then return 1; fi
    sleep 0.05
  done
}

# Waits until a daemon answers: its name, its log.
await_daemon() {
  wait_for answers && return
  echo "$1 did not come up; the end of $2:" >&2
  tail -n 20 "$2" >&2
  exit 1
}

# Ends a daemon: the file with its number, and what stands in the command line of the one that is meant, and of no other.
end_daemon() {
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 0
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$2" || return 0
  kill "$pid"
  wait_for test ! -d "/proc/$pid" || kill -9 "$pid"
}

# Does what the first argument says.
run_verb() {
  case "${1:-}" in
    install) install_packages ;;
    start) start ;;
    stop) stop ;;
    *) echo "usage: $0 install|start|stop" >&2; exit 2 ;;
  esac
}
