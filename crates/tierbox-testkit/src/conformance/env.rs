//! The environment of a command.

use std::collections::BTreeMap;

use tierbox_core::{ErrorKind, ExecRequest, SandboxExt};

use crate::case::{Verdict, ensure, ensure_eq, ensure_kind};
use crate::subject::Subject;

cases! { "env":
    nothing_of_the_harness [] "Nothing of the harness's environment arrives.";
    base_is_complete [] "PATH and HOME are set from the machine, and HOME is a directory.";
    call_is_added_exactly [] "The call's variables arrive byte for byte.";
    call_overrides_the_base [] "The call's variables win over the machine's.";
    clear_starts_empty [] "env_clear starts empty: only the call's variables.";
    bad_keys_are_refused [] "An empty name, one with = or NUL, or a value with NUL, is InvalidInput before any side effect.";
    odd_keys_arrive [] "Names that no shell could set arrive all the same.";
    does_not_outlive_the_call [] "The call's variables are gone at the next.";
    profile_variables_arrive [] "The profile's variables are in every exec, and the call's win over them.";
}

type Vars = BTreeMap<Vec<u8>, Vec<u8>>;

/// The environment as the command sees it.
async fn vars(s: &Subject, change: impl FnOnce(ExecRequest) -> ExecRequest) -> Verdict<Vars> {
    let result = s.run(change(ExecRequest::new(["/usr/bin/env", "-0"]))).await?;
    ensure!(result.success(), "env failed: {result:?}");
    let bytes = result.stdout.bytes();
    let pairs = bytes.split(|byte| *byte == 0).filter(|pair| !pair.is_empty());
    Ok(pairs
        .map(|pair| {
            let cut = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            (pair[..cut].to_vec(), pair.get(cut + 1..).unwrap_or_default().to_vec())
        })
        .collect())
}

/// Names that a machine sets by itself, so that they prove nothing.
const BASE: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TERM", "PWD", "HOSTNAME", "TZ", "TMPDIR"];

async fn nothing_of_the_harness(s: Subject) -> Verdict {
    use std::os::unix::ffi::OsStrExt;
    let seen = vars(&s, |request| request).await?;
    let mut probes = 0;
    for (name, value) in std::env::vars_os().filter(|(name, _)| !BASE.iter().any(|base| name == base)) {
        probes += 1;
        ensure!(seen.get(name.as_bytes()).is_none_or(|inside| inside != value.as_bytes()), "the harness's {name:?} arrived");
    }
    if probes == 0 {
        return crate::case::skip("the harness has no variable by which a leak would show");
    }
    Ok(())
}

async fn base_is_complete(s: Subject) -> Verdict {
    let seen = vars(&s, |request| request).await?;
    for name in ["PATH", "HOME"] {
        ensure!(
            seen.get(name.as_bytes()).is_some_and(|value| value.starts_with(b"/")),
            "{name} is {:?}",
            seen.get(name.as_bytes())
        );
    }
    s.sh("test -d \"$HOME\" && command -v ls").await?;
    Ok(())
}

fn odd_values() -> Vars {
    let mut wanted = Vars::new();
    for (name, value) in [
        ("PLAIN", "x"),
        ("EMPTY", ""),
        ("EQUALS", "a=b=c"),
        ("LINES", "one\ntwo\n"),
        ("SPACED", "  a  "),
        ("QUOTED", "'\"$HOME`id`"),
    ] {
        wanted.insert(name.into(), value.into());
    }
    wanted.insert(b"BYTES".to_vec(), (1..=255).collect());
    wanted
}

async fn call_is_added_exactly(s: Subject) -> Verdict {
    let wanted = odd_values();
    let mut request_env = wanted.clone();
    let seen = vars(&s, |mut request| {
        request.env.append(&mut request_env);
        request
    })
    .await?;
    for (name, value) in &wanted {
        ensure_eq!(seen.get(name), Some(value), "the variable {}", name.escape_ascii());
    }
    ensure!(seen.contains_key(b"PATH".as_slice()), "the base is gone");
    Ok(())
}

async fn call_overrides_the_base(s: Subject) -> Verdict {
    let seen = vars(&s, |request| request.env("HOME", "/elsewhere").env("LANG", "xx_YY")).await?;
    ensure_eq!(seen.get(b"HOME".as_slice()), Some(&b"/elsewhere".to_vec()), "HOME");
    ensure_eq!(seen.get(b"LANG".as_slice()), Some(&b"xx_YY".to_vec()), "LANG");
    Ok(())
}

async fn clear_starts_empty(s: Subject) -> Verdict {
    let seen = vars(&s, |request| request.env_clear().env("ONLY", "this")).await?;
    ensure_eq!(seen, Vars::from([(b"ONLY".to_vec(), b"this".to_vec())]), "the environment after env_clear");
    let seen = vars(&s, ExecRequest::env_clear).await?;
    ensure_eq!(seen, Vars::new(), "the empty environment");
    Ok(())
}

async fn bad_keys_are_refused(s: Subject) -> Verdict {
    let pairs: [(&[u8], &[u8]); 4] = [(b"", b"x"), (b"A=B", b"x"), (b"A\0B", b"x"), (b"A", b"x\0y")];
    for (name, value) in pairs {
        let request = s.shell("touch ran").env(name, value);
        ensure_kind(s.sandbox.run(request).await, ErrorKind::InvalidInput, &format!("the variable \"{}\"", name.escape_ascii()))?;
    }
    ensure!(!s.exists("ran").await?, "a refused command ran");
    Ok(())
}

async fn odd_keys_arrive(s: Subject) -> Verdict {
    let names: [&[u8]; 6] = [b"lower", b"with space", b"1digit", b"a-b.c", "é".as_bytes(), b"\xff"];
    let seen = vars(&s, |request| names.iter().fold(request, |request, name| request.env(name, "v"))).await?;
    for name in names {
        ensure_eq!(seen.get(name), Some(&b"v".to_vec()), "the variable \"{}\"", name.escape_ascii());
    }
    Ok(())
}

async fn does_not_outlive_the_call(s: Subject) -> Verdict {
    vars(&s, |request| request.env("ONCE", "1")).await?;
    ensure!(!vars(&s, |request| request).await?.contains_key(b"ONCE".as_slice()), "ONCE is still set");
    Ok(())
}

async fn profile_variables_arrive(s: Subject) -> Verdict {
    let own = s
        .another(&|spec| {
            spec.env.insert("FROM_PROFILE".into(), "a b".into());
            spec.env.insert("BOTH".into(), "profile".into());
        })
        .await?;
    let seen = vars(&own, |request| request.env("BOTH", "call")).await?;
    ensure_eq!(seen.get(b"FROM_PROFILE".as_slice()), Some(&b"a b".to_vec()), "FROM_PROFILE");
    ensure_eq!(seen.get(b"BOTH".as_slice()), Some(&b"call".to_vec()), "BOTH");
    own.stop().await
}
