//! Whether a backend can keep what a specification promises. Refusals happen here, before anything exists.

use crate::{
    Capabilities, Enforce, EnvironmentSpec, Error, ErrorKind, Hold, HostIsolation, KillDomain, Limit, MountSupport, Network,
    Result, Tier, Tooling,
};

impl Capabilities {
    /// Compares what is declared here with what a specification asks for: tier, required limits, mounts, files, detachment.
    /// Its values are checked first, by [`EnvironmentSpec::check_values`].
    ///
    /// # Errors
    /// `InvalidProfile`; `TierRefused` with the clause that cannot be kept and the nearest tier that can; `LimitRefused`; `Unsupported`.
    pub fn admit(&self, spec: &EnvironmentSpec) -> Result<()> {
        spec.check_values()?;
        check_tier(spec, self)?;
        check_limits(spec, self)?;
        check_features(spec, self)
    }
}

/// The most that a profile's variables may take together, so that commands still start.
const LARGEST_ENV: usize = 256 << 10;

/// Why a path of a profile is not one inside a machine: it must be absolute and in its plain form. `None` if it is.
pub fn malformed_path(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        return Some("the path is not absolute");
    }
    if path.contains('\0') {
        return Some("it contains a NUL byte");
    }
    if path.len() > 4095 || path.split('/').any(|part| part.len() > 255) {
        return Some("it is too long");
    }
    let odd = path.split('/').any(|part| part == ".." || part == ".") || path.contains("//");
    odd.then_some("it is not in its plain form (`.`, `..` or `//`)")
}

impl EnvironmentSpec {
    /// Checks what no machine of any backend can have: a working directory that is no absolute path, a user or variable of
    /// an impossible name, variables beyond 256 KiB.
    ///
    /// # Errors
    /// `InvalidProfile` naming the key.
    pub fn check_values(&self) -> Result<()> {
        let bad = |message: String| {
            Err(Error::new(ErrorKind::InvalidProfile, "check profile", message).with_backend(self.backend.clone()))
        };
        if let Some((workdir, why)) = self.workdir.as_ref().and_then(|path| malformed_path(path).map(|why| (path, why))) {
            let shown: String = workdir.chars().take(200).collect();
            return bad(format!("workdir = {shown:?}: {why}"));
        }
        if let Some(user) = &self.user
            && (user.is_empty() || user.contains(['\0', ':', '\n', '/']))
        {
            return bad(format!("user = {user:?} is not the name of a user"));
        }
        if let Some(key) = self.env.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
            return bad(format!("env: {key:?} is not a variable's name"));
        }
        if let Some((key, _)) = self.env.iter().find(|(_, value)| value.contains('\0')) {
            return bad(format!("env.{key} contains a NUL byte"));
        }
        let total: usize = self.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
        if total > LARGEST_ENV {
            return bad(format!("env takes {} KiB, more than {} KiB", total >> 10, LARGEST_ENV >> 10));
        }
        Ok(())
    }
}

fn check_tier(spec: &EnvironmentSpec, capabilities: &Capabilities) -> Result<()> {
    let tier = spec.tier;
    let clause = if capabilities.host < tier.host() {
        format!(
            "{} asks for a {}, and the boundary here is {} ({})",
            tier.host(),
            tier.host().meaning(),
            capabilities.host,
            capabilities.host.meaning()
        )
    } else if capabilities.kill_domain == KillDomain::Session && tier.host() > HostIsolation::H0 {
        format!("{} asks that no process survives its command, and here only its session can be killed", tier.host())
    } else if !capabilities.networks.contains(&tier.network()) {
        let there: Vec<String> = capabilities.networks.iter().map(ToString::to_string).collect();
        format!("{} ({}) cannot be enforced here, only {}", tier.network(), tier.network().meaning(), there.join(", "))
    } else if tier.tooling() == Tooling::T1 && !capabilities.confined_exec {
        "T1 asks that the machine's kernel keeps the agent's commands to the named programs (Landlock), and here it cannot"
            .to_owned()
    } else {
        return Ok(());
    };
    let refused = Error::new(ErrorKind::TierRefused, "check tier", format!("{tier} is refused: {clause}"))
        .with_backend(spec.backend.clone())
        .with_context("profile", &spec.profile);
    Err(match nearest(tier, capabilities) {
        Some(nearest) => refused
            .with_help(format!("the nearest tier that {} can enforce with this profile here is {nearest}", spec.backend))
            .with_context("nearest", nearest),
        None => refused.with_help("run `tierbox doctor` to see what this host can enforce"),
    })
}

/// The tier closest to the one that was asked for: as strict as possible, but no stricter than asked on any axis where
/// that can be had.
fn nearest(tier: Tier, capabilities: &Capabilities) -> Option<Tier> {
    let mut host = capabilities.host.min(tier.host());
    if capabilities.kill_domain == KillDomain::Session {
        host = HostIsolation::H0;
    }
    let below = capabilities.networks.iter().copied().filter(|network| *network <= tier.network()).max();
    let network = below.or_else(|| capabilities.networks.iter().copied().min())?;
    let network = if host == HostIsolation::H0 { Network::N0 } else { network };
    let tooling = match tier.tooling() {
        Tooling::T1 if !capabilities.confined_exec => Tooling::T0,
        tooling => tooling,
    };
    Tier::new(tooling, host, network).ok()
}

fn check_limits(spec: &EnvironmentSpec, capabilities: &Capabilities) -> Result<()> {
    let (limits, can) = (&spec.limits, &capabilities.limits);
    let table: [(&str, Option<Limit<u64>>, bool); 7] = [
        ("memory", limits.memory, can.memory),
        ("cpu", limits.cpu_millis, can.cpu),
        ("pids", limits.pids, can.pids),
        ("disk", limits.disk, can.disk),
        ("inodes", limits.inodes, can.inodes),
        ("file-size", limits.file_size, can.file_size),
        ("open-files", limits.open_files, can.open_files),
    ];
    for (name, limit, enforceable) in table {
        if !enforceable && limit.is_some_and(|limit| limit.enforce == Enforce::Required) {
            return Err(Error::new(
                ErrorKind::LimitRefused,
                "check limits",
                format!("limits.{name} is required, and cannot be enforced here"),
            )
            .with_backend(spec.backend.clone())
            .with_help(format!(
                "run `tierbox doctor` to see why, or write `{name} = {{ max = …, enforce = \"best\" }}` to do without where need be"
            )));
        }
    }
    Ok(())
}

fn check_features(spec: &EnvironmentSpec, capabilities: &Capabilities) -> Result<()> {
    let can_copy = capabilities.files && capabilities.archives;
    let writable = spec.mounts.iter().any(|mount| mount.writable);
    let missing = if !spec.mounts.is_empty() && capabilities.mounts == MountSupport::None {
        "mounting host directories"
    } else if writable && capabilities.mounts == MountSupport::ReadOnly {
        "mounting host directories writable"
    } else if !spec.files.is_empty() && !can_copy {
        "copying files in"
    } else if spec.network.apart && !capabilities.machines_apart {
        return Err(apart_refused(spec));
    } else if spec.hold != Hold::Process && !capabilities.detached {
        "a detached environment"
    } else {
        return Ok(());
    };
    Err(Error::unsupported("start environment", missing).with_backend(spec.backend.clone()))
}

fn apart_refused(spec: &EnvironmentSpec) -> Error {
    let message = "network.between-machines = false asks that the machines of one environment do not reach each other, and this \
                   backend has one machine or cannot keep several apart";
    Error::new(ErrorKind::TierRefused, "check profile", message)
        .with_backend(spec.backend.clone())
        .with_context("profile", &spec.profile)
        .with_help("leave the key out, or use environments of their own for what must not meet")
}

#[cfg(test)]
mod unit {

    use crate::{LimitCapabilities, Locality, MountSpec};

    use super::*;

    fn spec(tier: &str) -> EnvironmentSpec {
        EnvironmentSpec::new("b", tier.parse().unwrap())
    }

    fn container() -> Capabilities {
        Capabilities {
            networks: vec![Network::N0, Network::N2],
            kill_domain: KillDomain::Cgroup,
            confined_exec: true,
            mounts: MountSupport::ReadOnly,
            limits: LimitCapabilities { memory: true, ..LimitCapabilities::default() },
            ..Capabilities::none(HostIsolation::H1, Locality::Local)
        }
    }

    fn refusal(spec: &EnvironmentSpec, capabilities: &Capabilities) -> (ErrorKind, String) {
        let error = capabilities.admit(spec).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn each_clause_of_a_tier_is_checked_and_the_nearest_is_named() {
        for fine in ["T0.H1.N2", "T2.H1.N0", "T0.H0.N0"] {
            container().admit(&spec(fine)).unwrap();
        }
        for (tier, clause, nearest) in
            [("T0.H3.N2", "H3", "T0.H1.N2"), ("T1.H1.N1", "N1", "T1.H1.N0"), ("T0.H2.N1", "H2", "T0.H1.N0")]
        {
            let (kind, text) = refusal(&spec(tier), &container());
            assert_eq!(kind, ErrorKind::TierRefused);
            assert!(text.contains(&format!("refused: {clause}")) && text.ends_with(nearest), "{text}");
        }
        let session = Capabilities { kill_domain: KillDomain::Session, ..container() };
        let (_, text) = refusal(&spec("T0.H1.N2"), &session);
        assert!(text.contains("session") && text.ends_with("T0.H0.N0"), "{text}");
        let no_network = Capabilities { networks: Vec::new(), ..container() };
        assert!(refusal(&spec("T0.H1.N2"), &no_network).1.contains("doctor"));
    }

    #[test]
    fn required_limits_are_refused_by_name_and_best_ones_are_not() {
        let mut limited = spec("T0.H1.N2");
        limited.limits.memory = Some(Limit::required(1));
        limited.limits.pids = Some(Limit::best(1));
        container().admit(&limited).unwrap();
        limited.limits.pids = Some(Limit::required(1));
        let (kind, text) = refusal(&limited, &container());
        assert_eq!(kind, ErrorKind::LimitRefused);
        assert!(text.contains("limits.pids"), "{text}");
    }

    #[test]
    fn what_is_not_declared_is_unsupported() {
        let mut mounted = spec("T0.H1.N2");
        mounted.mounts = vec![MountSpec { host: "/h".into(), guest: "/g".into(), writable: false }];
        container().admit(&mounted).unwrap();
        mounted.mounts[0].writable = true;
        assert_eq!(refusal(&mounted, &container()).0, ErrorKind::Unsupported);
        let detached = EnvironmentSpec { hold: Hold::Kept, ..spec("T0.H1.N2") };
        assert_eq!(refusal(&detached, &container()).0, ErrorKind::Unsupported);
    }

    #[test]
    fn machines_are_kept_apart_where_that_can_be_enforced() {
        let mut apart = spec("T0.H1.N2");
        apart.network.apart = true;
        let (kind, text) = refusal(&apart, &container());
        assert!(kind == ErrorKind::TierRefused && text.contains("between-machines"), "{text}");
        Capabilities { machines_apart: true, ..container() }.admit(&apart).unwrap();
    }

    #[test]
    fn values_that_no_machine_can_have_are_refused_by_key() {
        let with = |change: &dyn Fn(&mut EnvironmentSpec)| {
            let mut changed = spec("T0.H1.N2");
            change(&mut changed);
            changed.check_values()
        };
        with(&|spec| spec.workdir = Some("/w".into())).unwrap();
        for (key, change) in [
            ("workdir", &(|spec: &mut EnvironmentSpec| spec.workdir = Some("w".into())) as &dyn Fn(&mut EnvironmentSpec)),
            ("workdir", &|spec| spec.workdir = Some("/a/../b".into())),
            ("user", &|spec| spec.user = Some("a:b".into())),
            ("env", &|spec| drop(spec.env.insert("A=".into(), String::new()))),
            ("env.A", &|spec| drop(spec.env.insert("A".into(), "\0".into()))),
            ("env", &|spec| drop(spec.env.insert("A".into(), "x".repeat(LARGEST_ENV)))),
        ] {
            let error = with(change).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidProfile);
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
