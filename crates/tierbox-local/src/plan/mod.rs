//! From a specification to what the supervisor is told: which mechanisms, which paths, which ids. Nothing is made here.

pub mod cgroups;
pub mod files;
pub mod limits;
pub mod mounts;
pub mod network;
pub mod users;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tierbox_core::{EnvironmentSpec, Error, ErrorKind, Hold, LimitReport, Resource, Result};
use tierbox_supervisor::protocol::VERSION;
use tierbox_supervisor::setup::{self, Agent, Bind, Root, Setup, UserMap};
use tierbox_supervisor::wire::Blob;

use crate::BACKEND;
use crate::plan::cgroups::Cgroups;
use crate::plan::limits::Means;
use crate::plan::network::{GatewayPlan, HelperProgram};
use crate::settings::{Mode, Settings, Users, invalid};

/// The directory where commands start in a container.
pub const WORKDIR: &str = "/workspace";

/// The search path of a machine's commands.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where programs of the host are looked for: never in the caller's own `PATH`.
const PROGRAM_DIRS: [&str; 6] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The longest path of a Unix socket, with room for the closing NUL.
const LONGEST_SOCKET: usize = 107;

/// A machine that could be started.
#[derive(Debug)]
pub struct Plan {
    /// For the supervisor.
    pub setup: Setup,
    /// Container or process.
    pub mode: Mode,
    /// The network helper, if one is needed.
    pub helper: Option<HelperProgram>,
    /// The gateway, if the network is its.
    pub gateway: Option<GatewayPlan>,
    /// How the limits are enforced.
    pub limits: Vec<LimitReport>,
    /// What will be made on this host.
    pub resources: Vec<Resource>,
    /// Host directories that are visible inside.
    pub mounts: Vec<String>,
    /// Directories of this environment's own that must be made first.
    pub directories: Vec<PathBuf>,
}

/// A path as the protocol carries it.
pub fn bytes(path: &Path) -> Blob {
    Blob::from(path.as_os_str().as_bytes())
}

/// A program of the host by name, in its usual directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| users::is_program(path))
}

/// A user's name on this host.
pub fn user_name(uid: u32) -> Option<String> {
    files::host_user(uid).map(|(name, _)| name)
}

/// Home directories on this host, the caller's first, without links.
pub fn homes() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let own = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute() && home != Path::new("/"));
    let listed = files::host_user(uid).map(|(_, home)| home).filter(|home| home != Path::new("/"));
    let mut homes: Vec<PathBuf> =
        own.into_iter().chain(listed).chain([PathBuf::from("/root")]).chain(tierbox_core::homes_of_people()).collect();
    let real: Vec<PathBuf> = homes.iter().filter_map(|home| home.canonicalize().ok()).collect();
    homes.extend(real);
    homes.dedup();
    homes
}

/// Everything that can be checked without side effects: settings, tier, limits, mounts, environment, names.
///
/// # Errors
/// `InvalidProfile`, `TierRefused`, `Unsupported`.
pub fn validate(spec: &EnvironmentSpec) -> Result<(Settings, Mode)> {
    let settings = Settings::from_value(&spec.settings)?;
    let mode = settings.mode_for(spec.tier)?;
    network::validate(spec)?;
    limits::validate(&spec.limits, mode)?;
    spec.check_values()?;
    match mode {
        Mode::Process => validate_process(spec, &settings)?,
        Mode::Container => validate_container(spec, &settings)?,
    }
    Ok((settings, mode))
}

fn validate_process(spec: &EnvironmentSpec, settings: &Settings) -> Result<()> {
    let purposeless = [
        ("local.root", settings.root.is_some()),
        ("local.binds", !settings.binds.is_empty()),
        ("local.users", settings.users == Users::Range),
        ("user", spec.user.is_some()),
    ];
    if let Some((name, _)) = purposeless.into_iter().find(|(_, set)| *set) {
        return Err(invalid(format!("{name} has no meaning in mode \"process\": commands run as you, among the host's files")));
    }
    if !spec.mounts.is_empty() {
        return Err(Error::unsupported("check profile", "a mount in mode \"process\"")
            .with_backend(BACKEND)
            .with_help("copy what is needed in, or use mode \"container\" (H1)"));
    }
    Ok(())
}

fn validate_container(spec: &EnvironmentSpec, settings: &Settings) -> Result<()> {
    mounts::plan(&spec.mounts, settings)?;
    let root = settings.root_path(&spec.base_dir);
    if let Some(root) = &root {
        validate_root(root)?;
    }
    files::users(spec.user.as_deref(), root.as_deref())?;
    let Some(workdir) = &spec.workdir else { return Ok(()) };
    // With a root of its own the whole tree is private, and images keep their work below /usr or /opt.
    if root.is_none() { mounts::check_workdir(workdir) } else { Ok(()) }
}

fn validate_root(root: &Path) -> Result<()> {
    let real = root.canonicalize().map_err(|error| invalid(format!("local.root = {}: {error}", root.display())))?;
    if !real.is_dir() {
        return Err(invalid(format!("local.root = {} is not a directory", root.display())));
    }
    if real == Path::new("/") || homes().iter().any(|home| home.starts_with(&real)) {
        return Err(invalid(format!("local.root = {} holds this host's own files", root.display()))
            .with_help("leave local.root out for a root made from the host's /usr, or unpack an image into a directory"));
    }
    Ok(())
}

/// Reads a file of the kernel's, which does not say how long it is: in one read instead of many that grow.
pub fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::with_capacity(4096);
    std::io::Read::read_to_string(&mut std::fs::File::open(path)?, &mut text)?;
    Ok(text)
}

/// What this host can do about limits.
pub fn means(mode: Mode) -> Means<'static> {
    static PER_NAMESPACE: OnceLock<bool> = OnceLock::new();
    let nproc_per_namespace =
        *PER_NAMESPACE.get_or_init(|| cgroups::at_least(&rustix::system::uname().release().to_string_lossy(), 5, 14));
    Means { cgroups: Cgroups::of_this_host(), mode, nproc_per_namespace }
}

/// Whether this kernel can keep a command to named executables: Landlock that governs truncation too. Only a trial tells
/// whether it is also turned on.
pub fn has_landlock() -> bool {
    cgroups::at_least(&rustix::system::uname().release().to_string_lossy(), 6, 2)
}

/// Plans a machine with the cgroups that were found for it. `directory` gives the environment's own directory on the host, and is asked only where one is needed.
///
/// # Errors
/// As [`validate`]; `LimitRefused`, `HostUnable`; what `directory` says.
pub fn plan(spec: &EnvironmentSpec, id: &str, found: &Cgroups, directory: impl FnOnce() -> Result<PathBuf>) -> Result<Plan> {
    let (settings, mode) = validate(spec)?;
    let planned_limits = limits::plan(&spec.limits, Means { cgroups: found, ..means(mode) }, id)?;
    let network = network::plan(spec, mode, settings.network)?;
    let listens = spec.hold != Hold::Process;
    let directory = if listens || mode == Mode::Process { Some(directory()?) } else { None };
    let listen = directory.as_ref().filter(|_| listens).map(|dir| socket_path(dir)).transpose()?;
    let machine = match mode {
        Mode::Container => container(spec, &settings, id, network.nameserver().as_deref())?,
        Mode::Process => process(spec, directory.as_deref().unwrap_or(Path::new("/nonexistent"))),
    };
    let resource = |kind: &str, path: &[u8]| Resource { kind: kind.to_owned(), id: String::from_utf8_lossy(path).into_owned() };
    let made = planned_limits.cgroups.iter().map(|cgroup| resource("cgroup", &cgroup.path.0));
    let made_paths = machine.directories.iter().map(|path| resource("directory", path.as_os_str().as_bytes()));
    let sockets = listen.iter().map(|path| resource("socket", path.as_os_str().as_bytes()));
    let resources = made.chain(made_paths).chain(sockets).collect();
    let mounts = machine.binds.iter().map(shown_bind).collect();
    let (mut binds, mut files) = (machine.binds, machine.files);
    if mode == Mode::Container && settings.root.is_none() {
        let (shared_binds, copies) = files::shared();
        binds.splice(0..0, shared_binds.iter().cloned());
        files.extend_from_slice(copies);
    }
    let mut env = machine.env;
    env.extend(network.gateway.iter().flat_map(|gateway| gateway.sockets.variables()));
    env.extend(spec.env.clone());
    let setup = Setup {
        version: VERSION,
        mode: match mode {
            Mode::Container => setup::Mode::Container,
            Mode::Process => setup::Mode::Process,
        },
        id: id.to_owned(),
        users: machine.users,
        agent: machine.agent,
        env: env.into_iter().map(|(key, value)| (Blob(key.into_bytes()), Blob(value.into_bytes()))).collect(),
        root_path: None,
        workdir: machine.workdir,
        root: machine.root,
        binds,
        files,
        writable: Vec::new(),
        disk: planned_limits.disk,
        inodes: planned_limits.inodes,
        rlimits: planned_limits.rlimits,
        cgroups: planned_limits.cgroups,
        net: network.net,
        listen: listen.as_deref().map(bytes),
        persist: false,
        lifetime_ms: spec.limits.lifetime.map(|life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX)),
        crash_at: crate::crash::requested(),
        lifted: Vec::new(),
        filter: false,
    };
    Ok(Plan {
        setup,
        mode,
        helper: network.helper,
        gateway: network.gateway,
        limits: planned_limits.reports,
        resources,
        mounts,
        directories: machine.directories,
    })
}

/// The parts of a set-up that differ between the modes.
struct Machine {
    users: UserMap,
    agent: Agent,
    env: BTreeMap<String, String>,
    workdir: Blob,
    root: Root,
    binds: Vec<Bind>,
    files: Vec<setup::MadeFile>,
    directories: Vec<PathBuf>,
}

fn container(spec: &EnvironmentSpec, settings: &Settings, id: &str, nameserver: Option<&str>) -> Result<Machine> {
    let root = settings.root_path(&spec.base_dir).map(|root| root.canonicalize().unwrap_or(root));
    let people = files::users(spec.user.as_deref(), root.as_deref())?;
    let map = users::choose(own_ids(), wanted_users(spec, settings), id)?;
    if !holds(&map, &people.agent) {
        return Err(Error::new(
            ErrorKind::HostUnable,
            "choose users",
            format!("user {} is not among the ids of this container", people.agent.name),
        )
        .with_backend(BACKEND)
        .with_help("choose a user with a number below 65536"));
    }
    let files = files::made(&people, id, nameserver);
    let home = String::from_utf8_lossy(&people.agent.home.0).into_owned();
    Ok(Machine {
        users: map,
        env: base_env(&people.agent.name, &home, &people.shell),
        workdir: Blob::from(spec.workdir.as_deref().unwrap_or(WORKDIR).as_bytes()),
        root: root.as_deref().map_or(Root::Host, |path| Root::Directory { path: bytes(path) }),
        binds: mounts::plan(&spec.mounts, settings)?,
        files,
        directories: Vec::new(),
        agent: people.agent,
    })
}

/// A plain user's files are writable inside only for himself: with a writable mount he is the agent, unless a range is asked
/// for. Root's mounts are lent to the agent whoever owns them.
fn wanted_users(spec: &EnvironmentSpec, settings: &Settings) -> Users {
    let lends = own_ids().can_map;
    let writes = spec.mounts.iter().any(|mount| mount.writable);
    if settings.users == Users::Auto && writes && !lends { Users::Single } else { settings.users }
}

/// Whether a map holds the agent. With a single id the agent is that one, whatever its number.
fn holds(map: &UserMap, agent: &Agent) -> bool {
    match map {
        UserMap::Single => true,
        UserMap::Direct { count, .. } => agent.uid < *count && agent.gid < *count,
        // 0 inside is the caller; the ranges begin at 1.
        UserMap::Helper { uids, gids, .. } => agent.uid <= *uids && agent.gid <= *gids,
    }
}

/// The ids of this process, looked up once.
fn own_ids() -> &'static users::Ids {
    static IDS: OnceLock<users::Ids> = OnceLock::new();
    IDS.get_or_init(users::Ids::read)
}

fn process(spec: &EnvironmentSpec, directory: &Path) -> Machine {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let name = user_name(uid).unwrap_or_else(|| uid.to_string());
    let [work, home, temporary] = ["work", "home", "tmp"].map(|name| directory.join(name));
    let mut env = base_env(&name, &home.to_string_lossy(), "/bin/sh");
    env.insert("TMPDIR".to_owned(), temporary.to_string_lossy().into_owned());
    let workdir = spec.workdir.as_ref().map_or_else(|| bytes(&work), |path| Blob::from(path.as_bytes()));
    Machine {
        users: UserMap::Single,
        agent: Agent { name, uid, gid, home: bytes(&home) },
        env,
        workdir,
        root: Root::Host,
        binds: Vec::new(),
        files: Vec::new(),
        directories: vec![work, home, temporary],
    }
}

fn base_env(name: &str, home: &str, shell: &str) -> BTreeMap<String, String> {
    [("PATH", PATH), ("HOME", home), ("USER", name), ("LOGNAME", name), ("SHELL", shell), ("LANG", "C.UTF-8")]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn socket_path(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("socket");
    if path.as_os_str().len() > LONGEST_SOCKET {
        return Err(Error::new(
            ErrorKind::HostUnable,
            "start sandbox",
            format!("the socket's path would be longer than {LONGEST_SOCKET} bytes: {}", path.display()),
        )
        .with_backend(BACKEND)
        .with_help("set TIERBOX_STATE_DIR to a shorter path"));
    }
    Ok(path)
}

fn shown_bind(bind: &Bind) -> String {
    let access = if bind.writable { "rw" } else { "ro" };
    format!("{} -> {} ({access})", String::from_utf8_lossy(&bind.host.0), String::from_utf8_lossy(&bind.guest.0))
}

/// Whether commands can run as other users than the default one.
pub fn other_users(spec: &EnvironmentSpec, mode: Mode, settings: &Settings) -> bool {
    mode == Mode::Container
        && users::choose(own_ids(), wanted_users(spec, settings), "capabilities").is_ok_and(|map| map != UserMap::Single)
}

#[cfg(test)]
pub(crate) mod unit {

    use super::*;

    pub(crate) fn spec(tier: &str) -> EnvironmentSpec {
        EnvironmentSpec::new(BACKEND, tier.parse().unwrap())
    }

    fn plan(spec: &EnvironmentSpec, directory: impl FnOnce() -> Result<PathBuf>) -> Result<Plan> {
        super::plan(spec, "abc", Cgroups::of_this_host(), directory)
    }

    fn no_directory() -> Result<PathBuf> {
        panic!("an attached container has no directory on the host")
    }

    #[test]
    fn a_container_is_planned_without_touching_the_host() {
        let mut spec = spec("T0.H1.N2");
        spec.env.insert("HOME".into(), "/elsewhere".into());
        let plan = plan(&spec, no_directory).unwrap();
        assert_eq!(plan.setup.net, setup::Net::Isolated);
        assert_eq!(plan.setup.workdir.0, b"/workspace");
        let env = |key: &str| plan.setup.env.iter().find(|(name, _)| name.0 == key.as_bytes()).map(|(_, value)| value.0.clone());
        assert_eq!(env("HOME").unwrap(), b"/elsewhere", "the profile's variables win");
        assert_eq!(env("USER").unwrap(), b"agent");
        assert!(plan.setup.listen.is_none() && !plan.setup.persist);
        assert!(plan.resources.iter().all(|resource| resource.kind == "cgroup"));
    }

    #[test]
    fn a_detached_environment_listens() {
        let mut spec = spec("T0.H1.N2");
        spec.hold = Hold::Kept;
        let detached = plan(&spec, || Ok("/state/abc".into())).unwrap();
        assert_eq!(detached.setup.listen.unwrap().0, b"/state/abc/socket");
        assert!(detached.resources.iter().any(|resource| resource.kind == "socket"));
        let long = plan(&spec, || Ok(format!("/{}", "x".repeat(120)).into())).unwrap_err();
        assert!(long.help().unwrap().contains("TIERBOX_STATE_DIR"));
    }

    #[test]
    fn processes_have_a_private_directory_and_the_hosts_network() {
        let plan = plan(&spec("T0.H0.N0"), || Ok("/state/abc".into())).unwrap();
        assert_eq!(plan.setup.workdir.0, b"/state/abc/work");
        assert_eq!(plan.setup.net, setup::Net::Host);
        assert!(plan.setup.binds.is_empty() && plan.setup.files.is_empty());
        assert_eq!(plan.directories.len(), 3);
    }

    #[test]
    fn what_a_mode_cannot_give_is_refused() {
        let mut process = spec("T0.H0.N0");
        process.mounts.push(tierbox_core::MountSpec { host: "/usr/share".into(), guest: "/data".into(), writable: false });
        assert_eq!(validate(&process).unwrap_err().kind(), ErrorKind::Unsupported);
        let mut rooted = spec("T0.H0.N0");
        rooted.settings = serde_json::json!({"root": "/usr/share"});
        assert_eq!(validate(&rooted).unwrap_err().kind(), ErrorKind::InvalidProfile);
        for bad in ["relative", "/a/../b", "/proc/x", "/usr/x"] {
            let mut container = spec("T0.H1.N2");
            container.workdir = Some(bad.into());
            assert_eq!(validate(&container).unwrap_err().kind(), ErrorKind::InvalidProfile, "{bad}");
        }
        for root in ["/", "/nonexistent/x", "/etc/passwd"] {
            let mut container = spec("T0.H1.N2");
            container.settings = serde_json::json!({"root": root});
            assert_eq!(validate(&container).unwrap_err().kind(), ErrorKind::InvalidProfile, "{root}");
        }
    }

    #[test]
    fn variables_are_checked() {
        for (key, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y")] {
            let mut spec = spec("T0.H1.N2");
            spec.env.insert(key.into(), value.into());
            assert_eq!(validate(&spec).unwrap_err().kind(), ErrorKind::InvalidProfile, "{key:?}");
        }
        let mut spec = spec("T0.H1.N2");
        spec.env.insert("BIG".into(), "x".repeat(256 << 10));
        assert!(validate(&spec).is_err());
    }
}
