#!/usr/bin/env bash
# AWS for the tests: EC2, SSM Run Command and S3 on one loopback port, with machines in which commands really run; boto3, and cfn-lint.
#
#   aws.sh install   installs the packages of the system (root, idempotent)
#   aws.sh start     makes the virtual environment and the image, starts the server (idempotent); prints KEY=value lines for the tests
#   aws.sh stop      ends the server and its machines; what was made stays for the next start
#
# TIERBOX_ENGINE_DIR says where it keeps its things (default /var/lib/tierbox-engines), TIERBOX_AWS_PORT which port it serves (default
# 5055). What the server imitates, and what it guesses, is in aws/README.md.
set -euo pipefail
[ "$(id -u)" = 0 ] || exec sudo -n --preserve-env=TIERBOX_ENGINE_DIR,TIERBOX_TEST_SUITE,TIERBOX_AWS_PORT "$0" "$@"

home="${TIERBOX_ENGINE_DIR:-/var/lib/tierbox-engines}/aws"
port="${TIERBOX_AWS_PORT:-5055}"
sources=$(cd "$(dirname "$0")/aws" && pwd)

install_packages() {
  local missing=()
  for pair in python3:python3 mmdebstrap:mmdebstrap unshare:util-linux ip:iproute2 nft:nftables curl:curl; do
    type -P "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
  [ "${#missing[@]}" = 0 ] && return
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# The server's packages, every one pinned; made anew when the list changes.
environment() {
  cmp -s "$sources/requirements.txt" "$home/venv/wanted" && return
  rm -rf "$home/venv"
  python3 -m venv "$home/venv" >&2
  "$home/venv/bin/pip" install --quiet --disable-pip-version-check -r "$sources/requirements.txt" >&2
  cp "$sources/requirements.txt" "$home/venv/wanted"
}

# What a machine has: of what cloud images of Ubuntu and Amazon Linux have in common, all that the backend may use; and what Inspect's
# own checks call. Made anew when the list changes.
packages=adduser,ca-certificates,curl,iproute2,iptables,nftables,openssl,passwd,procps,python3,sudo,util-linux

image() {
  local suite=${TIERBOX_TEST_SUITE:-bookworm}
  [ "$(cat "$home/root.wanted" 2>/dev/null)" = "$suite $packages" ] && return
  # The machines of a server that runs lie over it.
  stop
  rm -rf "$home/root.new" "$home/root"
  mmdebstrap --variant=minbase --quiet --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --aptopt='Acquire::Languages "none"' \
    "$suite" "$home/root.new" >&2
  rm -rf "$home/root.new/dev"/* "$home/root.new/var/cache/apt" "$home/root.new/var/lib/apt/lists"
  mv "$home/root.new" "$home/root"
  echo "$suite $packages" >"$home/root.wanted"
}

answers() { curl --silent --fail --max-time 5 "http://127.0.0.1:$port/__emu__/state" >/dev/null; }

# Waits for at most 60 s until a command succeeds.
wait_for() {
  local end=$((SECONDS + 60))
  until "$@"; do
    if [ "$SECONDS" -ge "$end" ]; then return 1; fi
    sleep 0.1
  done
}

# A hash of the sources: a server of other sources is replaced.
version() { cat "$sources"/*.py "$sources"/emulator/*.py | sha256sum | cut -d' ' -f1; }

serve() {
  if answers && [ "$(cat "$home/version" 2>/dev/null)" = "$(version)" ]; then return; fi
  stop
  rm -rf "$home/disks" && mkdir -p "$home/disks"
  PYTHONDONTWRITEBYTECODE=1 setsid "$home/venv/bin/python" "$sources/server.py" --port "$port" --image "$home/root" \
    --dir "$home/disks" >"$home/server.log" 2>&1 </dev/null &
  echo $! >"$home/server.pid"
  if ! wait_for answers; then
    echo "the server did not come up; the end of $home/server.log:" >&2
    tail -n 20 "$home/server.log" >&2
    exit 1
  fi
  version >"$home/version"
}

start() {
  mkdir -p "$home"
  # One at a time: two runs that start together must not make the same things.
  exec 9>"$home/lock"
  flock 9
  environment
  image
  serve 9>&-
  echo "TIERBOX_TEST_AWS=http://127.0.0.1:$port"
  echo "TIERBOX_TEST_AWS_PYTHON=$home/venv/bin/python"
  echo "TIERBOX_TEST_CFN_LINT=$home/venv/bin/cfn-lint"
}

# The processes of this server: it leads a session, and its machines' first processes are in it.
stop() {
  local pid
  pid=$(cat "$home/server.pid" 2>/dev/null) || return 0
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "$home/disks" || return 0
  kill "$pid"
  wait_for test ! -d "/proc/$pid" || kill -9 -- "-$pid"
}

case "${1:-}" in
  install) install_packages ;;
  start) start ;;
  stop) stop ;;
  *) echo "usage: $0 install|start|stop" >&2; exit 2 ;;
esac
