//! Who may start an environment when: a budget for all together, and a queue that is fair between clients.
//!
//! Each client has a line of its own, and the lines take [turns](crate::turns). Whoever is at the head of a line and does not fit into the
//! memory or CPU that is left holds up everybody behind, so that a big request is not overtaken for ever; one that only waits
//! for a place on its backend is stepped around.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tierbox::{EnvironmentSpec, Error, ErrorKind, Result};
use tokio::sync::oneshot;

use crate::turns::{Client, Head, Turns};

/// What all environments of a daemon may have together. `None` is no bound.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Budget {
    /// Bytes of memory: the sum of the environments' `limits.memory`.
    pub memory: Option<u64>,
    /// Thousandths of a CPU: the sum of the environments' `limits.cpu`.
    pub cpu_millis: Option<u64>,
    /// Environments at once, by backend.
    pub backends: BTreeMap<String, u64>,
}

/// The memory that a virtual machine of Vagrant's is taken to have.
const VIRTUAL_MACHINE: u64 = 1 << 30;
/// Instances of EC2 at once: they cost money, not this host's memory.
const INSTANCES: u64 = 16;

impl Budget {
    /// Nine tenths of this host's memory, and sixteen times its CPUs, because most commands wait most of the time. Of virtual machines,
    /// whose memory their box or their type says and no profile has to, as many as have a gibibyte each in that memory, and of instances
    /// of EC2, which have memory of their own, sixteen.
    pub fn of_host() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let memory = host_memory().map(|bytes| bytes / 10 * 9);
        let machines = memory.map_or(1, |bytes| (bytes / VIRTUAL_MACHINE).max(1));
        let backends = [("vagrant".to_owned(), machines), ("ec2".to_owned(), INSTANCES)].into();
        Self { memory, cpu_millis: Some(cpus * 16_000), backends }
    }
}

fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What one environment asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Demand {
    pub backend: String,
    pub memory: u64,
    pub cpu_millis: u64,
}

impl Demand {
    pub fn of(spec: &EnvironmentSpec) -> Self {
        Self {
            backend: spec.backend.clone(),
            memory: spec.limits.memory.map_or(0, |limit| limit.max),
            cpu_millis: spec.limits.cpu_millis.map_or(0, |limit| limit.max),
        }
    }

    fn of_machines(&self, count: u64) -> Self {
        let times = |each: u64| each.saturating_mul(count);
        Self { backend: self.backend.clone(), memory: times(self.memory), cpu_millis: times(self.cpu_millis) }
    }

    /// As labels of the environment, so that a daemon that is started again knows what is taken.
    pub fn labels(&self) -> [(&'static str, String); 2] {
        [("serve.memory", self.memory.to_string()), ("serve.cpu", self.cpu_millis.to_string())]
    }

    pub fn from_labels(backend: &str, labels: &BTreeMap<String, String>) -> Self {
        let number = |key: &str| labels.get(key).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self { backend: backend.to_owned(), memory: number("serve.memory"), cpu_millis: number("serve.cpu") }
    }
}

/// A start that waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Waiting {
    /// Who asks.
    pub client: String,
    /// For what.
    pub profile: String,
    /// On which backend.
    pub backend: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// The queue and what is taken.
#[derive(Clone)]
pub(crate) struct Admission {
    state: Arc<Mutex<State>>,
    budget: Arc<Budget>,
}

#[derive(Default)]
struct State {
    memory: u64,
    cpu_millis: u64,
    backends: BTreeMap<String, u64>,
    waiting: Turns<Ticket>,
    next: u64,
    changed: u64,
}

struct Ticket {
    number: u64,
    demand: Demand,
    waiting: Waiting,
    admit: oneshot::Sender<Permit>,
}

/// A share of the budget, given back when it is dropped.
pub(crate) struct Permit {
    admission: Admission,
    demand: Demand,
    /// What one machine was asked for, where there are several.
    each: Option<Demand>,
}

/// A place in the queue, given up when it is dropped.
struct Place {
    admission: Admission,
    number: u64,
}

/// What is taken and who waits.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub memory: u64,
    pub cpu_millis: u64,
    pub backends: BTreeMap<String, u64>,
    pub waiting: Vec<Waiting>,
    /// Grows with every change of the queue.
    pub changed: u64,
}

impl Admission {
    pub fn new(budget: Budget) -> Self {
        Self { state: Arc::default(), budget: Arc::new(budget) }
    }

    /// Waits for a share of the budget until `deadline`.
    ///
    /// # Errors
    /// `LimitReached`: at once if the whole budget would not do, retryable when the time is up.
    pub async fn admit(&self, client: &Client, profile: &str, demand: Demand, deadline: Instant) -> Result<Permit> {
        self.refuse_impossible(&demand)?;
        let (admit, admitted) = oneshot::channel();
        let place = self.queue(client, profile, demand, admit);
        self.advance();
        let permit = tokio::time::timeout_at(deadline.into(), admitted).await;
        drop(place);
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::new(ErrorKind::LimitReached, "admit environment", self.describe())
                .with_help("end an environment, wait longer, or give the daemon a bigger budget")
                .retryable()),
        }
    }

    /// Takes a share for what exists already, whether it fits or not.
    pub fn take(&self, demand: Demand) -> Permit {
        self.lock().add(&demand);
        Permit { admission: self.clone(), demand, each: None }
    }

    pub fn usage(&self) -> Usage {
        let state = self.lock();
        Usage {
            memory: state.memory,
            cpu_millis: state.cpu_millis,
            backends: state.backends.clone(),
            waiting: state.waiting.in_order().into_iter().map(|ticket| ticket.waiting.clone()).collect(),
            changed: state.changed,
        }
    }

    fn queue(&self, client: &Client, profile: &str, demand: Demand, admit: oneshot::Sender<Permit>) -> Place {
        let mut state = self.lock();
        state.next += 1;
        state.changed += 1;
        let number = state.next;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let waiting =
            Waiting { client: client.name.clone(), profile: profile.to_owned(), backend: demand.backend.clone(), since };
        state.waiting.push(client, Ticket { number, demand, waiting, admit });
        Place { admission: self.clone(), number }
    }

    /// Admits whoever can be.
    fn advance(&self) {
        let mut unwanted = Vec::new();
        {
            let mut state = self.lock();
            while let Some(head) = state.next_that_fits(&self.budget) {
                let Some(ticket) = state.waiting.take(head) else { break };
                state.add(&ticket.demand);
                state.changed += 1;
                let permit = Permit { admission: self.clone(), demand: ticket.demand, each: None };
                // Whoever gave up meanwhile gives the share back, but not under this lock.
                unwanted.extend(ticket.admit.send(permit).err());
            }
        }
        drop(unwanted);
    }

    fn refuse_impossible(&self, demand: &Demand) -> Result<()> {
        let over = |bound: Option<u64>, wanted: u64| bound.is_some_and(|bound| wanted > bound);
        let what = match () {
            () if over(self.budget.memory, demand.memory) => "limits.memory is more than the daemon's whole budget",
            () if over(self.budget.cpu_millis, demand.cpu_millis) => "limits.cpu is more than the daemon's whole budget",
            () if self.budget.backends.get(&demand.backend) == Some(&0) => "the daemon admits none on this backend",
            () => return Ok(()),
        };
        Err(Error::new(ErrorKind::LimitReached, "admit environment", what)
            .with_backend(demand.backend.clone())
            .with_help("lower the profile's limits, or give the daemon a bigger budget"))
    }

    fn describe(&self) -> String {
        let state = self.lock();
        let (memory, cpus) = (state.memory >> 20, state.cpu_millis as f64 / 1000.0);
        let running: u64 = state.backends.values().sum();
        format!("there was no room in time: {running} environments have {memory} MiB of memory and {cpus} CPUs")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_that_fits(&self, budget: &Budget) -> Option<Head> {
        for (head, ticket) in self.waiting.heads() {
            let demand = &ticket.demand;
            let there = self.backends.get(&demand.backend).copied().unwrap_or(0);
            if budget.backends.get(&demand.backend).is_some_and(|most| there >= *most) {
                continue;
            }
            let fits =
                |bound: Option<u64>, used: u64, wanted: u64| bound.is_none_or(|bound| used.saturating_add(wanted) <= bound);
            let room =
                fits(budget.memory, self.memory, demand.memory) && fits(budget.cpu_millis, self.cpu_millis, demand.cpu_millis);
            return room.then_some(head);
        }
        None
    }

    fn add(&mut self, demand: &Demand) {
        self.memory = self.memory.saturating_add(demand.memory);
        self.cpu_millis = self.cpu_millis.saturating_add(demand.cpu_millis);
        *self.backends.entry(demand.backend.clone()).or_default() += 1;
    }

    fn subtract(&mut self, demand: &Demand) {
        self.memory = self.memory.saturating_sub(demand.memory);
        self.cpu_millis = self.cpu_millis.saturating_sub(demand.cpu_millis);
        if let Some(count) = self.backends.get_mut(&demand.backend) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Permit {
    /// It was asked for one machine: there are so many, which each have what it says. What is there already is not refused.
    pub fn times(&mut self, machines: u64) {
        let each = self.each.get_or_insert_with(|| self.demand.clone());
        let all = each.of_machines(machines.max(1));
        let mut state = self.admission.lock();
        state.subtract(&self.demand);
        state.add(&all);
        self.demand = all;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.lock().subtract(&self.demand);
        self.admission.advance();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.admission.lock();
            state.waiting.retain(|ticket| ticket.number != self.number);
            state.changed += 1;
        }
        // Whoever stood behind may fit.
        self.admission.advance();
    }
}

#[cfg(test)]
mod unit {
    use std::time::Duration;

    use super::*;

    fn demand(backend: &str, memory: u64) -> Demand {
        Demand { backend: backend.into(), memory, cpu_millis: 0 }
    }

    fn client(name: &str) -> Client {
        Client { owner: "uid-0".into(), name: name.into() }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    async fn until_waiting(admission: &Admission, count: usize) {
        while admission.usage().waiting.len() != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn clients_take_turns_however_much_one_of_them_asks_for() {
        let admission = Admission::new(Budget { memory: Some(10), ..Budget::default() });
        let first = admission.take(demand("a", 10));
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        // Whoever gives himself many names has no more turns by that.
        let greedy = |name: &str| Client { owner: "token-0".into(), name: name.into() };
        let modest = Client { owner: "token-1".into(), name: "modest".into() };
        for (count, client) in [greedy("a"), greedy("b"), greedy("c"), modest].into_iter().enumerate() {
            let (admission, order) = (admission.clone(), order.clone());
            let task = admission.clone();
            tasks.push(tokio::spawn(async move {
                let permit = task.admit(&client, "p", demand("a", 10), soon()).await.unwrap();
                order.lock().unwrap().push(client.name);
                drop(permit);
            }));
            until_waiting(&admission, count + 1).await;
        }
        let shown: Vec<String> = admission.usage().waiting.into_iter().map(|waiting| waiting.client).collect();
        assert_eq!(shown, ["a", "modest", "b", "c"]);
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a", "modest", "b", "c"]);
        assert_eq!(admission.usage().memory, 0);
    }

    #[tokio::test]
    async fn a_full_backend_does_not_hold_up_another_but_a_big_request_is_not_overtaken() {
        let budget = Budget { memory: Some(10), backends: [("full".to_owned(), 1)].into(), ..Budget::default() };
        let admission = Admission::new(budget);
        let _place = admission.take(demand("full", 1));
        let other = admission.clone();
        let waits = tokio::spawn(async move { other.admit(&client("one"), "p", demand("full", 1), soon()).await });
        until_waiting(&admission, 1).await;
        let free = admission.admit(&client("two"), "p", demand("free", 1), soon()).await.unwrap();
        let other = admission.clone();
        let big = tokio::spawn(async move { other.admit(&client("three"), "p", demand("free", 9), soon()).await });
        until_waiting(&admission, 2).await;
        let late = admission.admit(&client("four"), "p", demand("free", 1), Instant::now() + Duration::from_millis(30)).await;
        let refused = late.err().unwrap();
        assert!(refused.kind() == ErrorKind::LimitReached && refused.is_retryable(), "{refused}");
        drop(free);
        drop(big.await.unwrap().unwrap());
        waits.abort();
    }

    #[tokio::test]
    async fn several_machines_have_each_what_was_asked_for_one() {
        let admission = Admission::new(Budget { memory: Some(10), ..Budget::default() });
        let mut share = admission.admit(&client("c"), "p", demand("a", 3), soon()).await.unwrap();
        for machines in [4, 4, 3] {
            share.times(machines);
            let usage = admission.usage();
            assert_eq!((usage.memory, usage.backends["a"]), (machines * 3, 1));
        }
        let full = admission.admit(&client("c"), "p", demand("a", 2), Instant::now() + Duration::from_millis(30)).await;
        assert_eq!(full.err().unwrap().kind(), ErrorKind::LimitReached);
        drop(share);
        assert_eq!(admission.usage().memory, 0);
    }

    #[test]
    fn backends_whose_profiles_name_no_memory_are_bounded() {
        let budget = Budget::of_host();
        assert!(budget.backends["vagrant"] >= 1 && budget.backends["ec2"] == INSTANCES);
    }

    #[tokio::test]
    async fn what_can_never_fit_is_refused_at_once_and_who_gives_up_leaves_the_queue() {
        let admission = Admission::new(Budget { memory: Some(10), ..Budget::default() });
        let refused = admission.admit(&client("c"), "p", demand("a", 11), soon()).await.err().unwrap();
        assert!(!refused.is_retryable());
        let all = admission.take(demand("a", 10));
        let other = admission.clone();
        let waits = tokio::spawn(async move { other.admit(&client("c"), "p", demand("a", 1), soon()).await });
        until_waiting(&admission, 1).await;
        waits.abort();
        until_waiting(&admission, 0).await;
        drop(all);
        assert_eq!(admission.usage().memory, 0);
    }
}
