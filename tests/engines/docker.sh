#!/usr/bin/env bash
# Docker Engine for the tests: Debian's packages, a daemon in network and mount namespaces of its own, and images that are
# built here from Debian packages, so that nothing is pulled from an image registry.
#
#   docker.sh install   installs the packages (root, idempotent)
#   docker.sh start     starts the daemon and makes the images (idempotent); prints KEY=value lines for the tests
#   docker.sh stop      ends the daemon; what it stored stays for the next start
#
# TIERBOX_ENGINE_DIR says where it keeps its things (default /var/lib/tierbox-engines), TIERBOX_ENGINE_IMAGES which images it
# makes, TIERBOX_ENGINE_DISK how much it may store (default: as much as there is).
set -euo pipefail
[ "$(id -u)" = 0 ] || exec sudo -n --preserve-env=TIERBOX_ENGINE_DIR,TIERBOX_ENGINE_IMAGES,TIERBOX_ENGINE_DISK "$0" "$@"

home="${TIERBOX_ENGINE_DIR:-/var/lib/tierbox-engines}/docker"
socket="$home/docker.sock"
docker() { command docker -H "unix://$socket" "$@"; }
. "$(dirname "$0")/parts/daemon.sh"

install_packages() {
  install_missing dockerd:docker.io docker:docker.io containerd:containerd runc:runc iptables:iptables mmdebstrap:mmdebstrap \
    busybox:busybox-static curl:curl
}

# Ends what a daemon that was killed left: the next one, in other namespaces, would wait for its containerd and its shims in vain.
end_orphans() {
  local dir name
  for dir in /proc/[0-9]*; do
    name=$(cat "$dir/comm" 2>/dev/null) || continue
    case "$name" in containerd*) ;; *) continue ;; esac
    if grep -qaF "$home/exec" "$dir/cmdline" 2>/dev/null; then kill -9 "${dir#/proc/}" || true; fi
  done
  # The daemon takes whoever has the number that is noted there for its own containerd.
  rm -f "$home/exec/containerd/"containerd.{pid,sock,sock.ttrpc}
}

start_daemon() {
  if answers; then return; fi
  mkdir -p "$home"
  rm -f "$home/dockerd.pid" "$socket"
  mkdir -p "$home/data"
  local disk="true"
  [ -z "${TIERBOX_ENGINE_DISK:-}" ] || disk="mount -t tmpfs -o size=$TIERBOX_ENGINE_DISK tmpfs $home/data"
  end_orphans
  # Its own network: the host's bridges and packet filter stay untouched. cgroupfs: there may be no systemd.
  setsid unshare --net --mount --propagation private sh -c "ip link set lo up; $disk; exec dockerd \
    --host unix://$socket --data-root $home/data --exec-root $home/exec --pidfile $home/dockerd.pid \
    --exec-opt native.cgroupdriver=cgroupfs --storage-driver overlay2 --shutdown-timeout 2" >"$home/dockerd.log" 2>&1 </dev/null &
  await_daemon dockerd "$home/dockerd.log"
}

has() { docker image inspect "$1" >/dev/null 2>&1; }

# A small Debian: what most images are made of.
debian_image() {
  local tar="$home/debian.tar"
  [ -s "$tar" ] || { mmdebstrap --variant=minbase --format=tar --quiet --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --aptopt='Acquire::Languages "none"' "${TIERBOX_TEST_SUITE:-bookworm}" "$home/debian.new.tar" >&2 && mv "$home/debian.new.tar" "$tar"; }
  docker import -c 'CMD ["/bin/sh"]' "$tar" tierbox-test/debian:1 >/dev/null
}

# busybox with its applets, a user, variables and a working directory of its own.
busybox_image() {
  local root
  root=$(mktemp -d)
  mkdir -p "$root"/{bin,etc,tmp,home/app,srv/data}
  chmod 1777 "$root/tmp"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
  printf 'root:x:0:0:root:/:/bin/sh\napp:x:4242:4242:app:/home/app:/bin/sh\n' >"$root/etc/passwd"
  printf 'root:x:0:\napp:x:4242:\n' >"$root/etc/group"
  chown -R 4242:4242 "$root/home/app" "$root/srv/data"
  tar -C "$root" -c . | docker import -c 'CMD ["/bin/sh"]' -c 'USER app' -c 'WORKDIR /srv/data' -c 'ENV GREETING=hello' - tierbox-test/busybox:1 >/dev/null
  rm -r "$root"
}

# Nothing but one static program: no shell, no passwd, no /tmp.
scratch_image() {
  local root
  root=$(mktemp -d)
  cp "$(command -v busybox)" "$root/busybox"
  tar -C "$root" -c busybox | docker import -c 'ENTRYPOINT ["/busybox"]' - tierbox-test/scratch:1 >/dev/null
  rm -r "$root"
}

start() {
  start_daemon
  for image in ${TIERBOX_ENGINE_IMAGES:-debian busybox scratch}; do
    has "tierbox-test/$image:1" || "${image}_image"
  done
  # The image of the ready profile, which nothing here can fetch.
  if has tierbox-test/debian:1 && ! has debian:12-slim; then docker tag tierbox-test/debian:1 debian:12-slim; fi
  echo "TIERBOX_ENGINE_DOCKER=unix://$socket"
}

stop() { end_daemon "$home/dockerd.pid" "$home/data"; }

run_verb "$@"
