//! Runs suites as a test program: one process shares a sandbox among its cases, listing starts nothing, and what is absent
//! is told.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tierbox_core::{Capabilities, Environment, ErrorKind};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use crate::case::{Case, Fail, Verdict};
use crate::mutant::{Mutant, mutants};
use crate::subject::{Absence, Factory, Subject};
use crate::{conformance, escape, plain};

type Shared = Arc<OnceCell<Result<Arc<dyn Environment>, Fail>>>;

/// The cases of one backend in one configuration.
#[derive(Clone)]
pub struct Suite {
    cases: Vec<Case>,
    factory: Arc<dyn Factory>,
    variant: Option<String>,
    as_plain_user: bool,
    /// How many cases of an area run at once, as one test.
    together: Option<usize>,
    required: String,
    expected: BTreeMap<String, String>,
    shared: Shared,
}

impl Suite {
    fn new(cases: Vec<Case>, factory: Arc<dyn Factory>) -> Self {
        let (required, expected) = (String::new(), BTreeMap::new());
        Self {
            cases,
            factory,
            variant: None,
            as_plain_user: false,
            together: None,
            required,
            expected,
            shared: Shared::default(),
        }
    }

    /// The conformance suite for a backend's minimum set of capabilities.
    pub fn conformance(minimum: Capabilities, factory: Arc<dyn Factory>) -> Self {
        Self::new(conformance::cases(&minimum), factory)
    }

    /// The escape corpus for a backend's minimum set of capabilities.
    pub fn escape(minimum: Capabilities, factory: Arc<dyn Factory>) -> Self {
        Self::new(escape::cases(&minimum), factory)
    }

    /// Every mutant over this backend: `conformance::mutants::<name>` passes if all its cases fail.
    pub fn mutants(factory: Arc<dyn Factory>) -> Self {
        let case = |mutant: &'static Mutant| {
            let name = format!("conformance::mutants::{}", mutant.name());
            Case::new(name, "Every case fails on a sandbox that breaks its promise.", &[], move |subject: Subject| async move {
                // An environment of its own: what a mutant does must not reach the next one.
                let own = subject.another(&|_| ()).await?;
                let verdict = mutant.prove(own.environment.clone(), own.factory.clone()).await;
                own.stop().await?;
                verdict
            })
        };
        Self::new(mutants().iter().map(case).collect(), factory)
    }

    /// Names this configuration: `conformance::<variant>::<area>::<id>`.
    #[must_use]
    pub fn variant(mut self, name: impl Into<String>) -> Self {
        self.variant = Some(name.into());
        self
    }

    /// Keeps the cases with these names (`<area>::<id>`) only: for a configuration of which the rest is tested elsewhere.
    ///
    /// # Panics
    /// If there is no case of such a name.
    #[must_use]
    pub fn only(mut self, names: &[&str]) -> Self {
        let known = |name: &&&str| self.cases.iter().any(|case| case.local_name() == **name);
        assert!(names.iter().filter(known).count() == names.len(), "a name in {names:?} is no case's");
        self.cases.retain(|case| names.contains(&case.local_name()));
        self
    }

    /// Leaves the cases with these names (`<area>::<id>`) out: for those that another configuration of the same runs.
    ///
    /// # Panics
    /// If there is no case of such a name.
    #[must_use]
    pub fn without(mut self, names: &[&str]) -> Self {
        let known = |name: &&&str| self.cases.iter().any(|case| case.local_name() == **name);
        assert!(names.iter().filter(known).count() == names.len(), "a name in {names:?} is no case's");
        self.cases.retain(|case| !names.contains(&case.local_name()));
        self
    }

    /// Runs every case in a process of a plain user, where the tests themselves are run by root.
    #[must_use]
    pub fn as_plain_user(mut self) -> Self {
        self.as_plain_user = true;
        self
    }

    /// Runs the cases of an area as one test in one environment, so many at a time: for engines whose environments take long to start,
    /// where a runner gives each test a process of its own. With `TIERBOX_TESTKIT_SINGLY` set each is a test again.
    ///
    /// # Panics
    /// For none at a time.
    #[must_use]
    pub fn by_area(mut self, at_once: usize) -> Self {
        assert!(at_once > 0, "cases run at least one at a time");
        self.together = Some(at_once).filter(|_| std::env::var_os("TIERBOX_TESTKIT_SINGLY").is_none());
        self
    }

    /// Engines that must be present on CI, one a line; `#` begins a remark. There a skip for one of these fails.
    #[must_use]
    pub fn required(mut self, engines: &str) -> Self {
        engines.clone_into(&mut self.required);
        self
    }

    /// Known weaker results, as TOML: the case's name, and the kernel's or engine's reason. A listed case that passes fails.
    ///
    /// # Panics
    /// If the text is no TOML table of strings.
    #[must_use]
    pub fn expected(mut self, table: &str) -> Self {
        self.expected = toml::from_str(table).expect("the table of expected results is TOML: name = \"reason\"");
        self
    }

    fn name_of(&self, case: &Case) -> String {
        match (&self.variant, case.name.split_once("::")) {
            (Some(variant), Some((marker, rest))) => format!("{marker}::{variant}::{rest}"),
            _ => case.name.clone(),
        }
    }

    fn absent(&self) -> Option<Absence> {
        if self.as_plain_user && !plain::is_child() {
            return plain::absent().or_else(|| self.factory.absent());
        }
        self.factory.absent()
    }

    fn must_be_present(&self) -> bool {
        is_required(self.factory.engine(), &self.required)
    }

    fn trials(&self, runtime: &Arc<Runtime>) -> Vec<Trial> {
        let absent = self.absent();
        let ignored = absent.is_some() && !self.must_be_present();
        let kind = if ignored { "engine absent" } else { "" };
        if let Some(at_once) = self.together {
            let trial = |(area, cases): (String, Vec<Case>)| {
                let (suite, absent, runtime) = (self.clone(), absent.clone(), runtime.clone());
                let test = move || suite.test_area(&cases, at_once, absent.as_ref(), &runtime);
                Trial::test(area, test).with_kind(kind).with_ignored_flag(ignored)
            };
            return self.areas().into_iter().map(trial).collect();
        }
        let trial = |case: &Case| {
            let (suite, case, absent, runtime) = (self.clone(), case.clone(), absent.clone(), runtime.clone());
            let name = self.name_of(&case);
            let test = move || suite.test(&case, absent.as_ref(), &runtime);
            Trial::test(name, test).with_kind(kind).with_ignored_flag(ignored)
        };
        self.cases.iter().map(trial).collect()
    }

    /// The cases by the name that they have in common.
    fn areas(&self) -> BTreeMap<String, Vec<Case>> {
        let mut areas: BTreeMap<String, Vec<Case>> = BTreeMap::new();
        for case in &self.cases {
            let name = self.name_of(case);
            let area = name.rsplit_once("::").map_or(name.as_str(), |(area, _)| area);
            areas.entry(area.to_owned()).or_default().push(case.clone());
        }
        areas
    }

    /// Runs the cases of an area, and names all that fail.
    fn test_area(&self, cases: &[Case], at_once: usize, absent: Option<&Absence>, runtime: &Runtime) -> Result<(), Failed> {
        if absent.is_some() {
            return cases.iter().try_for_each(|case| self.test(case, absent, runtime));
        }
        let at_once = if cases.iter().any(fills_the_machine) { 1 } else { at_once };
        let places = Arc::new(tokio::sync::Semaphore::new(at_once));
        let verdicts = runtime.block_on(async {
            let tasks: Vec<_> = cases
                .iter()
                .map(|case| {
                    let (suite, case, places) = (self.clone(), case.clone(), places.clone());
                    tokio::spawn(async move {
                        let _place = places.acquire_owned().await;
                        suite.verdict(&case).await
                    })
                })
                .collect();
            let mut verdicts = Vec::new();
            for task in tasks {
                verdicts.push(task.await.unwrap_or_else(|error| Err(Fail::Broken(format!("it panicked: {error}")))));
            }
            verdicts
        });
        let judged = cases.iter().zip(verdicts).map(|(case, verdict)| {
            let name = self.name_of(case);
            self.judge(&name, case, verdict).map_err(|failed| format!("{name}: {}", failed.message().unwrap_or("it failed")))
        });
        let failed: Vec<String> = judged.filter_map(Result::err).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
    }

    async fn verdict(&self, case: &Case) -> Verdict {
        let subject = self.subject().await?;
        declared(case, subject.capabilities())?;
        case.run(subject).await
    }

    fn test(&self, case: &Case, absent: Option<&Absence>, runtime: &Runtime) -> Result<(), Failed> {
        let name = self.name_of(case);
        if let Some(absence) = absent {
            return self.skipped(&name, &absence.reason, &absence.install);
        }
        if self.as_plain_user && !plain::is_child() {
            return plain::run_test(&name).map_err(Failed::from);
        }
        let verdict = runtime.block_on(self.verdict(case));
        self.judge(&name, case, verdict)
    }

    fn judge(&self, name: &str, case: &Case, verdict: Verdict) -> Result<(), Failed> {
        match (verdict, self.expected.get(name)) {
            (Err(Fail::Skipped { reason, install }), _) => self.skipped(name, &reason, &install),
            (Ok(()), None) | (Err(Fail::Broken(_)), Some(_)) => Ok(()),
            (Ok(()), Some(reason)) => {
                Err(format!("it passes, but is listed as expected to fail ({reason}): remove it from the list").into())
            }
            (Err(Fail::Broken(message)), None) => Err(format!("{}\n  {message}", case.clause).into()),
        }
    }

    fn skipped(&self, name: &str, reason: &str, install: &str) -> Result<(), Failed> {
        let absence = Absence { reason: reason.to_owned(), install: install.to_owned() };
        Ok(skipped(self.factory.engine(), name, &absence, &self.required)?)
    }

    async fn subject(&self) -> Verdict<Subject> {
        let start = async {
            let started =
                crate::subject::within(self.factory.start_limit(), "the start of an environment", self.factory.start(&|_| ()))
                    .await?;
            started.map_err(|error| match error.kind() {
                ErrorKind::HostUnable | ErrorKind::MissingEngine => Fail::Skipped {
                    reason: error.to_string(),
                    install: error.help().unwrap_or("see `tierbox doctor`").to_owned(),
                },
                _ => Fail::from(error),
            })
        };
        let environment = self.shared.get_or_init(|| start).await.clone()?;
        Subject::new(environment, self.factory.clone()).await
    }

    async fn stop(&self) -> Verdict {
        match self.shared.get() {
            Some(Ok(environment)) => Ok(environment.stop().await?),
            _ => Ok(()),
        }
    }
}

/// Whether a case takes all that a machine has, so that another beside it would meet its limits.
fn fills_the_machine(case: &Case) -> bool {
    case.local_name().starts_with("concurrency::") || case.local_name().starts_with("load::")
}

/// Holds a sandbox to its backend's minimum: a case is listed because of that, so it must be declared.
fn declared(case: &Case, by: &Capabilities) -> Verdict {
    let missing: Vec<_> = case.needs.iter().filter(|need| !need.is_met(by)).collect();
    let names = missing.iter().map(|need| need.name()).collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        return Ok(());
    }
    if missing.iter().all(|need| need.depends_on_the_host()) {
        let reason = format!("this host gives no way to enforce {names}");
        return Err(Fail::Skipped {
            reason,
            install: "run the tests where cgroups can be written (see `tierbox doctor`)".to_owned(),
        });
    }
    Err(Fail::Broken(format!("the sandbox declares less than its backend must be able to do: {names}")))
}

/// Whether this is CI, and the engine is on its list: one a line, `#` begins a remark.
fn is_required(engine: &str, list: &str) -> bool {
    let on_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    on_ci && list.lines().any(|line| line.split('#').next().unwrap_or_default().trim() == engine)
}

/// Writes down that a test was skipped, for a test program of its own kind. `required` is the list of engines that CI must
/// have.
///
/// # Errors
/// On CI, when the engine must be there. A test may have a reason of its own (the default user is root), for which there is
/// nothing to install; that never fails.
pub fn skipped(engine: &str, test: &str, absence: &Absence, required: &str) -> Result<(), String> {
    let Absence { reason, install } = absence;
    // Such a reason is no engine's absence, and is listed apart.
    let listed = if install.is_empty() { format!("{engine} (not for this configuration)") } else { engine.to_owned() };
    record_skip(&listed, test, reason, install).map_err(|error| format!("the skip could not be written down: {error}"))?;
    if !install.is_empty() && is_required(engine, required) {
        return Err(format!("{engine} must be present here, and is not: {reason}. Install it with: {install}"));
    }
    Ok(())
}

/// Appends a skip to the file that `TIERBOX_SKIP_FILE` names: engine, test, reason and install command, between tabs.
fn record_skip(engine: &str, test: &str, reason: &str, install: &str) -> std::io::Result<()> {
    let Some(path) = std::env::var_os("TIERBOX_SKIP_FILE") else { return Ok(()) };
    let fields = [engine, test, reason, install].map(|field| field.replace(['\t', '\n'], " "));
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{}\n", fields.join("\t")).as_bytes())
}

/// Runs suites as this test program's arguments ask.
pub fn run(suites: &[Suite]) -> Conclusion {
    run_with(&Arguments::from_args(), suites, Vec::new())
}

/// Runs suites and other tests of the program's own.
///
/// # Panics
/// If no runtime can be made.
pub fn run_with(arguments: &Arguments, suites: &[Suite], others: Vec<Trial>) -> Conclusion {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = Arc::new(runtime.expect("a runtime for the tests"));
    let mut trials: Vec<Trial> = suites.iter().flat_map(|suite| suite.trials(&runtime)).collect();
    trials.extend(others);
    let mut conclusion = libtest_mimic::run(arguments, trials);
    for suite in suites {
        if let Err(fail) = runtime.block_on(suite.stop()) {
            conclusion.num_failed += 1;
            let _ = writeln!(std::io::stderr(), "the environment that the cases shared could not be stopped: {fail}");
        }
    }
    plain::clean();
    conclusion
}
