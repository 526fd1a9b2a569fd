//! Where a command starts.

use tierbox_core::{ExecRequest, NotStartedCause, Outcome};

use crate::case::{Verdict, ensure, ensure_eq, skip};
use crate::subject::Subject;

cases! { "cwd":
    default_is_the_workdir [] "Commands start in the sandbox's working directory.";
    profile_workdir_is_used [] "The profile's workdir is where commands start.";
    absolute_is_taken [] "An absolute directory is where the command starts.";
    relative_starts_at_the_workdir [] "A relative directory starts at the working directory.";
    missing_never_runs [] "A missing directory is NotStarted(BadCwd), not retryable, and nothing ran.";
    file_never_runs [] "A file as directory is NotStarted(BadCwd).";
    forbidden_never_runs [] "A directory that may not be entered is NotStarted(BadCwd).";
    odd_names_work [] "A directory's name may hold any byte.";
}

const BAD: Outcome = Outcome::NotStarted { cause: NotStartedCause::BadCwd, retryable: false };

async fn pwd(s: &Subject, request: ExecRequest) -> Verdict<Vec<u8>> {
    let result = s.run(request).await?;
    ensure!(result.success(), "pwd failed: {result:?}");
    let mut bytes = result.stdout.bytes();
    ensure!(bytes.pop() == Some(b'\n'), "pwd printed no newline");
    Ok(bytes)
}

fn physical() -> ExecRequest {
    ExecRequest::shell("pwd -P")
}

async fn default_is_the_workdir(s: Subject) -> Verdict {
    // The case's directory was made relative to the working directory, so its parent is that.
    let seen = pwd(&s, physical()).await?;
    let expected = pwd(&s, physical().cwd(format!("{}/..", s.dir))).await?;
    ensure_eq!(seen, expected, "where a command starts");
    Ok(())
}

async fn profile_workdir_is_used(s: Subject) -> Verdict {
    let wanted = format!("/tmp/tierbox-workdir-{}", crate::subject::number());
    let own = s.another(&|spec| spec.workdir = Some(wanted.clone())).await;
    let own = match own {
        Err(crate::case::Fail::Broken(message)) if message.contains("Unsupported") => {
            return skip("the backend takes no workdir");
        }
        other => other?,
    };
    let seen = pwd(&own, physical()).await?;
    ensure_eq!(String::from_utf8_lossy(&seen), wanted, "where a command starts");
    // Without isolation the directory is the host's.
    own.run(ExecRequest::new(["rm", "-rf", &wanted]).cwd("/")).await?;
    own.stop().await
}

async fn absolute_is_taken(s: Subject) -> Verdict {
    ensure_eq!(pwd(&s, physical().cwd("/usr")).await?, b"/usr".to_vec(), "the directory");
    Ok(())
}

async fn relative_starts_at_the_workdir(s: Subject) -> Verdict {
    s.sh("mkdir -p one/two").await?;
    let name = s.dir.rsplit('/').next().unwrap_or_default().to_owned();
    let seen = pwd(&s, physical().cwd(format!("{name}/one/../one/two"))).await?;
    ensure!(seen.ends_with(format!("/{name}/one/two").as_bytes()), "it is {}", seen.escape_ascii());
    Ok(())
}

async fn never_runs(s: &Subject, cwd: &str) -> Verdict {
    let result = s.run(ExecRequest::shell(format!("touch '{}/ran'", s.dir)).cwd(cwd)).await?;
    ensure_eq!(result.outcome(), BAD, "outcome");
    ensure!(!s.exists("ran").await?, "the command ran all the same");
    Ok(())
}

async fn missing_never_runs(s: Subject) -> Verdict {
    never_runs(&s, &format!("{}/missing", s.dir)).await?;
    never_runs(&s, "no-such-relative-directory").await
}

async fn file_never_runs(s: Subject) -> Verdict {
    s.sh("touch file").await?;
    never_runs(&s, &format!("{}/file", s.dir)).await
}

async fn forbidden_never_runs(s: Subject) -> Verdict {
    if s.text("id -u").await? == "0" {
        return skip("the default user is root, who may enter every directory");
    }
    s.sh("mkdir closed; chmod 000 closed").await?;
    never_runs(&s, &format!("{}/closed", s.dir)).await
}

async fn odd_names_work(s: Subject) -> Verdict {
    for name in [b"a b".as_slice(), b"line\nbreak", b"$(id)", b"-p", b"\xff\xfe"] {
        let made = s.run(ExecRequest::new([b"mkdir".as_slice(), b"--", name]).cwd(s.dir.as_str())).await?;
        ensure!(made.success(), "mkdir failed: {made:?}");
        let seen = pwd(&s, physical().cwd(s.path_bytes(name))).await?;
        ensure!(seen.ends_with(&[b"/", name].concat()), "it is {}", seen.escape_ascii());
    }
    Ok(())
}
