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

    # Where `up` is told what to start. Nobody else reads from there: not the Vagrantfile, nor what it runs.
    CHOICE = ENV.delete("TIERBOX_VAGRANT_ASKS") && $stdin.dup
    $stdin.reopen(File::NULL)

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

    UNSET = Vagrant::Plugin::V2::Config::UNSET_VALUE
    SYSTEM = "qemu:///system"

    # What isolates the machine, and where tierbox looks for it, is this host's own libvirt. A box may choose between KVM and emulation.
    def self.check_connection(settings)
      settings.each do |name, value|
        next if [UNSET, nil, false, ""].include?(value)
        fine = case name
               when :driver then %w[kvm qemu].include?(value.to_s)
               when :uri, :system_uri then value == SYSTEM
               when :host then value == "localhost"
               else false
               end
        raise Refused, "tierbox uses this host's own libvirt (#{SYSTEM}) alone, and the Vagrantfile sets libvirt.#{name} to #{value}" unless fine
      end
    end

    module Libvirt
      CONNECTION = %i[driver uri system_uri host socket connect_via_ssh qemu_use_session].freeze

      def finalize!
        TierboxShim.check_connection(CONNECTION.to_h { |name| [name, instance_variable_get("@#{name}")] })
        @uri = @system_uri = SYSTEM
        @host = @socket = UNSET
        @connect_via_ssh = @qemu_use_session = false
        @random_hostname = false
        @default_prefix = PREFIX
        @management_network_keep = true
        @disks.each { |disk| disk[:path] = TierboxShim.unique(disk[:path]) if disk[:path] && !disk[:allow_existing] }
        if ISOLATED
          @management_network_name = ISOLATED.fetch("network")
          @management_network_address = ISOLATED.fetch("address")
          @management_network_mode = "none"
          @management_network_guest_ipv6 = "no"
          @management_network_autostart = false
          @mgmt_attach = true
        end
        super
      end
    end

    # Tells which machines there are, and starts those that are then chosen: no other process of Vagrant's is needed to know them
    # before anything boots. Nothing is started if nobody is left to choose.
    module Asking
      def execute
        unless TierboxShim.asked?
          # What a Vagrantfile printed may not have ended its line.
          $stdout.write("\n")
          idle = @env.vagrantfile.machine_names_and_options.select { |_, options| options.key?(:autostart) && !options[:autostart] }
          @env.ui.machine("tierbox-idle", *idle.keys)
          @env.ui.machine("tierbox-machines", *@env.vagrantfile.machine_names)
          chosen = JSON.parse(CHOICE.gets || "null")
          return 0 unless chosen
          @argv += chosen
        end
        super
      end
    end

    # Whether `up` was told before: what a trigger brings up is the Vagrantfile's own matter.
    def self.asked?
      before, @asked = @asked, true
      before
    end

    # Environments from one Vagrantfile have rows of their own in Vagrant's list of machines: two that shared one, and boot at the same
    # time, could meet at its lock, which ends the second.
    module Rows
      def set(row)
        Thread.current[:tierbox_place] = row.local_data_path.to_s
        super
      ensure
        Thread.current[:tierbox_place] = nil
      end

      def each(*rest)
        place = Thread.current[:tierbox_place]
        super(*rest) { |row| yield row if place.nil? || row.local_data_path.to_s == place }
      end
    end

    # What is shared by all environments is made by one process at a time, on this host: the storage pool, the network that Vagrant
    # itself uses, and the volume of a box. Left to itself, Vagrant takes whatever has the right name for the whole.
    module Alone
      def call(env)
        lock = TierboxShim.shared_lock
        following = @app
        @app = lambda do |passed|
          lock.flock(File::LOCK_UN)
          following.call(passed)
        end
        before_alone(env) if respond_to?(:before_alone, true)
        super
      ensure
        lock&.close
      end
    end

    # A file that everybody may lock and nobody needs to write.
    def self.shared_lock
      path = File.join(%w[/run/lock /var/lock /tmp].find { |directory| File.directory?(directory) }, "tierbox-vagrant-libvirt")
      file = begin
        File.open(path, File::RDONLY | File::NOFOLLOW)
      rescue Errno::ENOENT
        File.open(path, File::RDONLY | File::CREAT | File::NOFOLLOW, 0o644)
      end
      sleep 0.1 until file.flock(File::LOCK_EX | File::LOCK_NB)
      file
    end

    # A volume that a killed process left has fewer bytes than its box.
    module Volumes
      PATIENCE = 5

      private

      def before_alone(env)
        box = env[:machine].box
        pool = env[:machine].provider.driver.connection.client.lookup_storage_pool_by_name(
          env[:machine].provider_config.storage_pool_name
        )
        images(env, box).each { |name, file| drop_half(pool, name, File.size(file)) if File.file?(file) }
      end

      # As the action itself names them.
      def images(env, box)
        klass = VagrantPlugins::ProviderLibvirt::Action::HandleBoxImage
        disks = box.metadata.fetch("disks", [])
        disks = [{ "path" => "box.img", "name" => "box" }] if disks.empty?
        disks.select { |disk| disk["path"] }.map do |disk|
          file = klass.get_box_image_path(box, disk["path"])
          name = disk.fetch("name", disk["path"].sub(/#{File.extname(disk["path"])}$/, ""))
          [klass.get_volume_name(box, name, file, env[:ui]), file]
        end
      end

      # Whoever uploads without tierbox takes no lock, but it grows.
      def drop_half(pool, name, wanted)
        last = nil
        still = 0
        while (size = size_of(pool, name)) && size < wanted
          still = size == last ? still + 1 : 0
          last = size
          return pool.lookup_volume_by_name(name).delete if still >= PATIENCE
          sleep 1
        end
      end

      def size_of(pool, name)
        xml = pool.lookup_volume_by_name(name).xml_desc
        xml[%r{<physical[^>]*>(\d+)</physical>}, 1]&.to_i
      rescue ::Libvirt::RetrieveError
        nil
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

    # Names that a Vagrantfile chose itself.
    module Container
      def finalize!
        @container_name = nil
        super
      end
    end

    module Named
      def finalize!
        super
        @name = TierboxShim.unique(@name) if @name
      end
    end

    module Displayed
      def finalize!
        super
        @vmx["displayname"] = TierboxShim.unique(@vmx["displayname"]) if @vmx && @vmx["displayname"]
      end
    end

    # What the Vagrantfile reads, for whoever keeps machines that were made from it.
    FILES = {}
    VARIABLES = {}
    LIBRARIES = [*Gem.path, *RbConfig::CONFIG.values_at("rubylibdir", "sitedir", "vendordir", "rubyarchdir"),
                 "/usr/share/vagrant", "/opt/vagrant", "/usr/lib/ruby", "/usr/share/rubygems-integration", "<internal"].compact.freeze

    def self.foreign?(path)
      path && path != __FILE__ && LIBRARIES.none? { |library| path.start_with?(library) }
    end

    module Reads
      def [](name)
        TierboxShim.look(name, caller_locations(1, 1))
        super
      end

      def fetch(name, *rest, &block)
        TierboxShim.look(name, caller_locations(1, 1))
        super
      end

      %i[key? has_key? include? member?].each do |asked|
        define_method(asked) do |name|
          TierboxShim.look(name, caller_locations(1, 1))
          super(name)
        end
      end
    end

    def self.look(name, from)
      VARIABLES[name.to_s] = true if foreign?(from&.first&.absolute_path || from&.first&.path)
    end

    module Loads
      private

      def load(file, *rest)
        TierboxShim::FILES[File.expand_path(file)] = true if TierboxShim.foreign?(File.expand_path(file))
        super
      end
    end

    def self.tell_inputs(machine)
      $LOADED_FEATURES.each { |path| FILES[path] = true if path.start_with?("/") && foreign?(path) }
      machine.config.vm.provisioners.each do |provisioner|
        %i[path source playbook].each do |name|
          path = provisioner.config.respond_to?(name) && provisioner.config.public_send(name)
          FILES[File.expand_path(path, machine.env.root_path)] = true if path.is_a?(String) && !path.include?("://")
        end
      end
      # A version of the box that is added makes its directory newer.
      if machine.box
        FILES[machine.box.directory.to_s] = true
        FILES[File.expand_path("../..", machine.box.directory.to_s)] = true
      end
      path = File.join(SETTINGS.fetch("directory"), "inputs.json")
      File.write("#{path}.part", JSON.generate(files: FILES.keys, variables: VARIABLES.keys))
      File.rename("#{path}.part", path)
    end

    # What a machine writes into a folder of this host is not put back with it.
    def self.check_pooled(machine)
      shared = machine.config.vm.synced_folders.reject { |_, options| options[:disabled] }
      return if shared.empty?
      raise Refused, "machines with synced folders (#{shared.keys.join(", ")}) cannot be kept in a pool: switch them off " \
                     "with `disabled: true`, or leave vagrant.pool out"
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
      tell_inputs(machine) if SETTINGS.fetch("pooled")
    end

    if SETTINGS.fetch("pooled")
      ENV.singleton_class.prepend(Reads)
      Object.prepend(Loads)
    end

    manager = Vagrant.plugin("2").manager
    manager.commands[:up].first.call.prepend(Asking) if CHOICE
    Vagrant::MachineIndex.prepend(Rows)
    manager.config[:vm].prepend(Networks)
    if PROVIDER == "libvirt"
      manager.provider_configs[:libvirt].prepend(Libvirt)
      require "vagrant-libvirt/action"
      actions = VagrantPlugins::ProviderLibvirt::Action
      actions::CreateNetworks.prepend(Bridges, Alone)
      actions::HandleStoragePool.prepend(Alone)
      actions::HandleBoxImage.prepend(Volumes, Alone)
    elsif PROVIDER == "lxc"
      require "vagrant-lxc/action/create"
      Vagrant::LXC::Action::Create.prepend(Containers)
      manager.provider_configs[:lxc].prepend(Container)
    elsif %w[virtualbox docker].include?(PROVIDER)
      manager.provider_configs[PROVIDER.to_sym].prepend(Named)
    elsif PROVIDER.start_with?("vmware")
      manager.provider_configs[PROVIDER.to_sym]&.prepend(Displayed)
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
  if TierboxShim::SETTINGS.fetch("pooled")
    config.trigger.before :up do |trigger|
      trigger.name = "tierbox"
      trigger.ruby { |_env, machine| TierboxShim.check_pooled(machine) }
    end
  end
  config.trigger.after :up do |trigger|
    trigger.name = "tierbox"
    trigger.on_error = :continue
    trigger.ruby { |_env, machine| TierboxShim.tell(machine) }
  end
end
