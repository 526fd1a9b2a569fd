//! What is executed, and with which arguments.

use tierbox_core::{ErrorKind, ExecRequest, NotStartedCause, Outcome, SandboxExt};

use crate::case::{Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::Subject;

cases! { "exec":
    argv_is_exact [] "Argv arrives byte for byte: empty arguments, quotes, newlines, dollars, bytes that are no UTF-8.";
    arguments_of_100_kib [] "Single arguments of 100 KiB arrive whole.";
    ten_thousand_arguments [] "Ten thousand arguments arrive, in order.";
    no_shell_between [] "Never a shell unless the caller asks for one: nothing is expanded, split or globbed.";
    nul_in_an_argument_is_refused [] "A NUL byte in an argument is InvalidInput before any side effect.";
    empty_argv_is_refused [] "An empty argv, or an empty program, is InvalidInput.";
    missing_program_is_127 [] "A missing executable is Exited(127) with its errno and a clear line on stderr.";
    missing_name_is_127 [] "A name that PATH does not hold is Exited(127) with its errno.";
    not_executable_is_126 [] "A file without permission to execute is Exited(126) with its errno and a clear line on stderr.";
    directory_is_126 [] "A directory as program is Exited(126) with its errno.";
    unknown_format_is_126 [] "A file that the kernel cannot execute is Exited(126) with its errno.";
    own_127_has_no_errno [] "A program that itself exits 127 or 126 has no errno.";
    path_of_the_command_decides [] "A name is looked up in the PATH that the command has.";
    relative_program_starts_at_cwd [] "A program with a slash is relative to the command's directory.";
    too_big_argv_never_runs [] "Arguments beyond what the kernel takes are NotStarted(TooBig), not retryable.";
    ids_differ [] "Every exec has an identity of its own.";
}

/// Prints every argument, each ended by NUL.
fn echo_args<A: AsRef<[u8]>>(args: impl IntoIterator<Item = A>) -> ExecRequest {
    let mut request = ExecRequest::new(["/bin/sh", "-c", "for a in \"$@\"; do printf '%s\\0' \"$a\"; done", "sh"]);
    request.argv.extend(args.into_iter().map(|arg| arg.as_ref().to_vec()));
    request
}

fn joined(args: &[Vec<u8>]) -> Vec<u8> {
    args.iter().flat_map(|arg| arg.iter().copied().chain([0])).collect()
}

async fn argv_is_exact(s: Subject) -> Verdict {
    let mut args: Vec<Vec<u8>> = [
        "",
        "a b",
        "'",
        "\"",
        "it's \"so\"",
        "line\nbreak",
        "\ttab",
        "\\n",
        "$HOME",
        "$(id)",
        "`id`",
        "*",
        "",
        "-n",
        "--",
        "é漢",
        "",
    ]
    .iter()
    .map(|arg| arg.as_bytes().to_vec())
    .collect();
    args.push((1..=255).collect());
    args.push(b"\xff\xfe\x80".to_vec());
    let result = s.run(echo_args(&args)).await?;
    ensure!(result.success(), "the command failed: {result:?}");
    ensure_eq!(result.stdout.bytes(), joined(&args), "arguments");
    Ok(())
}

async fn arguments_of_100_kib(s: Subject) -> Verdict {
    let args = vec![vec![b'x'; 100 << 10], vec![b'y'; 100 << 10]];
    let result = s.run(echo_args(&args)).await?;
    ensure!(
        result.stdout.bytes() == joined(&args),
        "the arguments did not arrive whole: {} bytes did, {:?}",
        result.stdout.total,
        result.completed
    );
    Ok(())
}

async fn ten_thousand_arguments(s: Subject) -> Verdict {
    let args: Vec<Vec<u8>> = (0..10_000).map(|number| number.to_string().into_bytes()).collect();
    let result = s.run(echo_args(&args)).await?;
    ensure!(result.stdout.bytes() == joined(&args), "the arguments did not arrive in order: {:?}", result.completed);
    Ok(())
}

async fn no_shell_between(s: Subject) -> Verdict {
    let result = s.run(ExecRequest::new(["/bin/echo", "$HOME", "*", ";", "echo", "a  b", "|", "'q'"])).await?;
    ensure_eq!(String::from_utf8_lossy(&result.stdout.bytes()), "$HOME * ; echo a  b | 'q'\n", "what echo printed");
    Ok(())
}

async fn nul_in_an_argument_is_refused(s: Subject) -> Verdict {
    let request = ExecRequest::new([b"/bin/sh".as_slice(), b"-c", b"touch made\0x"]).cwd(s.dir.as_str());
    ensure_kind(s.sandbox.run(request).await, ErrorKind::InvalidInput, "an argument with NUL")?;
    ensure!(!s.exists("made").await?, "the command ran all the same");
    Ok(())
}

async fn empty_argv_is_refused(s: Subject) -> Verdict {
    ensure_kind(s.sandbox.run(ExecRequest::new(Vec::<&str>::new())).await, ErrorKind::InvalidInput, "an empty argv")?;
    ensure_kind(s.sandbox.run(ExecRequest::new(["", "x"])).await, ErrorKind::InvalidInput, "an empty program")
}

async fn cannot(s: &Subject, request: ExecRequest, code: i32, errno: i32) -> Verdict {
    let result = s.run(request).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(code), "outcome");
    ensure_eq!(result.completed.cannot_execute, Some(errno), "cannot_execute");
    ensure!(result.stderr.total > 3, "stderr says nothing about it");
    ensure_eq!(result.stdout.total, 0, "bytes on stdout");
    Ok(())
}

async fn missing_program_is_127(s: Subject) -> Verdict {
    cannot(&s, ExecRequest::new(["/no/such/program"]), 127, 2).await
}

async fn missing_name_is_127(s: Subject) -> Verdict {
    cannot(&s, ExecRequest::new(["tierbox-no-such-program"]), 127, 2).await
}

async fn not_executable_is_126(s: Subject) -> Verdict {
    s.sh("printf '#!/bin/sh\\n' > plain; chmod 644 plain").await?;
    cannot(&s, ExecRequest::new(["./plain"]).cwd(s.dir.as_str()), 126, 13).await
}

async fn directory_is_126(s: Subject) -> Verdict {
    cannot(&s, ExecRequest::new(["/etc"]), 126, 13).await
}

async fn unknown_format_is_126(s: Subject) -> Verdict {
    s.sh("printf '\\001\\002 no program' > odd; chmod 755 odd").await?;
    cannot(&s, ExecRequest::new(["./odd"]).cwd(s.dir.as_str()), 126, 8).await
}

async fn own_127_has_no_errno(s: Subject) -> Verdict {
    for code in [127, 126] {
        let result = s.run(ExecRequest::shell(format!("exit {code}"))).await?;
        ensure_eq!(result.outcome(), Outcome::Exited(code), "outcome");
        ensure_eq!(result.completed.cannot_execute, None, "cannot_execute of a program that exits {code}");
    }
    Ok(())
}

async fn path_of_the_command_decides(s: Subject) -> Verdict {
    // Some shells have the second in themselves.
    let tools = ["tierbox-own-tool", "seq"];
    s.sh("mkdir bin; for t in tierbox-own-tool seq; do printf '#!/bin/sh\\necho mine\\n' > bin/$t; chmod 755 bin/$t; done")
        .await?;
    let path = format!("/nowhere:{}/bin:/usr/bin:/bin", s.dir);
    for tool in tools {
        let result = s.run(ExecRequest::new([tool]).env("PATH", &path)).await?;
        ensure_eq!(
            (result.outcome(), result.stdout.bytes()),
            (Outcome::Exited(0), b"mine\n".to_vec()),
            "{tool} in the command's PATH"
        );
    }
    let result = s.run(ExecRequest::new(["tierbox-own-tool"])).await?;
    ensure_eq!(result.outcome(), Outcome::Exited(127), "the tool without that PATH");
    Ok(())
}

async fn relative_program_starts_at_cwd(s: Subject) -> Verdict {
    s.sh("mkdir deep; printf '#!/bin/sh\\necho here\\n' > deep/tool; chmod 755 deep/tool").await?;
    let result = s.run(ExecRequest::new(["./tool"]).cwd(format!("{}/deep", s.dir))).await?;
    ensure_eq!(result.stdout.bytes(), b"here\n".to_vec(), "output of ./tool in its directory");
    Ok(())
}

async fn too_big_argv_never_runs(s: Subject) -> Verdict {
    // The kernel takes 128 KiB in one argument.
    let huge = vec![b'x'; 300 << 10];
    let result = s.run(ExecRequest::new([b"/bin/true".as_slice(), &huge])).await?;
    ensure_eq!(result.outcome(), Outcome::NotStarted { cause: NotStartedCause::TooBig, retryable: false }, "outcome");
    Ok(())
}

async fn ids_differ(s: Subject) -> Verdict {
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let mut handle = s.spawn(ExecRequest::new(["/bin/true"])).await?;
        ids.insert(handle.id());
        s.outcome(&mut handle).await?;
    }
    ensure_eq!(ids.len(), 20, "different ids of 20 execs");
    Ok(())
}
