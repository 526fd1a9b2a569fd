//! Waiting for commands: quick at first, slower later, one budget for all who wait, and one listing where many do.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_ssm::Client;
use aws_sdk_ssm::types::{CommandFilterKey, CommandInvocationStatus};
use tierbox_core::{Error, ErrorKind, Result};

use crate::BACKEND;
use crate::call::{self, Fate, fate, jittered, told};

/// What is known of a command that has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) status: CommandInvocationStatus,
    pub(crate) details: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// How long it ran, if AWS tells.
    pub(crate) ran: Option<Duration>,
}

/// A command on its way.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) command: String,
    pub(crate) instance: String,
    pub(crate) at: Instant,
    /// When that was by AWS's own clock, in seconds, if it told.
    pub(crate) by_aws: Option<i64>,
}

/// A command that somebody waits for.
struct Awaited {
    sent: Sent,
    /// A listing has shown it.
    listed: bool,
    ended: Option<Ended>,
}

/// The last listing.
struct Listing {
    at: Instant,
    /// It came to its end, so that what it does not show has to be asked for by itself.
    whole: bool,
}

/// The first look comes after the time that commands took lately, within these bounds; the pauses then grow to the third.
const FIRST: (Duration, Duration) = (Duration::from_millis(120), Duration::from_millis(1500));
const LONGEST: Duration = Duration::from_secs(2);
/// A command that runs no longer tells how long commands take by themselves.
const QUICK: Duration = Duration::from_secs(1);
/// Looks per second, at first and at most, and at least when AWS says that there are too many.
const RATES: (f64, f64) = (20.0, 0.5);
/// From how many waiting commands on they are looked at together.
const MANY: usize = 6;
/// What one listing can tell of an output; a longer one is asked for.
const LISTED: usize = 2400;
/// Pages of one listing.
const PAGES: usize = 8;

/// Looks after the commands of one account and region.
pub(crate) struct Poller {
    ssm: Client,
    budget: Mutex<Budget>,
    waiting: Mutex<HashMap<String, Awaited>>,
    /// Who holds it lists.
    listing: tokio::sync::Mutex<Listing>,
    usual: Mutex<Duration>,
}

struct Budget {
    rate: f64,
    next: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a command off the list when nobody waits for it any more.
struct Registered<'a>(&'a Poller, &'a str);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.0.waiting).remove(self.1);
    }
}

impl Poller {
    pub(crate) fn new(ssm: Client) -> Self {
        Self {
            ssm,
            budget: Mutex::new(Budget { rate: RATES.0, next: Instant::now() }),
            waiting: Mutex::default(),
            listing: tokio::sync::Mutex::new(Listing { at: Instant::now(), whole: false }),
            usual: Mutex::new(Duration::from_millis(250)),
        }
    }

    /// By when a quick command's end has been told, as things went lately.
    pub(crate) fn usual(&self) -> Duration {
        *lock(&self.usual) * 2
    }

    /// Waits for the end of a command, for at most `limit`. `None` is none within that time.
    ///
    /// # Errors
    /// `Credentials` and whatever else does not pass.
    pub(crate) async fn wait(&self, sent: &Sent, limit: Duration) -> Result<Option<Ended>> {
        lock(&self.waiting).insert(sent.command.clone(), Awaited { sent: sent.clone(), listed: false, ended: None });
        let _registered = Registered(self, &sent.command);
        let usual = *lock(&self.usual);
        // The first pause is from the sending on, which took its own time.
        let (mut rest, mut pause, mut looks) = (usual.saturating_sub(sent.at.elapsed()), usual.mul_f64(0.8), 0);
        loop {
            tokio::time::sleep(rest).await;
            looks += 1;
            let asked = sent.at.elapsed();
            let many = lock(&self.waiting).len() >= MANY;
            let ended = if many { self.look_together(sent).await? } else { self.look(sent).await? };
            if let Some(ended) = ended {
                self.learn(looks, asked, ended.ran);
                return Ok(Some(ended));
            }
            if sent.at.elapsed() > limit {
                return Ok(None);
            }
            rest = jittered(pause);
            pause = pause.mul_f64(1.6).min(LONGEST);
        }
    }

    /// Learns from quick commands when to look first.
    fn learn(&self, looks: u32, asked: Duration, ran: Option<Duration>) {
        if ran.map_or(asked < FIRST.1, |ran| ran < QUICK) {
            let mut usual = lock(&self.usual);
            *usual = next(*usual, looks, asked);
        }
    }

    /// Asks for one command.
    async fn look(&self, sent: &Sent) -> Result<Option<Ended>> {
        self.turn().await;
        let asked = self.ssm.get_command_invocation().command_id(&sent.command).instance_id(&sent.instance).send().await;
        call::note("ssm:GetCommandInvocation", &asked);
        match asked {
            Ok(answer) => {
                self.went_well();
                let status = answer.status.clone().unwrap_or(CommandInvocationStatus::Pending);
                let ended = Ended {
                    status,
                    ran: answer.execution_elapsed_time.as_deref().and_then(seconds),
                    details: answer.status_details.unwrap_or_default(),
                    stdout: answer.standard_output_content.unwrap_or_default(),
                    stderr: answer.standard_error_content.unwrap_or_default(),
                };
                Ok(is_over(&ended.status).then_some(ended))
            }
            // SSM does not know what it has just accepted.
            Err(error) if call::code(&error) == "InvocationDoesNotExist" => Ok(None),
            Err(error) => self.bear(fate(&error), || told("exec", "ssm:GetCommandInvocation", &error)).map(|()| None),
        }
    }

    /// Asks for all that wait, unless somebody did while this one waited for its turn.
    async fn look_together(&self, sent: &Sent) -> Result<Option<Ended>> {
        let begun = Instant::now();
        let mut last = self.listing.lock().await;
        if last.at < begun {
            let whole = self.list().await?;
            *last = Listing { at: Instant::now(), whole };
        }
        let whole = last.whole;
        drop(last);
        let (listed, ended) = lock(&self.waiting).get(&sent.command).map_or((true, None), |it| (it.listed, it.ended.clone()));
        match ended {
            Some(ended) if ended.stdout.len() >= LISTED => self.look(sent).await,
            // So many others were sent since, of this account's other programs too, that the listing did not get to it.
            None if whole && !listed => self.look(sent).await,
            other => Ok(other),
        }
    }

    /// Since when what is waited for was sent: by AWS's own clock, as this host's may be wrong.
    fn oldest(&self) -> i64 {
        let by_own = |at: Instant| {
            let since = std::time::SystemTime::now() - at.elapsed();
            aws_sdk_ssm::primitives::DateTime::from(since).secs()
        };
        let waiting = lock(&self.waiting);
        let times =
            waiting.values().filter(|it| it.ended.is_none()).map(|it| it.sent.by_aws.unwrap_or_else(|| by_own(it.sent.at)));
        times.min().unwrap_or_else(|| by_own(Instant::now())) - 2
    }

    /// Lists what was sent since; says whether that came to its end.
    async fn list(&self) -> Result<bool> {
        let since = aws_sdk_ssm::primitives::DateTime::from_secs(self.oldest());
        let since = since.fmt(aws_sdk_ssm::primitives::DateTimeFormat::DateTime).unwrap_or_default();
        let filter = aws_sdk_ssm::types::CommandFilter::builder().key(CommandFilterKey::InvokedAfter).value(since).build();
        let filter = filter.map_err(|error| Error::new(ErrorKind::Internal, "exec", error.to_string()))?;
        let mut next = None;
        for _ in 0..PAGES {
            self.turn().await;
            let page = self
                .ssm
                .list_command_invocations()
                .filters(filter.clone())
                .details(true)
                .max_results(50)
                .set_next_token(next)
                .send()
                .await;
            call::note("ssm:ListCommandInvocations", &page);
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    return self.bear(fate(&error), || told("exec", "ssm:ListCommandInvocations", &error)).map(|()| false);
                }
            };
            self.went_well();
            for row in page.command_invocations.unwrap_or_default() {
                self.settle(row);
            }
            next = page.next_token;
            if next.is_none() || lock(&self.waiting).values().all(|it| it.ended.is_some()) {
                break;
            }
        }
        Ok(true)
    }

    fn settle(&self, row: aws_sdk_ssm::types::CommandInvocation) {
        let (Some(id), Some(status)) = (row.command_id, row.status) else { return };
        let mut waiting = lock(&self.waiting);
        let Some(awaited) = waiting.get_mut(&id) else { return };
        awaited.listed = true;
        if is_over(&status) {
            let output = row.command_plugins.unwrap_or_default().into_iter().next().and_then(|plugin| plugin.output);
            let details = row.status_details.unwrap_or_default();
            awaited.ended = Some(Ended { status, details, stdout: output.unwrap_or_default(), stderr: String::new(), ran: None });
        }
    }

    /// Waits for the right to make one call.
    async fn turn(&self) {
        let wait = {
            let mut budget = lock(&self.budget);
            let now = Instant::now();
            let at = budget.next.max(now);
            budget.next = at + Duration::from_secs_f64(1.0 / budget.rate);
            at - now
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    fn went_well(&self) {
        let mut budget = lock(&self.budget);
        budget.rate = (budget.rate + 0.5).min(RATES.0);
    }

    /// A look that failed tells nothing of its command: the next one may.
    fn bear(&self, fate: Fate, error: impl FnOnce() -> Error) -> Result<()> {
        match fate {
            Fate::Throttled => {
                let mut budget = lock(&self.budget);
                budget.rate = (budget.rate * 0.7).max(RATES.1);
                Ok(())
            }
            Fate::Unknown => Ok(()),
            Fate::Refused => Err(error().with_backend(BACKEND)),
        }
    }
}

/// When to look first, after a command whose end was seen by so many looks, the last of them so long after its sending: earlier as long
/// as one is enough, so that about every fifth first look comes too early; at once as late as this one where two were not.
fn next(usual: Duration, looks: u32, asked: Duration) -> Duration {
    let next = match looks {
        1 => usual.mul_f64(0.95),
        2 => usual.mul_f64(1.2),
        _ => asked.mul_f64(0.9).max(usual.mul_f64(1.2)),
    };
    next.clamp(FIRST.0, FIRST.1)
}

/// A length of time as SSM writes it, of less than a minute: `PT0.204S`.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_prefix("PT")?.strip_suffix('S')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn is_over(status: &CommandInvocationStatus) -> bool {
    matches!(
        status,
        CommandInvocationStatus::Success
            | CommandInvocationStatus::Failed
            | CommandInvocationStatus::TimedOut
            | CommandInvocationStatus::Cancelled
    )
}

#[cfg(test)]
mod unit {
    use super::*;

    /// The looks of some commands that end so long after their sending, by calls that take so long.
    fn looks(ends: Duration, call: Duration, count: usize) -> Vec<u32> {
        let mut usual = Duration::from_millis(250);
        let mut all = Vec::new();
        for _ in 0..count {
            let (mut at, mut pause, mut looks) = (usual.max(call), usual.mul_f64(0.8), 1);
            while at < ends {
                at += call + pause;
                pause = pause.mul_f64(1.6).min(LONGEST);
                looks += 1;
            }
            usual = next(usual, looks, at);
            all.push(looks);
        }
        all
    }

    #[test]
    fn two_looks_are_soon_enough_however_slow_the_api_is() {
        for (ends, call) in [(120, 1), (400, 10), (700, 30), (1200, 300), (1300, 500)] {
            let all = looks(Duration::from_millis(ends), Duration::from_millis(call), 40);
            assert!(all[2..].iter().all(|looks| *looks <= 2), "{ends} ms by {call} ms: {all:?}");
            let once = all[2..].iter().filter(|looks| **looks == 1).count();
            assert!(once * 10 >= (all.len() - 2) * 7, "{ends} ms by {call} ms: {all:?}");
        }
    }

    #[test]
    fn what_ssm_says_of_time_is_read() {
        assert_eq!(seconds("PT0.25S"), Some(Duration::from_millis(250)));
        for other in ["", "PT1M2S", "PT-1S", "0.25"] {
            assert_eq!(seconds(other), None, "{other}");
        }
    }
}
