//! What each backend must at least be able to do, fixed here so that declaring less cannot pass more.

use tierbox_core::{Capabilities, HostIsolation, KillDomain, LimitCapabilities, Locality, MountSupport, Network, UserSupport};

/// A machine on this host that the supervisor serves, without isolation: mode `process` of the local backend.
pub fn local_process() -> Capabilities {
    Capabilities {
        host: HostIsolation::H0,
        networks: vec![Network::N0],
        locality: Locality::Local,
        kill_domain: KillDomain::Subreaper,
        streaming_output: true,
        streaming_stdin: true,
        pty: true,
        signals: true,
        idle_timeout: true,
        detached_exec: true,
        users: UserSupport::DefaultOnly,
        memory_outcome: false,
        usage: true,
        confined_exec: true,
        files: true,
        archives: true,
        dial: true,
        mounts: MountSupport::None,
        multi_machine: false,
        machines_apart: false,
        detached: true,
        snapshots: false,
        limits: LimitCapabilities { file_size: true, open_files: true, ..LimitCapabilities::default() },
    }
}

/// Mode `container` of the local backend as a plain user, who may have no cgroup.
pub fn local_container_plain() -> Capabilities {
    Capabilities {
        host: HostIsolation::H1,
        networks: vec![Network::N2],
        mounts: MountSupport::ReadOnly,
        limits: LimitCapabilities { disk: true, inodes: true, file_size: true, open_files: true, ..LimitCapabilities::default() },
        ..local_process()
    }
}

/// Mode `container` of the local backend as root, who has cgroups. Where the host gives root none to write to, the cases of
/// these limits are skipped with that reason.
pub fn local_container_root() -> Capabilities {
    let plain = local_container_plain();
    let limits = LimitCapabilities { memory: true, cpu: true, pids: true, ..plain.limits };
    Capabilities { users: UserSupport::Any, memory_outcome: true, limits, ..plain }
}

/// A container of a Docker Engine on this machine, with a read-only root and the supervisor inside.
pub fn docker() -> Capabilities {
    let limits = LimitCapabilities { memory: true, cpu: true, pids: true, ..local_container_plain().limits };
    Capabilities { users: UserSupport::Any, memory_outcome: true, limits, ..local_container_plain() }
}

/// A machine of Vagrant's libvirt provider, with the supervisor inside as root.
pub fn vagrant_libvirt() -> Capabilities {
    Capabilities {
        host: HostIsolation::H3,
        networks: vec![Network::N0, Network::N2],
        users: UserSupport::Any,
        multi_machine: true,
        snapshots: true,
        // The machine's kernel decides, which nobody knows before it boots.
        confined_exec: false,
        ..local_process()
    }
}

/// The same of podman's compatible service, which counts no files.
pub fn podman() -> Capabilities {
    let docker = docker();
    Capabilities { limits: LimitCapabilities { inodes: false, ..docker.limits }, ..docker }
}

/// The same of a Docker Engine without the supervisor: scripts by the engine's own exec, held by this host's cgroups.
pub fn docker_plain() -> Capabilities {
    let docker = docker();
    Capabilities {
        host: docker.host,
        networks: docker.networks,
        locality: docker.locality,
        kill_domain: KillDomain::Cgroup,
        users: docker.users,
        mounts: docker.mounts,
        limits: docker.limits,
        ..plain()
    }
}

/// A machine that is reached by a plain transport, with POSIX tools alone. As whom commands can run depends on the machine.
pub fn plain() -> Capabilities {
    let limits = LimitCapabilities { file_size: true, open_files: true, ..LimitCapabilities::default() };
    Capabilities {
        locality: Locality::Remote,
        kill_domain: KillDomain::Session,
        streaming_output: false,
        streaming_stdin: false,
        pty: false,
        signals: false,
        idle_timeout: false,
        detached_exec: false,
        confined_exec: false,
        usage: false,
        dial: false,
        detached: false,
        limits,
        ..local_process()
    }
}

/// An instance of EC2 behind SSM: a plain transport as root, with a cgroup for each command, whose output is asked for while it runs.
pub fn ec2() -> Capabilities {
    Capabilities {
        host: HostIsolation::H3,
        networks: vec![Network::N0, Network::N1, Network::N2],
        kill_domain: KillDomain::Cgroup,
        users: UserSupport::Any,
        streaming_output: true,
        multi_machine: true,
        ..plain()
    }
}

/// A task on an instance of EC2 that exists: one machine, as a user of its own and no other.
pub fn ec2_task() -> Capabilities {
    Capabilities { networks: vec![Network::N0], users: UserSupport::DefaultOnly, multi_machine: false, ..ec2() }
}
