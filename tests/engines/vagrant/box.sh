#!/usr/bin/env bash
# Builds the test boxes from nothing but Debian packages: one root file system, packed for libvirt and for LXC.
#
#   box.sh DIRECTORY      keeps what is there, if it came of these files; TIERBOX_BOX_REBUILD=1 builds anew
#
# Leaves in DIRECTORY: debian-libvirt.box, debian-lxc.box, the key pair, VERSION, RECIPE and the catalogue that `vagrant box add` reads.
set -euo pipefail

OUT=$1
NAME=tierbox/debian12
SUITE=bookworm
PROVIDERS=(libvirt lxc)
HERE=$(cd "$(dirname "$0")" && pwd)
VAGRANT_HOME=${VAGRANT_HOME:-$HOME/.vagrant.d}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
say() { echo "box: $*"; }

build_root() { # DIR: the guest's root file system
  local root=$1 mirror packages
  mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 2>/dev/null | awk -v s=$SUITE '$2 == s {print $1; exit}')
  [ -n "$mirror" ] || { echo "box.sh: this host's apt knows no $SUITE" >&2; exit 1; }
  packages=systemd-sysv,udev,dbus,openssh-server,sudo,iproute2,iputils-ping,procps,netbase,busybox-static
  # Inspect's own checks add a user by it.
  packages+=,adduser
  packages+=,linux-image-cloud-amd64,initramfs-tools,zstd
  mmdebstrap --quiet --variant=minbase --mode=root --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --essential-hook="$HERE/initramfs.sh" "$SUITE" "$root" "deb $mirror $SUITE main"
}

settle_root() { # DIR: what makes it a Vagrant box that boots fast under emulation
  local root=$1 unit
  inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
  echo debian >"$root/etc/hostname"
  printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n' >"$root/etc/hosts"
  inside useradd -m -s /bin/bash -u 1000 -U vagrant
  inside usermod -p '*' root
  inside usermod -p '*' vagrant
  install -d -m 700 -o 1000 -g 1000 "$root/home/vagrant/.ssh"
  install -m 600 -o 1000 -g 1000 "$OUT/vagrant_key.pub" "$root/home/vagrant/.ssh/authorized_keys"
  echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
  chmod 440 "$root/etc/sudoers.d/vagrant"
  # One host key of one kind; many sessions on a connection.
  rm -f "$root"/etc/ssh/ssh_host_*
  ssh-keygen -q -t ed25519 -N '' -C box -f "$root/etc/ssh/ssh_host_ed25519_key"
  install -m 644 "$HERE/sshd.conf" "$root/etc/ssh/sshd_config.d/10-box.conf"
  sed -i '/pam_motd\|pam_mail/d' "$root/etc/pam.d/sshd"
  : >"$root/etc/motd"
  # All clones have one machine-id, so addresses must be asked for by the card's own.
  mkdir -p "$root/etc/systemd/network"
  install -m 644 "$HERE/eth0.network" "$root/etc/systemd/network/20-eth0.network"
  inside ln -sf /dev/null /etc/systemd/network/99-default.link
  # Without it, and without pam_systemd, a halt never closes the SSH connection that asked for it, and Vagrant waits.
  install -m 644 "$HERE/end-ssh.service" "$root/etc/systemd/system/end-ssh.service"
  inside systemctl enable end-ssh.service systemd-networkd.service ssh.service >/dev/null 2>&1
  inside systemctl disable systemd-networkd-wait-online.service >/dev/null 2>&1 || true
  while read -r unit; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done <"$HERE/masked-units"
  mkdir -p "$root/etc/systemd/journald.conf.d" "$root/etc/systemd/system.conf.d"
  printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n' >"$root/etc/systemd/journald.conf.d/box.conf"
  printf '[Manager]\nDefaultTimeoutStopSec=10s\n' >"$root/etc/systemd/system.conf.d/box.conf"
  # A machine-id that is set keeps systemd from its work of a first boot.
  head -c16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$root/etc/machine-id"
  echo >>"$root/etc/machine-id"
  rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
}

pack_libvirt() { # ROOT BOX: kernel and initramfs beside an image without them, because QEMU boots them directly
  local root=$1 box=$2 kernel version
  kernel=$(ls "$root"/boot/vmlinuz-* | sort -V | tail -1)
  version=${kernel##*/vmlinuz-}
  cp "$kernel" "$box/vmlinuz"
  cp "$root/boot/initrd.img-$version" "$box/initrd.img"
  printf '/dev/vda / ext4 rw,noatime 0 0\n' >"$root/etc/fstab"
  mv "$root/boot" "$box/../boot"
  mkdir "$root/boot"
  truncate -s 2G "$box/disk.raw"
  mke2fs -q -t ext4 -E lazy_itable_init=1,root_owner=0:0 -m 0 -d "$root" "$box/disk.raw"
  qemu-img convert -O qcow2 "$box/disk.raw" "$box/box.img"
  rm "$box/disk.raw"
  printf '{"provider":"libvirt","format":"qcow2","virtual_size":2}\n' >"$box/metadata.json"
}

pack_lxc() { # ROOT BOX; Vagrant's template for LXC strips two leading parts of every name
  local root=$1 box=$2
  printf '# a container\n' >"$root/etc/fstab"
  tar -C "$(dirname "$root")" --numeric-owner --xattrs --xattrs-include='*' --exclude='./rootfs/usr/lib/modules/*' \
    -cf - "./$(basename "$root")" | gzip -1 >"$box/rootfs.tar.gz"
  cp "$HERE/lxc-config" "$box/lxc-config"
  printf '{"provider":"lxc","version":"1.0.0","built-on":"%s"}\n' "$(date -u +%FT%TZ)" >"$box/metadata.json"
}

build() {
  local provider box
  WORK=$(mktemp -d "$OUT/.build.XXXXXX")
  trap 'rm -rf "$WORK"' EXIT
  # Not the key that everybody knows, so that Vagrant does not swap it at every start.
  [ -s "$OUT/vagrant_key" ] || ssh-keygen -q -t ed25519 -N '' -C tierbox-test-box -f "$OUT/vagrant_key"
  say "root file system"
  build_root "$WORK/rootfs"
  settle_root "$WORK/rootfs"
  for provider in "${PROVIDERS[@]}"; do
    say "$provider"
    box=$WORK/box-$provider
    mkdir "$box"
    install -m 600 "$OUT/vagrant_key" "$box/vagrant_key"
    cp "$HERE/$provider.rb" "$box/Vagrantfile"
    "pack_$provider" "$WORK/rootfs" "$box"
    tar -C "$box" --sparse -cf "$OUT/debian-$provider.box.part" .
    mv "$OUT/debian-$provider.box.part" "$OUT/debian-$provider.box"
  done
  echo "1.$(date -u +%Y%m%d).$((10#$(date -u +%H%M%S)))" >"$OUT/VERSION"
  recipe >"$OUT/RECIPE"
}

recipe() { # what a box comes of: one that came of something else is built anew
  (cd "$HERE" && sha256sum ./* | sha256sum)
}

add() { # a catalogue gives the box a real version, hence its volume a name that changes with it
  local version provider separator='' slash=${NAME//\//-VAGRANTSLASH-}
  version=$(cat "$OUT/VERSION")
  {
    printf '{"name":"%s","versions":[{"version":"%s","providers":[' "$NAME" "$version"
    for provider in "${PROVIDERS[@]}"; do
      printf '%s{"name":"%s","url":"file://%s/debian-%s.box"}' "$separator" "$provider" "$OUT" "$provider"
      separator=,
    done
    printf ']}]}\n'
  } >"$OUT/catalogue.json"
  for provider in "${PROVIDERS[@]}"; do
    [ ! -d "$VAGRANT_HOME/boxes/$slash/$version/$provider" ] || continue
    say "vagrant box add ($provider)"
    vagrant box remove --force --all --provider "$provider" "$NAME" >/dev/null 2>&1 || true
    vagrant box add --force --provider "$provider" "$OUT/catalogue.json" >"$OUT/add.log" 2>&1 || { cat "$OUT/add.log"; exit 1; }
  done
}

if [ "${TIERBOX_BOX_REBUILD:-0}" = 1 ] || [ ! -s "$OUT/VERSION" ] || [ "$(recipe)" != "$(cat "$OUT/RECIPE" 2>/dev/null)" ]; then
  build
fi
add
