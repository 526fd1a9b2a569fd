//! The page of a run with what its gateway decided, in a browser.

use std::process::Command;

use libtest_mimic::{Failed, Trial};
use tierbox::{ExecRequest, SandboxExt, StartOptions};
use tierbox_testkit::world;

use crate::support;
use crate::support::browser::{browser, is_the_same_offline, rendered};

/// Set where this program is `tierbox`.
pub const AS_PROGRAM: &str = "TIERBOX_TEST_AS_PROGRAM";
const NAME: &str = "conformance::a_page_shows_what_a_gateway_decided";

/// Every trial.
pub fn all() -> Vec<Trial> {
    vec![Trial::test(NAME, shown)]
}

/// Asks a name for a page by a raw request, and prints the answer.
fn request(name: &str) -> ExecRequest {
    let words = format!("GET /x HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: close\\r\\n\\r\\n");
    let script = format!("exec 3<>/dev/tcp/198.18.0.1/80 && printf '{words}' >&3 && cat <&3");
    ExecRequest::new(["/bin/bash", "-c", script.as_str()])
}

/// What a gateway really decided, on the page that the command makes.
fn shown() -> Result<(), Failed> {
    if let Some(absence) = world::absent().or_else(support::containers_absent) {
        return Ok(support::skip("local-container", NAME, &absence)?);
    }
    let Some(browser) = browser(NAME)? else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let (state, page) = (directory.path().join("state"), directory.path().join("page.html"));
    let client = tierbox::Tierbox::builder().user_config(false).state_dir(&state).build()?;
    let options = StartOptions::new().log().set("network.allow", "[\"index.test\"]").allow_weaker();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let id = runtime.block_on(async {
        let running = client.start_with("local-web", options).await?;
        let (listed, other) = (running.run(request("index.test")).await?, running.run(request("other.test")).await?);
        assert!(listed.stdout.text().ends_with("hello\n"), "{listed:?}");
        assert!(other.stdout.text().contains("403"), "{other:?}");
        let id = running.id().to_owned();
        running.stop().await?;
        Ok::<_, tierbox::Error>(id)
    })?;
    let mut report = Command::new(std::env::current_exe()?);
    report.env(AS_PROGRAM, "1").env("TIERBOX_STATE_DIR", &state).args(["report", &id, "-o"]).arg(&page);
    let output = report.output()?;
    assert!(output.status.success(), "{output:?}");

    let shown = rendered(&browser, &page, false)?;
    let row = |name: &str, address: &str, verdict: &str, class: &str| {
        format!("<td>{name}</td><td>{address}</td><td>80</td><td><span class=\"{class}\">{verdict}</span></td>")
    };
    for part in [
        "<strong id=\"tier\">T0.H1.N1</strong>".to_owned(),
        row("index.test", world::SERVER, "allowed", "ok"),
        row("index.test", world::SERVER, "ended", "ok"),
        row("other.test", "", "refused", "bad"),
        // The page's body.
        "<td>0 / 6</td>".to_owned(),
    ] {
        assert!(shown.contains(&part), "{part} is not in the page: {shown}");
    }
    assert!(!shown.contains("what the gateway decided last is not here"), "{shown}");
    Ok(is_the_same_offline(&browser, &page, &shown)?)
}
