#!/usr/bin/env bash
# A headless browser for the tests of pages: Debian's chromium.
#
#   chromium.sh install   installs it (root, idempotent)
#   chromium.sh start     prints where it is, as KEY=value for the tests; nothing runs
#   chromium.sh stop      nothing to do
set -euo pipefail
[ "${1:-}" != install ] || [ "$(id -u)" = 0 ] || exec sudo -n "$0" "$@"

# Ubuntu's package of this name is a stub for a snap, which sees no file outside of homes.
find_browser() {
  local name
  for name in chromium google-chrome chromium-browser; do
    command -v "$name" && return
  done
  return 1
}

case "${1:-}" in
  install)
    if ! find_browser >/dev/null; then
      export DEBIAN_FRONTEND=noninteractive
      apt-get update -qq >&2
      apt-get install -y -qq --no-install-recommends chromium >&2
    fi
    ;;
  start) echo "TIERBOX_TEST_CHROMIUM=$(find_browser)" ;;
  stop) ;;
  *) echo "usage: $0 install|start|stop" >&2; exit 2 ;;
esac
