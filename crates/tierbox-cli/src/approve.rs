//! Asking a person for approval, on the terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{QueueSelector, tcflush};
use tierbox::{Action, Approver, Consent, Error, ErrorKind, Result};

use crate::neutral;

/// The most of an action that is shown; the rest is counted.
const MOST_SHOWN: usize = 4000;
/// The longest answer that is read.
const LONGEST_ANSWER: usize = 256;
/// How often it is looked whether somebody still wants to know.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Asks on the terminal that controls this process, whatever its streams are connected to.
#[derive(Debug, Default)]
pub(crate) struct TerminalApprover {
    /// One question at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Withdraws a question when it is dropped.
#[derive(Default)]
struct Question(Arc<AtomicBool>);

impl Drop for Question {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Who is asked at the command line.
pub(crate) fn terminal() -> Arc<dyn Approver> {
    Arc::new(TerminalApprover::default())
}

#[async_trait]
impl Approver for TerminalApprover {
    async fn decide(&self, action: &Action) -> Result<Consent> {
        let turn = self.turn.clone().lock_owned().await;
        let (text, asked) = (question(action), Question::default());
        let withdrawn = asked.0.clone();
        let failed = |error| Error::new(ErrorKind::Internal, "ask for approval", format!("{error}"));
        let answer = tokio::task::spawn_blocking(move || {
            // The next question waits until this one is off the terminal.
            let _turn = turn;
            let no_terminal =
                |error| Error::new(ErrorKind::HostUnable, "ask for approval", format!("there is no terminal to ask on: {error}"));
            let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
            ask(&terminal, &text, &withdrawn)
        });
        answer.await.map_err(failed)?
    }

    fn name(&self) -> &str {
        "terminal"
    }
}

/// What is shown. The agent wrote what it wants to do, so that nothing of it may reach the terminal as it stands.
fn question(action: &Action) -> String {
    let tool = match action.tool {
        tierbox::Sensitive::Exec => "run a command",
        tierbox::Sensitive::Code => "run code",
        tierbox::Sensitive::Write => "change a file",
    };
    let shown: String = action.what.chars().take(MOST_SHOWN).collect();
    let rest = action.what.chars().count().saturating_sub(MOST_SHOWN);
    let shown = neutral::text(&shown).lines().map(|line| format!("  | {}\n", line.replace('\t', " "))).collect::<String>();
    let more = if rest > 0 { format!("  | … and {rest} more characters that are not shown\n") } else { String::new() };
    let place = neutral::line(format!("{} ({})", action.environment, action.machine).as_bytes());
    format!("tierbox: the agent in {place} wants to {tool}:\n{shown}{more}Allow? [y]es, [N]o, [t]erminate the run: ")
}

/// Asks, and waits for a line. What was typed before the question answers another one, and is thrown away.
fn ask(mut terminal: &File, question: &str, withdrawn: &AtomicBool) -> Result<Consent> {
    let failed = |error| Error::io("ask for approval", error);
    tcflush(terminal, QueueSelector::IFlush).map_err(|error| failed(error.into()))?;
    terminal.write_all(question.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < LONGEST_ANSWER {
        if !readable(terminal, withdrawn).map_err(failed)? {
            terminal.write_all(b"\ntierbox: the question is withdrawn\n").map_err(failed)?;
            return Ok(Consent::Reject("the question was withdrawn".to_owned()));
        }
        let mut part = [0; LONGEST_ANSWER];
        match terminal.read(&mut part).map_err(failed)? {
            0 => break,
            count => answer.extend_from_slice(&part[..count]),
        }
    }
    Ok(consent(&String::from_utf8_lossy(&answer)))
}

/// Waits until there is something to read; `false` if the question is withdrawn before.
fn readable(terminal: &File, withdrawn: &AtomicBool) -> std::io::Result<bool> {
    while !withdrawn.load(Ordering::Acquire) {
        let mut wanted = [PollFd::new(terminal, PollFlags::IN)];
        match poll(&mut wanted, Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            // A question that was withdrawn meanwhile has no answer.
            Ok(_) => return Ok(!withdrawn.load(Ordering::Acquire)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Only a clear yes is a yes.
fn consent(answer: &str) -> Consent {
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Consent::Allow,
        "t" | "terminate" => Consent::Terminate("a person at the terminal ended it".to_owned()),
        _ => Consent::Reject("a person at the terminal refused it".to_owned()),
    }
}

#[cfg(test)]
mod unit {
    use tierbox::Sensitive;

    use super::*;

    #[test]
    fn what_the_agent_wrote_cannot_steer_the_terminal() {
        let what = "sh -c '\u{1b}[2J\u{1b}[1;1HAllow? y\r\nrm\u{8}\u{8}ls\u{9b}8m'\nAllow? [y]es: y";
        let shown = question(&Action::new("local-1", "default", Sensitive::Exec, what));
        assert!(!shown.contains(['\u{1b}', '\r', '\u{8}', '\u{9b}']), "{shown:?}");
        // Every line of it is marked as the agent's.
        let agents: Vec<&str> = shown.lines().filter(|line| line.contains("Allow? y") || line.contains("[y]es: y")).collect();
        assert!(agents.len() == 2 && agents.iter().all(|line| line.starts_with("  | ")), "{shown}");
        assert_eq!(shown.lines().filter(|line| !line.starts_with("  | ")).count(), 2);
        let long = question(&Action::new("e", "m", Sensitive::Code, "x".repeat(10_000)));
        assert!(long.len() < 5000 && long.contains("6000 more characters"));
    }

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        assert_eq!(consent("Y\n"), Consent::Allow);
        assert!(matches!(consent("t"), Consent::Terminate(_)));
        for answer in ["", "\n", "n", "yess", "ja", "y y"] {
            assert!(matches!(consent(answer), Consent::Reject(_)), "{answer:?}");
        }
    }
}
