//! Asking a person for approval, on the terminal.

use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;

use async_trait::async_trait;
use tierbox::{Action, Approver, Consent, Error, ErrorKind, Result};

use crate::neutral;

/// The most of an action that is shown; the rest is counted.
const MOST_SHOWN: usize = 4000;

/// Asks on the terminal that controls this process, whatever its streams are connected to.
#[derive(Debug, Default)]
pub(crate) struct TerminalApprover {
    /// One question at a time.
    turn: tokio::sync::Mutex<()>,
}

/// Who is asked at the command line.
pub(crate) fn terminal() -> Arc<dyn Approver> {
    Arc::new(TerminalApprover::default())
}

#[async_trait]
impl Approver for TerminalApprover {
    async fn decide(&self, action: &Action) -> Result<Consent> {
        let _turn = self.turn.lock().await;
        let question = question(action);
        let failed = |error| Error::new(ErrorKind::Internal, "ask for approval", format!("{error}"));
        tokio::task::spawn_blocking(move || ask(&question)).await.map_err(failed)?
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

fn ask(question: &str) -> Result<Consent> {
    let no_terminal =
        |error| Error::new(ErrorKind::HostUnable, "ask for approval", format!("there is no terminal to ask on: {error}"));
    let terminal = std::fs::File::options().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    let failed = |error| Error::io("ask for approval", error);
    (&terminal).write_all(question.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(&terminal).read_line(&mut answer).map_err(failed)?;
    Ok(consent(&answer))
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
