//! The `[ec2]` table of a profile.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;

/// The type of instances where the profile names none.
pub(crate) const TYPE: &str = "t3a.large";

/// The `[ec2]` table of a profile.
///
/// `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The region. By default what `INSPECT_EC2_SANDBOX_REGION` names, else the one of AWS's own configuration.
    pub region: Option<String>,
    /// The VPC; only to check that subnets and group are in it. `INSPECT_EC2_SANDBOX_VPC_ID` by default.
    pub vpc: Option<String>,
    /// Subnets, tried in this order where one has no capacity. `INSPECT_EC2_SANDBOX_SUBNET_ID` by default.
    pub subnets: Vec<String>,
    /// The security group. It needs no rule for what comes in. `INSPECT_EC2_SANDBOX_SECURITY_GROUP_ID` by default.
    pub security_group: Option<String>,
    /// N1: the instance that is the gateway; `tierbox ec2 setup --gateway` makes one.
    pub gateway: Option<String>,
    /// The instance profile, by name: its role needs the policy AmazonSSMManagedInstanceCore and nothing else.
    /// `INSPECT_EC2_SANDBOX_INSTANCE_PROFILE` by default.
    pub instance_profile: Option<String>,
    /// The bucket that files and secrets pass through. `INSPECT_EC2_SANDBOX_S3_BUCKET` by default.
    pub bucket: Option<String>,
    /// What keys in the bucket begin with. `INSPECT_EC2_SANDBOX_S3_KEY_PREFIX` by default, else `tierbox`.
    pub key_prefix: Option<String>,
    /// The image, by its id in this region. By default Canonical's newest Ubuntu 24.04 for the instance type's architecture.
    pub ami: Option<String>,
    /// Instance types, tried in this order where there is no capacity. `INSPECT_EC2_SANDBOX_INSTANCE_TYPE` by default, else
    /// `t3a.large`.
    pub instance_types: Vec<String>,
    /// The size of the root volume in GiB. By default the image's own.
    #[schemars(range(min = 1, max = 16384))]
    pub volume_size: Option<u32>,
    /// More tags for instances and volumes. `INSPECT_EC2_SANDBOX_EXTRA_TAGS` (`k1=v1;k2=v2`) by default.
    pub tags: BTreeMap<String, String>,
    /// The machines, by name; the first is the one that commands go to. By default one, `main`.
    pub machines: Vec<String>,
    /// How long machines outlive a harness that died, in minutes.
    #[schemars(range(min = 2, max = 1440))]
    pub outlive_minutes: Option<u32>,
    /// The profile of AWS's own configuration files.
    pub profile: Option<String>,
    /// An access key, instead of a profile: a reference, `env:NAME` or `file:PATH`.
    #[schemars(extend("x-secret" = true))]
    pub access_key_id: Option<String>,
    /// Its secret: a reference.
    #[schemars(extend("x-secret" = true))]
    pub secret_access_key: Option<String>,
    /// The session token of temporary keys: a reference.
    #[schemars(extend("x-secret" = true))]
    pub session_token: Option<String>,
    /// Where AWS's API is, if not at Amazon's own addresses.
    pub endpoint_url: Option<String>,
    /// Whether an instance is made for each environment, or one that exists is used. By default the latter where `instance-id` is set.
    pub mode: Option<Mode>,
    /// `attach`: the instance. The variable `EC2_INSTANCE_ID` overrides it, as the others of an `attach` profile do.
    pub instance_id: Option<String>,
    /// `attach`: where the directories of tasks are; root's own. `/opt/sandbox` by default; `SANDBOX_BASE_DIR` overrides it.
    pub base_dir: Option<String>,
    /// `attach`: the longest time of a command, in seconds, and the processor time of each process. 300 by default;
    /// `MAX_EXECUTION_TIME` overrides it.
    #[schemars(range(min = 30, max = 3600))]
    pub max_execution_seconds: Option<u32>,
    /// `attach`: memory of a task, in MiB. 1024 by default; `MAX_MEMORY_MB` overrides it.
    #[schemars(range(min = 128, max = 16384))]
    pub max_memory_mib: Option<u32>,
    /// `attach`: after how many hours without a sign of life a task is removed by the next one. 24 by default;
    /// `CLEANUP_AFTER_HOURS` overrides it.
    #[schemars(range(min = 1, max = 168))]
    pub cleanup_after_hours: Option<u32>,
}

/// Where machines come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// An instance for each environment, which ends with it.
    Launch,
    /// One that exists: a directory and a user for each environment, which end with it.
    Attach,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys = if self.access_key_id.is_some() { "keys of the profile" } else { "none in the profile" };
        f.debug_struct("Settings")
            .field("region", &self.region)
            .field("subnets", &self.subnets)
            .field("security_group", &self.security_group)
            .field("instance_profile", &self.instance_profile)
            .field("bucket", &self.bucket)
            .field("key_prefix", &self.key_prefix)
            .field("ami", &self.ami)
            .field("instance_types", &self.instance_types)
            .field("machines", &self.machines)
            .field("profile", &self.profile)
            .field("instance_id", &self.instance_id)
            .field("base_dir", &self.base_dir)
            .field("keys", &keys)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads the table; nothing at all is the default.
    ///
    /// # Errors
    /// `InvalidProfile` with what is wrong.
    pub fn from_value(value: &serde_json::Value) -> Result<Self> {
        let settings = match value {
            serde_json::Value::Null => Self::default(),
            serde_json::Value::Object(_) => Self::deserialize(value).map_err(|error| invalid(format!("[ec2]: {error}")))?,
            _ => return Err(invalid("[ec2] is not a table")),
        };
        settings.check()?;
        Ok(settings)
    }

    /// Its JSON Schema.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Settings).to_value()
    }

    /// The names of its machines; the first is the one that commands go to.
    pub(crate) fn names(&self) -> Vec<String> {
        if self.machines.is_empty() { vec!["main".to_owned()] } else { self.machines.clone() }
    }

    /// The instance types, in the order in which they are tried.
    pub(crate) fn types(&self) -> Vec<String> {
        if self.instance_types.is_empty() { vec![TYPE.to_owned()] } else { self.instance_types.clone() }
    }

    /// Whether it uses an instance that exists.
    pub(crate) fn attaches(&self) -> bool {
        self.mode.map_or(self.instance_id.is_some(), |mode| mode == Mode::Attach)
    }

    fn check(&self) -> Result<()> {
        let named = [
            ("region", &self.region),
            ("vpc", &self.vpc),
            ("security-group", &self.security_group),
            ("instance-profile", &self.instance_profile),
            ("bucket", &self.bucket),
            ("ami", &self.ami),
            ("gateway", &self.gateway),
            ("profile", &self.profile),
            ("instance-id", &self.instance_id),
        ];
        let one = named.into_iter().filter_map(|(key, value)| value.as_ref().map(|value| (key, value)));
        let lists = [("subnets", &self.subnets), ("instance-types", &self.instance_types), ("machines", &self.machines)];
        let many = lists.into_iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        if let Some((key, value)) = one.chain(many).find(|(_, value)| !is_plain(value)) {
            return Err(invalid(format!("ec2.{key}: {:?} is not a name", crate::call::shown(value)))
                .with_help("names are letters, digits and -_.+=@/, and do not begin with a dash"));
        }
        if let Some(name) = self.machines.iter().enumerate().find(|(at, name)| self.machines[..*at].contains(name)) {
            return Err(invalid(format!("ec2.machines names {:?} twice", name.1)));
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err(invalid("ec2.access-key-id and ec2.secret-access-key belong together"));
        }
        if self.session_token.is_some() && self.access_key_id.is_none() {
            return Err(invalid("ec2.session-token needs ec2.access-key-id and ec2.secret-access-key"));
        }
        if self.access_key_id.is_some() && self.profile.is_some() {
            return Err(invalid("ec2.profile and ec2.access-key-id are two ways to say who asks: keep one"));
        }
        if self.outlive_minutes.is_some_and(|minutes| !(2..=1440).contains(&minutes)) {
            return Err(invalid("ec2.outlive-minutes is between 2 and 1440"));
        }
        self.check_prefix()?;
        self.check_attach()?;
        self.check_tags()
    }

    fn check_attach(&self) -> Result<()> {
        let ranges = [
            ("max-execution-seconds", self.max_execution_seconds, 30..=3600),
            ("max-memory-mib", self.max_memory_mib, 128..=16384),
            ("cleanup-after-hours", self.cleanup_after_hours, 1..=168),
        ];
        for (key, value, range) in ranges {
            if value.is_some_and(|value| !range.contains(&value)) {
                return Err(invalid(format!("ec2.{key} is between {} and {}", range.start(), range.end())));
            }
        }
        if let Some(base) = &self.base_dir {
            let parts: Vec<&str> = base.split('/').skip(1).collect();
            let legal = |part: &&str| is_plain(part) && !part.starts_with('.');
            if !base.starts_with('/') || base.len() > 200 || parts.is_empty() || !parts.iter().all(legal) {
                return Err(invalid(format!("ec2.base-dir = {:?} cannot be the directory of tasks", crate::call::shown(base)))
                    .with_help("name a directory of its own by its absolute path, such as /opt/sandbox"));
            }
        }
        if !self.attaches() {
            let own = [self.base_dir.is_some(), self.max_execution_seconds.is_some(), self.max_memory_mib.is_some()];
            if self.instance_id.is_some() || self.cleanup_after_hours.is_some() || own.contains(&true) {
                return Err(invalid("ec2.instance-id and what belongs to it are of mode = \"attach\" alone"));
            }
        } else if !self.machines.is_empty() || self.ami.is_some() || !self.instance_types.is_empty() {
            return Err(invalid("ec2.machines, ec2.ami and ec2.instance-types are of instances that are made: not with attach"));
        }
        Ok(())
    }

    fn check_prefix(&self) -> Result<()> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        match &self.key_prefix {
            Some(prefix) if !prefix.bytes().all(legal) || prefix.len() > 200 || prefix.contains("..") => {
                Err(invalid("ec2.key-prefix takes letters, digits and -_./ alone"))
            }
            _ => Ok(()),
        }
    }

    fn check_tags(&self) -> Result<()> {
        if self.tags.len() > 30 {
            return Err(invalid("ec2.tags holds more than 30 tags, which together with tierbox's own are too many for AWS"));
        }
        for (key, value) in &self.tags {
            let reserved = key.starts_with("aws:")
                || key.starts_with("tierbox:")
                || ["Name", "ExpiresAt", "inspect_sandbox"].contains(&key.as_str());
            if key.is_empty() || key.len() > 128 || value.len() > 256 || reserved {
                return Err(invalid(format!("ec2.tags: {:?} cannot be a tag of yours", crate::call::shown(key))).with_help(
                    "`aws:`, `tierbox:`, `Name`, `ExpiresAt` and `inspect_sandbox` (by which another tool deletes) are taken",
                ));
            }
        }
        Ok(())
    }
}

/// Whether a word is safe in a command line and in a request.
pub(crate) fn is_plain(word: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+=@/".contains(&byte);
    !word.is_empty() && word.len() <= 255 && !word.starts_with('-') && word.bytes().all(legal)
}

/// A mistake in the profile.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidProfile, "check profile", message).with_backend(BACKEND)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn read(json: &str) -> Result<Settings> {
        Settings::from_value(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in [
            r#"{"regoin": "x"}"#,
            r#"{"region": "--profile"}"#,
            r#"{"region": "a b"}"#,
            r#"{"machines": ["a", "a"]}"#,
            r#"{"machines": ["$(id)"]}"#,
            r#"{"access-key-id": "A"}"#,
            r#"{"session-token": "A"}"#,
            r#"{"profile": "p", "access-key-id": "A", "secret-access-key": "B"}"#,
            r#"{"tags": {"inspect_sandbox": "true"}}"#,
            r#"{"tags": {"tierbox:task": "x"}}"#,
            r#"{"tags": {"Name": "x"}}"#,
            r#"{"tags": {"ExpiresAt": "2099-01-01T00:00:00Z"}}"#,
            r#"{"key-prefix": "../x"}"#,
            r#"{"outlive-minutes": 1}"#,
            r#"{"instance-id": "i-1", "max-execution-seconds": 29}"#,
            r#"{"instance-id": "i-1", "max-execution-seconds": 3601}"#,
            r#"{"instance-id": "i-1", "max-memory-mib": 127}"#,
            r#"{"instance-id": "i-1", "max-memory-mib": 16385}"#,
            r#"{"instance-id": "i-1", "cleanup-after-hours": 0}"#,
            r#"{"instance-id": "i-1", "cleanup-after-hours": 169}"#,
            r#"{"instance-id": "i-1", "base-dir": "/"}"#,
            r#"{"instance-id": "i-1", "base-dir": "sandbox"}"#,
            r#"{"instance-id": "i-1", "base-dir": "/opt/../etc"}"#,
            r#"{"instance-id": "i-1", "base-dir": "/opt/$(id)"}"#,
            r#"{"instance-id": "i-1", "machines": ["a"]}"#,
            r#"{"mode": "launch", "instance-id": "i-1"}"#,
            r#"{"max-memory-mib": 512}"#,
            "[]",
        ] {
            assert_eq!(read(bad).unwrap_err().kind(), ErrorKind::InvalidProfile, "{bad}");
        }
        assert!(read(r#"{"mode": "attach", "max-memory-mib": 128, "cleanup-after-hours": 168}"#).unwrap().attaches());
        assert!(read(r#"{"instance-id": "i-1", "max-execution-seconds": 3600}"#).unwrap().attaches());
        assert_eq!(read("null").unwrap().types(), [TYPE]);
        assert_eq!(read(r#"{"machines": ["attacker", "victim"]}"#).unwrap().names(), ["attacker", "victim"]);
    }

    #[test]
    fn keys_are_not_shown() {
        let settings = read(r#"{"access-key-id": "AKIAHIDDEN", "secret-access-key": "hunter2", "session-token": "hunter3"}"#);
        let shown = format!("{:?}", settings.unwrap());
        assert!(!shown.contains("hunter") && !shown.contains("AKIA"), "{shown}");
    }

    #[test]
    fn every_setting_is_documented_in_the_schema() {
        let schema = Settings::schema();
        for (name, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} has no description");
        }
        assert_eq!(schema["properties"]["secret-access-key"]["x-secret"], true);
    }
}
