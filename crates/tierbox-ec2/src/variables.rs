//! The variables of Inspect's EC2 plugin, which fill what the profile leaves open; and those of an `attach` profile, which override it.

use tierbox_core::Result;

use crate::settings::{Settings, invalid};

/// Names of one setting; each list but the first name is what else is in use for it.
const NAMES: &[(&str, &[&str])] = &[
    ("region", &["INSPECT_EC2_SANDBOX_REGION"]),
    ("vpc", &["INSPECT_EC2_SANDBOX_VPC_ID"]),
    ("subnets", &["INSPECT_EC2_SANDBOX_SUBNET_ID", "INSPECT_EC2_SANDBOX_SUBNET_IDS"]),
    ("security-group", &["INSPECT_EC2_SANDBOX_SECURITY_GROUP_ID"]),
    ("instance-profile", &["INSPECT_EC2_SANDBOX_INSTANCE_PROFILE"]),
    ("bucket", &["INSPECT_EC2_SANDBOX_S3_BUCKET"]),
    ("key-prefix", &["INSPECT_EC2_SANDBOX_S3_KEY_PREFIX"]),
    ("ami", &["INSPECT_EC2_SANDBOX_AMI_ID"]),
    ("instance-types", &["INSPECT_EC2_SANDBOX_INSTANCE_TYPE"]),
    ("volume-size", &["INSPECT_EC2_SANDBOX_VOLUME_SIZE"]),
    ("tags", &["INSPECT_EC2_SANDBOX_EXTRA_TAGS_STR", "INSPECT_EC2_SANDBOX_EXTRA_TAGS"]),
];

/// Those that an instance which exists needs, too. The others are of instances that are made.
const OF_BOTH: &[&str] = &["region", "bucket", "key-prefix"];

impl Settings {
    /// Fills what is open from variables of this process.
    ///
    /// # Errors
    /// `InvalidProfile` for a value that cannot be, or two variables that disagree.
    pub(crate) fn filled(self) -> Result<Self> {
        self.filled_from(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn filled_from(mut self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        if self.attaches() {
            self.overridden_by(variable)?;
        }
        let attaches = self.attaches();
        for (key, names) in NAMES.iter().filter(|(key, _)| !attaches || OF_BOTH.contains(key)) {
            if let Some((name, value)) = agreed(key, names, variable)? {
                self.fill(key, name, value)?;
            }
        }
        self.recheck()
    }

    fn recheck(self) -> Result<Self> {
        let value = serde_json::to_value(&self).map_err(|error| invalid(error.to_string()))?;
        Self::from_value(&value)
    }

    /// The ten variables of an `attach` profile.
    fn overridden_by(&mut self, variable: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        let number = |name: &str| match variable(name) {
            None => Ok(None),
            Some(value) => match value.parse::<u32>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(invalid(format!("{name} = {:?} is not a number", crate::call::shown(&value)))),
            },
        };
        let text = [
            ("EC2_INSTANCE_ID", &mut self.instance_id),
            ("AWS_DEFAULT_REGION", &mut self.region),
            ("SANDBOX_BASE_DIR", &mut self.base_dir),
        ];
        for (name, slot) in text {
            if let Some(value) = variable(name) {
                *slot = Some(value);
            }
        }
        let numbers = [
            ("MAX_EXECUTION_TIME", &mut self.max_execution_seconds),
            ("MAX_MEMORY_MB", &mut self.max_memory_mib),
            ("CLEANUP_AFTER_HOURS", &mut self.cleanup_after_hours),
        ];
        for (name, slot) in numbers {
            if let Some(value) = number(name)? {
                *slot = Some(value);
            }
        }
        self.keys_overridden_by(variable)
    }

    /// A profile of AWS's files goes before keys.
    fn keys_overridden_by(&mut self, variable: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        let (key, secret) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"));
        if let Some(profile) = variable("AWS_PROFILE") {
            self.profile = Some(profile);
            (self.access_key_id, self.secret_access_key, self.session_token) = (None, None, None);
        } else if let (Some(key), Some(secret)) = (&key, &secret) {
            (self.access_key_id, self.secret_access_key) = (Some(key.clone()), Some(secret.clone()));
            self.session_token = variable("AWS_SESSION_TOKEN");
            self.profile = None;
        } else if key.is_some() != secret.is_some() {
            return Err(invalid("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together: one of them is not set"));
        } else if self.access_key_id.is_some()
            && let Some(token) = variable("AWS_SESSION_TOKEN")
        {
            self.session_token = Some(token);
        }
        Ok(())
    }

    fn fill(&mut self, key: &str, name: &str, value: String) -> Result<()> {
        let slot = match key {
            "subnets" if self.subnets.is_empty() => {
                self.subnets = value.split(',').map(|each| each.trim().to_owned()).collect();
                return Ok(());
            }
            "instance-types" if self.instance_types.is_empty() => {
                self.instance_types = value.split(',').map(|each| each.trim().to_owned()).collect();
                return Ok(());
            }
            "volume-size" if self.volume_size.is_none() => {
                let size = value.parse().map_err(|_| invalid(format!("{name} = {value:?} is not a number of GiB")))?;
                self.volume_size = Some(size);
                return Ok(());
            }
            "tags" if self.tags.is_empty() => {
                self.tags = tags(name, &value)?;
                return Ok(());
            }
            "region" => &mut self.region,
            "vpc" => &mut self.vpc,
            "security-group" => &mut self.security_group,
            "instance-profile" => &mut self.instance_profile,
            "bucket" => &mut self.bucket,
            "key-prefix" => &mut self.key_prefix,
            "ami" => &mut self.ami,
            _ => return Ok(()),
        };
        slot.get_or_insert(value);
        Ok(())
    }
}

/// The value of a setting's variables, which must agree.
fn agreed(
    key: &str,
    names: &[&'static str],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<(&'static str, String)>> {
    let mut found: Option<(&'static str, String)> = None;
    for name in names.iter().copied() {
        let Some(value) = variable(name) else { continue };
        match &found {
            Some((first, other)) if *other != value => {
                return Err(invalid(format!("{first} = {other:?} and {name} = {value:?} disagree on ec2.{key}"))
                    .with_help("unset one of the two, or set it in the profile"));
            }
            _ => found = Some((name, value)),
        }
    }
    Ok(found)
}

fn tags(name: &str, text: &str) -> Result<std::collections::BTreeMap<String, String>> {
    text.split(';')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(invalid(format!("{name}: {pair:?} is not of the form key=value")).with_help("write 'k1=v1;k2=v2'")),
        })
        .collect()
}

#[cfg(test)]
mod unit {
    use super::*;
    use tierbox_core::ErrorKind;

    fn filled(profile: &str, variables: &[(&str, &str)]) -> Result<Settings> {
        let settings = Settings::from_value(&serde_json::from_str(profile).unwrap()).unwrap();
        settings.filled_from(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn variables_fill_what_the_profile_leaves_open() {
        let variables = [
            ("INSPECT_EC2_SANDBOX_REGION", "eu-west-2"),
            ("INSPECT_EC2_SANDBOX_SUBNET_ID", "subnet-1"),
            ("INSPECT_EC2_SANDBOX_EXTRA_TAGS", "k1=v1;k2=v2"),
            ("INSPECT_EC2_SANDBOX_INSTANCE_TYPE", "t3.small"),
            ("INSPECT_EC2_SANDBOX_VOLUME_SIZE", "30"),
        ];
        let settings = filled(r#"{"instance-types": ["m7g.large"]}"#, &variables).unwrap();
        assert_eq!(settings.region.as_deref(), Some("eu-west-2"));
        assert_eq!((settings.subnets, settings.volume_size), (vec!["subnet-1".to_owned()], Some(30)));
        assert_eq!(settings.tags.get("k2").map(String::as_str), Some("v2"));
        assert_eq!(settings.instance_types, ["m7g.large"]);
    }

    const TEN: [(&str, &str); 10] = [
        ("EC2_INSTANCE_ID", "i-2"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
        ("AWS_PROFILE", "other"),
        ("AWS_ACCESS_KEY_ID", "AKIA2"),
        ("AWS_SECRET_ACCESS_KEY", "secret2"),
        ("AWS_SESSION_TOKEN", "token2"),
        ("SANDBOX_BASE_DIR", "/srv/tasks"),
        ("MAX_EXECUTION_TIME", "60"),
        ("MAX_MEMORY_MB", "256"),
        ("CLEANUP_AFTER_HOURS", "2"),
    ];
    const ATTACH: &str = r#"{"instance-id": "i-1", "region": "us-east-1", "access-key-id": "AKIA1", "secret-access-key": "secret1",
                             "base-dir": "/opt/sandbox", "max-memory-mib": 1024}"#;

    #[test]
    fn ten_variables_override_an_attach_profile() {
        let settings = filled(ATTACH, &TEN).unwrap();
        assert_eq!((settings.instance_id.as_deref(), settings.region.as_deref()), (Some("i-2"), Some("eu-west-1")));
        assert_eq!((settings.profile.as_deref(), settings.access_key_id), (Some("other"), None));
        assert_eq!((settings.base_dir.as_deref(), settings.max_memory_mib), (Some("/srv/tasks"), Some(256)));
        assert_eq!((settings.max_execution_seconds, settings.cleanup_after_hours), (Some(60), Some(2)));
        let without: Vec<(&str, &str)> = TEN.into_iter().filter(|(name, _)| *name != "AWS_PROFILE").collect();
        let settings = filled(ATTACH, &without).unwrap();
        assert_eq!((settings.access_key_id.as_deref(), settings.session_token.as_deref()), (Some("AKIA2"), Some("token2")));
    }

    #[test]
    fn what_is_of_instances_that_are_made_leaves_an_attach_profile_alone() {
        let made = [
            ("INSPECT_EC2_SANDBOX_AMI_ID", "ami-1"),
            ("INSPECT_EC2_SANDBOX_INSTANCE_TYPE", "t3.small"),
            ("INSPECT_EC2_SANDBOX_SUBNET_ID", "subnet-1"),
            ("INSPECT_EC2_SANDBOX_S3_BUCKET", "b"),
        ];
        let settings = filled(ATTACH, &made).unwrap();
        assert_eq!((settings.ami, settings.bucket.as_deref()), (None, Some("b")));
        assert!(settings.instance_types.is_empty() && settings.subnets.is_empty());
    }

    #[test]
    fn they_override_attach_profiles_alone_and_within_their_ranges() {
        let settings = filled(r#"{"region": "us-east-1"}"#, &TEN).unwrap();
        assert_eq!((settings.region.as_deref(), settings.profile, settings.instance_id), (Some("us-east-1"), None, None));
        for bad in [("MAX_EXECUTION_TIME", "5"), ("MAX_MEMORY_MB", "much"), ("SANDBOX_BASE_DIR", "/"), ("AWS_ACCESS_KEY_ID", "x")]
        {
            assert_eq!(filled(ATTACH, &[bad]).unwrap_err().kind(), ErrorKind::InvalidProfile, "{bad:?}");
        }
    }

    #[test]
    fn two_variables_that_disagree_are_an_error_that_names_both() {
        let both = [("INSPECT_EC2_SANDBOX_SUBNET_ID", "one"), ("INSPECT_EC2_SANDBOX_SUBNET_IDS", "two")];
        let error = filled("{}", &both).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidProfile);
        assert!(both.iter().all(|(name, _)| error.message().contains(name)), "{error}");
        let same = [("INSPECT_EC2_SANDBOX_SUBNET_ID", "one"), ("INSPECT_EC2_SANDBOX_SUBNET_IDS", "one")];
        assert_eq!(filled("{}", &same).unwrap().subnets, ["one"]);
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        for bad in [
            ("INSPECT_EC2_SANDBOX_EXTRA_TAGS", "k1"),
            ("INSPECT_EC2_SANDBOX_EXTRA_TAGS", "inspect_sandbox=true"),
            ("INSPECT_EC2_SANDBOX_VOLUME_SIZE", "big"),
            ("INSPECT_EC2_SANDBOX_REGION", "--profile x"),
        ] {
            assert_eq!(filled("{}", &[bad]).unwrap_err().kind(), ErrorKind::InvalidProfile, "{bad:?}");
        }
    }
}
