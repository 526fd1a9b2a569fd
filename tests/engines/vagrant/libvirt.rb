# -*- mode: ruby -*-
# What the test box says of itself: QEMU without hardware virtualisation, kernel and initramfs from the box.
Vagrant.configure("2") do |config|
  config.ssh.username = "vagrant"
  config.ssh.private_key_path = File.join(__dir__, "vagrant_key")
  config.ssh.insert_key = false
  config.vm.boot_timeout = 300
  config.vm.box_check_update = false
  config.vm.allow_hosts_modification = false
  config.vm.guest = :debian
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.vm.provider :libvirt do |v|
    v.driver = "qemu"
    v.cpu_mode = "maximum"
    v.memory = 512
    v.cpus = 1
    v.kernel = File.join(__dir__, "vmlinuz")
    v.initrd = File.join(__dir__, "initrd.img")
    v.cmd_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet mitigations=off nokaslr audit=0 " \
                 "no_timer_check rcupdate.rcu_expedited=1 random.trust_cpu=on selinux=0 apparmor=0 fsck.mode=skip"
    v.graphics_type = "none"
    v.video_type = "none"
    v.disk_bus = "virtio"
    v.disk_driver :cache => "unsafe"
    v.nic_model_type = "virtio"
    v.random :model => "random"
    v.management_network_keep = true
  end
end
