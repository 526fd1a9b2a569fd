//! The page of a run in a browser: what it shows, that nothing in it is interpreted, and that it asks nobody for anything.

#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
mod conformance {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tierbox::{Decision, ErrorKind, ExecRequest, Protocol, SandboxExt, StartOptions, Verdict};
    use tierbox_testkit::Absence;

    use crate::support;
    use crate::support::browser::{browser, is_the_same_offline, rendered};

    type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Somebody to be asked, who counts.
    fn listener() -> Result<(u16, Arc<AtomicUsize>), std::io::Error> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (port, asked) = (listener.local_addr()?.port(), Arc::<AtomicUsize>::default());
        let count = asked.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                // Browsers open connections that they may want later.
                std::thread::spawn(move || {
                    let _ = stream.read(&mut [0; 1024]);
                    let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                });
            }
        });
        Ok((port, asked))
    }

    /// What would show if anything of it were interpreted.
    fn hostile(port: u16) -> String {
        format!(
            "</td></table></code><script>document.title='pwned'</script><img src=http://127.0.0.1:{port}/i \
             onerror=\"document.title='pwned'\"><link rel=stylesheet href=http://127.0.0.1:{port}/s><b id=made>\
             <style>*{{background:url(http://127.0.0.1:{port}/c)}}</style><iframe src=http://127.0.0.1:{port}/f></iframe>"
        )
    }

    #[tokio::test]
    async fn a_page_shows_a_run_and_nothing_in_it_is_interpreted() -> Outcome {
        let Some(browser) = browser("a_page_shows_a_run_and_nothing_in_it_is_interpreted")? else { return Ok(()) };
        let (port, asked) = listener()?;
        let hostile = hostile(port);
        let directory = tempfile::tempdir()?;
        let page = directory.path().join("page.html");

        // The control: a page in which the same text stands as it is does all of it.
        std::fs::write(&page, format!("<!doctype html><title>plain</title><table><td>{hostile}"))?;
        let control = rendered(&browser, &page, false)?;
        assert!(control.contains("<title>pwned</title>"), "the browser runs no scripts, so nothing is shown: {control}");
        assert!(asked.swap(0, Ordering::SeqCst) > 0, "the browser asks nobody, so nothing is shown");

        let client = tierbox::Tierbox::builder().user_config(false).state_dir(directory.path().join("state")).build()?;
        let running = match client.start_with("local", StartOptions::new().log().env("WORD", hostile.as_str())).await {
            Err(error) if error.kind() == ErrorKind::HostUnable => {
                let absence = Absence { reason: error.message().to_owned(), install: "tierbox doctor".to_owned() };
                return Ok(support::skip("local-container", "a_page_shows_a_run", &absence)?);
            }
            other => other?,
        };
        let id = running.id().to_owned();
        running.run(ExecRequest::new(["/bin/echo", hostile.as_str()])).await?;
        running.run(ExecRequest::shell("exit 3")).await?;
        running.run(ExecRequest::new(["/bin/sleep", "60"]).timeout(std::time::Duration::from_millis(50))).await?;
        let name = hostile.replace('/', "\u{2215}");
        running.write_bytes(name[..name.floor_char_boundary(200)].to_owned(), "x").await?;
        running.stop().await?;
        let run = client.run(&id)?;
        // Made by hand: no server has such a name. What a gateway really decides is shown in `egress_local`.
        let decision = Decision {
            time: std::time::SystemTime::now(),
            sandbox: id.clone(),
            machine: Some(hostile.clone()),
            id: 1,
            protocol: Protocol::Http,
            name: hostile.clone(),
            address: None,
            port: 80,
            verdict: Verdict::Refused,
            rule: hostile.clone(),
            sent: 0,
            received: 0,
            verification: false,
        };
        let records = tierbox::verify::log::read(&run.directory)?;
        let html = tierbox::verify::page(run.attestation.as_ref(), &records, &run.check(None)?, &[decision]);
        std::fs::write(&page, html)?;

        let shown = rendered(&browser, &page, false)?;
        assert_eq!(asked.load(Ordering::SeqCst), 0, "somebody was asked");
        assert!(shown.contains(&format!("<title>Run {id}</title>")), "the title is another: {shown}");
        for made in ["<script", "<img", "<link", "<iframe", "id=\"made\""] {
            assert!(!shown.contains(made), "{made} became a part of the page");
        }
        for part in [
            "<strong id=\"tier\">T0.H1.N2</strong>",
            "<span id=\"chain\" class=\"ok\">",
            "<span class=\"pass\">verified</span>",
            "<td>h.seccomp</td>",
            "<td>seccomp</td>",
            "<th>Limit</th>",
            "/bin/sleep 60",
            "killed",
            "exited:3",
            "&lt;script&gt;document.title='pwned'&lt;/script&gt;",
            "<span class=\"bad\">refused</span>",
            " KiB",
        ] {
            assert!(shown.contains(part), "{part} is not in the page: {shown}");
        }
        // Every operation has its place in the timeline.
        assert_eq!(shown.matches("class=\"bar\"").count(), records.len());
        is_the_same_offline(&browser, &page, &shown)
    }
}
