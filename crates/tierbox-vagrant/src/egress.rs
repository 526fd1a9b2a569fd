//! N1 on libvirt: the network of N2, on which this host's address has the gateway's sockets and nothing else.
//!
//! The gateway lives in this process, and so does the way out: when the harness ends, nobody listens.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tierbox_core::{Decision, EnvironmentSpec, Error, ErrorKind, Network, Result};
use tierbox_egress::{Config, Gateway, Plan, Rules, Sockets};

use crate::BACKEND;
use crate::isolation::Isolated;
use crate::ssh::Ssh;

/// How long the sockets of an environment that just ended may stay in use.
const LINGER: Duration = Duration::from_secs(5);

/// How long the machine may take to take its resolver.
const PATIENCE: Duration = Duration::from_secs(60);

/// The gateway of an environment. Dropped, it cuts all connections.
pub struct Egress {
    rules: Rules,
    plan: Plan,
    log: PathBuf,
    _gateway: Gateway,
}

/// What a specification allows; `None` without N1.
///
/// # Errors
/// `InvalidProfile` for what is no rule.
pub fn rules(spec: &EnvironmentSpec) -> Result<Option<Rules>> {
    (spec.tier.network() == Network::N1).then(|| Rules::new(&spec.network)).transpose()
}

/// Where the gateway listens.
///
/// # Errors
/// `Internal` for a network without an address.
pub fn plan(network: &Isolated, rules: &Rules) -> Result<Plan> {
    let address: Ipv4Addr = network
        .host_address()
        .parse()
        .map_err(|_| Error::new(ErrorKind::Internal, "start egress gateway", "the network has no address"))?;
    Ok(Plan::new(address, rules))
}

impl Egress {
    /// Listens on this host's address in the environment's network, and serves.
    ///
    /// # Errors
    /// `HostUnable` if the sockets cannot be had.
    pub async fn serve(network: &Isolated, rules: Rules, id: &str, log: &Path) -> Result<Self> {
        let plan = plan(network, &rules)?;
        let sockets = listen(&plan).await.map_err(|error| {
            let message = format!("its sockets cannot be made on {}: {error}", network.bridge);
            Error::new(ErrorKind::HostUnable, "start egress gateway", message).with_backend(BACKEND)
        })?;
        let config = Config::new(id, rules.clone(), plan.clone(), log);
        let gateway = Gateway::start(config, sockets).map_err(|error| error.with_backend(BACKEND))?;
        Ok(Self { rules, plan, log: log.to_owned(), _gateway: gateway })
    }

    /// Where it listens.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The variables that programs inside look at.
    pub fn variables(&self) -> Vec<(String, String)> {
        self.plan.variables()
    }

    /// What is allowed, for the report.
    pub fn notes(&self) -> Vec<String> {
        self.rules.notes()
    }

    /// What was decided so far, oldest first.
    ///
    /// # Errors
    /// What the file system says.
    pub fn decisions(&self) -> Result<Vec<Decision>> {
        tierbox_egress::read_log(&self.log)
    }

    /// Makes the gateway the machine's resolver. False where the machine lets nobody change it: proxies work all the same.
    ///
    /// # Errors
    /// As [`Ssh::run`].
    pub async fn resolve(&self, ssh: &Ssh) -> Result<bool> {
        // A link leads to a resolver of the machine's own, which may ask others.
        let write = format!(
            "f=/etc/resolv.conf; [ ! -L $f ] || rm -f $f; printf \"nameserver %s\\noptions timeout:2 attempts:2\\n\" {} >$f",
            self.plan.address()
        );
        let script = format!("if [ \"$(id -u)\" = 0 ]; then {write}; else sudo -n /bin/sh -c '{write}'; fi");
        Ok(ssh.run(&script, b"", PATIENCE).await?.status == Some(0))
    }
}

/// Binds, once those before have let go.
async fn listen(plan: &Plan) -> io::Result<Sockets> {
    let started = Instant::now();
    loop {
        match plan.bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < LINGER => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            bound => return bound,
        }
    }
}
