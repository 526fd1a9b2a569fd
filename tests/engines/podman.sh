#!/usr/bin/env bash
# podman's Docker-compatible service for the tests: Debian's package, a service in network and mount namespaces of its own,
# and the image that docker.sh made.
#
#   podman.sh install   installs the packages (root, idempotent)
#   podman.sh start     starts the service and loads the image (idempotent); prints KEY=value lines for the tests
#   podman.sh stop      ends the service; what it stored stays for the next start
#
# TIERBOX_ENGINE_DIR says where it keeps its things (default /var/lib/tierbox-engines).
set -euo pipefail
[ "$(id -u)" = 0 ] || exec sudo -n --preserve-env=TIERBOX_ENGINE_DIR "$0" "$@"

engines="${TIERBOX_ENGINE_DIR:-/var/lib/tierbox-engines}"
home="$engines/podman"
socket="$home/podman.sock"
export CONTAINERS_CONF="$home/containers.conf"
podman() { command podman --root "$home/data" --runroot "$home/run" --storage-driver overlay --cgroup-manager cgroupfs --runtime runc "$@"; }

install_packages() {
  local missing=()
  for pair in podman:podman runc:runc conmon:conmon mmdebstrap:mmdebstrap; do
    type -P "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [ "${#missing[@]}" = 0 ] && return
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

answers() { curl -sf --max-time 2 --unix-socket "$socket" http://engine/_ping >/dev/null 2>&1; }

# Waits for at most 30 s until a command succeeds.
wait_for() {
  local end=$((SECONDS + 30))
  until "$@"; do
    if [ "$SECONDS" -ge "$end" ]; then return 1; fi
    sleep 0.05
  done
}

start() {
  mkdir -p "$home"
  # Root may not raise its own limits everywhere.
  cat >"$CONTAINERS_CONF" <<END
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
END
  if ! answers; then
    rm -f "$socket"
    # Its own network: the host's stays untouched.
    # It runs in a directory of its own: conmon notes that memory ran out by an empty file in the one where the service was started.
    setsid unshare --net --mount --propagation private sh -c 'ip link set lo up; echo $$ >"$1/pid"; cd "$1"; shift; exec "$@"' sh "$home" \
      podman --root "$home/data" --runroot "$home/run" --storage-driver overlay --cgroup-manager cgroupfs --runtime runc \
      system service --time=0 "unix://$socket" >"$home/podman.log" 2>&1 </dev/null &
    if ! wait_for answers; then
      echo "podman did not come up; the end of $home/podman.log:" >&2
      tail -n 20 "$home/podman.log" >&2
      exit 1
    fi
  fi
  if ! podman image exists tierbox-test/debian:1; then
    [ -s "$engines/docker/debian.tar" ] || "$(dirname "$0")/docker.sh" start >/dev/null
    podman import --quiet -c 'CMD ["/bin/sh"]' "$engines/docker/debian.tar" docker.io/tierbox-test/debian:1 >/dev/null
  fi
  echo "TIERBOX_ENGINE_PODMAN=unix://$socket"
}

stop() {
  [ -f "$home/pid" ] || return 0
  local pid
  pid=$(cat "$home/pid")
  # Only the service that was started with this directory.
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$socket" || return 0
  kill "$pid"
  wait_for test ! -d "/proc/$pid" || kill -9 "$pid"
}

case "${1:-}" in
  install) install_packages ;;
  start) start ;;
  stop) stop ;;
  *) echo "usage: $0 install|start|stop" >&2; exit 2 ;;
esac
