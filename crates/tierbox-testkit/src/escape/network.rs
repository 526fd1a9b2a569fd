//! Ways out, where there is no external network but named domains (N1) or none at all (N2).

use std::time::{Duration, Instant};

use tierbox_core::{ExecRequest, Network};

use super::{Canary, attacks};
use crate::attack::{findings, install, nothing_leaked};
use crate::case::{Verdict, ensure, skip};
use crate::subject::Subject;

attacks! { "network":
    e43_default_deny [Isolation, Files] "Everything outside is refused, and at once.";
    e44_metadata [Isolation, Files] "Metadata services cannot be reached in any spelling.";
    e48_without_proxies [Isolation, Files] "Without proxy variables, and with hostile ones, there is no way out.";
    e49_ports_of_the_host [Isolation, Files] "The harness's own ports and the engines' APIs cannot be reached.";
}

fn needs_no_network(s: &Subject) -> Verdict {
    if s.environment.report().tier.network() == Network::N0 { skip("the environment has a network") } else { Ok(()) }
}

async fn unreachable(s: &Subject, targets: &[String]) -> Verdict {
    let mut args = vec!["connect", "tcp"];
    args.extend(targets.iter().map(String::as_str));
    nothing_leaked(&findings(s, |request| request, &args).await?)
}

async fn e43_default_deny(s: Subject, _: Canary) -> Verdict {
    needs_no_network(&s)?;
    let targets = ["1.1.1.1:443", "8.8.8.8:53", "192.0.2.1:80", "[2606:4700:4700::1111]:443", "10.0.0.1:22", "172.17.0.1:22"]
        .map(str::to_owned);
    install(&s).await?;
    let start = Instant::now();
    unreachable(&s, &targets).await?;
    // Each that is not refused but ignored takes a second.
    ensure!(start.elapsed() < s.scaled(Duration::from_secs(3)), "the refusals took {:?}", start.elapsed());
    nothing_leaked(&findings(&s, |request| request, &["connect", "udp", "1.1.1.1:53", "8.8.8.8:53"]).await?)?;
    let named = s.run(ExecRequest::shell("getent hosts example.org")).await?;
    ensure!(!named.success(), "a name was resolved: {}", named.stdout.text());
    Ok(())
}

async fn e44_metadata(s: Subject, _: Canary) -> Verdict {
    // Where it is what the environment names as its resolver, it is the gateway that answers for names.
    let resolver = match s.environment.report().tier.network() {
        Network::N1 => s.text("sed -n 's/^nameserver \\(.*\\)/\\1:53/p' /etc/resolv.conf").await?,
        _ => String::new(),
    };
    let targets = [
        "169.254.169.254:80",
        "169.254.170.2:80",
        "169.254.169.253:53",
        "[fd00:ec2::254]:80",
        "100.100.100.200:80",
        "192.0.0.192:80",
        "[::ffff:169.254.169.254]:80",
        "2852039166:80",
        "0xa9fea9fe:80",
        "0251.0376.0251.0376:80",
        "169.254.43518:80",
        "metadata.google.internal:80",
        "169.254.169.254.nip.io:80",
    ];
    let others = targets.into_iter().filter(|target| resolver.lines().all(|own| own != *target)).map(str::to_owned);
    unreachable(&s, &others.collect::<Vec<_>>()).await
}

async fn e48_without_proxies(s: Subject, canary: Canary) -> Verdict {
    needs_no_network(&s)?;
    let port = canary.tcp_port();
    let proxy = format!("http://127.0.0.1:{port}");
    let request = |tool: &str| {
        let script = format!(
            "command -v {tool} >/dev/null || exit 0; timeout 3 {tool} http://1.1.1.1/ >/dev/null 2>&1 && echo reached; :"
        );
        ExecRequest::shell(script)
    };
    for tool in ["curl -sf", "wget -q -O -"] {
        for request in [request(tool), request(tool).env("http_proxy", &proxy).env("ALL_PROXY", &proxy)] {
            let out = s.run(request).await?.stdout.text();
            ensure!(!out.contains("reached"), "{tool} got out");
        }
    }
    Ok(())
}

/// The host's own addresses, as the kernel lists them.
fn host_addresses() -> Vec<String> {
    let list = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut addresses =
        vec!["127.0.0.1".to_owned(), "localhost".to_owned(), "0.0.0.0".to_owned(), "[::1]".to_owned(), "[::]".to_owned()];
    let mut last = "";
    for line in list.lines() {
        if line.contains("/32 host LOCAL") && !last.starts_with("127.") {
            addresses.push(last.to_owned());
        }
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address;
        }
    }
    addresses
}

/// Whether an address means whoever asks.
fn is_inside(address: &str) -> bool {
    matches!(address, "localhost" | "0.0.0.0" | "[::1]" | "[::]") || address.starts_with("127.")
}

async fn e49_ports_of_the_host(s: Subject, canary: Canary) -> Verdict {
    needs_no_network(&s)?;
    let (tcp, udp) = (canary.tcp_port(), canary.udp_port());
    let mut targets = Vec::new();
    for address in host_addresses() {
        targets.push(format!("{address}:{tcp}"));
        // A machine with a loopback of its own may have servers of its own there.
        if !(s.has_own_kernel() && is_inside(&address)) {
            targets.extend([2375, 2376, 22, 6443].map(|port| format!("{address}:{port}")));
        }
    }
    unreachable(&s, &targets).await?;
    for address in host_addresses() {
        // Loopback inside takes datagrams for its own; whether the host's canary got one is what counts.
        let _ = findings(&s, |request| request, &["connect", "udp", &format!("{address}:{udp}")]).await?;
    }
    Ok(())
}
