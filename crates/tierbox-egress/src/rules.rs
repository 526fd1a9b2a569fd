//! The names that a sandbox may reach.

use std::collections::BTreeSet;

use tierbox_core::{AllowRule, AllowScheme, Error, ErrorKind, NetworkSpec, Result};

/// The most rules of one profile.
const MOST: usize = 4096;

/// The most ports that they name: each has a socket of its own in the sandbox.
const MOST_PORTS: usize = 100;

/// A profile's allowed names, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<AllowRule>);

impl Rules {
    /// Reads the rules of a profile, whose groups are expanded already.
    ///
    /// # Errors
    /// `InvalidProfile` naming the entry that is no rule, or whose wildcard covers names of many owners (`*.co.uk`).
    pub fn new(network: &NetworkSpec) -> Result<Self> {
        Self::parse(&network.allow)
    }

    /// The same from a list.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self> {
        if entries.len() > MOST {
            return Err(invalid(format!("{} names are allowed, and the most is {MOST}", entries.len())));
        }
        let mut rules = Vec::with_capacity(entries.len());
        for entry in entries {
            let rule: AllowRule = entry.as_ref().parse()?;
            if let Some(shared) = Some(rule.name()).filter(|_| rule.is_wildcard()).and_then(shared_below) {
                return Err(invalid(format!("\"{rule}\" allows names of many owners: anybody can register one below {shared}"))
                    .with_help("allow the names that are needed, or a wildcard below a name with one owner"));
            }
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        let rules = Self(rules);
        if rules.ports().len() > MOST_PORTS {
            return Err(invalid(format!("{} ports are allowed, and the most is {MOST_PORTS}", rules.ports().len())));
        }
        Ok(rules)
    }

    /// The rule that allows this, if one does. `name` is as [`tierbox_core::host_name`] gives it.
    pub fn find(&self, name: &str, port: u16, scheme: AllowScheme) -> Option<&AllowRule> {
        self.0.iter().find(|rule| rule.allows(name, port, scheme))
    }

    /// A rule that allows anything of this name.
    pub fn knows(&self, name: &str) -> Option<&AllowRule> {
        self.0.iter().find(|rule| rule.covers_name(name))
    }

    /// The ports on which HTTP or TLS is allowed.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.0.iter().filter(|rule| rule.scheme() != Some(AllowScheme::Tcp)).flat_map(AllowRule::ports).collect()
    }

    /// The rules.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &AllowRule> {
        self.0.iter()
    }

    /// What a report says of them: every name, and what the wildcards and the unchecked ones mean.
    pub fn notes(&self) -> Vec<String> {
        let list = |keep: &dyn Fn(&AllowRule) -> bool| {
            self.0.iter().filter(|rule| keep(rule)).map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let all = list(&|_| true);
        let mut notes = vec![format!("allowed names: {}", if all.is_empty() { "none" } else { &all })];
        let wildcards = list(&AllowRule::is_wildcard);
        if !wildcards.is_empty() {
            notes.push(format!(
                "{wildcards}: any name below is resolved and dialled, and the name that is asked for inside TLS is not seen"
            ));
        }
        let raw = list(&|rule| rule.scheme() == Some(AllowScheme::Tcp));
        if !raw.is_empty() {
            notes.push(format!("{raw}: what is spoken there is not checked"));
        }
        notes
    }
}

/// Names of many owners that lie below a name with one, such as `s3.amazonaws.com`.
const SHARED: &str = include_str!("shared.txt");

/// Where, at a name or below it, anybody can register a name. `None` if all have one owner, as far as is known.
fn shared_below(name: &str) -> Option<&str> {
    if is_public_suffix(name) {
        return Some(name);
    }
    let below = |shared: &&str| shared.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
    let shared = SHARED.lines().filter(|line| !line.starts_with('#')).find(below)?;
    Some(shared.strip_prefix("x.").unwrap_or(shared))
}

/// Whether names below this one belong to whoever registers them, by the Public Suffix List.
fn is_public_suffix(name: &str) -> bool {
    psl::suffix(name.as_bytes()).is_some_and(|suffix| suffix.as_bytes().len() == name.len())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidProfile, "read network.allow", message)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn wildcards_over_many_owners_are_refused() {
        for bad in ["*.co.uk", "*.github.io", "*.com.au:443", "https://*.s3.amazonaws.com"] {
            let error = Rules::parse(&[bad]).expect_err(bad);
            assert!(error.message().contains("many owners"), "{error}");
        }
        for (bad, shared) in [
            ("*.amazonaws.com", "amazonaws.com"),
            ("*.us-east-1.amazonaws.com", "us-east-1.amazonaws.com"),
            ("https://*.windows.net", "windows.net"),
            ("*.core.windows.net", "core.windows.net"),
            ("*.fastly.net", "fastly.net"),
        ] {
            let error = Rules::parse(&[bad]).expect_err(bad);
            let below = error.message().rsplit(' ').next().unwrap_or_default();
            assert!(
                error.message().contains("many owners") && (below == shared || below.ends_with(&format!(".{shared}"))),
                "{error}"
            );
        }
        for fine in ["*.amazonaws.com.test", "*.xamazonaws.com", "bucket.s3.amazonaws.com", "*.bucket.s3.amazonaws.com"] {
            assert!(Rules::parse(&[fine]).is_ok(), "{fine}");
        }
        assert!(Rules::parse(&["*.example.co.uk", "*.example.github.io", "github.io", "*.index.test"]).is_ok());
    }

    /// The list's own names are still what it says of them, so that it goes with the library.
    #[test]
    fn the_list_of_shared_names_is_of_public_suffixes() {
        let shared: Vec<&str> = SHARED.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(shared.len() > 500);
        let others: Vec<&&str> = shared.iter().filter(|name| !is_public_suffix(name)).collect();
        assert!(others.is_empty(), "{others:?}");
    }

    #[test]
    fn the_first_rule_that_fits_is_found() {
        let rules = Rules::parse(&["a.test", "*.a.test:8443", "tcp://git.a.test:22"]).unwrap();
        assert!(rules.find("a.test", 443, AllowScheme::Https).is_some());
        assert_eq!(rules.find("x.a.test", 8443, AllowScheme::Https).unwrap().to_string(), "*.a.test:8443");
        assert!(rules.find("x.a.test", 443, AllowScheme::Https).is_none());
        assert!(rules.find("git.a.test", 22, AllowScheme::Tcp).is_some());
        assert_eq!(rules.ports().into_iter().collect::<Vec<_>>(), [80, 443, 8443]);
        assert!(rules.knows("git.a.test").is_some() && rules.knows("b.test").is_none());
        assert_eq!(rules.notes().len(), 3);
    }
}
