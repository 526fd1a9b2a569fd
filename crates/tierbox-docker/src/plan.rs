//! From a specification to the machines, networks and volumes of an environment, without touching anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tierbox_core::{
    EnvironmentSpec, ErrorKind, HostIsolation, MountSpec, Network, Result, engine_socket_below, malformed_path, names_a_secret,
};
use tierbox_guest::plain::stands_in_an_argument;

use crate::compose;
use crate::egress::EgressPlan;
use crate::engine;
use crate::limits;
use crate::outside::OUTSIDE;
use crate::settings::{Pull, Settings, Transport, cut, invalid};

/// The name of the only machine of an environment that is made from an image.
pub const DEFAULT_MACHINE: &str = "default";

/// Where commands start if neither the profile nor the image says so: a writable area of the machine's own.
pub const WORKSPACE: &str = "/workspace";

/// What an environment is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The machines, primary first.
    pub machines: Vec<MachinePlan>,
    /// The names of networks between machines.
    pub networks: Vec<String>,
    /// The names of volumes.
    pub volumes: Vec<String>,
    /// What of the engine's the machines have in common.
    pub settings: Settings,
    /// What they can reach.
    pub network: Network,
    /// The gateway, with N1.
    pub egress: Option<EgressPlan>,
    /// What makes them weaker than this backend's default.
    pub weakened: Vec<String>,
}

/// Where a machine's image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlan {
    /// The engine has it, or fetches it.
    Named(String, Pull),
    /// It is built for this environment.
    Built(BuildPlan),
}

/// An image to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildPlan {
    /// The directory that may be copied from.
    pub context: PathBuf,
    /// What the context must not lead out of, wherever links in it point.
    pub within: Option<PathBuf>,
    /// The Dockerfile, absolute.
    pub dockerfile: PathBuf,
    /// Arguments.
    pub args: BTreeMap<String, String>,
    /// The stage to stop at.
    pub target: Option<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct MachinePlan {
    /// Its name.
    pub name: String,
    /// Its host name, where that is another.
    pub hostname: Option<String>,
    /// Its image.
    pub image: ImagePlan,
    /// What runs in it beside the commands of the harness.
    pub service: Option<Service>,
    /// Variables beyond the image's.
    pub env: BTreeMap<String, String>,
    /// The user of commands and files, as `name`, `uid` or either with `:group`; the image's, unless that is root, where `None`.
    pub user: Option<String>,
    /// Where commands start; the image's directory where `None`.
    pub workdir: Option<String>,
    /// Whether the root is read-only.
    pub read_only: bool,
    /// Writable areas beyond the usual ones.
    pub tmpfs: Vec<String>,
    /// Host directories, read-only.
    pub mounts: Vec<MountSpec>,
    /// Volumes.
    pub volumes: Vec<VolumeMount>,
    /// The networks it is on, with the names it has there.
    pub links: Vec<Link>,
    /// Whether it is to be on no network at all.
    pub alone: bool,
    /// Capabilities of root inside.
    pub capabilities: Vec<String>,
    /// Limits of its own that are below the environment's.
    pub memory: Option<u64>,
    /// Likewise, in thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Likewise, processes.
    pub pids: Option<u64>,
}

/// A volume in a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// The volume's name in its environment.
    pub volume: String,
    /// Where it appears.
    pub guest: String,
    /// Whether the machine may only read it.
    pub read_only: bool,
}

/// A machine's place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The network's name in its environment.
    pub network: String,
    /// Names beside the machine's own.
    pub aliases: Vec<String>,
}

/// What a compose service runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Service {
    /// In place of the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's command.
    pub command: Option<Vec<String>>,
    /// How it is known to be well.
    pub health: Option<Health>,
    /// What must be there first.
    pub after: Vec<After>,
}

/// A health check.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// The command; `None` switches the image's off.
    pub test: Option<Vec<String>>,
    /// Between two runs.
    pub interval: std::time::Duration,
    /// For one run.
    pub timeout: std::time::Duration,
    /// Failures in a row that mean it is not well.
    pub retries: u32,
    /// Failures within this time do not count.
    pub start_period: std::time::Duration,
}

/// A service that must be there first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// Its name.
    pub service: String,
    /// What must be true of it.
    pub condition: Condition,
}

/// What must be true of a service that another depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Its command was started.
    Started,
    /// Its health check passed.
    Healthy,
    /// Its command ended with 0.
    Completed,
}

/// Checks a specification and plans its environment.
///
/// # Errors
/// `InvalidProfile` with the key that is wrong; `TierRefused`.
pub fn plan(spec: &EnvironmentSpec) -> Result<Plan> {
    spec.check_values()?;
    let settings = Settings::from_value(&spec.settings)?;
    check_tier(spec)?;
    check_network(spec, &settings)?;
    check_secrets(spec, &settings)?;
    check_mounts(spec, &engine::locate(&settings)?)?;
    check_workdir(spec.workdir.as_deref())?;
    let mut weakened = settings.weakened();
    if spec.user.as_deref().is_some_and(is_root) {
        weakened.push("user: commands run as root inside".to_owned());
    }
    let network = spec.tier.network();
    let egress = EgressPlan::of(spec)?;
    let (mut machines, mut networks, mut volumes) = (Vec::new(), Vec::new(), Vec::new());
    match &settings.compose {
        Some(path) => {
            let composed = compose::load(&spec.base_dir.join(path), spec, &settings)?;
            (machines, networks, volumes) = (composed.machines, composed.networks, composed.volumes);
            weakened.extend(composed.weakened);
        }
        None => machines.push(one_machine(spec, &settings)),
    }
    if spec.network.apart {
        machines.iter_mut().for_each(|machine| machine.links.clear());
        networks.clear();
    }
    machines.iter().try_for_each(|machine| limits::check(&spec.limits, machine))?;
    if network == Network::N0 {
        lead_outside(&mut machines, &mut networks);
    }
    Ok(Plan { machines, networks, volumes, network, egress, settings, weakened })
}

/// Puts every machine on a network that leads outside, but those that are to have none.
fn lead_outside(machines: &mut [MachinePlan], networks: &mut Vec<String>) {
    networks.push(OUTSIDE.to_owned());
    for machine in machines.iter_mut().filter(|machine| !machine.alone) {
        machine.links.push(Link { network: OUTSIDE.to_owned(), aliases: Vec::new() });
    }
}

impl Plan {
    /// Whether no supervisor is in its machines.
    pub fn is_plain(&self) -> bool {
        self.settings.transport == Transport::Plain
    }
}

/// Machines in groups: each waits only for those of groups before it. `None` if they wait for each other.
pub fn order(machines: &[&MachinePlan]) -> Option<Vec<Vec<usize>>> {
    let (mut groups, mut done): (Vec<Vec<usize>>, Vec<&str>) = (Vec::new(), Vec::new());
    while done.len() < machines.len() {
        let is_next = |machine: &MachinePlan| {
            let mut after = machine.service.iter().flat_map(|service| &service.after);
            !done.contains(&machine.name.as_str()) && after.all(|after| done.contains(&after.service.as_str()))
        };
        let next: Vec<usize> = (0..machines.len()).filter(|index| is_next(machines[*index])).collect();
        if next.is_empty() {
            return None;
        }
        done.extend(next.iter().map(|index| machines[*index].name.as_str()));
        groups.push(next);
    }
    Some(groups)
}

/// Whether a user's name or number is root's.
pub fn is_root(user: &str) -> bool {
    let name = user.split(':').next().unwrap_or_default();
    name.is_empty() || name == "root" || name.parse::<u32>() == Ok(0)
}

/// Without the supervisor a shell makes a command's variables, which it cannot under every name: others would stand in an argument.
fn check_secrets(spec: &EnvironmentSpec, settings: &Settings) -> Result<()> {
    let odd = spec.env.keys().find(|key| stands_in_an_argument(key.as_bytes()) && names_a_secret(key));
    match odd.filter(|_| settings.transport == Transport::Plain) {
        None => Ok(()),
        Some(key) => Err(invalid(format!(
            "docker.transport = \"plain\" cannot carry the secret env.{}: it would stand in an argument, which this host shows",
            cut(key)
        ))
        .with_help("name it with letters, digits and `_`, or use the supervisor (the default)")),
    }
}

fn check_tier(spec: &EnvironmentSpec) -> Result<()> {
    if spec.tier.host() == HostIsolation::H1 {
        return Ok(());
    }
    let nearest = format!("{}.H1.{}", spec.tier.tooling(), spec.tier.network());
    Err(tierbox_core::Error::new(
        ErrorKind::TierRefused,
        "check profile",
        format!("{} is a {}, and this backend makes local containers", spec.tier.host(), spec.tier.host().meaning()),
    )
    .with_backend(crate::BACKEND)
    .with_help(format!("the nearest tier that docker can enforce is {nearest}")))
}

/// A kernel of its own has a network of its own too, which is not the namespace that this host sees: neither a gateway nor routes that
/// are put there hold for it.
fn check_network(spec: &EnvironmentSpec, settings: &Settings) -> Result<()> {
    let network = spec.tier.network();
    let Some(runtime) = settings.own_kernel().filter(|_| network != Network::N2) else { return Ok(()) };
    let message = format!(
        "{network} cannot be enforced with docker.runtime = {runtime:?}: its kernel has a network of its own, in which this host can \
         neither listen nor set routes"
    );
    Err(tierbox_core::Error::new(ErrorKind::TierRefused, "check profile", message)
        .with_backend(crate::BACKEND)
        .with_help(format!("take {}.H1.N2, or leave docker.runtime out", spec.tier.tooling())))
}

/// Host directories: read-only ones alone, and never a way to the engine.
fn check_mounts(spec: &EnvironmentSpec, socket: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let engines = [socket, Path::new("/var/run/docker.sock"), Path::new("/run/podman/podman.sock"), Path::new("/run/containerd")];
    for mount in &spec.mounts {
        let host = real(&mount.host);
        let shown = mount.host.display();
        if engines.iter().any(|engine| real(engine).starts_with(&host) || host.starts_with(real(engine))) {
            return Err(invalid(format!("{shown} cannot be mounted: the engine's socket can be reached through it"))
                .with_help("whoever has the socket has this machine; mount a directory that does not hold it"));
        }
        if let Some(what) = no_file(&host) {
            return Err(invalid(format!("{shown} cannot be mounted: it is {what}, not a directory or file"))
                .with_help("copy in what the agent needs, or mount the directory that holds it"));
        }
        if let Some(found) = engine_socket_below(&host) {
            return Err(invalid(format!("{shown} cannot be mounted: it contains {}, an engine's socket", found.display()))
                .with_help("whoever has the socket has this machine; mount a directory that does not hold it"));
        }
        if let Some(why) = malformed_path(&mount.guest) {
            return Err(invalid(format!("mounts: {:?}: {why}", cut(&mount.guest))));
        }
        if is_reserved(&mount.guest) || mount.guest == "/" {
            return Err(invalid(format!("mounts: {:?} belongs to the machine", cut(&mount.guest))));
        }
    }
    Ok(())
}

/// What a path of this host's is, unless it is a file or a directory. One that is not there is the engine's to tell.
fn no_file(host: &Path) -> Option<&'static str> {
    use std::os::unix::fs::FileTypeExt;
    let kind = host.metadata().ok()?.file_type();
    match kind {
        kind if kind.is_file() || kind.is_dir() => None,
        kind if kind.is_socket() => Some("a socket"),
        _ => Some("a device or pipe"),
    }
}

fn check_workdir(workdir: Option<&str>) -> Result<()> {
    match workdir {
        Some(path) if is_reserved(path) => Err(invalid(format!("workdir = {:?} belongs to the machine", cut(path)))),
        _ => Ok(()),
    }
}

/// Whether a path inside is the kernel's or the supervisor's.
pub fn is_reserved(path: &str) -> bool {
    ["/proc", "/sys", "/dev", crate::launch::SUPERVISOR, crate::join::ROOM].iter().any(|own| Path::new(path).starts_with(own))
}

fn one_machine(spec: &EnvironmentSpec, settings: &Settings) -> MachinePlan {
    let image = match (&settings.image, &settings.dockerfile) {
        (Some(image), _) => ImagePlan::Named(image.clone(), settings.pull),
        (None, dockerfile) => {
            let dockerfile = spec.base_dir.join(dockerfile.as_deref().unwrap_or(Path::new("Dockerfile")));
            let context = settings.context.as_ref().map(|context| spec.base_dir.join(context));
            ImagePlan::Built(BuildPlan {
                context: context.unwrap_or_else(|| dockerfile.parent().unwrap_or(&spec.base_dir).to_owned()),
                dockerfile,
                within: None,
                args: BTreeMap::new(),
                target: None,
            })
        }
    };
    MachinePlan {
        image,
        env: spec.env.clone(),
        user: spec.user.clone(),
        workdir: spec.workdir.clone(),
        read_only: settings.is_read_only(),
        mounts: spec.mounts.clone(),
        capabilities: settings.all_capabilities(),
        ..machine(DEFAULT_MACHINE)
    }
}

/// A machine of this name, with a read-only root and nothing else.
pub fn machine(name: &str) -> MachinePlan {
    MachinePlan {
        name: name.to_owned(),
        hostname: None,
        image: ImagePlan::Named(String::new(), Pull::default()),
        service: None,
        env: BTreeMap::new(),
        user: None,
        workdir: None,
        read_only: true,
        tmpfs: Vec::new(),
        mounts: Vec::new(),
        volumes: Vec::new(),
        links: Vec::new(),
        alone: false,
        capabilities: Vec::new(),
        memory: None,
        cpu_millis: None,
        pids: None,
    }
}
