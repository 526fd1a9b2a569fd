//! From one sandbox to another.

use super::{Canary, attacks};
use crate::attack::{findings, install, nothing_leaked};
use crate::case::{Verdict, ensure, ensure_eq};
use crate::subject::Subject;

attacks! { "between":
    e41_abstract_sockets [Isolation, Files] "Sockets without a path do not reach from one sandbox, or the host, into another.";
    e41_shared_memory [Isolation, Files] "Shared memory does not reach across.";
    e41_loopback [Isolation, Files] "A port on one sandbox's loopback is not there in another.";
    e42_former_tenants [Isolation, Files] "A new sandbox finds nothing of a former one.";
}

async fn e41_abstract_sockets(s: Subject, canary: Canary) -> Verdict {
    nothing_leaked(&findings(&s, |request| request, &["connect", "abstract", canary.abstract_name()]).await?)?;
    let other = s.another(&|_| ()).await?;
    let program = install(&other).await?;
    let name = format!("tierbox-{}", crate::subject::number());
    let _listening = other.spawn(other.shell(format!("exec '{program}' echo abstract {name} > said"))).await?;
    said(&other, "listening").await?;
    // The control: inside its own sandbox it can be reached.
    let control = findings(&other, |request| request, &["connect", "abstract", &name]).await?;
    ensure!(
        control.iter().any(|finding| finding.leaked),
        "the socket cannot be reached at home, so nothing was tried: {control:?}"
    );
    nothing_leaked(&findings(&s, |request| request, &["connect", "abstract", &name]).await?)?;
    other.stop().await
}

/// What a command has written to the file `said` once some text is in it: by a file, since not every transport streams.
async fn said(s: &Subject, text: &str) -> Verdict<String> {
    s.until(s.patience, "the listener listens", || async {
        Ok(String::from_utf8_lossy(&s.sh("cat said 2>/dev/null; :").await?).contains(text))
    })
    .await?;
    Ok(String::from_utf8_lossy(&s.sh("cat said").await?).into_owned())
}

async fn e41_shared_memory(s: Subject, _: Canary) -> Verdict {
    let other = s.another(&|_| ()).await?;
    let key = (crate::subject::number() % 2_000_000_000 + 1).to_string();
    let made = findings(&other, |request| request, &["shm", "make", &key]).await?;
    ensure!(made.iter().all(|finding| finding.errno == 0), "no segment could be made, so nothing was tried: {made:?}");
    let control = findings(&other, |request| request, &["shm", "find", &key]).await?;
    ensure!(control.iter().any(|finding| finding.leaked), "the segment is not found at home: {control:?}");
    nothing_leaked(&findings(&s, |request| request, &["shm", "find", &key]).await?)?;
    other.sh("echo theirs > /dev/shm/tierbox-shared").await?;
    ensure!(!s.exists("/dev/shm/tierbox-shared").await?, "/dev/shm is shared");
    other.stop().await
}

async fn e41_loopback(s: Subject, _: Canary) -> Verdict {
    let other = s.another(&|_| ()).await?;
    let program = install(&other).await?;
    let _listening = other.spawn(other.shell(format!("exec '{program}' echo tcp > said"))).await?;
    let said = said(&other, "\n").await?;
    let port = said.split_whitespace().last().unwrap_or_default().to_owned();
    let control = findings(&other, |request| request, &["connect", "tcp", &format!("127.0.0.1:{port}")]).await?;
    ensure!(control.iter().any(|finding| finding.leaked), "the port cannot be reached at home: {control:?}");
    let targets = [format!("127.0.0.1:{port}"), format!("[::1]:{port}"), format!("localhost:{port}")];
    let mut args = vec!["connect", "tcp"];
    args.extend(targets.iter().map(String::as_str));
    nothing_leaked(&findings(&s, |request| request, &args).await?)?;
    other.stop().await
}

async fn e42_former_tenants(s: Subject, _: Canary) -> Verdict {
    let former = s.another(&|_| ()).await?;
    // What is there at a sandbox's first moment comes with the machine, as the files of a home directory do.
    let fresh = neighbours(&former).await?;
    former.sh("for d in . .. /tmp /var/tmp /dev/shm \"$HOME\"; do echo former > $d/tierbox-former 2>/dev/null; done; ls tierbox-former").await?;
    former.stop().await?;
    let next = s.another(&|_| ()).await?;
    let marks = "ls -d ./tierbox-former ../tierbox-former /tmp/tierbox-former /var/tmp/tierbox-former /dev/shm/tierbox-former \"$HOME\"/tierbox-former 2>/dev/null; :";
    ensure_eq!(next.text(marks).await?.trim(), "", "what a former sandbox left");
    ensure_eq!(neighbours(&next).await?, fresh, "what stands beside the working directory");
    next.stop().await
}

/// What stands beside a sandbox's working directory.
async fn neighbours(s: &Subject) -> Verdict<String> {
    let own = s.dir.rsplit('/').next().unwrap_or_default();
    Ok(s.text("ls -A ..").await?.replace(own, "").trim().to_owned())
}
