//! Removes an environment, whatever state it is in and whoever began it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierbox_core::{DestroyReport, Error, ErrorKind};

use crate::aws::{Aws, driven};
use crate::control::{Control, Find};
use crate::door::line;
use crate::gateway;
use crate::link::Link;
use crate::memory::Memory;
use crate::task::Task;
use crate::{objects, tags};

/// EC2 does not show at once what it has just made: for so long nobody can be sure that there is nothing.
const SHOWN: Duration = Duration::from_secs(6);
/// How long instances may take until they are seen to end.
const ENDING: Duration = Duration::from_secs(60);
/// How long the removal of a task may take.
const REMOVAL: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

/// Removes everything of an environment. What could not be removed is in the report.
pub(crate) async fn environment(aws: &Arc<Aws>, control: &dyn Control, memory: &Memory, id: &str) -> DestroyReport {
    let mut report = DestroyReport::default();
    if let Some(task) = &memory.task {
        of_task(aws, control, memory, task, &mut report).await;
    } else if let Err(error) = instances(control, memory, id, &mut report).await {
        report.failed.push(format!("instances of {id}: {}", error.message()));
        report.manual.push(format!(
            "aws ec2 describe-instances --region {} --filters Name=tag:{},Values={id}",
            aws.region,
            tags::TASK
        ));
    }
    if let Some(gateway) = &memory.gateway
        && let Err(error) = of_gateway(aws, control, gateway, id).await
    {
        // It serves nobody any more: the addresses are gone, and the file counts no more when nobody touches it.
        tracing::warn!(target: "tierbox::ec2", "{id} is not taken out of the gateway {gateway}: {}", error.message());
    }
    if memory.bucket.is_empty() {
        return report;
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

/// Takes an environment out of its gateway, whose log of it goes too.
async fn of_gateway(aws: &Arc<Aws>, control: &dyn Control, gateway: &str, id: &str) -> tierbox_core::Result<()> {
    let found = control.find(&Find::Ids(vec![gateway.to_owned()])).await?;
    if found.iter().all(crate::Instance::is_ending) {
        return Ok(());
    }
    gateway::forget(&Arc::new(Link::new(aws.clone(), gateway, None)), id).await
}

/// Removes a task from an instance, which stays as it is.
async fn of_task(aws: &Arc<Aws>, control: &dyn Control, memory: &Memory, task: &Task, report: &mut DestroyReport) {
    for machine in &memory.machines {
        let what = format!("task {} on {}", task.hash, machine.instance);
        match remove_task(aws, control, &machine.instance, task).await {
            Ok(true) => report.removed.push(what),
            Ok(false) => {}
            Err(error) => {
                report.failed.push(format!("{what}: {}", error.message()));
                report.manual.push(format!("on {}: rm -rf {}; userdel {}", machine.instance, task.directory(), task.user()));
            }
        }
    }
}

async fn remove_task(aws: &Arc<Aws>, control: &dyn Control, instance: &str, task: &Task) -> tierbox_core::Result<bool> {
    let found = control.find(&Find::Ids(vec![instance.to_owned()])).await?;
    if found.iter().all(crate::Instance::is_ending) {
        return Ok(false);
    }
    let link = Arc::new(Link::new(aws.clone(), instance, None));
    let printed = link.script(task.remove(), REMOVAL).await?;
    let text = String::from_utf8_lossy(&printed.stdout);
    let failed = |why: &str| Err(Error::new(ErrorKind::Io, "remove task", crate::call::shown(why)).with_backend(crate::BACKEND));
    match (line(&text, "removed"), line(&text, "failed")) {
        (Some(count), None) => Ok(count.trim() == "1"),
        (_, Some(why)) => failed(why),
        _ => failed(&format!("the machine's answer makes no sense: {text:?}")),
    }
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
        // One that is not shown yet cannot be ended either, and that looks like one that is long gone. Of an environment that wrote
        // down none, nobody knows how many there are.
        let sure = !known.is_empty() && known.iter().all(|id| found.iter().any(|instance| instance.id == *id));
        if !sure && !known.is_empty() {
            control.terminate(&known).await?;
        }
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

/// Undoes a start that fails, or that nobody waits for any more.
pub(crate) struct Undo {
    what: Option<Begun>,
}

/// What a start has begun: with whom, and under which id.
type Begun = (Arc<Aws>, Arc<dyn Control>, Memory, String);

impl Undo {
    pub(crate) fn new(aws: &Arc<Aws>, control: &Arc<dyn Control>, memory: &Memory, id: &str) -> Self {
        let what = (aws.clone(), control.clone(), memory.clone(), id.to_owned());
        Self { what: Some(what) }
    }

    pub(crate) fn keep(mut self) {
        self.what = None;
    }

    /// Undoes it, with what is known by now, and goes on with that when it is waited for no longer. What this cannot remove stands in the
    /// lease.
    pub(crate) async fn now(mut self, memory: Memory, end: tokio::time::Instant) {
        if let Some((aws, control, _, id)) = self.what.take() {
            let begun = Instant::now();
            let undoing = driven(async move { Ok(environment(&aws, control.as_ref(), &memory, &id).await) });
            let undone = tokio::time::timeout_at(end, undoing).await;
            tracing::debug!(target: "tierbox::ec2", "waited {:?} for what undoes it: {undone:?}", begun.elapsed());
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let (Some((aws, control, memory, id)), Ok(driver)) = (self.what.take(), tierbox_guest::driver::handle()) else { return };
        driver.spawn(async move { environment(&aws, control.as_ref(), &memory, &id).await });
    }
}
