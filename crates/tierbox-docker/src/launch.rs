//! From a planned machine to a running one with a channel to its supervisor.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use bollard::container::AttachContainerResults;
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountType, NetworkingConfig, SystemInfo,
};
use bollard::query_parameters::{AttachContainerOptions, CreateContainerOptions};
use tierbox_core::{Error, ErrorKind, Lifted, LimitReport, Limits, Network, Result};
use tierbox_guest::plain::PLACE;
use tierbox_guest::{Channel, Ready, SetupReply};
use tierbox_supervisor::protocol::VERSION;
use tierbox_supervisor::setup::{Agent, Mode, Net, Root, Setup, UNKNOWN_ID, UserMap};
use tierbox_supervisor::wire::Blob;

use crate::egress::EgressPlan;
use crate::engine::{Engine, bounded, failed};
use crate::image::Image;
use crate::limits::{self, Area, RUN_SHARE, TMP_SHARE, WORK_SHARE};
use crate::plan::{MachinePlan, Plan, WORKSPACE};
use crate::way::Kept;
use crate::{BACKEND, crash, join, names, network, plain, seccomp, stream, twin};

/// Where the supervisor appears inside.
pub const SUPERVISOR: &str = "/.tierbox";

/// The label that says to which lease something belongs.
pub const LABEL: &str = "dev.tierbox.lease";

/// The user of commands where neither profile nor image names one: `nobody`, in nearly every image.
pub const NOBODY: &str = "65534";

/// Where programs are looked for in an image without a `PATH`: what the engine itself takes.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the supervisor may take to say that it is ready, once its container runs.
const READY: Duration = Duration::from_secs(30);

/// What a machine needs of its environment.
pub struct Around<'a> {
    /// The engine.
    pub engine: &'a Engine,
    /// What it said of itself.
    pub info: &'a SystemInfo,
    /// The lease's id.
    pub id: &'a str,
    /// The supervisor's program on this host.
    pub program: &'a Path,
    /// Limits of each machine.
    pub limits: &'a Limits,
    /// Whether they may outlive this process.
    pub persists: bool,
    /// The rule that is lifted, in a twin.
    pub lifted: Option<&'a Lifted>,
    /// The whole plan.
    pub plan: &'a Plan,
}

/// A machine that runs.
pub struct Launched {
    /// The line to it.
    pub line: Line,
    /// The user of commands.
    pub agent: String,
    /// Limits and what enforces them.
    pub limits: Vec<LimitReport>,
}

/// The line to a machine.
pub enum Line {
    /// To its supervisor, with what that said.
    Supervised(Channel, Ready),
    /// To its first process, which does nothing.
    Bare(Kept),
}

/// The name of a machine's container, of its built image, of a network or a volume: the same in every process that knows the
/// lease.
pub fn name_of(id: &str, part: &str) -> String {
    format!("tierbox-{id}-{part}").to_lowercase()
}

/// Labels of everything that belongs to a lease.
pub fn labels(id: &str) -> HashMap<String, String> {
    HashMap::from([(LABEL.to_owned(), id.to_owned())])
}

/// Makes, attaches and starts a machine's container, and sets its supervisor up.
///
/// # Errors
/// What the engine or the supervisor says. What exists by then is in the lease.
pub async fn launch(around: &Around<'_>, machine: &MachinePlan, image: &Image) -> Result<Launched> {
    let name = name_of(around.id, &machine.name);
    let (body, limits) = body(around, machine, image)?;
    let options = CreateContainerOptions { name: Some(name.clone()), ..CreateContainerOptions::default() };
    let docker = &around.engine.docker;
    docker.create_container(Some(options), body).await.map_err(|error| failed("create the container", &error))?;
    crash::point("created");
    network::connect(around.engine, around.id, machine).await?;
    let attached =
        AttachContainerOptions { stdin: true, stdout: true, stderr: true, stream: true, ..AttachContainerOptions::default() };
    let AttachContainerResults { output, input } =
        docker.attach_container(&name, Some(attached)).await.map_err(|error| failed("attach to the container", &error))?;
    if around.plan.is_plain() {
        let kept = Kept::new(output, input);
        docker.start_container(&name, None).await.map_err(|error| failed("start the container", &error))?;
        crash::point("started");
        return Ok(Launched { line: Line::Bare(kept), agent: account_of(user_of(machine, image)).to_owned(), limits });
    }
    let channel = Channel::stream(stream::reader(output), stream::writer(input))?;
    docker.start_container(&name, None).await.map_err(|error| failed("start the container", &error))?;
    crash::point("started");
    let setup = setup(around, machine, image);
    let agent = account_of(user_of(machine, image)).to_owned();
    let reply = match channel.setup(&setup, READY).await {
        Ok(reply) => reply,
        Err(error) => return Err(diagnosed(around.engine, &name, error).await),
    };
    let ready = match reply {
        SetupReply::Ready(ready) => ready,
        SetupReply::Refused { step, errno, detail } => return Err(refused(&step, errno, &detail)),
        SetupReply::NetworkWanted { .. } => {
            return Err(Error::new(ErrorKind::Protocol, "set up the machine", "it asks for a network that it has already"));
        }
    };
    channel.hello(Duration::ZERO)?;
    Ok(Launched { line: Line::Supervised(channel, ready), agent, limits })
}

fn refused(step: &str, errno: i32, detail: &str) -> Error {
    let why = if errno == 0 { String::new() } else { format!(": {}", std::io::Error::from_raw_os_error(errno)) };
    let message = format!("its supervisor could not take the step {step:?}{why} {detail}");
    let error = Error::new(ErrorKind::HostUnable, "set up the machine", message.trim_end()).with_backend(BACKEND);
    match step {
        "user" => {
            error.with_help("name a user that is in the image's /etc/passwd and a group that is in its /etc/group, or numbers")
        }
        _ => error,
    }
}

/// Adds the engine's own diagnosis to the end of a channel.
async fn diagnosed(engine: &Engine, name: &str, error: Error) -> Error {
    let Ok(found) = engine.docker.inspect_container(name, None).await else { return error };
    let Some(state) = found.state else { return error };
    let mut said = state.error.map(|text| bounded(&text)).unwrap_or_default();
    if state.oom_killed == Some(true) {
        said = format!("out of memory {said}");
    }
    let code = state.exit_code.unwrap_or_default();
    let message = format!("{}; the container is {} with exit status {code} {said}", error.message(), status(state.status));
    let help = match code {
        126 | 127 | 255 => {
            "the supervisor could not be executed: the state directory must allow that (no noexec), and the image be of this machine's architecture"
        }
        _ => "see the daemon's log",
    };
    Error::new(error.kind(), "set up the machine", message.trim_end()).with_backend(BACKEND).with_help(help)
}

fn status(status: Option<bollard::models::ContainerStateStatusEnum>) -> String {
    status.map_or_else(|| "gone".to_owned(), |status| status.to_string())
}

/// The container's configuration.
fn body(around: &Around<'_>, machine: &MachinePlan, image: &Image) -> Result<(ContainerCreateBody, Vec<LimitReport>)> {
    let (network, endpoints) = network::first(around.id, machine);
    let (areas, shared) = writable(around, machine, image)?;
    let mut config = HostConfig {
        auto_remove: Some(false),
        // What goes over the attached stream is the protocol, not a log.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        network_mode: Some(network),
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(machine.capabilities.clone()),
        security_opt: Some(security(around)?),
        readonly_rootfs: Some(machine.read_only),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        tmpfs: Some(areas),
        shm_size: shared.map(limits::signed),
        mounts: Some(mounts(around, machine)?),
        runtime: around.plan.settings.runtime.clone(),
        // Nothing of this host's resolver configuration is to be seen inside; with N0 names are the engine's to resolve.
        dns: (around.plan.network != Network::N0).then(|| vec![resolver(around.plan)]),
        dns_search: Some(vec![".".to_owned()]),
        sysctls: network::without_ipv6(machine),
        ..HostConfig::default()
    };
    let limits = limits::apply(&mut config, around, machine, image)?;
    let mut body = ContainerCreateBody {
        hostname: Some(machine.hostname.clone().unwrap_or_else(|| machine.name.clone())),
        // The supervisor: it becomes somebody else before it runs anything.
        user: Some("0:0".to_owned()),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(true),
        // The end of this process is the end of the line, and that of everything inside.
        stdin_once: Some(true),
        tty: Some(false),
        entrypoint: Some(first(around.plan)),
        cmd: Some(Vec::new()),
        working_dir: Some("/".to_owned()),
        image: Some(image.id.clone()),
        labels: Some(labels(around.id)),
        host_config: Some(config),
        networking_config: Some(NetworkingConfig { endpoints_config: Some(endpoints) }),
        // The image's own would be a process of the engine's every few seconds.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        ..ContainerCreateBody::default()
    };
    if let Some(lifted) = around.lifted {
        twin::lift(&mut body, lifted);
    }
    Ok((body, limits))
}

/// No new privileges; and where no supervisor filters system calls, the engine does by its list.
fn security(around: &Around<'_>) -> Result<Vec<String>> {
    let mut options = vec!["no-new-privileges".to_owned()];
    if around.plan.is_plain() && filters(around) {
        let list = seccomp::profile().to_string();
        // podman takes the name of a file, and lies on this host as every engine here.
        let given = if around.engine.is_podman {
            let path = around.program.with_file_name("seccomp.json");
            std::fs::write(&path, list)
                .map_err(|error| Error::io("write the list of system calls", error).with_backend(BACKEND))?;
            path.display().to_string()
        } else {
            list
        };
        options.push(format!("seccomp={given}"));
    }
    Ok(options)
}

/// Whether tierbox's filter of system calls is set: a kernel that is not this host's needs calls of its own kind.
fn filters(around: &Around<'_>) -> bool {
    around.plan.settings.own_kernel().is_none() && twin::filters(around.lifted)
}

/// The first process.
fn first(plan: &Plan) -> Vec<String> {
    if plan.is_plain() { ["/bin/sh", "-c", plain::FIRST].map(str::to_owned).to_vec() } else { vec![SUPERVISOR.to_owned()] }
}

/// The user of commands.
pub fn user_of<'a>(machine: &'a MachinePlan, image: &'a Image) -> &'a str {
    machine.user.as_deref().or(image.user.as_deref()).unwrap_or(NOBODY)
}

/// A user without the group that is named beside it.
pub fn account_of(user: &str) -> &str {
    user.split(':').next().unwrap_or_default()
}

/// Whom a machine asks for names: the gateway, or nobody.
pub fn resolver(plan: &Plan) -> String {
    plan.egress.as_ref().map_or("127.0.0.1".to_owned(), EgressPlan::nameserver)
}

/// The areas that can be written to under a read-only root, and the size of shared memory where that is none of them: together within the
/// disk limit.
fn writable(around: &Around<'_>, machine: &MachinePlan, image: &Image) -> Result<(HashMap<String, String>, Option<u64>)> {
    let plain = around.plan.is_plain();
    let area = |share, options| Area { share, options };
    let mut areas = BTreeMap::from([
        ("/tmp".to_owned(), area(TMP_SHARE, "mode=1777,exec")),
        ("/run".to_owned(), area(RUN_SHARE, "mode=0755")),
    ]);
    // An image that works there has files of its own in it.
    if image.workdir.as_deref() != Some(WORKSPACE) {
        // The supervisor gives it to the user of commands; without one everybody has it.
        let options = if plain { "mode=1777,exec" } else { "mode=0755,exec" };
        areas.insert(WORKSPACE.to_owned(), area(WORK_SHARE, options));
    }
    areas.extend(machine.tmpfs.iter().map(|path| (path.clone(), area(TMP_SHARE, "mode=1777,exec"))));
    // An area would hide what is to be seen there.
    let mounted = machine.mounts.iter().map(|mount| &mount.guest).chain(machine.volumes.iter().map(|volume| &volume.guest));
    for path in mounted {
        areas.remove(path);
    }
    // podman takes no number of files for an area.
    let (mut areas, shared) = limits::areas(around.limits, !around.engine.is_podman, areas)?;
    if plain {
        areas.insert(PLACE.to_owned(), plain::ROOM.to_owned());
    } else if around.persists {
        areas.insert(join::ROOM.to_owned(), join::ROOM_OPTIONS.to_owned());
    }
    Ok((areas, shared))
}

/// A path of this host's, read-only.
pub fn bind(host: &Path, guest: &str) -> Mount {
    Mount {
        target: Some(guest.to_owned()),
        source: Some(host.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        // What is mounted below a directory would stay writable on older engines.
        bind_options: Some(MountBindOptions { non_recursive: Some(true), ..MountBindOptions::default() }),
        ..Mount::default()
    }
}

fn mounts(around: &Around<'_>, machine: &MachinePlan) -> Result<Vec<Mount>> {
    let volume = |mount: &crate::plan::VolumeMount| Mount {
        target: Some(mount.guest.clone()),
        source: Some(name_of(around.id, &mount.volume)),
        typ: Some(MountType::VOLUME),
        read_only: Some(mount.read_only),
        ..Mount::default()
    };
    let own = (!around.plan.is_plain()).then(|| bind(around.program, SUPERVISOR));
    let hosts = machine.mounts.iter().map(|mount| bind(&mount.host, &mount.guest));
    let names = names::files(around, machine)?;
    Ok(own.into_iter().chain(names).chain(hosts).chain(machine.volumes.iter().map(volume)).collect())
}

/// What the supervisor is told.
fn setup(around: &Around<'_>, machine: &MachinePlan, image: &Image) -> Setup {
    let user = user_of(machine, image);
    let name = account_of(user);
    let workdir = image.workdir(machine.workdir.as_deref());
    let text = |text: &str| Blob::from(text.as_bytes());
    // `nobody` has no home anywhere.
    let home = if name == NOBODY { WORKSPACE } else { "" };
    Setup {
        version: VERSION,
        mode: Mode::Guest,
        id: around.id.to_owned(),
        users: UserMap::Single,
        agent: Agent { name: user.to_owned(), uid: UNKNOWN_ID, gid: UNKNOWN_ID, home: text(home) },
        env: variables(around.plan, machine, image),
        root_path: None,
        workdir: text(&workdir),
        root: Root::Host,
        binds: Vec::new(),
        files: Vec::new(),
        writable: vec![text(WORKSPACE)],
        disk: None,
        inodes: None,
        rlimits: limits::rlimits(around.limits),
        cgroups: Vec::new(),
        net: Net::Isolated,
        listen: around.persists.then(|| text(join::SOCKET)),
        persist: false,
        lifetime_ms: around.limits.lifetime.map(|life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX)),
        crash_at: None,
        lifted: Vec::new(),
        filter: filters(around),
    }
}

/// The image's variables, the gateway's, then the profile's.
fn variables(plan: &Plan, machine: &MachinePlan, image: &Image) -> Vec<(Blob, Blob)> {
    let blob = |bytes: Vec<u8>| Blob::from(bytes.as_slice());
    pairs(plan, machine, image).into_iter().map(|(key, value)| (blob(key), blob(value))).collect()
}

/// The same as bytes.
pub fn pairs(plan: &Plan, machine: &MachinePlan, image: &Image) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut proxies = plan.egress.as_ref().map(|egress| egress.sockets.variables()).unwrap_or_default();
    for (_, own) in proxies.iter_mut().filter(|(key, _)| key.eq_ignore_ascii_case("no_proxy")) {
        // The gateway knows nothing of the other machines, which are reached without it.
        let names = plan
            .machines
            .iter()
            .flat_map(|machine| std::iter::once(&machine.name).chain(machine.links.iter().flat_map(|link| &link.aliases)));
        names.for_each(|name| own.push_str(&format!(",{name}")));
    }
    let mut all: Vec<(&str, &str)> = Vec::new();
    if !image.env.iter().any(|text| text.starts_with("PATH=")) {
        all.push(("PATH", PATH));
    }
    all.extend(image.env.iter().filter_map(|text| text.split_once('=')).filter(|(key, _)| !key.is_empty()));
    all.extend(proxies.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    all.extend(machine.env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    all.into_iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}
