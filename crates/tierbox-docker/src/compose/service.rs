//! One service of a compose file.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use tierbox_core::{EnvironmentSpec, Result, malformed_path};

use super::Entry;
use super::capabilities::Asked;
use super::read::{self, At};
use super::yaml::{Node, Value};
use crate::plan::{
    After, BuildPlan, Condition, Health, ImagePlan, Link, MachinePlan, Service, VolumeMount, is_reserved, is_root,
};
use crate::settings::{Settings, check_image, cut, is_name};

/// Keys that would open this host to the machine, or take what is this host's, each with what to do instead.
const DANGEROUS: &[(&str, &str)] = &[
    ("blkio_config", "the profile's [limits] bind every machine"),
    ("cgroup", "the engine's own cgroup is not shared"),
    ("cgroup_parent", "the profile's [limits] bind every machine"),
    ("configs", "files of this host are given by the profile's `files`"),
    ("container_name", "containers are named after their environment"),
    ("credential_spec", "a machine gets no credentials"),
    ("device_cgroup_rules", "a machine gets no devices"),
    ("devices", "a machine gets no devices"),
    ("dns", "names of this environment alone are resolved"),
    ("env_file", "write the variables here, or give them by the profile's `env`"),
    ("extends", "write the service out"),
    ("external_links", "nothing outside this environment is reached"),
    ("extra_hosts", "give a service an alias on a network"),
    ("gpus", "a machine gets no devices"),
    ("group_add", "a user has the groups that the image gives him"),
    ("ipc", "a machine has its own"),
    ("links", "services on one network know each other by name"),
    ("logging", "output of a service is not logged by the engine"),
    ("oom_score_adj", "the kernel's choice is not steered"),
    ("pid", "a machine has its own"),
    ("ports", "nothing is published on this host; open a stream with `dial`"),
    ("restart", "a service that ends stays ended"),
    ("runtime", "use docker.runtime in the profile"),
    ("secrets", "files of this host are given by the profile's `files`"),
    ("sysctls", "the kernel's defaults stand"),
    ("ulimits", "the profile's [limits] bind every machine"),
    ("userns_mode", "the engine's default stands"),
    ("uts", "a machine has its own"),
    ("volumes_from", "name the volume in both services"),
];

/// What is so anyway, as people write it.
const NO_NEW_PRIVILEGES: [&str; 3] = ["no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"];

struct Reader<'a> {
    machine: MachinePlan,
    service: Service,
    image: Option<String>,
    build: Option<BuildPlan>,
    is_default: bool,
    weakened: Vec<String>,
    asked: Asked,
    dir: &'a Path,
}

/// Reads a service.
///
/// # Errors
/// `InvalidProfile` with the file, the line and the key.
pub fn read(at: &At<'_>, name: &str, node: &Node, dir: &Path, spec: &EnvironmentSpec, settings: &Settings) -> Result<Entry> {
    let machine = MachinePlan {
        user: spec.user.clone(),
        workdir: spec.workdir.clone(),
        read_only: settings.is_read_only(),
        mounts: spec.mounts.clone(),
        capabilities: settings.all_capabilities(),
        ..crate::plan::machine(name)
    };
    let mut reader = Reader {
        machine,
        service: Service::default(),
        image: None,
        build: None,
        is_default: false,
        weakened: Vec::new(),
        asked: Asked::default(),
        dir,
    };
    for (key, node) in read::map(at, node)? {
        reader.key(&at.key(key), key, node)?;
    }
    let Reader { mut machine, service, image, build, is_default, mut weakened, asked, .. } = reader;
    let is_root = machine.user.as_deref().is_some_and(is_root);
    let (capabilities, told) = asked.settle(at, std::mem::take(&mut machine.capabilities), is_root)?;
    machine.capabilities = capabilities;
    weakened.extend(told);
    machine.image = match (image, build) {
        (_, Some(build)) => ImagePlan::Built(build),
        (Some(image), None) => ImagePlan::Named(image, settings.pull),
        (None, None) => return Err(at.wrong(node.line, "it has neither `image` nor `build`")),
    };
    machine.service = Some(service);
    // The profile's variables bind every machine.
    machine.env.extend(spec.env.clone());
    Ok(Entry { machine, is_default, weakened })
}

impl Reader<'_> {
    fn key(&mut self, at: &At<'_>, key: &str, node: &Node) -> Result<()> {
        match key {
            "image" => {
                let image = read::text(at, node)?;
                check_image(&image).map_err(|error| at.wrong(node.line, error.message()))?;
                self.image = Some(image);
            }
            "build" => self.build = Some(build(at, node, self.dir)?),
            "command" => self.service.command = read::command(at, node)?,
            "entrypoint" => self.service.entrypoint = read::command(at, node)?,
            "environment" => self.machine.env.extend(read::variables(at, node)?),
            "user" => self.user(at, node)?,
            "working_dir" => self.machine.workdir = Some(guest_path(at, node.line, &read::text(at, node)?)?),
            "networks" => self.machine.links = networks(at, node)?,
            "network_mode" => self.network_mode(at, node)?,
            "volumes" => self.volumes(at, node)?,
            "tmpfs" => self.tmpfs(at, node)?,
            "healthcheck" => self.service.health = Some(health(at, node)?),
            "depends_on" => self.service.after = depends_on(at, node)?,
            "mem_limit" => self.machine.memory = Some(read::size(at, node)?),
            "cpus" => self.machine.cpu_millis = Some(read::cpus(at, node)?),
            "pids_limit" => self.machine.pids = Some(read::positive(at, node)?),
            "deploy" => self.deploy(at, node)?,
            "cap_add" => self.asked.add(at, node)?,
            "cap_drop" => self.asked.drop(at, node)?,
            "hostname" => self.hostname(at, node)?,
            "read_only" => self.read_only(at, node)?,
            "x-default" => self.is_default = read::flag(at, node)?,
            key if key.starts_with("x-") => {}
            _ => return harmless(at, key, node),
        }
        Ok(())
    }

    fn user(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        let user = read::text(at, node)?;
        if user.is_empty() || user.matches(':').count() > 1 || user.contains(['\n', '/']) {
            return Err(at.wrong(node.line, format!("{:?} is not a user", cut(&user))));
        }
        if is_root(&user) {
            self.weakened.push(format!("{}: commands run as root inside", at.path));
        }
        self.machine.user = Some(user);
        Ok(())
    }

    fn network_mode(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        match read::text(at, node)?.as_str() {
            "none" => {
                self.machine.alone = true;
                Ok(())
            }
            other => Err(at.wrong(node.line, format!("{:?} is refused; there is `none`, and `networks`", cut(other)))),
        }
    }

    fn read_only(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        self.machine.read_only = read::flag(at, node)?;
        if !self.machine.read_only {
            self.weakened.push(format!("{} = false: the root file system can be changed", at.path));
        }
        Ok(())
    }

    fn hostname(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        let name = read::text(at, node)?;
        if !is_name(&name) {
            return Err(at.wrong(node.line, format!("{:?} is not a host's name", cut(&name))));
        }
        self.machine.hostname = Some(name);
        Ok(())
    }

    fn tmpfs(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        for path in read::texts(at, node)? {
            if path.contains(':') {
                return Err(at
                    .wrong(node.line, format!("{:?} has options, which are not taken", cut(&path)))
                    .with_help("write the path alone; limits.disk and limits.inodes bound all areas together"));
            }
            self.machine.tmpfs.push(guest_path(at, node.line, &path)?);
        }
        Ok(())
    }

    fn deploy(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        for (key, node) in read::map(at, node)? {
            let at = at.key(key);
            if key != "resources" {
                return Err(at.wrong(node.line, "of `deploy` only `resources.limits` means something here"));
            }
            for (key, node) in read::map(&at, node)? {
                let at = at.key(key);
                if key != "limits" {
                    return Err(at.wrong(node.line, "of `resources` only `limits` means something here"));
                }
                for (key, node) in read::map(&at, node)? {
                    let at = at.key(key);
                    match key.as_str() {
                        "memory" => self.machine.memory = Some(read::size(&at, node)?),
                        "cpus" => self.machine.cpu_millis = Some(read::cpus(&at, node)?),
                        "pids" => self.machine.pids = Some(read::positive(&at, node)?),
                        _ => return Err(at.wrong(node.line, "this limit is not known; there are memory, cpus and pids")),
                    }
                }
            }
        }
        Ok(())
    }

    fn volumes(&mut self, at: &At<'_>, node: &Node) -> Result<()> {
        let Value::List(items) = &node.value else { return Err(at.wrong(node.line, "a list is expected")) };
        for item in items {
            match &item.value {
                Value::Map(_) => self.long_volume(at, item)?,
                _ => {
                    let volume = short_volume(at, item)?;
                    self.machine.volumes.push(volume);
                }
            }
        }
        Ok(())
    }

    fn long_volume(&mut self, at: &At<'_>, item: &Node) -> Result<()> {
        let (mut kind, mut source, mut target, mut read_only) = (String::new(), String::new(), None, false);
        for (key, node) in read::map(at, item)? {
            let at = at.key(key);
            match key.as_str() {
                "type" => kind = read::text(&at, node)?,
                "source" => source = read::text(&at, node)?,
                "target" => target = Some(guest_path(&at, node.line, &read::text(&at, node)?)?),
                "read_only" => read_only = read::flag(&at, node)?,
                _ => return Err(at.wrong(node.line, "this key is not known")),
            }
        }
        let guest = target.ok_or_else(|| at.wrong(item.line, "`target` is missing"))?;
        match kind.as_str() {
            "tmpfs" => self.machine.tmpfs.push(guest),
            "volume" if is_name(&source) => self.machine.volumes.push(VolumeMount { volume: source, guest, read_only }),
            _ => return Err(host_directory(at, item.line)),
        }
        Ok(())
    }
}

fn host_directory(at: &At<'_>, line: usize) -> tierbox_core::Error {
    at.wrong(line, "directories of this host are not mounted from here, and volumes have names")
        .with_help("mount read-only by the profile's `mounts`, copy in by its `files`, or declare a volume")
}

fn short_volume(at: &At<'_>, item: &Node) -> Result<VolumeMount> {
    let text = read::text(at, item)?;
    let parts: Vec<&str> = text.split(':').collect();
    let (volume, guest, read_only) = match parts.as_slice() {
        [volume, guest] | [volume, guest, "rw"] => (*volume, *guest, false),
        [volume, guest, "ro"] => (*volume, *guest, true),
        _ => return Err(host_directory(at, item.line)),
    };
    if !is_name(volume) {
        return Err(host_directory(at, item.line));
    }
    Ok(VolumeMount { volume: volume.to_owned(), guest: guest_path(at, item.line, guest)?, read_only })
}

/// Keys that change nothing because they ask for what is so anyway; everything else is refused.
fn harmless(at: &At<'_>, key: &str, node: &Node) -> Result<()> {
    let is = |wanted: &str| matches!(&node.value, Value::Text(text, _) if text == wanted);
    let same = match key {
        "privileged" => is("false"),
        "restart" => is("no"),
        "init" => is("true") || is("false"),
        "expose" | "labels" | "annotations" | "stop_grace_period" | "stop_signal" => true,
        "security_opt" => read::texts(at, node)?.iter().all(|option| NO_NEW_PRIVILEGES.contains(&option.as_str())),
        "stdin_open" | "tty" => is("true") || is("false"),
        _ => false,
    };
    if same {
        return Ok(());
    }
    let instead = DANGEROUS.iter().find(|(known, _)| *known == key).map(|(_, instead)| *instead);
    let refused = at.wrong(
        node.line,
        if instead.is_some() || key == "privileged" || key == "security_opt" {
            "this is refused: it would open this host or the sandbox"
        } else {
            "this key is not known"
        },
    );
    Err(match instead {
        Some(instead) => refused.with_help(instead),
        None => refused,
    })
}

fn guest_path(at: &At<'_>, line: usize, path: &str) -> Result<String> {
    if let Some(why) = malformed_path(path) {
        return Err(at.wrong(line, format!("{:?}: {why}", cut(path))));
    }
    if is_reserved(path) || path == "/" {
        return Err(at.wrong(line, format!("{:?} belongs to the machine", cut(path))));
    }
    Ok(path.to_owned())
}

fn build(at: &At<'_>, node: &Node, dir: &Path) -> Result<BuildPlan> {
    let mut plan = BuildPlan {
        context: dir.to_owned(),
        dockerfile: Path::new("Dockerfile").into(),
        within: Some(dir.to_owned()),
        args: Default::default(),
        target: None,
    };
    if let Value::Text(..) = node.value {
        plan.context = context(at, node, dir)?;
    } else {
        for (key, node) in read::map(at, node)? {
            let at = at.key(key);
            match key.as_str() {
                "context" => plan.context = context(&at, node, dir)?,
                "dockerfile" => plan.dockerfile = read::text(&at, node)?.into(),
                "args" => plan.args = read::variables(&at, node)?.into_iter().collect(),
                "target" => plan.target = Some(read::text(&at, node)?),
                _ => return Err(at.wrong(node.line, "of `build` there are context, dockerfile, args and target")),
            }
        }
    }
    plan.dockerfile = plan.context.join(&plan.dockerfile);
    Ok(plan)
}

/// The directory that is built from: the compose file's, or one below it. Links are looked at when it is built.
fn context(at: &At<'_>, node: &Node, dir: &Path) -> Result<PathBuf> {
    let text = read::text(at, node)?;
    let below = |part: Component<'_>| matches!(part, Component::CurDir | Component::Normal(_));
    if text.contains("://") || !Path::new(&text).components().all(below) {
        return Err(at.wrong(node.line, format!("{:?} is not below the compose file's directory", cut(&text))).with_help(
            "keep what is built beside the compose file; docker.dockerfile and docker.context name other directories",
        ));
    }
    Ok(dir.join(text))
}

fn networks(at: &At<'_>, node: &Node) -> Result<Vec<Link>> {
    if let Value::Map(pairs) = &node.value {
        return pairs.iter().map(|(name, node)| network(&at.key(name), name, node)).collect();
    }
    Ok(read::texts(at, node)?.into_iter().map(|network| Link { network, aliases: Vec::new() }).collect())
}

fn network(at: &At<'_>, name: &str, node: &Node) -> Result<Link> {
    let mut aliases = Vec::new();
    for (key, node) in read::map(at, node)? {
        let at = at.key(key);
        if key != "aliases" {
            return Err(at.wrong(node.line, "of a network there are only `aliases` here"));
        }
        aliases = read::texts(&at, node)?;
        if let Some(odd) = aliases.iter().find(|alias| !is_name(alias)) {
            return Err(at.wrong(node.line, format!("{:?} is not a host's name", cut(odd))));
        }
    }
    Ok(Link { network: name.to_owned(), aliases })
}

fn health(at: &At<'_>, node: &Node) -> Result<Health> {
    let second = Duration::from_secs;
    let mut health =
        Health { test: Some(Vec::new()), interval: second(30), timeout: second(30), retries: 3, start_period: Duration::ZERO };
    for (key, node) in read::map(at, node)? {
        let at = at.key(key);
        match key.as_str() {
            "test" => health.test = health_test(&at, node)?,
            "interval" => health.interval = some_time(&at, node)?,
            "timeout" => health.timeout = some_time(&at, node)?,
            "retries" => health.retries = u32::try_from(read::count(&at, node)?).unwrap_or(u32::MAX),
            "start_period" | "start_interval" => health.start_period = health.start_period.max(read::duration(&at, node)?),
            "disable" if read::flag(&at, node)? => health.test = None,
            "disable" => {}
            _ => return Err(at.wrong(node.line, "this key is not known")),
        }
    }
    if health.test.as_ref().is_some_and(Vec::is_empty) {
        return Err(at.wrong(node.line, "`test` is missing"));
    }
    Ok(health)
}

fn some_time(at: &At<'_>, node: &Node) -> Result<Duration> {
    match read::duration(at, node)? {
        Duration::ZERO => Err(at.wrong(node.line, "more than nothing is expected")),
        some => Ok(some),
    }
}

/// The command of a health check.
fn health_test(at: &At<'_>, node: &Node) -> Result<Option<Vec<String>>> {
    let shell = |script: String| Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), script]);
    if let Value::Text(..) = node.value {
        return Ok(shell(read::text(at, node)?));
    }
    let words = read::texts(at, node)?;
    match words.split_first() {
        Some((first, [])) if first == "NONE" => Ok(None),
        Some((first, [script])) if first == "CMD-SHELL" => Ok(shell(script.clone())),
        Some((first, rest)) if first == "CMD" && !rest.is_empty() => Ok(Some(rest.to_vec())),
        _ => Err(at.wrong(node.line, "it begins with CMD, CMD-SHELL or NONE")),
    }
}

fn depends_on(at: &At<'_>, node: &Node) -> Result<Vec<After>> {
    let Value::Map(pairs) = &node.value else {
        return Ok(read::texts(at, node)?.into_iter().map(|service| After { service, condition: Condition::Started }).collect());
    };
    let one = |(service, node): &(String, Node)| {
        let at = at.key(service);
        let mut condition = Condition::Started;
        for (key, node) in read::map(&at, node)? {
            let at = at.key(key);
            match (key.as_str(), read::text(&at, node)?.as_str()) {
                ("condition", "service_started") => condition = Condition::Started,
                ("condition", "service_healthy") => condition = Condition::Healthy,
                ("condition", "service_completed_successfully") => condition = Condition::Completed,
                ("required", "true") | ("restart", "false") => {}
                _ => return Err(at.wrong(node.line, "this is not known")),
            }
        }
        Ok(After { service: service.clone(), condition })
    };
    pairs.iter().map(one).collect()
}
