//! What N1 gets beside the probes of every network: that listed names work, and nothing else does.
//!
//! Verification asks for names of its own alone, so that nothing ever leaves this host. In the machine neither of its two names
//! is listed, and each request for one must be refused. What has to work before its refusal means anything, and requests that
//! begin with a listed name, are tried in a *mirror*: the same machine again, whose gateway lists the first name beside the
//! profile's own. The twin lists what the mirror must refuse, too.

use std::net::{Ipv4Addr, SocketAddr};

use tierbox_core::{AllowRule, CanaryName, Lifted};

use super::catalogue::{Answers, Control, Finding, Ground, Place, Probe, heard, is_silence, none_of, probe};

/// The name that mirrors list.
const LISTED: &str = "listed.tierbox.invalid";
/// The name that only twins list.
const OTHER: &str = "other.tierbox.invalid";
/// A port on which the first name is listed by twins alone.
const PORT: u16 = 8099;
/// Whether only verification asks for a name: one of its two, one made of random digits, or a listener of its own on loopback.
pub fn is_own_name(name: &str) -> bool {
    let random = |name: &str| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let listener = |name: &str| name.parse::<SocketAddr>().is_ok_and(|address| address.ip() == Ipv4Addr::LOCALHOST);
    [LISTED, OTHER].contains(&name) || name.strip_suffix(".invalid").is_some_and(random) || listener(name)
}

/// The names of a profile's that verification asks a resolver for, once in each machine.
pub fn names_asked(allow: &[String]) -> Vec<String> {
    let name = |rule: &AllowRule| if rule.is_wildcard() { format!("tierbox.{}", rule.name()) } else { rule.name().to_owned() };
    let rules = allow.iter().filter_map(|entry| entry.parse::<AllowRule>().ok());
    rules.take(MOST_NAMES).map(|rule| name(&rule)).collect()
}

/// Whether these answers are those of a machine without any network, which a file of the environment's may say of one: it then
/// has less than the tier would let it have.
pub(super) fn has_no_network(probe: &Probe, answers: &Answers) -> bool {
    // No file that names one, no route to the one that is named, nobody at its address.
    const NOWHERE: [&str; 3] = ["there is no resolver", "errno 101", "errno 111"];
    let nowhere = |request: &String| answers.get(request).is_some_and(|(yes, why)| !*yes && NOWHERE.contains(&why.as_str()));
    probe.id == "n.names" && probe.requests.iter().all(nowhere)
}

/// The most of the profile's own names that are asked for.
const MOST_NAMES: usize = 8;

/// The probes of a machine whose profile lists these names.
pub(super) fn named(allow: &[String], ground: &Ground<'_>) -> Vec<Probe> {
    let canaries = ground.canaries;
    let pages = canaries.pages();
    let twin = || Control::Twin(Lifted::Names(twins(pages)));
    let mirror = || Place::Twin(Lifted::Names(mirrors(pages)));
    let nonce = canaries.nonce.as_str();
    let words = |words: &[String]| words.to_vec();
    let mut probes = Vec::new();
    probes.extend(listed(allow));
    let ways = words(&[
        format!("web:{LISTED}:80"),
        format!("visit:80:{LISTED}"),
        format!("hello:443:{LISTED}"),
        format!("tunnel:{LISTED}:443/{LISTED}"),
    ]);
    probes.push(
        works("n.listed", "A listed name is reached, by the proxy and without, with HTTP and TLS", ways, nonce).at(mirror()),
    );
    let ways = words(&[format!("name:{OTHER}"), format!("web:{OTHER}:80"), format!("visit:80:{OTHER}")]);
    probes
        .push(none_of("n.unlisted", "A name that is not listed is not reached, and no resolver knows it", ways, twin()).every());
    let ways = words(&[format!("hello:443:{OTHER}"), format!("tunnel:{OTHER}:443/{OTHER}")]);
    probes.push(none_of("n.unlisted.tls", "TLS to a name that is not listed is refused", ways, twin()).every());
    let ways = words(&[format!("tunnel:{LISTED}:443/{OTHER}")]);
    let rule = "TLS that names another server than the one it is connected for is refused";
    probes.push(none_of("n.sni", rule, ways, twin()).every().at(mirror()));
    let ways = words(&[format!("visit:80:{LISTED},{OTHER}")]);
    let rule = "A request with another Host is refused, on a connection on which a listed one was served";
    probes.push(none_of("n.host", rule, ways, twin()).every().at(mirror()));
    let ways = words(&[format!("web:{LISTED}:{PORT}"), format!("visit:{PORT}:{LISTED}:{PORT}")]);
    probes.push(none_of("n.port", "A listed name is not reached on another port", ways, twin()).every().at(mirror()));
    // Without a gateway to ask, a program asks the address itself.
    let ways = words(&[format!("web:{pages}")]);
    let rule = "A request for an address in place of a name is refused";
    // The gateway is this host's, and so is the address: where the engine is elsewhere, it is not there.
    let beside = if ground.elsewhere.is_some() { Lifted::Isolation } else { Lifted::Network };
    probes.push(heard("n.address", rule, ways, Control::Twin(beside), nonce));
    probes
}

fn canary(rule: String, leads_to: SocketAddr) -> CanaryName {
    CanaryName { rule, leads_to }
}

fn mirrors(pages: SocketAddr) -> Vec<CanaryName> {
    vec![canary(LISTED.to_owned(), pages)]
}

fn twins(pages: SocketAddr) -> Vec<CanaryName> {
    let more = [OTHER.to_owned(), format!("tcp://{LISTED}:443"), format!("{LISTED}:{PORT}")];
    mirrors(pages).into_iter().chain(more.map(|rule| canary(rule, pages))).collect()
}

/// That the profile's own names are answered with an address, which can only be the gateway's. Nobody is connected to.
fn listed(allow: &[String]) -> Option<Probe> {
    let asked: Vec<String> = names_asked(allow).iter().map(|name| format!("name:{name}")).collect();
    if asked.is_empty() {
        return None;
    }
    let requests = asked.clone();
    Some(probe("n.names", "The names of the profile have an address", requests, Control::Unneeded, move |answers| {
        for request in &asked {
            match answers.get(request) {
                Some((true, _)) => (),
                Some((false, why)) if is_silence(why) => return Finding::Unclear(format!("{request} ({why})")),
                Some((false, found)) => return Finding::Broken(format!("{request} ({found})")),
                None => return Finding::Unclear("the probe did not answer".to_owned()),
            }
        }
        Finding::Holds(format!("{} asked for", asked.len()))
    }))
}

/// A rule that is broken unless every request is answered by the canary.
fn works(id: &'static str, rule: &'static str, requests: Vec<String>, nonce: &str) -> Probe {
    let (asked, nonce) = (requests.clone(), nonce.to_owned());
    probe(id, rule, requests, Control::Unneeded, move |answers| {
        let silent = |request: &&String| answers.get(*request).is_none_or(|(yes, said)| !*yes || !said.contains(&nonce));
        if asked.iter().any(|request| !answers.contains_key(request)) {
            return Finding::Unclear("the probe did not answer".to_owned());
        }
        let silent: Vec<&str> = asked.iter().filter(silent).map(String::as_str).collect();
        // On a busy host, a way on which nothing came in time is no broken one.
        let is_late = |request: &&str| answers.get(*request).is_some_and(|(yes, why)| !*yes && is_silence(why));
        match () {
            () if silent.is_empty() => Finding::Holds(format!("{} ways", asked.len())),
            () if silent.iter().all(is_late) => Finding::Unclear(format!("nothing came in time: {}", silent.join(", "))),
            () => Finding::Broken(silent.join(", ")),
        }
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    fn answers(all: &[(&str, bool, &str)]) -> Answers {
        all.iter().map(|(request, yes, said)| ((*request).to_owned(), (*yes, (*said).to_owned()))).collect()
    }

    #[test]
    fn silence_is_no_proof_of_a_broken_way() {
        let probe = works("n.listed", "", vec!["web:a".to_owned(), "visit:b".to_owned()], "NONCE");
        let judged = |said: (bool, &str)| (probe.judge)(&answers(&[("web:a", true, "NONCE"), ("visit:b", said.0, said.1)]));
        assert!(matches!(judged((true, "NONCE")), Finding::Holds(_)));
        for late in ["errno 11", "timed out", "no answer in time"] {
            assert!(matches!(judged((false, late)), Finding::Unclear(_)), "{late}");
        }
        for broken in [(false, "errno 111"), (false, "status 403: "), (true, "another page"), (false, "no answer")] {
            assert!(matches!(judged(broken), Finding::Broken(_)), "{broken:?}");
        }
        let names = listed(&["index.test".to_owned()]).unwrap();
        assert!(matches!((names.judge)(&answers(&[("name:index.test", false, "errno 11")])), Finding::Unclear(_)));
        assert!(matches!((names.judge)(&answers(&[("name:index.test", false, "code 3 answers 0")])), Finding::Broken(_)));
    }
}
