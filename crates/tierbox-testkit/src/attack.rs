//! The attack program: what runs inside, and what it reports.

use tierbox_core::{ByteReader, ExecRequest, WriteOptions};

use crate::case::{Fail, Verdict, ensure, skip};
use crate::subject::Subject;

/// The program, static for Linux on this architecture. Empty where the host is another system.
pub static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tierbox-attack"));

/// Puts the program into the case's directory, once, and returns its path inside.
///
/// # Errors
/// A skip where there is none for this host, or where the sandbox takes no files.
pub async fn install(s: &Subject) -> Verdict<String> {
    s.program.get_or_try_init(|| put_in(s)).await.cloned()
}

async fn put_in(s: &Subject) -> Verdict<String> {
    if PROGRAM.is_empty() {
        return skip("the attack program is made on Linux only");
    }
    if !s.capabilities().files {
        return skip("the sandbox takes no files, so no program can be put in");
    }
    let path = s.path("attack");
    let contents: ByteReader = Box::new(PROGRAM);
    s.sandbox.write(&path, contents, WriteOptions { mode: Some(0o755), create_new: false }).await?;
    Ok(format!("{}/attack", s.dir))
}

/// One line of the program's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub tried: String,
    /// The errno it met; 0 for none.
    pub errno: i32,
    /// Whether it got what it should not.
    pub leaked: bool,
    /// More.
    pub detail: String,
}

fn parse(line: &str) -> Option<Finding> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(Finding {
        tried: value.get("tried")?.as_str()?.to_owned(),
        errno: i32::try_from(value.get("errno")?.as_i64()?).ok()?,
        leaked: value.get("leaked")?.as_bool()?,
        detail: value.get("detail").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned(),
    })
}

/// Runs a mode of the program inside, and reads its report.
///
/// # Errors
/// [`Fail`] if it does not report at all: an attack that was never tried proves nothing.
pub async fn findings(s: &Subject, change: impl FnOnce(ExecRequest) -> ExecRequest, args: &[&str]) -> Verdict<Vec<Finding>> {
    let program = install(s).await?;
    let argv = std::iter::once(program.as_str()).chain(args.iter().copied());
    let result = s.run(change(ExecRequest::new(argv).cwd(s.dir.as_str()))).await?;
    let text = String::from_utf8_lossy(&result.stdout.bytes()).into_owned();
    let findings: Vec<Finding> = text.lines().filter_map(|line| parse(line.trim())).collect();
    ensure!(!findings.is_empty(), "the attack {args:?} reported nothing: {result:?}");
    Ok(findings)
}

/// Fails if anything leaked.
///
/// # Errors
/// [`Fail`], listing what leaked.
pub fn nothing_leaked(findings: &[Finding]) -> Verdict {
    let leaked: Vec<String> = findings
        .iter()
        .filter(|finding| finding.leaked)
        .map(|finding| {
            format!(
                "{} (errno {}{}{})",
                finding.tried,
                finding.errno,
                if finding.detail.is_empty() { "" } else { ": " },
                finding.detail
            )
        })
        .collect();
    if leaked.is_empty() { Ok(()) } else { Err(Fail::Broken(format!("these got through: {}", leaked.join(", ")))) }
}
