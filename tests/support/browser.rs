//! A headless browser, which `tests/engines/chromium.sh` names.

use std::path::Path;
use std::process::Command;

use tierbox_testkit::Absence;

/// The browser, or a skip.
///
/// # Errors
/// If there must be one and is none.
pub fn browser(test: &str) -> Result<Option<String>, String> {
    if let Ok(path) = std::env::var("TIERBOX_TEST_CHROMIUM") {
        return Ok(Some(path));
    }
    let absence = Absence {
        reason: "TIERBOX_TEST_CHROMIUM is not set: tests/engines/chromium.sh was not started".to_owned(),
        install: "cargo xtask test --engine chromium".to_owned(),
    };
    super::skip("chromium", test, &absence).map(|()| None)
}

/// The document as it is after scripts had their time, with a network or without.
///
/// # Errors
/// What the browser said.
pub fn rendered(browser: &str, page: &Path, offline: bool) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let profile = tempfile::tempdir()?;
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "50"]);
    if offline {
        command.args(["unshare", "--net", "--"]);
    }
    command.arg(browser).args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=3000", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", profile.path().display())).arg(format!("file://{}", page.display()));
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("{command:?}: {}: {said}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Fails unless the page shows the same without a network, as far as this user can tell.
///
/// # Errors
/// What differs.
pub fn is_the_same_offline(browser: &str, page: &Path, shown: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && rendered(browser, page, true)? != shown {
        Err("it shows something else without a network".into())
    } else {
        Ok(())
    }
}
