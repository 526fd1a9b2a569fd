# -*- mode: ruby -*-
# What the test box says of itself for LXC.
Vagrant.configure("2") do |config|
  config.ssh.username = "vagrant"
  config.ssh.private_key_path = File.join(__dir__, "vagrant_key")
  config.ssh.insert_key = false
  config.vm.boot_timeout = 120
  config.vm.box_check_update = false
  config.vm.guest = :debian
  config.vm.synced_folder ".", "/vagrant", disabled: true
end
