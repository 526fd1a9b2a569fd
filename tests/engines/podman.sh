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
. "$(dirname "$0")/parts/daemon.sh"
export CONTAINERS_CONF="$home/containers.conf"
podman() { command podman --root "$home/data" --runroot "$home/run" --storage-driver overlay --cgroup-manager cgroupfs --runtime runc "$@"; }

install_packages() { install_missing podman:podman runc:runc conmon:conmon mmdebstrap:mmdebstrap curl:curl; }

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
    await_daemon podman "$home/podman.log"
  fi
  if ! podman image exists tierbox-test/debian:1; then
    [ -s "$engines/docker/debian.tar" ] || "$(dirname "$0")/docker.sh" start >/dev/null
    podman import --quiet -c 'CMD ["/bin/sh"]' "$engines/docker/debian.tar" docker.io/tierbox-test/debian:1 >/dev/null
  fi
  echo "TIERBOX_ENGINE_PODMAN=unix://$socket"
}

stop() { end_daemon "$home/pid" "$socket"; }

run_verb "$@"
