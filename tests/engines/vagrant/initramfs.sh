#!/bin/sh
# An initramfs that knows the virtual disk and its file system alone. Run before the kernel's package is unpacked.
set -e
mkdir -p "$1/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=zstd\nRESUME=none\nFSTYPE=ext4\n' >"$1/etc/initramfs-tools/conf.d/box"
printf 'virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n' >"$1/etc/initramfs-tools/modules"
