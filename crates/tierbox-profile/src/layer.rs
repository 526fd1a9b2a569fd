//! Layers of values, merged by figment, with the layer and place of every value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Provider, Source};
use tierbox_core::{Error, ErrorKind, Result};

use crate::node::{Content, Entry, Node, Place};

/// Where a value comes from, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// What tierbox does when nobody says anything.
    Default,
    /// A profile that the profile extends.
    Extended,
    /// The profile itself.
    Profile,
    /// The user's own file: `$XDG_CONFIG_HOME/tierbox/config.toml`.
    User,
    /// An environment variable.
    Environment,
    /// A `--set` flag.
    Set,
    /// A value set in code.
    Code,
}

impl Layer {
    /// Its name, for people and in `--json` output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Extended => "extended profile",
            Self::Profile => "profile",
            Self::User => "user file",
            Self::Environment => "environment",
            Self::Set => "--set",
            Self::Code => "code",
        }
    }

    /// Whether it stands above the profile, and so may only tighten it unless somebody allows more.
    pub fn is_above_profile(self) -> bool {
        self > Self::Profile
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The layer.
    pub layer: Layer,
    /// The file and line, the variable, or the flag.
    pub place: Place,
}

impl Provenance {
    pub(crate) fn of_default() -> Self {
        Self { layer: Layer::Default, place: Place::Default }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Layer::Default | Layer::Code | Layer::Environment | Layer::Set => self.place.fmt(f),
            layer => write!(f, "{layer}, {}", self.place),
        }
    }
}

/// The values of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    pub layer: Layer,
    pub root: Node,
    /// Keys that mean nothing any more beside what this layer states, wherever weaker layers state them.
    pub displaced: Vec<Vec<String>>,
}

impl Values {
    /// Values of a layer that displace nothing.
    pub fn new(layer: Layer, root: Node) -> Self {
        Self { layer, root, displaced: Vec::new() }
    }
}

/// A layer as figment sees it, without what layers above it displace; its index tells it from others of its kind.
struct Numbered<'a>(usize, &'a [Values]);

impl Numbered<'_> {
    fn layer(&self) -> &Values {
        &self.1[self.0]
    }

    fn root(&self) -> Cow<'_, Node> {
        let mut root = Cow::Borrowed(&self.layer().root);
        let displaced = self.1[self.0 + 1..].iter().flat_map(|above| &above.displaced);
        for path in displaced.filter(|path| self.layer().root.find(path).is_some()) {
            root.to_mut().remove(path);
        }
        root
    }
}

impl Provider for Numbered<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::from(self.layer().layer.as_str(), Source::Custom(self.0.to_string()))
    }

    fn data(&self) -> Result<Map<figment::Profile, Dict>, figment::Error> {
        let dict = self.root().to_figment().into_dict().unwrap_or_default();
        Ok(figment::Profile::Default.collect(dict))
    }
}

/// Several layers as one.
pub(crate) struct Merged<'a> {
    layers: &'a [Values],
    figment: Figment,
    /// The merged values.
    pub value: Value,
}

impl<'a> Merged<'a> {
    /// Merges layers, weakest first.
    pub fn new(layers: &'a [Values]) -> Result<Self> {
        let figment = (0..layers.len()).fold(Figment::new(), |figment, index| figment.merge(Numbered(index, layers)));
        let value = figment.find_value("").map_err(|error| {
            Error::new(ErrorKind::Internal, "merge profile layers", error.to_string()).with_help("report this as a defect")
        })?;
        Ok(Self { layers, figment, value })
    }

    /// Where the value at a path comes from.
    pub fn provenance(&self, path: &[String]) -> Provenance {
        let found = self.layer_of(path).and_then(|index| self.layers.get(index));
        match found {
            Some(values) => Provenance { layer: values.layer, place: values.root.nearest_place(path) },
            None => Provenance::of_default(),
        }
    }

    fn layer_of(&self, path: &[String]) -> Option<usize> {
        let mut value = &self.value;
        for step in path {
            value = match value {
                Value::Dict(_, dict) => dict.get(step)?,
                _ => break,
            };
        }
        // A table that was merged from several layers goes by its first value: only limits are asked for as tables,
        // and they are replaced as a whole.
        while let Value::Dict(_, dict) = value {
            value = dict.values().next()?;
        }
        match &self.figment.get_metadata(value.tag())?.source {
            Some(Source::Custom(index)) => index.parse().ok(),
            _ => None,
        }
    }

    /// The provenance of every value, by dotted key.
    pub fn provenances(&self) -> BTreeMap<String, Provenance> {
        let mut found = BTreeMap::new();
        self.collect(&self.value, &mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, value: &Value, path: &mut Vec<String>, found: &mut BTreeMap<String, Provenance>) {
        let is_limit = path.len() == 2 && path[0] == "limits";
        match value {
            Value::Dict(_, dict) if !is_limit => {
                for (key, inner) in dict {
                    path.push(key.clone());
                    self.collect(inner, path, found);
                    path.pop();
                }
            }
            _ => {
                found.insert(path.join("."), self.provenance(path));
            }
        }
    }
}

/// Writes every limit as a table with `max` and `enforce`, so that a layer replaces a limit as a whole.
pub(crate) fn normalize_limits(root: &mut Node) {
    const WITH_ENFORCE: &[&str] = &["memory", "cpu", "pids", "disk", "inodes", "file-size", "open-files"];
    let Some(limits) = root.table_mut().and_then(|table| table.get_mut("limits")).and_then(|entry| entry.node.table_mut()) else {
        return;
    };
    for name in WITH_ENFORCE {
        let Some(entry) = limits.get_mut(*name) else { continue };
        let place = entry.node.place.clone();
        let required = || {
            let node = Node::new(place.clone(), Content::Text("required".to_owned()));
            Entry { key_place: place.clone(), node }
        };
        match &mut entry.node.value {
            Content::Text(text) if text == "none" => {}
            Content::Table(table) => {
                table.entry("enforce".to_owned()).or_insert_with(required);
            }
            _ => {
                let max = Entry { key_place: place.clone(), node: entry.node.clone() };
                entry.node.value = Content::Table(BTreeMap::from([("max".to_owned(), max), ("enforce".to_owned(), required())]));
            }
        }
    }
}
