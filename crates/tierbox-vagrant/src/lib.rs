//! The backend `vagrant`: machines of any hypervisor that Vagrant drives, from a Vagrantfile that stays where it is.
//!
//! Vagrant makes, lists and destroys machines, as a subprocess; commands and files go over one kept OpenSSH connection per
//! machine to a supervisor inside. See [`Settings`] for what a profile's `[vagrant]` table takes.
//!
//! # Many environments from one Vagrantfile
//!
//! Each environment has a dotfile directory of its own in the state directory, and a token of eight hex digits. Vagrant
//! evaluates a small file of tierbox's that loads the Vagrantfile from its place, so that relative provisioners, synced
//! folders and `load` work, and that then makes unique what a provider wants unique:
//!
//! | provider | what | becomes |
//! |---|---|---|
//! | libvirt | names of domains and volumes | `tbx-TOKEN-MACHINE` |
//! | libvirt | names of private networks that the Vagrantfile does not name (N2: of all) | `tbx-TOKEN-NAME` |
//! | libvirt | names of bridges | `tbxTOKEN` and a number |
//! | libvirt | names of extra disks (`storage :file, path:`) | `tbx-TOKEN-NAME` |
//! | lxc | names of containers | `tbx-TOKEN-MACHINE` |
//! | virtualbox, docker, vmware | names that the Vagrantfile gives to machines | `tbx-TOKEN-NAME` |
//! | all | forwarded ports that are taken | another port (`auto_correct`) |
//!
//! A Vagrantfile can use more of it: `TIERBOX_VM_SUFFIX` (also as `INSPECT_VM_SUFFIX`) is `-TOKEN`, and may end names of
//! machines: tierbox shows and takes them without it.
//!
//! # Tiers
//!
//! | provider | isolation | networks |
//! |---|---|---|
//! | libvirt | H3, local | N0; N1 and N2 as root with nftables, on this host's own libvirt |
//! | qemu, virtualbox, vmware, hyperv, parallels | H3, local | N0 |
//! | lxc, docker | H0: such containers lack no_new_privs, and a user namespace or a short list of capabilities | N0 |
#![deny(missing_docs)]
#![forbid(unsafe_code)]
#![cfg(unix)]

mod backend;
mod cause;
mod crash;
mod destroy;
mod doctor;
mod egress;
mod environment;
mod groups;
mod index;
mod inputs;
mod isolation;
mod libvirt;
mod line;
mod machines;
mod place;
mod pool;
mod program;
mod provider;
mod record;
mod scripts;
mod settings;
mod snapshot;
mod ssh;
mod start;
mod swap;
mod throttle;
mod way;

pub use backend::VagrantBackend;
pub use settings::Settings;

/// The backend's name.
pub const BACKEND: &str = "vagrant";

tierbox_core::register_backend!(|| std::sync::Arc::new(VagrantBackend::new()));
