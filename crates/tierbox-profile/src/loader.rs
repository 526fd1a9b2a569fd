//! Reads a profile with all its layers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use figment::value::{Dict, Tag, Value as FigmentValue};
use serde_json::Value;
use tierbox_core::{Error, ErrorKind, Registry, Result, Tier};

use crate::builder::Overrides;
use crate::check::{check, settle_marks};
use crate::diagnostic::{Diagnostic, Severity, first_error};
use crate::document::Document;
use crate::find::{self, Source};
use crate::inspect::{displaced, inspect};
use crate::layer::{Layer, Merged, Provenance, Values, normalize_limits};
use crate::node::{Node, Place, parse_document};
use crate::overlay::{self, Assignment};
use crate::profile::Profile;
use crate::schema::{common_keys, schema};
use crate::settings::{Complaint, Settings, resolve};
use crate::surroundings::Surroundings;
use crate::weaken::{Weakening, weaker};

/// A profile extends another that extends another, at most this often.
const MAX_EXTENDS: usize = 16;

/// Loads profiles: finds them by name or path, and puts the layers above them.
///
/// ```no_run
/// use tierbox_core::Registry;
/// use tierbox_profile::{Loader, Surroundings};
/// # let registry = Registry::linked();
///
/// let loader = Loader::new(&registry).surroundings(Surroundings::empty("/")).set("limits.exec=30s")?;
/// let profile = loader.load("local")?;
/// assert_eq!(profile.tier().to_string(), "T0.H1.N2");
/// # Ok::<(), tierbox_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Loader {
    schema: Arc<Value>,
    ready: Arc<Mutex<ReadyProfiles>>,
    surroundings: Arc<Surroundings>,
    assignments: Vec<Assignment>,
    allow_weaker: bool,
    weaker_set: bool,
    overrides: Option<Overrides>,
}

/// Ready profiles that were read before, as they are without any layer above them: they are part of the program, so nothing about
/// them changes. Copies of a loader share them.
type ReadyProfiles = BTreeMap<String, Profile>;

/// A profile that can be found by name.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its file; `None` for a ready profile, which is part of the program.
    pub path: Option<PathBuf>,
    /// Its tier and description, or why it cannot be used.
    pub summary: Result<Summary, String>,
}

/// What a list of profiles says of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its tier.
    pub tier: Tier,
    /// Its backend.
    pub backend: String,
    /// Its description; may be empty.
    pub description: String,
}

impl Loader {
    /// A loader for profiles of these backends, with the variables and directories of this process.
    pub fn new(registry: &Registry) -> Self {
        Self {
            schema: Arc::new(schema(registry)),
            ready: Arc::default(),
            surroundings: Arc::new(Surroundings::of_process()),
            assignments: Vec::new(),
            allow_weaker: false,
            weaker_set: false,
            overrides: None,
        }
    }

    /// Takes variables and directories from elsewhere.
    #[must_use]
    pub fn surroundings(mut self, surroundings: Surroundings) -> Self {
        self.surroundings = Arc::new(surroundings);
        self
    }

    /// Adds a `--set` flag: `section.key=value`. The value is read as a string where one is expected, else as TOML.
    ///
    /// # Errors
    /// `InvalidInput` for a flag that is malformed.
    pub fn set(mut self, flag: &str) -> Result<Self> {
        self.assignments.push(Assignment::parse(flag)?);
        Ok(self)
    }

    /// Lets the user's file, the environment and `--set` weaken the profile (`--allow-weaker`). Default: no.
    #[must_use]
    pub fn allow_weaker(mut self, allow: bool) -> Self {
        self.allow_weaker = allow;
        self
    }

    /// Lets `--set` alone weaken the profile: those who say it mean it, and it is no leave for the layers below. Default: no.
    #[must_use]
    pub fn weaker_set(mut self, allow: bool) -> Self {
        self.weaker_set = allow;
        self
    }

    /// Values set in code, above all other layers. They may weaken the profile, and what they weaken is listed.
    #[must_use]
    pub fn overrides(mut self, overrides: Overrides) -> Self {
        self.overrides = Some(overrides);
        self
    }

    /// Loads a profile by name (looked up in the directories of `TIERBOX_PROFILES`, then in
    /// `$XDG_CONFIG_HOME/tierbox/profiles`, then among the ready ones) or by path (with a `/`, or ending in `.toml`).
    ///
    /// # Errors
    /// `UnknownProfile`, `InvalidInput` for a hostile name, `InvalidProfile` with file and line for anything wrong in a
    /// layer, `WeakerRefused` for a layer that would weaken the profile, `UnknownBackend`.
    pub fn load(&self, name: &str) -> Result<Profile> {
        let (profile, diagnostics) = self.read(name)?;
        if let Some(error) = first_error(&diagnostics) {
            return Err(error);
        }
        profile.ok_or_else(|| Error::new(ErrorKind::Internal, "read profile", "it was refused without a reason"))
    }

    /// Everything that is wrong or doubtful about a profile and the layers above it. Empty where all is well. Secrets
    /// are not read.
    ///
    /// # Errors
    /// As [`load`](Self::load) for a profile that cannot be found or opened.
    pub fn validate(&self, name: &str) -> Result<Vec<Diagnostic>> {
        let (profile, mut diagnostics) = self.read(name)?;
        if let Some(profile) = profile {
            diagnostics.extend(profile.warnings().iter().cloned());
        }
        Ok(diagnostics)
    }

    /// Every profile that can be found by name, sorted.
    pub fn list(&self) -> Vec<Listed> {
        let summarize = |name: &str| {
            let profile = self.load(name).map_err(|error| error.to_string())?;
            let description = profile.description().unwrap_or_default().to_owned();
            Ok(Summary { tier: profile.tier(), backend: profile.backend().to_owned(), description })
        };
        let names = find::names(&self.surroundings).into_iter();
        names.map(|(name, path)| Listed { summary: summarize(&name), name, path }).collect()
    }

    /// The JSON Schema that profiles are checked with.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// A profile, if there are no errors, and what is wrong otherwise.
    fn read(&self, name: &str) -> Result<(Option<Profile>, Vec<Diagnostic>)> {
        let source = find::find(name, &self.surroundings)?;
        let mut above = Reading::new(self);
        above.user_file()?;
        above.overlays();
        let is_plain = source.is_ready && self.overrides.is_none() && above.layers.is_empty() && above.problems.is_empty();
        if let Some(known) = self.ready().get(&source.name).filter(|_| is_plain) {
            let profile = Profile { surroundings: self.surroundings.clone(), ..known.clone() };
            return Ok((Some(profile), Vec::new()));
        }
        let mut reading = Reading::new(self);
        reading.profile_files(&source);
        reading.layers.extend(above.layers);
        reading.problems.extend(above.problems);
        let profile = if reading.problems.is_empty() { reading.assemble(&source)? } else { None };
        if let (true, Some(profile)) = (is_plain, &profile) {
            self.ready().insert(source.name, profile.clone());
        }
        Ok((profile, reading.problems))
    }

    fn ready(&self) -> MutexGuard<'_, ReadyProfiles> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A profile that is being read.
struct Reading<'a> {
    loader: &'a Loader,
    layers: Vec<Values>,
    problems: Vec<Diagnostic>,
}

impl<'a> Reading<'a> {
    fn new(loader: &'a Loader) -> Self {
        Self { loader, layers: Vec::new(), problems: Vec::new() }
    }

    /// The profile and what it extends, weakest first.
    fn profile_files(&mut self, source: &Source) {
        let mut chain: Vec<(Source, Node)> = Vec::new();
        let mut next = Some(source.clone());
        while let Some(source) = next.take() {
            let Some(root) = self.parse(&source) else { return };
            let extends = root.get("extends").and_then(|node| Some((node.text()?.to_owned(), node.place.clone())));
            chain.push((source, root));
            if let Some((reference, place)) = extends {
                match self.extended(&reference, &chain) {
                    Ok(found) => next = Some(found),
                    Err(error) => self.problems.push(not_extended(&error, place)),
                }
            }
        }
        for (index, (source, root)) in chain.into_iter().enumerate().rev() {
            let layer = if index == 0 { Layer::Profile } else { Layer::Extended };
            self.add(Values::new(layer, root), &source.base);
        }
    }

    fn parse(&mut self, source: &Source) -> Option<Node> {
        parse_document(&source.text, &source.label)
            .map_err(|bad| self.problems.push(Diagnostic::error(bad.place, &[], format!("this is not TOML: {}", bad.message))))
            .ok()
    }

    fn extended(&self, reference: &str, chain: &[(Source, Node)]) -> Result<Source> {
        let Some((from, _)) = chain.last() else { return Err(Error::new(ErrorKind::Internal, "extend profile", "no profile")) };
        let found = find::find_extended(reference, from, &self.loader.surroundings)?;
        let same = |source: &Source| source.is_ready == found.is_ready && source.base == found.base && source.name == found.name;
        if chain.len() >= MAX_EXTENDS {
            let message = format!("{} profiles extend one another, more than {MAX_EXTENDS}", chain.len() + 1);
            return Err(Error::new(ErrorKind::InvalidProfile, "extend profile", message)
                .with_help("write what some of them say into one"));
        }
        if chain.iter().any(|(source, _)| same(source)) {
            let mut names: Vec<&str> = chain.iter().map(|(source, _)| source.name.as_str()).collect();
            names.push(&found.name);
            return Err(Error::new(
                ErrorKind::InvalidProfile,
                "extend profile",
                format!("it goes in a circle: {}", names.join(" -> ")),
            )
            .with_help("take one `extends` out"));
        }
        Ok(found)
    }

    fn user_file(&mut self) -> Result<()> {
        let Some(directory) = self.loader.surroundings.config_directory() else { return Ok(()) };
        let path = directory.join("config.toml");
        if !path.exists() {
            return Ok(());
        }
        let source = find::read(&path, &path)?;
        if let Some(root) = self.parse(&source) {
            self.add(Values::new(Layer::User, root), &directory);
        }
        Ok(())
    }

    fn overlays(&mut self) {
        let loader = self.loader;
        let environment = overlay::environment(&loader.schema, &loader.surroundings, &mut self.problems);
        let set = overlay::assignments(&loader.schema, &loader.assignments, &mut self.problems);
        for values in [environment, set] {
            if values.root.table().is_some_and(|table| !table.is_empty()) {
                self.add(values, loader.surroundings.directory());
            }
        }
    }

    /// Checks a layer by itself and adds it.
    fn add(&mut self, mut values: Values, base: &Path) {
        if values.layer.is_above_profile()
            && let Some(node) = values.root.get("extends")
        {
            let problem = Diagnostic::error(node.place.clone(), &["extends".to_owned()], "only a profile can extend another");
            return self.problems.push(problem);
        }
        let findings = inspect(&self.loader.schema, &self.loader.schema, &values.root);
        let mut problems: Vec<_> = findings.problems.into_iter().map(|problem| explain_table(problem, &values.root)).collect();
        problems.extend(settle_marks(&mut values.root, &findings.marks, base, &self.loader.surroundings));
        normalize_limits(&mut values.root);
        values.displaced = displaced(&self.loader.schema, &values.root);
        problems.extend(check_formats(&values, &problems));
        problems.sort_by_key(|problem| (problem.place.line(), problem.place.column()));
        self.problems.extend(problems);
        self.layers.push(values);
    }

    /// Puts the layers together, one above the other, and checks the whole.
    fn assemble(&mut self, source: &Source) -> Result<Option<Profile>> {
        let above = self.layers.iter().position(|values| values.layer.is_above_profile()).unwrap_or(self.layers.len());
        let Some(mut settings) = self.settings_of(above)? else {
            let place = self.layers[above - 1].root.place.clone();
            let help = "state the isolation that must be enforced, such as tier = \"T0.H1.N2\"".to_owned();
            self.problems.push(Diagnostic::error(place, &["tier".to_owned()], "`tier` is missing").with_help(help));
            return Ok(None);
        };
        // The profile must make sense by itself, before anybody tightens it.
        let warnings = self.check(&settings, above)?;
        let stated = settings.clone();
        let mut weakened = Vec::new();
        for count in above + 1..=self.layers.len() {
            let Some(mut next) = self.settings_of(count)? else { continue };
            leave_names_unused(&stated, &mut next);
            weakened.extend(self.weakenings(&settings, &next, count)?);
            settings = next;
        }
        if !self.problems.is_empty() {
            return Ok(None);
        }
        let warnings = if above < self.layers.len() { self.check(&settings, self.layers.len())? } else { warnings };
        if !self.problems.is_empty() {
            return Ok(None);
        }
        self.known_backend(&settings)?;
        let provenances = Merged::new(&self.layers)?.provenances();
        let profile = Profile {
            name: source.name.clone(),
            path: (!source.is_ready).then(|| source.label.to_path_buf()),
            settings,
            provenances,
            weakened,
            warnings,
            base: source.base.clone(),
            schema: self.loader.schema.clone(),
            surroundings: self.loader.surroundings.clone(),
        };
        match &self.loader.overrides {
            Some(overrides) => profile.with(overrides).map(Some),
            None => Ok(Some(profile)),
        }
    }

    /// The values of the first `count` layers.
    fn settings_of(&self, count: usize) -> Result<Option<Settings>> {
        let merged = Merged::new(&self.layers[..count])?;
        typed(&merged, &mut Vec::new())
    }

    /// Adds errors to the problems and returns the warnings.
    fn check(&mut self, settings: &Settings, count: usize) -> Result<Vec<Diagnostic>> {
        let merged = Merged::new(&self.layers[..count])?;
        let place = |key: &str| merged.provenance(&split(key)).place;
        let found = check(settings, &self.loader.surroundings, &place);
        let (errors, warnings) = found.into_iter().partition(|diagnostic| diagnostic.severity == Severity::Error);
        self.problems.extend::<Vec<_>>(errors);
        Ok(warnings)
    }

    /// What the last of `count` layers weakens; refused unless it is allowed.
    fn weakenings(&mut self, before: &Settings, after: &Settings, count: usize) -> Result<Vec<Weakening>> {
        let merged = Merged::new(&self.layers[..count])?;
        let changes = weaker(before, after, &self.loader.schema);
        let mut allowed = Vec::new();
        let is_set = self.layers[..count].last().is_some_and(|values| values.layer == Layer::Set);
        let may_weaken = self.loader.allow_weaker || (self.loader.weaker_set && is_set);
        for change in changes {
            let provenance = merged.provenance(&split(&change.key));
            if may_weaken {
                allowed.push(Weakening { key: change.key, from: change.from, to: change.to, provenance });
            } else {
                let message = format!("{} would weaken `{}` from {} to {}", provenance.layer, change.key, change.from, change.to);
                let problem = Diagnostic::error(provenance.place, &[change.key], message).with_kind(ErrorKind::WeakerRefused);
                let help = "pass --allow-weaker to do so (the report will list it), or change the profile".to_owned();
                self.problems.push(problem.with_help(help));
            }
        }
        Ok(allowed)
    }

    fn known_backend(&self, settings: &Settings) -> Result<()> {
        known_backend(&self.loader.schema, &settings.backend)
    }
}

/// Refuses a backend that the schema has no table for.
pub(crate) fn known_backend(schema: &Value, backend: &str) -> Result<()> {
    let common: Vec<&str> = common_keys().collect();
    let keys = schema["properties"].as_object().into_iter().flat_map(|map| map.keys());
    let names: Vec<&str> = keys.map(String::as_str).filter(|key| !common.contains(key)).collect();
    if names.contains(&backend) {
        return Ok(());
    }
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let message = format!("{} is not compiled in; there is: {there}", crate::inspect::shown(backend));
    Err(Error::new(ErrorKind::UnknownBackend, "find backend", message)
        .with_help("check the profile's `backend`, or build tierbox with that backend's cargo feature"))
}

/// Tightening the network leaves the names that the profile allows without a use.
pub(crate) fn leave_names_unused(profile: &Settings, after: &mut Settings) {
    if after.tier.network() > profile.tier.network() && after.allow == profile.allow {
        after.allow.clear();
    }
}

/// The typed values of merged layers; `None` if they state no tier.
fn typed(merged: &Merged<'_>, complaints: &mut Vec<Complaint>) -> Result<Option<Settings>> {
    let dict = merged.value.clone().into_dict().unwrap_or_default();
    let common: Vec<&str> = common_keys().collect();
    let (common, tables): (Dict, Dict) = dict.into_iter().partition(|(key, _)| common.contains(&key.as_str()));
    let internal =
        |error: figment::Error| Error::new(ErrorKind::Internal, "read profile", format!("its values do not fit: {}", error.kind));
    let document: Document = FigmentValue::Dict(Tag::Default, common).deserialize().map_err(internal)?;
    let tables = tables
        .into_iter()
        .map(|(name, table)| Ok((name, table.deserialize::<Value>().map_err(internal)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    Ok(resolve(document, tables, complaints))
}

/// Reads a layer's values by themselves, so that errors name it. What is wrong already is left out.
fn check_formats(values: &Values, known: &[Diagnostic]) -> Vec<Diagnostic> {
    let mut rest = values.clone();
    known.iter().for_each(|problem| rest.root.remove(&split(&problem.key)));
    let mut complaints = Vec::new();
    if let Ok(merged) = Merged::new(std::slice::from_ref(&rest)) {
        let _ = typed(&merged, &mut complaints);
    }
    complaints.into_iter().map(|complaint| complain(complaint, &values.root)).collect()
}

fn complain(complaint: Complaint, root: &Node) -> Diagnostic {
    let place = root.nearest_place(&complaint.path);
    let key = complaint.path.join(".");
    Diagnostic::error(place, &complaint.path, format!("`{key}`: {}", complaint.message)).with_help(complaint.help)
}

fn not_extended(error: &Error, place: Place) -> Diagnostic {
    let message = format!("cannot extend: {}", error.message());
    let problem = Diagnostic::error(place, &["extends".to_owned()], message).with_kind(error.kind());
    problem.with_help(error.help().map(str::to_owned))
}

/// A table that bears the name of the backend it is for is no slip of the finger: that backend is missing.
fn explain_table(problem: Diagnostic, root: &Node) -> Diagnostic {
    let backend = root.get("backend").and_then(Node::text);
    if backend.is_some_and(|backend| backend == problem.key) {
        let help = "build tierbox with that backend's cargo feature, or name another backend".to_owned();
        let message = format!("the backend `{}` is not compiled in", problem.key);
        return Diagnostic { message, kind: ErrorKind::UnknownBackend, help: Some(help), ..problem };
    }
    problem
}

fn split(key: &str) -> Vec<String> {
    match key.split_once('.') {
        Some(("env", variable)) => vec!["env".to_owned(), variable.to_owned()],
        _ => key.split('.').map(str::to_owned).collect(),
    }
}

/// The provenance of a value that code sets.
pub(crate) fn of_code() -> Provenance {
    Provenance { layer: Layer::Code, place: Place::Code }
}
