//! What this host has for EC2.

use std::path::PathBuf;
use std::time::Duration;

use tierbox_core::{Check, CheckStatus};

use crate::aws::{Aws, driven};
use crate::call::again;
use crate::settings::Settings;

/// How long AWS may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

fn check(name: &str, status: CheckStatus, detail: impl Into<String>, remedy: &str) -> Check {
    Check { name: name.to_owned(), status, detail: detail.into(), remedy: remedy.to_owned() }
}

/// All checks.
pub(crate) async fn checks() -> Vec<Check> {
    let mut checks = vec![account().await];
    for (program, remedy) in [
        ("aws", "install the AWS command line; only `tierbox shell` needs it"),
        ("session-manager-plugin", "install AWS's session-manager-plugin; only `tierbox shell` needs it"),
    ] {
        checks.push(match find_program(program) {
            Some(path) => check(program, CheckStatus::Ok, path.display().to_string(), ""),
            None => check(program, CheckStatus::Warn, "not installed", remedy),
        });
    }
    checks
}

/// Whether the settings outside of profiles lead to an account.
async fn account() -> Check {
    let asked = driven(async {
        let aws = Aws::of(&Settings::default().filled()?).await?;
        let ask = || aws.ec2.describe_instances().max_results(5).send();
        again("check account", "ec2:DescribeInstances", ask).await?;
        Ok(aws.region.clone())
    });
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(region)) => check("account", CheckStatus::Ok, format!("EC2 answers in {region}"), ""),
        Ok(Err(error)) => {
            check("account", CheckStatus::Warn, error.message(), "set AWS_PROFILE and AWS_REGION, or name them in a profile")
        }
        Err(_) => check("account", CheckStatus::Warn, "AWS does not answer", "check the network and its proxies"),
    }
}

/// A program on the search path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}
