//! Consent to what the agent does.

use async_trait::async_trait;

use crate::{Result, Sensitive};

/// Something sensitive that the agent wants to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Action {
    /// The environment's id.
    pub environment: String,
    /// The machine's name.
    pub machine: String,
    /// What kind of action.
    pub tool: Sensitive,
    /// What exactly: the command's arguments as a shell would be given them, the code, the change and its path, and what
    /// comes along (variables, user, directory, input, files, contents; of each the first 2,000 bytes). **The agent wrote it**: whoever shows it to a
    /// person must make control characters harmless.
    pub what: String,
}

impl Action {
    /// An action.
    pub fn new(environment: impl Into<String>, machine: impl Into<String>, tool: Sensitive, what: impl Into<String>) -> Self {
        Self { environment: environment.into(), machine: machine.into(), tool, what: what.into() }
    }
}

/// The answer to an [`Action`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consent {
    /// Let it be done.
    Allow,
    /// Refuse it, for this reason. The agent may go on.
    Reject(String),
    /// Refuse it and everything after it, for this reason.
    Terminate(String),
}

/// Somebody who is asked: a person at a terminal, a program with a policy of its own.
///
/// The question is given up after the profile's approval timeout, which counts as a refusal. So does an error.
#[async_trait]
pub trait Approver: Send + Sync {
    /// Answers. Dropping the future withdraws the question.
    ///
    /// # Errors
    /// If no answer can be had.
    async fn decide(&self, action: &Action) -> Result<Consent>;

    /// Who this is, for the operation log.
    fn name(&self) -> &str;
}
