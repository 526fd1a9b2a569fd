//! Runs inside a sandbox and tries what a hostile program would try. It reports on stdout, one JSON object a line:
//! what was tried, the errno it met, and whether anything leaked.
//!
//! It also has the small servers that cases about streams need, and modes that make a host hostile for a command.
//! It depends on nothing but the standard library, and is linked statically, so that it runs in any Linux machine.

mod egress;
mod hostile;
mod net;
mod probes;
mod spy;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["probe", names @ ..] => probes::run(names),
        ["echo", "tcp"] => net::echo_tcp(),
        ["echo", "unix", path] => net::echo_unix(path),
        ["echo", "abstract", name] => net::echo_abstract(name),
        ["until-closed", "unix", path] => net::until_closed(path),
        ["connect", "tcp", targets @ ..] => net::connect_tcp(targets),
        ["connect", "udp", targets @ ..] => net::send_udp(targets),
        ["connect", "abstract", name] => net::connect_abstract(name),
        ["http", target, requests @ ..] => egress::http(target, requests),
        ["tls", target, "direct", names @ ..] => egress::tls(target, None, names),
        ["tls", target, via, names @ ..] => egress::tls(target, Some(via), names),
        ["dns", server, questions @ ..] => egress::dns(server, questions),
        ["half-open", target, count] => egress::half_open(target, count),
        ["descriptors"] => spy::descriptors(),
        ["pid1"] => spy::pid1(),
        ["other", pid] => spy::other(pid),
        ["shm", "make", key] => spy::make_shm(key),
        ["shm", "find", key] => spy::find_shm(key),
        ["orphans", count] => spy::orphans(count),
        ["deny", what, command @ ..] => hostile::deny(what, command),
        _ => {
            eprintln!("unknown mode: {words:?}");
            ExitCode::from(64)
        }
    }
}
