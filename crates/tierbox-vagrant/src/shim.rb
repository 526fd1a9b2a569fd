# Evaluates a Vagrantfile where it is, and then decides what must differ between the environments that are made from it.
# Written by tierbox; shim.json beside it says what.
require "fileutils"
require "ipaddr"
require "json"

unless defined?(TierboxShim)
  module TierboxShim
    SETTINGS = JSON.parse(File.read(File.join(__dir__, "shim.json"))).freeze
    PREFIX = SETTINGS.fetch("prefix")
    PROVIDER = SETTINGS.fetch("provider")
    ISOLATED = SETTINGS.fetch("isolated")

    class Refused < Vagrant::Errors::VagrantError
      def initialize(message)
        @said = message
        super()
      end

      def error_message
        @said
      end
    end

    def self.unique(name)
      name.to_s.start_with?(PREFIX) ? name.to_s : "#{PREFIX}#{name}"
    end

    # The name of a network that its Vagrantfile does not name: the same for all machines on it.
    def self.name_of(options)
      return options[:libvirt__network_name] if options[:libvirt__network_name]
      return "dhcp" unless options[:ip]
      mask = options[:libvirt__netmask] || options[:netmask] || "255.255.255.0"
      IPAddr.new("#{options[:ip]}/#{mask}").to_s
    end

    # Hosts' ports that are taken by another environment are exchanged for free ones.
    def self.forwarded_port(options)
      options[:auto_correct] = true
    end

    def self.private_network(options)
      return unless PROVIDER == "libvirt"
      if ISOLATED
        unless options[:ip]
          raise Refused, "a closed network needs a fixed address on each private network (`ip:`): nobody hands out addresses there"
        end
        options[:libvirt__network_name] = unique(name_of(options))
        options[:libvirt__forward_mode] = "veryisolated"
        options[:libvirt__dhcp_enabled] = false
        options.delete(:libvirt__host_ip)
      elsif !options.key?(:libvirt__network_name) && options[:ip]
        options[:libvirt__network_name] = unique(name_of(options))
      end
    end

    def self.public_network(_options)
      raise Refused, "a closed network forbids networks of the type public_network" if ISOLATED
    end

    module Networks
      def finalize!
        @__networks.each_value do |type, options|
          TierboxShim.public_send(type, options) if %i[forwarded_port private_network public_network].include?(type)
        end
        super
      end
    end

    module Libvirt
      def finalize!
        @default_prefix = PREFIX
        @management_network_keep = true
        if ISOLATED
          @management_network_name = ISOLATED.fetch("network")
          @management_network_address = ISOLATED.fetch("address")
          @management_network_mode = "none"
          @management_network_guest_ipv6 = "no"
          @management_network_autostart = false
          @mgmt_attach = true
          @qemu_use_session = false
        end
        super
      end
    end

    # Two processes that look for a free name for a bridge at the same time find the same one.
    module Bridges
      def generate_bridge_name
        number = 0
        number += 1 while lookup_bridge_by_name("#{SETTINGS.fetch("bridge")}#{number}")
        "#{SETTINGS.fetch("bridge")}#{number}"
      end
    end

    module Containers
      def generate_container_name(env)
        "#{PREFIX}#{env[:machine].name}"
      end
    end

    # How a machine is reached, told without another process of Vagrant's.
    def self.tell(machine)
      info = machine.ssh_info
      return unless info
      told = info.slice(:host, :port, :username, :proxy_command)
      told[:keys] = Array(info[:private_key_path]).map(&:to_s)
      told[:id] = machine.id
      told[:provider] = machine.provider_name
      path = File.join(SETTINGS.fetch("directory"), "ssh", "#{machine.name}.json")
      File.write("#{path}.part", JSON.generate(told))
      File.rename("#{path}.part", path)
    end

    manager = Vagrant.plugin("2").manager
    manager.config[:vm].prepend(Networks)
    if PROVIDER == "libvirt"
      manager.provider_configs[:libvirt].prepend(Libvirt)
      require "vagrant-libvirt/action"
      VagrantPlugins::ProviderLibvirt::Action::CreateNetworks.prepend(Bridges)
    elsif PROVIDER == "lxc"
      require "vagrant-lxc/action/create"
      Vagrant::LXC::Action::Create.prepend(Containers)
    end
  end
end

if ENV["TIERBOX_VAGRANT_GONE"]
  # The Vagrantfile has changed or is gone, and what was made from it must go all the same.
  machines = File.join(ENV.fetch("VAGRANT_DOTFILE_PATH"), "machines")
  Vagrant.configure("2") do |config|
    (File.directory?(machines) ? Dir.children(machines).sort : []).each do |name|
      config.vm.define(name) { |machine| machine.vm.box = "tierbox/gone" }
    end
  end
else
  load TierboxShim::SETTINGS.fetch("vagrantfile")
end

Vagrant.configure("2") do |config|
  config.trigger.after :up do |trigger|
    trigger.name = "tierbox"
    trigger.on_error = :continue
    trigger.ruby { |_env, machine| TierboxShim.tell(machine) }
  end
end
