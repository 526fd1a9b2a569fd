//! The variables of Inspect's EC2 plugin, which fill what the profile leaves open.

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

impl Settings {
    /// Fills what is open from variables of this process.
    ///
    /// # Errors
    /// `InvalidProfile` for a value that cannot be, or two variables that disagree.
    pub(crate) fn filled(self) -> Result<Self> {
        self.filled_from(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn filled_from(mut self, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        for (key, names) in NAMES {
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
