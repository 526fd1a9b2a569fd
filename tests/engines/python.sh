#!/usr/bin/env bash
# Python for the tests: Inspect with the provider, schemathesis, and clients of MCP, each pinned and in a virtual environment outside the
# checkout; and a small Debian as a directory in which samples run.
#
#   python.sh install   installs the packages of the system (root, idempotent)
#   python.sh start     makes the environment and the directory (idempotent); prints KEY=value lines for the tests
#   python.sh stop      nothing runs; what was made stays for the next start
#
# TIERBOX_ENGINE_DIR says where it keeps its things (default /var/lib/tierbox-engines).
set -euo pipefail
[ "$(id -u)" = 0 ] || exec sudo -n --preserve-env=TIERBOX_ENGINE_DIR,TIERBOX_TEST_SUITE "$0" "$@"

home="${TIERBOX_ENGINE_DIR:-/var/lib/tierbox-engines}/python"
checkout=$(cd "$(dirname "$0")/../.." && pwd)

# What an eval needs, and what fuzzes the daemon. Two environments: their dependencies are not of one mind.
inspect=(inspect-ai==0.3.285 pytest==9.2.0 setuptools==84.2.1)
tools=(schemathesis==4.32.5)
# Clients of the MCP server.
mcp=(mcp==2.1.1 strands-agents==1.62.0)

install_packages() {
  local missing=()
  for pair in python3:python3 mmdebstrap:mmdebstrap; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
  [ "${#missing[@]}" = 0 ] && return
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# An environment with these packages, made anew when the list changes.
environment() {
  local path="$home/$1" wanted="${*:2}"
  [ "$(cat "$path/wanted" 2>/dev/null)" = "$wanted" ] && return
  rm -rf "$path"
  python3 -m venv "$path" >&2
  "$path/bin/pip" install --quiet --disable-pip-version-check "${@:2}" >&2
  echo "$wanted" >"$path/wanted"
}

# The provider as people install it. It is built from a copy, because setuptools writes beside the sources.
provider() {
  rm -rf "$home/source"
  cp -r "$checkout/python" "$home/source"
  "$home/inspect/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation \
    --force-reinstall "$home/source" >&2
}

# A Debian with what Inspect's own checks need: `ps`, `adduser`, and Python for its tools and for people's `task`.
root_directory() {
  local packages=procps,adduser,python3
  [ -e "$home/root/etc/debian_version" ] && [ "$(cat "$home/root.wanted" 2>/dev/null)" = "$packages" ] && return
  rm -rf "$home/root.new" "$home/root"
  mmdebstrap --variant=minbase --include="$packages" --quiet \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --aptopt='Acquire::Languages "none"' \
    --customize-hook='chroot "$1" useradd --create-home --uid 1000 agent' \
    "${TIERBOX_TEST_SUITE:-bookworm}" "$home/root.new" >&2
  rm -rf "$home/root.new/dev"/* "$home/root.new/var/cache/apt" "$home/root.new/var/lib/apt/lists"
  mv "$home/root.new" "$home/root"
  echo "$packages" >"$home/root.wanted"
}

start() {
  mkdir -p "$home"
  environment inspect "${inspect[@]}"
  environment tools "${tools[@]}"
  environment mcp "${mcp[@]}"
  provider
  root_directory
  echo "TIERBOX_TEST_PYTHON=$home/inspect/bin/python"
  echo "TIERBOX_TEST_PYTHON_MCP=$home/mcp/bin/python"
  echo "TIERBOX_TEST_SCHEMATHESIS=$home/tools/bin/schemathesis"
  echo "TIERBOX_TEST_ROOT=$home/root"
}

case "${1:-}" in
  install) install_packages ;;
  start) start ;;
  stop) ;;
  *) echo "usage: $0 install|start|stop" >&2; exit 2 ;;
esac
