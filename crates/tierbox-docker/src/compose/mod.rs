//! Compose files: the part of the format that describes machines. What is not known is refused by name, and so is what would
//! open the host to a machine.

mod capabilities;
mod read;
mod service;
mod yaml;

use std::path::Path;

use tierbox_core::{EnvironmentSpec, Result};

use self::read::At;
use self::yaml::{Node, Value};
use crate::plan::{Condition, ImagePlan, Link, MachinePlan};
use crate::settings::{Settings, cut, invalid, is_name};

/// The largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The most services.
const MAX_SERVICES: usize = 64;

/// The network of services that name none.
const DEFAULT_NETWORK: &str = "default";

/// What a compose file describes.
pub struct Composed {
    /// The machines, primary first.
    pub machines: Vec<MachinePlan>,
    /// Networks between them.
    pub networks: Vec<String>,
    /// Volumes.
    pub volumes: Vec<String>,
    /// What makes them weaker than this backend's default.
    pub weakened: Vec<String>,
}

/// A service and what of it concerns the whole.
struct Entry {
    machine: MachinePlan,
    is_default: bool,
    weakened: Vec<String>,
}

/// Reads a compose file.
///
/// # Errors
/// `InvalidProfile` with the file, the line and the key; what the file system says.
pub fn load(path: &Path, spec: &EnvironmentSpec, settings: &Settings) -> Result<Composed> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unread = |why: String| invalid(format!("docker.compose: {} cannot be read: {why}", path.display()));
    let text = read(path).map_err(|error| unread(error.to_string()))?;
    let at = At { file: &file, path: String::new() };
    let root = yaml::load(&text).map_err(|(line, why)| invalid(format!("{file}:{line}: {why}")))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    compose(&at, &root, dir, spec, settings)
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    // Opening a pipe would wait for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES { Err(std::io::Error::other("it is larger than 1 MiB")) } else { Ok(text) }
}

fn compose(at: &At<'_>, root: &Node, dir: &Path, spec: &EnvironmentSpec, settings: &Settings) -> Result<Composed> {
    let (mut entries, mut networks, mut volumes) = (Vec::new(), Vec::new(), Vec::new());
    for (key, node) in read::map(at, root)? {
        let at = at.key(key);
        match key.as_str() {
            "services" => {
                for (name, node) in read::map(&at, node)? {
                    let at = at.key(name);
                    if !is_name(name) || name.contains(|char: char| char == '.' || char.is_ascii_uppercase()) {
                        return Err(at.wrong(node.line, "a service's name has small letters, digits, `-` and `_`"));
                    }
                    let entry = service::read(&at, name, node, dir, spec, settings)?;
                    if matches!(entry.machine.image, ImagePlan::Built(_)) && !names_an_image(name) {
                        let why = "the image that is built is called like the service, and an image's name has no `-` or `_` at its end, \
                                   no more than two `_` in a row, and no `_` beside a `-`";
                        return Err(at.wrong(node.line, why));
                    }
                    entries.push(entry);
                }
            }
            "networks" => networks = declared(&at, node, &["driver", "internal"])?,
            "volumes" => volumes = declared(&at, node, &["driver"])?,
            "version" | "name" => drop(read::text(&at, node)?),
            "configs" | "secrets" => {
                return Err(at.wrong(node.line, "files of this host are given by the profile's `files`, not here"));
            }
            "include" => return Err(at.wrong(node.line, "other files are not included")),
            key if key.starts_with("x-") => {}
            _ => return Err(at.wrong(node.line, "this key is not known")),
        }
    }
    if entries.is_empty() || entries.len() > MAX_SERVICES {
        return Err(at.key("services").wrong(root.line, format!("between 1 and {MAX_SERVICES} services are needed")));
    }
    link(at, root.line, &mut entries, &mut networks)?;
    check(at, root.line, &entries, &networks, &volumes)?;
    let primary = primary(at, root.line, &entries, settings)?;
    entries.swap(0, primary);
    let weakened = entries.iter().flat_map(|entry| entry.weakened.clone()).collect();
    Ok(Composed { machines: entries.into_iter().map(|entry| entry.machine).collect(), networks, volumes, weakened })
}

/// Networks or volumes that the file declares, with the few options that mean something here.
fn declared(at: &At<'_>, node: &Node, options: &[&str]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (name, node) in read::map(at, node)? {
        let at = at.key(name);
        if !is_name(name) {
            return Err(at.wrong(node.line, "a name has letters, digits, `.`, `-` and `_`"));
        }
        for (key, node) in read::map(&at, node)? {
            let at = at.key(key);
            match key.as_str() {
                "external" => return Err(at.wrong(node.line, "what exists outside this environment is not used")),
                "driver" if matches!(&node.value, Value::Text(text, _) if text == "bridge" || text == "local") => {}
                "internal" if options.contains(&"internal") => drop(read::flag(&at, node)?),
                key if key.starts_with("x-") => {}
                _ => return Err(at.wrong(node.line, "this key is not known here")),
            }
        }
        if names.iter().any(|known: &String| known.eq_ignore_ascii_case(name)) {
            return Err(
                at.wrong(node.line, "another one differs from it in the case of letters only, which engines do not tell apart")
            );
        }
        names.push(name.clone());
    }
    Ok(names)
}

/// Whether an image can be called like a service, as engines see it.
fn names_an_image(name: &str) -> bool {
    let is_sign = |char: char| !char.is_ascii_alphanumeric();
    let joins = |signs: &str| matches!(signs, "_" | "__") || signs.bytes().all(|sign| sign == b'-');
    !name.ends_with(is_sign) && name.split(|char| !is_sign(char)).all(joins)
}

/// Puts services that name no network on one together, unless there is only one.
fn link(at: &At<'_>, line: usize, entries: &mut [Entry], networks: &mut Vec<String>) -> Result<()> {
    let several = entries.len() > 1;
    for entry in entries.iter_mut().filter(|entry| several && !entry.machine.alone && entry.machine.links.is_empty()) {
        entry.machine.links.push(Link { network: DEFAULT_NETWORK.to_owned(), aliases: Vec::new() });
        match networks.iter().find(|network| network.eq_ignore_ascii_case(DEFAULT_NETWORK)) {
            Some(declared) if declared == DEFAULT_NETWORK => {}
            // One network for both would join services that the file keeps apart.
            Some(declared) => {
                let why = format!(
                    "it differs in the case of letters only, which engines do not tell apart, from the network `{DEFAULT_NETWORK}` of \
                     services that name none, such as {:?}",
                    cut(&entry.machine.name)
                );
                return Err(at.key("networks").key(declared).wrong(line, why));
            }
            None => networks.push(DEFAULT_NETWORK.to_owned()),
        }
    }
    Ok(())
}

/// Checks that every name that is used is declared, and that no service waits for itself.
fn check(at: &At<'_>, line: usize, entries: &[Entry], networks: &[String], volumes: &[String]) -> Result<()> {
    for Entry { machine, .. } in entries {
        let at = at.key("services").key(&machine.name);
        let missing = |what: &str, name: &str| Err(at.wrong(line, format!("the {what} {:?} is not declared", cut(name))));
        if let Some(link) = machine.links.iter().find(|link| !networks.contains(&link.network)) {
            return missing("network", &link.network);
        }
        if let Some(mount) = machine.volumes.iter().find(|mount| !volumes.contains(&mount.volume)) {
            return missing("volume", &mount.volume);
        }
        for after in machine.service.iter().flat_map(|service| &service.after) {
            if !entries.iter().any(|entry| entry.machine.name == after.service) {
                return missing("service", &after.service);
            }
            let waited_for = entries.iter().find(|entry| entry.machine.name == after.service);
            let health = waited_for.and_then(|entry| entry.machine.service.as_ref()?.health.as_ref());
            if after.condition == Condition::Healthy && health.is_some_and(|health| health.test.is_none()) {
                let why = format!("the service {:?} is never healthy: its health check is switched off", cut(&after.service));
                return Err(at.key("depends_on").wrong(line, why).with_help("wait for `service_started`, or give it a check"));
            }
        }
    }
    let machines: Vec<&MachinePlan> = entries.iter().map(|entry| &entry.machine).collect();
    match crate::plan::order(&machines) {
        Some(_) => Ok(()),
        None => Err(at.key("services").wrong(line, "services wait for each other (`depends_on`)")),
    }
}

/// Which service is the primary machine.
fn primary(at: &At<'_>, line: usize, entries: &[Entry], settings: &Settings) -> Result<usize> {
    let named = |name: &str| entries.iter().position(|entry| entry.machine.name == name);
    if let Some(primary) = &settings.primary {
        return named(primary).ok_or_else(|| invalid(format!("docker.primary: {} has no service {:?}", at.file, cut(primary))));
    }
    let marked: Vec<usize> = (0..entries.len()).filter(|index| entries[*index].is_default).collect();
    match (marked.as_slice(), named("default"), entries.len()) {
        ([one], _, _) => Ok(*one),
        ([], Some(default), _) => Ok(default),
        ([], None, 1) => Ok(0),
        ([], None, _) => Err(at
            .key("services")
            .wrong(line, "it is not told which service is the primary machine")
            .with_help("name one `default`, mark one with `x-default: true`, or set docker.primary")),
        _ => Err(at.key("services").wrong(line, "more than one service is marked with x-default")),
    }
}

#[cfg(test)]
mod unit {
    use tierbox_core::ErrorKind;

    use super::*;

    fn load(text: &str) -> Result<Composed> {
        load_with(text, None)
    }

    fn load_with(text: &str, primary: Option<&str>) -> Result<Composed> {
        let spec = EnvironmentSpec::new(crate::BACKEND, "T0.H1.N2".parse().unwrap());
        let at = At { file: "compose.yaml", path: String::new() };
        let root = yaml::load(text).map_err(|(line, why)| invalid(format!("{line}: {why}")))?;
        let settings = Settings { compose: Some("c".into()), primary: primary.map(str::to_owned), ..Settings::default() };
        compose(&at, &root, Path::new("/base"), &spec, &settings)
    }

    fn refusal(text: &str) -> String {
        let error = load(text).err().unwrap_or_else(|| panic!("it was taken: {text}"));
        assert_eq!(error.kind(), ErrorKind::InvalidProfile);
        error.to_string()
    }

    #[test]
    fn every_service_is_a_machine() {
        let composed = load(
            "services:\n  default: {image: a, command: sleep infinity, networks: [front]}\n  web:\n    image: b\n    networks: {front: {aliases: [www]}}\n    \
             environment: [A=1]\n    volumes: ['data:/data:ro']\n    mem_limit: 64m\n    depends_on: [default]\nnetworks: {front: }\nvolumes: {data: }\n",
        )
        .unwrap();
        let names: Vec<&str> = composed.machines.iter().map(|machine| machine.name.as_str()).collect();
        assert_eq!(names, ["default", "web"]);
        let web = &composed.machines[1];
        assert_eq!((web.memory, web.env["A"].as_str(), web.links[0].aliases[0].as_str()), (Some(64 << 20), "1", "www"));
        assert!(web.volumes[0].read_only && web.read_only);
    }

    #[test]
    fn a_key_without_a_value_leaves_the_images_command() {
        let service =
            |keys: &str| load(&format!("services:\n  a:\n    image: x\n{keys}")).unwrap().machines.remove(0).service.unwrap();
        let left = service("    command:\n    entrypoint:\n");
        assert_eq!((left.command, left.entrypoint), (None, None));
        let none = service("    command: []\n    entrypoint: ''\n");
        assert_eq!((none.command, none.entrypoint), (Some(Vec::new()), Some(Vec::new())));
        assert_eq!(service("    command: [a, 'b c']\n").command, Some(vec!["a".to_owned(), "b c".to_owned()]));
    }

    #[test]
    fn the_profile_says_which_machine_is_the_primary_one() {
        let text = "services: {default: {image: x}, b: {image: x, x-default: true}, c: {image: x}}\n";
        let first = |primary: Option<&str>| load_with(text, primary).map(|composed| composed.machines[0].name.clone());
        assert_eq!(first(Some("c")).unwrap(), "c");
        assert_eq!(first(Some("default")).unwrap(), "default");
        assert_eq!(first(None).unwrap(), "b");
        let error = first(Some("d")).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidProfile && error.message().contains("docker.primary"), "{error}");
    }

    #[test]
    fn arguments_and_the_stage_of_a_build_are_read() {
        let build =
            |keys: &str| match load(&format!("services: {{a: {{build: {{{keys}}}}}}}\n")).unwrap().machines.remove(0).image {
                ImagePlan::Built(plan) => plan,
                ImagePlan::Named(..) => panic!("it is not built"),
            };
        let plan = build("context: sub, dockerfile: D, args: {A: '1', B: x}, target: two");
        assert_eq!((plan.context.to_str(), plan.dockerfile.to_str()), (Some("/base/sub"), Some("/base/sub/D")));
        assert_eq!(plan.args.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>(), ["A=1", "B=x"]);
        assert_eq!(plan.target.as_deref(), Some("two"));
        assert_eq!(build("args: [A=1]").args["A"], "1");
    }

    #[test]
    fn dangerous_and_unknown_keys_are_refused_by_name_and_line() {
        for (key, name) in [
            ("privileged: true", "privileged"),
            ("network_mode: host", "network_mode"),
            ("pid: host", "pid"),
            ("ipc: host", "ipc"),
            ("userns_mode: host", "userns_mode"),
            ("cap_add: [SYS_ADMIN]", "cap_add"),
            ("devices: [/dev/kvm]", "devices"),
            ("security_opt: ['seccomp:unconfined']", "security_opt"),
            ("volumes: ['/var/run/docker.sock:/var/run/docker.sock']", "volumes"),
            ("volumes: ['./data:/data']", "volumes"),
            ("volumes: [{type: bind, source: /, target: /x}]", "volumes"),
            ("ports: ['80:80']", "ports"),
            ("env_file: .env", "env_file"),
            ("extends: {file: x, service: y}", "extends"),
            ("volumes_from: [y]", "volumes_from"),
            ("cgroup_parent: /", "cgroup_parent"),
            ("sysctls: {a: 1}", "sysctls"),
            ("restart: always", "restart"),
            ("container_name: x", "container_name"),
            ("extra_hosts: ['a:1.2.3.4']", "extra_hosts"),
            ("imgae: x", "imgae"),
            ("environment: [HOME]", "environment"),
            ("environment: {A: $HOME}", "environment"),
            ("tmpfs: /proc/x", "tmpfs"),
            ("tmpfs: '/x:size=1g'", "tmpfs"),
            ("cap_drop: [CHOWN]", "cap_drop"),
            ("cap_drop: [NET_RWA]", "cap_drop"),
            ("hostname: 'a b'", "hostname"),
            ("security_opt: ['no-new-privileges:false']", "security_opt"),
            ("security_opt: [no-new-privileges-not]", "security_opt"),
            ("build: ..", "build"),
            ("build: {context: sub/../../x}", "build.context"),
            ("build: /", "build"),
            ("build: 'https://example.org/x.git'", "build"),
        ] {
            let text = refusal(&format!("services:\n  default:\n    image: a\n    {key}\n"));
            assert!(text.contains("compose.yaml:4") && text.contains(name), "{key}: {text}");
        }
        for text in ["services: {a: {image: x}}\nsecrets: {}\n", "foo: 1\nservices: {a: {image: x}}\n", "services: {a: {}}\n"] {
            refusal(text);
        }
        assert!(refusal("services: {a: {image: x}}\nnetworks: {n: {external: true}}\n").contains("external"));
    }

    #[test]
    fn what_a_message_shows_does_nothing_to_a_terminal() {
        for text in ["services: {\"a\\e[2J\": {image: x}}\n", "\"\\e]0;x\\a\": 1\n", "services: {a: {image: \"\\e[31m\"}}\n"] {
            let error = refusal(text);
            assert!(!error.contains('\u{1b}') && !error.contains('\u{7}'), "{error:?}");
        }
    }

    #[test]
    fn what_a_service_drops_is_dropped() {
        let service = |keys: &str| load(&format!("services: {{a: {{image: x, {keys}}}}}\n")).unwrap().machines.remove(0);
        let base = service("hostname: box").capabilities;
        assert_eq!(service("hostname: box").hostname.as_deref(), Some("box"));
        assert_eq!(service("cap_drop: [ALL, NET_RAW]").capabilities, base);
        let more = service("cap_drop: [ALL], cap_add: [NET_BIND_SERVICE]").capabilities;
        assert!(more.len() == base.len() + 1 && more.contains(&"NET_BIND_SERVICE".to_owned()));
        assert!(refusal("services: {a: {image: x, cap_drop: [ALL], user: root}}\n").contains("cap_drop"));
        assert_eq!(service("security_opt: ['no-new-privileges:true', no-new-privileges]").capabilities, base);
        assert_eq!(service("build: ./sub").image, service("build: {context: sub}").image);
    }

    #[test]
    fn absurd_numbers_are_refused_or_harmless() {
        for key in [
            "mem_limit: 99999999999999999999g",
            "mem_limit: 0",
            "cpus: 1e308",
            "cpus: -1",
            "pids_limit: -1",
            "pids_limit: 1e9",
            "pids_limit: 0",
            "healthcheck: {test: x, timeout: 0s}",
            "healthcheck: {test: x, interval: 0s}",
        ] {
            refusal(&format!("services: {{a: {{image: x, {key}}}}}\n"));
        }
        let long =
            "healthcheck: {test: [CMD, x], interval: 18446744073709551s, timeout: 18446744073709551s, retries: 4294967296}";
        assert!(load(&format!("services: {{a: {{image: x, {long}}}}}\n")).is_ok());
    }

    #[test]
    fn the_primary_machine_is_told() {
        let two = |more: &str| format!("services:\n  a: {{image: x}}\n  b: {{image: x{more}}}\n");
        assert!(refusal(&two("")).contains("primary"));
        assert_eq!(load(&two(", x-default: true")).unwrap().machines[0].name, "b");
    }

    #[test]
    fn networks_that_engines_do_not_tell_apart_are_refused() {
        let two = |network: &str, other: &str| {
            format!(
                "services:\n  a: {{image: x, x-default: true, networks: [{network}]}}\n  b: {{image: x{other}}}\nnetworks: {{{network}: {{}}}}\n"
            )
        };
        assert!(refusal(&two("Default", "")).contains("networks.Default"));
        for (network, other, expected) in [
            ("default", "", vec!["default"]),
            ("front", "", vec!["front", "default"]),
            ("Default", ", networks: [Default]", vec!["Default"]),
            ("Default", ", network_mode: none", vec!["Default"]),
        ] {
            assert_eq!(load(&two(network, other)).unwrap().networks, expected);
        }
    }

    #[test]
    fn a_service_that_is_built_is_called_as_an_image_can_be() {
        for name in ["web_", "a_-b", "a___b", "web-"] {
            let text = refusal(&format!("services:\n  {name}:\n    build: .\n"));
            assert!(text.contains("compose.yaml:") && text.contains(name), "{text}");
            assert!(load(&format!("services: {{{name}: {{image: x}}}}\n")).is_ok(), "{name}");
        }
        for name in ["web", "a_b", "a__b", "a--b", "1-2_3"] {
            assert!(load(&format!("services: {{{name}: {{build: .}}}}\n")).is_ok(), "{name}");
        }
    }

    #[test]
    fn nobody_waits_for_the_health_of_what_has_no_check() {
        let with = |check: &str| {
            format!(
                "services:\n  a: {{image: x, x-default: true, depends_on: {{b: {{condition: service_healthy}}}}}}\n  b: {{image: x{check}}}\n"
            )
        };
        for off in [", healthcheck: {disable: true}", ", healthcheck: {test: [NONE]}"] {
            assert!(refusal(&with(off)).contains("services.a.depends_on"));
        }
        // Whether the image has one is known once it is there.
        assert!(load(&with("")).is_ok() && load(&with(", healthcheck: {test: 'true'}")).is_ok());
    }

    #[test]
    fn circles_and_missing_names_are_refused() {
        refusal("services:\n  a: {image: x, depends_on: [b], x-default: true}\n  b: {image: x, depends_on: [a]}\n");
        refusal("services: {a: {image: x, networks: [n]}}\n");
        refusal("services: {a: {image: x, volumes: ['v:/v']}}\n");
        refusal("services: {a: {image: x, depends_on: [z]}}\n");
    }
}
