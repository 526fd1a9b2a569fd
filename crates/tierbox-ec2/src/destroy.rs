//! Removes an environment, whatever state it is in and whoever began it.

use std::time::{Duration, Instant};

use tierbox_core::DestroyReport;

use crate::aws::Aws;
use crate::control::{Control, Find};
use crate::memory::Memory;
use crate::{objects, tags};

/// EC2 does not show at once what it has just made: for so long nobody can be sure that there is nothing.
const SHOWN: Duration = Duration::from_secs(6);
/// How long instances may take until they are seen to end.
const ENDING: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

/// Removes everything of an environment. What could not be removed is in the report.
pub(crate) async fn environment(aws: &Aws, control: &dyn Control, memory: &Memory, id: &str) -> DestroyReport {
    let mut report = DestroyReport::default();
    if let Err(error) = instances(control, memory, id, &mut report).await {
        report.failed.push(format!("instances of {id}: {}", error.message()));
        report.manual.push(format!(
            "aws ec2 describe-instances --region {} --filters Name=tag:{},Values={id}",
            aws.region,
            tags::TASK
        ));
    }
    match objects::sweep(aws, &memory.bucket, &memory.prefix).await {
        Ok(0) => {}
        Ok(count) => report.removed.push(format!("{count} objects below s3://{}/{}", memory.bucket, memory.prefix)),
        Err(error) => {
            report.failed.push(format!("objects of {id}: {}", error.message()));
            report.manual.push(format!("aws s3 rm --recursive s3://{}/{}", memory.bucket, memory.prefix));
        }
    }
    report
}

async fn instances(control: &dyn Control, memory: &Memory, id: &str, report: &mut DestroyReport) -> tierbox_core::Result<()> {
    let known: Vec<String> = memory.machines.iter().map(|machine| machine.instance.clone()).collect();
    let begun = Instant::now();
    let mut ended: Vec<String> = Vec::new();
    if !known.is_empty() {
        control.terminate(&known).await?;
        ended.extend(known.iter().cloned());
    }
    loop {
        let found = control.find(&Find::Tag(tags::TASK.to_owned(), id.to_owned())).await?;
        let living: Vec<String> =
            found.iter().filter(|instance| !instance.is_ending()).map(|instance| instance.id.clone()).collect();
        if !living.is_empty() {
            control.terminate(&living).await?;
            ended.extend(living.iter().filter(|id| !ended.contains(id)).cloned().collect::<Vec<_>>());
        }
        // Those that are known and not shown yet were ended by their ids.
        let sure = !found.is_empty() || !known.is_empty();
        if living.is_empty() && (sure || begun.elapsed() > SHOWN) {
            report.removed.extend(ended.into_iter().map(|id| format!("instance {id}")));
            return Ok(());
        }
        if begun.elapsed() > ENDING {
            let message = format!("{} do not end", living.join(", "));
            return Err(tierbox_core::Error::new(tierbox_core::ErrorKind::Timeout, "end instances", message));
        }
        tokio::time::sleep(LOOK).await;
    }
}
