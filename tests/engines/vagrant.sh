#!/usr/bin/env bash
# Real Vagrant for the tests: libvirt over QEMU's software emulation, and LXC. Debian or Ubuntu, as root.
#
#   vagrant.sh install    packages; does nothing where they are there
#   vagrant.sh start      services, networks and boxes; prints KEY=value lines for the tests' environment
#   vagrant.sh stop       ends what `start` began; the boxes stay
#
# TIERBOX_VAGRANT_CACHE   where boxes and Vagrant's home are kept (/var/cache/tierbox/vagrant): worth keeping between CI runs
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
CACHE=${TIERBOX_VAGRANT_CACHE:-/var/cache/tierbox/vagrant}
RUN=/run/tierbox-vagrant
export DEBIAN_FRONTEND=noninteractive VAGRANT_HOME=$CACHE/home VAGRANT_CHECKPOINT_DISABLE=1

[ "$(id -u)" = 0 ] || { echo "vagrant.sh: run it as root" >&2; exit 1; }

virsh_() { virsh -q -c qemu:///system "$@"; }
is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install() {
  local plain=(vagrant vagrant-libvirt vagrant-lxc libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
    lxc bridge-utils mmdebstrap openssh-client nftables iptables iproute2 dnsmasq-base e2fsprogs rsync sudo)
  local qemu=(qemu-system-x86 qemu-system-common qemu-system-data seabios qemu-utils) missing=() name
  for name in "${plain[@]}" "${qemu[@]}"; do is_installed "$name" || missing+=("$name"); done
  [ "${#missing[@]}" -gt 0 ] || return 0
  apt-get -o DPkg::Lock::Timeout=600 update -qq
  # All parts of QEMU must be of one suite. Some images carry qemu-utils of backports already: then the rest comes from there.
  if dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null | grep -q bpo; then
    local source suite
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME-backports")
    source=$(apt-get indextargets --format '$(SITE) $(RELEASE)' | awk -v s="${suite%-backports}" '$2 == s {print $1; exit}')
    echo "deb $source $suite main" >/etc/apt/sources.list.d/tierbox-backports.list
    apt-get -o DPkg::Lock::Timeout=600 update -qq
    qemu=("${qemu[@]/%//$suite}")
  fi
  apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 install -y -qq --no-install-recommends "${plain[@]}" "${qemu[@]}" >/dev/null
}

start_libvirt() {
  local conf=/etc/libvirt/qemu.conf mark='# tierbox: tests without cgroups, namespaces and security modules'
  local restart=0
  if ! grep -qF "$mark" "$conf"; then
    restart=1
    cat >>"$conf" <<CONF

$mark
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
CONF
  fi
  if [ -d /run/systemd/system ]; then
    if [ "$restart" = 1 ]; then systemctl restart libvirtd; else systemctl start libvirtd; fi
  elif ! virsh_ version >/dev/null 2>&1; then
    rm -f /run/libvirtd.pid
    # An emulated machine has time limits of its own to keep: it goes before what runs beside it.
    setsid nice -n -10 /usr/sbin/libvirtd -d -p "$RUN/libvirtd.pid" </dev/null >>"$RUN/libvirtd.log" 2>&1
  fi
  # The first start asks every emulator what it can do.
  for _ in $(seq 600); do virsh_ version >/dev/null 2>&1 && break; sleep 0.1; done
  virsh_ version >/dev/null

  # Made here, because two first `vagrant up` race for the pool and the management network.
  if ! virsh_ pool-info default >/dev/null 2>&1; then
    mkdir -p /var/lib/libvirt/images
    virsh_ pool-define-as default dir --target /var/lib/libvirt/images
  fi
  virsh_ pool-list --name | grep -qw default || virsh_ pool-start default
  if ! virsh_ net-info vagrant-libvirt >/dev/null 2>&1; then
    virsh_ net-define "$HERE/vagrant/management.xml"
  fi
  virsh_ net-list --name | grep -qw vagrant-libvirt || virsh_ net-start vagrant-libvirt
}

start_lxc() {
  # A bridge that a container kept from going away at the last stop is there, but down.
  if [ -n "$(ip link show dev lxcbr0 up 2>/dev/null)" ]; then return 0; fi
  if [ -d /run/systemd/system ]; then
    systemctl start lxc-net
  else
    /usr/libexec/lxc/lxc-net start
    touch "$RUN/lxc-net"
  fi
}

start() {
  mkdir -p "$RUN" "$VAGRANT_HOME"
  chmod 700 "$VAGRANT_HOME"
  # Whoever comes second finds everything there.
  exec 9>"$RUN/lock"
  flock 9
  start_libvirt >&2 9>&-
  start_lxc >&2 9>&-
  "$HERE/vagrant/box.sh" "$CACHE/boxes" >&2 9>&-
  echo "VAGRANT_HOME=$VAGRANT_HOME"
  echo "VAGRANT_CHECKPOINT_DISABLE=1"
  echo "TIERBOX_TEST_VAGRANT=libvirt,lxc"
}

stop() {
  if [ -s "$RUN/libvirtd.pid" ]; then
    if [ -z "$(virsh_ list --name 2>/dev/null | tr -d ' \n')" ]; then virsh_ net-destroy vagrant-libvirt || true; fi
    kill "$(cat "$RUN/libvirtd.pid")" 2>/dev/null || true
    rm -f "$RUN/libvirtd.pid"
  fi
  if [ -e "$RUN/lxc-net" ]; then
    /usr/libexec/lxc/lxc-net stop || true
    rm -f "$RUN/lxc-net"
  fi
}

case "${1:-}" in
  install | start | stop) "$1" ;;
  *) echo "usage: vagrant.sh install|start|stop" >&2; exit 2 ;;
esac
