#!/usr/bin/env bash
# A newer Docker Engine with compose, from Debian trixie in a root of its own: what Inspect's Docker provider needs, for the benchmark
# against it. No test needs it.
#
#   docker-new.sh install   makes the root from packages (root, idempotent)
#   docker-new.sh start     starts the daemon and makes the image (idempotent); prints KEY=value lines
#   docker-new.sh stop      ends the daemon; what it stored stays for the next start
#
# TIERBOX_ENGINE_DIR says where it keeps its things (default /var/lib/tierbox-engines). Needs what docker.sh installs.
set -euo pipefail
[ "$(id -u)" = 0 ] || exec sudo -n --preserve-env=TIERBOX_ENGINE_DIR "$0" "$@"

engines="${TIERBOX_ENGINE_DIR:-/var/lib/tierbox-engines}"
home="$engines/docker-new"
socket="$home/docker.sock"
. "$(dirname "$0")/parts/daemon.sh"

install_packages() {
  [ -x "$home/root/usr/sbin/dockerd" ] && return
  mkdir -p "$home"
  mmdebstrap --variant=minbase --quiet --include=docker.io,docker-cli,docker-compose,iptables,iproute2 trixie "$home/root.new" >&2
  mv "$home/root.new" "$home/root"
}

# A command in that root, with this host's files where they are here: programs outside name them by their paths.
inside='root=$1; shift
mount --rbind "$root" "$root"; mkdir -p "$root/old"
for dir in proc sys dev; do mount --rbind "/$dir" "$root/$dir"; done
for dir in tmp run root home work srv opt "$TIERBOX_HOME"; do
  [ -d "/${dir#/}" ] || continue
  mkdir -p "$root/${dir#/}"; mount --bind "/${dir#/}" "$root/${dir#/}"
done
cd "$root"; pivot_root . old; cd /; umount -l /old
exec "$@"'

# The command `docker` for programs of this host.
command_docker() {
  mkdir -p "$home/bin"
  cat >"$home/bin/docker" <<END
#!/bin/sh
export TIERBOX_HOME='$engines' DOCKER_HOST='unix://$socket'
exec unshare --mount --propagation private sh -c '$inside' sh '$home/root' sh -c 'cd "\$0" 2>/dev/null; exec /usr/bin/docker "\$@"' "\$PWD" "\$@"
END
  chmod 755 "$home/bin/docker"
}

start() {
  command_docker
  if ! answers; then
    rm -f "$socket" "$home/dockerd.pid"
    TIERBOX_HOME="$engines" setsid unshare --net --mount --propagation private sh -c "ip link set lo up; $inside" sh "$home/root" dockerd \
      --host "unix://$socket" --data-root "$home/data" --exec-root "$home/exec" --pidfile "$home/dockerd.pid" \
      --exec-opt native.cgroupdriver=cgroupfs --storage-driver overlay2 >"$home/dockerd.log" 2>&1 </dev/null &
    await_daemon dockerd "$home/dockerd.log"
  fi
  if ! "$home/bin/docker" image inspect tierbox-test/debian:1 >/dev/null 2>&1; then
    [ -s "$engines/docker/debian.tar" ] || "$(dirname "$0")/docker.sh" start >/dev/null
    "$home/bin/docker" import -c 'CMD ["/bin/sh"]' "$engines/docker/debian.tar" tierbox-test/debian:1 >/dev/null
  fi
  echo "DOCKER_HOST=unix://$socket"
  echo "PATH=$home/bin:$PATH"
}

stop() { end_daemon "$home/dockerd.pid" "$home/data"; }

run_verb "$@"
