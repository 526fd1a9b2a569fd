//! Puts the gateway's program into the instance that the stack has for it. Its unit is there by the template's user data.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tierbox_core::{Error, ErrorKind, GuestPath, Progress, Result, SandboxExt};
use tierbox_guest::plain::{PlainConfig, PlainSandbox};

use crate::BACKEND;
use crate::aws::{Aws, driven};
use crate::call::shown;
use crate::control::Control;
use crate::link::Link;
use crate::objects::{Objects, prefix_of};
use crate::settings::Settings;
use crate::{capabilities, ready};

/// How long the instance may take until its agent answers.
const READY: Duration = Duration::from_secs(10 * 60);
/// The largest program.
const LARGEST: u64 = 256 << 20;
/// Takes the program in, and waits until the unit runs it.
const START: &str = r#"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
n=0; while [ ! -e /etc/systemd/system/tierbox-egress.service ]; do
  n=$((n+1)); [ $n -lt 600 ] || { echo 'failed=its user data made no unit tierbox-egress'; exit 0; }; sleep 0.2 || sleep 1
done
chmod 755 /root/tierbox-egress.new && mv /root/tierbox-egress.new /usr/local/bin/tierbox-egress || { echo 'failed=its program cannot be installed'; exit 0; }
systemctl restart tierbox-egress || { echo 'failed=its unit tierbox-egress does not start'; exit 0; }
n=0; while [ "$(ps -o comm= -C tierbox-egress | wc -l)" = 0 ]; do
  n=$((n+1)); [ $n -lt 50 ] || { echo 'failed=its unit tierbox-egress does not run'; exit 0; }; sleep 0.2 || sleep 1
done
sleep 1
[ "$(ps -o comm= -C tierbox-egress | wc -l)" != 0 ] || { echo 'failed=its unit tierbox-egress has ended at once'; exit 0; }
echo done=1
"#;

fn unable(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::HostUnable, "install gateway", message).with_backend(BACKEND)
}

/// Reads the program, which must be one of Linux on x86-64.
///
/// # Errors
/// `InvalidInput` for what is none.
pub(crate) fn program(path: &Path) -> Result<Bytes> {
    let failed = |error| Error::io("read the gateway's program", error).with_context("path", path.display());
    let length = std::fs::metadata(path).map_err(failed)?.len();
    let bytes = if length <= LARGEST { std::fs::read(path).map_err(failed)? } else { Vec::new() };
    let is_ours = bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(&[62, 0]);
    if is_ours {
        return Ok(bytes.into());
    }
    let message = format!("{} is no program of Linux on x86-64", path.display());
    Err(Error::new(ErrorKind::InvalidInput, "install gateway", message).with_backend(BACKEND))
}

/// Installs it.
///
/// # Errors
/// `HostUnable` where the instance does not answer, or its unit does not run.
pub(crate) async fn gateway(
    aws: &Arc<Aws>,
    control: &Arc<dyn Control>,
    settings: &Settings,
    id: &str,
    program: Bytes,
    progress: &dyn Progress,
) -> Result<()> {
    progress.step("waiting for the gateway");
    let (client, asking, ids) = (aws.clone(), control.clone(), vec![id.to_owned()]);
    driven(async move { ready::wait(&client, asking.as_ref(), &ids, READY).await }).await?;
    progress.step("installing the gateway");
    let prefix = prefix_of(settings.key_prefix.as_deref().unwrap_or("tierbox"), "setup");
    let bucket = settings.bucket.as_ref().ok_or_else(|| unable("the stack has no bucket"))?;
    let link = Arc::new(Link::new(aws.clone(), id, Some(Objects::at(aws.clone(), bucket, &prefix))));
    let sandbox = PlainSandbox::open(link.clone(), config()).await?;
    sandbox.write_bytes(GuestPath::from("/root/tierbox-egress.new"), program).await?;
    sandbox.remove().await?;
    sandbox.close();
    let printed = link.script(START.to_owned(), Duration::from_secs(240)).await?;
    let said = String::from_utf8_lossy(&printed.stdout).into_owned();
    match said.lines().find_map(|line| line.strip_prefix("failed=")) {
        None if said.contains("done=1") => Ok(()),
        None => Err(unable(format!("the answer of {id} makes no sense: {:?}", shown(&said)))),
        Some(why) => Err(unable(format!("{id}: {}", shown(why))).with_help(format!(
            "what its user data did is in its /var/log/cloud-init-output.log, and in `aws ec2 get-console-output --region {} --instance-id {id}`",
            aws.region
        ))),
    }
}

fn config() -> PlainConfig {
    PlainConfig::new("gateway", BACKEND, capabilities(Vec::new()))
}
