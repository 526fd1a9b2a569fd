//! As whom a command runs.

use tierbox_core::{ErrorKind, ExecRequest, NotStartedCause, Outcome, SandboxExt};

use crate::case::{Need, Verdict, ensure, ensure_eq, ensure_kind, skip};
use crate::subject::Subject;

cases! { "users":
    default_is_unprivileged [Isolation] "The default user is not root.";
    default_has_no_capability [Isolation] "Commands of the default user have no capability, and no_new_privs is set.";
    own_name_and_number_are_accepted [] "Naming the default user changes nothing.";
    files_belong_to_the_default_user [Files] "File operations act as the default user.";
    root_by_option [AnyUser] "root by option is uid 0 inside, with root's home.";
    root_is_bounded [AnyUser, Isolation] "root inside has no capability to administer, trace, make nodes or change root, and gains none.";
    number_of_root [AnyUser] "A user can be named by number.";
    unknown_user_never_runs [AnyUser] "An unknown user is NotStarted(UnknownUser), not retryable, and nothing ran.";
    malformed_user_is_refused [] "A user's name with a colon, newline or NUL, or an empty one, is InvalidInput.";
    roots_files_are_closed_to_the_agent [AnyUser, Files] "A file of root's that is closed to others is PermissionDenied for file operations.";
}

async fn default_is_unprivileged(s: Subject) -> Verdict {
    let uid = s.text("id -u").await?;
    ensure!(uid.parse::<u32>().is_ok_and(|uid| uid != 0), "the default user's id is {uid}");
    Ok(())
}

/// A line of `/proc/self/status`.
async fn status(s: &Subject, key: &str, request: ExecRequest) -> Verdict<String> {
    let result = s.run(request).await?;
    let text = String::from_utf8_lossy(&result.stdout.bytes()).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    ensure!(line.is_some(), "no {key} in {text:?}");
    Ok(line.unwrap_or_default().trim().to_owned())
}

fn read_status() -> ExecRequest {
    ExecRequest::new(["cat", "/proc/self/status"])
}

async fn default_has_no_capability(s: Subject) -> Verdict {
    for key in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure_eq!(u64::from_str_radix(&status(&s, key, read_status()).await?, 16), Ok(0), "{key}");
    }
    if !s.has_own_kernel() {
        ensure_eq!(status(&s, "NoNewPrivs", read_status()).await?, "1", "NoNewPrivs");
    }
    Ok(())
}

async fn own_name_and_number_are_accepted(s: Subject) -> Verdict {
    let ids = s.text("id -u; id -g; id -un").await?;
    let mut parts = ids.lines();
    let (uid, _, name) = (parts.next().unwrap_or_default().to_owned(), parts.next(), parts.next().unwrap_or_default().to_owned());
    for user in [uid.clone(), name] {
        let result = s.run(ExecRequest::shell("id -u; id -g; id -un").user(user.as_str())).await?;
        ensure!(result.success(), "as {user}: {result:?}");
        ensure_eq!(String::from_utf8_lossy(&result.stdout.bytes()).trim(), ids, "the identity of {user}");
    }
    Ok(())
}

async fn files_belong_to_the_default_user(s: Subject) -> Verdict {
    s.write("mine", "x").await?;
    let meta = s.sandbox.stat(&s.path("mine"), false).await?;
    let ids = s.text("id -u; id -g").await?;
    ensure_eq!(format!("{}\n{}", meta.uid, meta.gid), ids, "owner of a written file");
    Ok(())
}

async fn root_by_option(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::shell("id -u; id -g; echo $HOME").user("root")).await?;
    // Where root is the default user, it keeps that user's home.
    let home = if s.text("id -u").await? == "0" { s.text("echo $HOME").await? } else { "/root".to_owned() };
    ensure_eq!(String::from_utf8_lossy(&result.stdout.bytes()), format!("0\n0\n{home}\n"), "root inside");
    Ok(())
}

async fn root_is_bounded(s: Subject) -> Verdict {
    // CHROOT 18, PTRACE 19, SYS_ADMIN 21, NET_RAW 13, MKNOD 27, MODULE 16, RAWIO 17, BOOT 22, BPF 39.
    let forbidden: u64 = [13, 16, 17, 18, 19, 21, 22, 27, 39].iter().map(|bit| 1u64 << bit).sum();
    for key in ["CapEff", "CapPrm", "CapBnd"] {
        let text = status(&s, key, read_status().user("root")).await?;
        let set = u64::from_str_radix(&text, 16).unwrap_or(u64::MAX);
        ensure!(set & forbidden == 0, "{key} of root inside is {text}");
    }
    ensure_eq!(status(&s, "NoNewPrivs", read_status().user("root")).await?, "1", "NoNewPrivs");
    Ok(())
}

async fn number_of_root(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::new(["id", "-u"]).user("0")).await?;
    ensure_eq!(result.stdout.bytes(), b"0\n".to_vec(), "user 0");
    Ok(())
}

async fn unknown_user_never_runs(s: Subject) -> Verdict {
    let result = s.run(s.shell("touch ran").user("no-such-user")).await?;
    ensure_eq!(result.outcome(), Outcome::NotStarted { cause: NotStartedCause::UnknownUser, retryable: false }, "outcome");
    ensure!(!s.exists("ran").await?, "the command ran all the same");
    Ok(())
}

async fn malformed_user_is_refused(s: Subject) -> Verdict {
    for user in ["", "a:b", "a\nb", "a\0b"] {
        let request = s.shell("touch ran").user(user);
        ensure_kind(s.sandbox.run(request).await, ErrorKind::InvalidInput, &format!("the user {user:?}"))?;
    }
    ensure!(!s.exists("ran").await?, "a refused command ran");
    Ok(())
}

async fn roots_files_are_closed_to_the_agent(s: Subject) -> Verdict {
    if !s.can(Need::Isolation) && s.text("id -u").await? == "0" {
        return skip("the default user is root");
    }
    let script = "d=/tmp/tierbox-root-$$; mkdir $d; echo secret > $d/file; chmod 600 $d/file; echo $d/file";
    let result = s.run(ExecRequest::shell(script).user("root")).await?;
    ensure!(result.success(), "root could not make a file: {result:?}");
    let path = String::from_utf8_lossy(&result.stdout.bytes()).trim().to_owned();
    ensure_kind(s.sandbox.read_bytes(path.as_str(), 100).await, ErrorKind::PermissionDenied, "read of root's file")?;
    ensure_kind(s.sandbox.write_bytes(path.as_str(), "x").await, ErrorKind::PermissionDenied, "write of root's file")?;
    ensure_kind(s.sandbox.remove(&path.as_str().into(), false).await, ErrorKind::PermissionDenied, "removal of root's file")
}
