//! What a sandbox prepares for the host that downloads from it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use libtest_mimic::{Failed, Trial};
use tierbox::transfer::{UnpackLimits, download};
use tierbox_core::{Environment, ErrorKind, ExecRequest, GuestPath, SandboxExt};
use tierbox_testkit::escape::Canary;

use crate::support;

/// What the host is willing to take.
const LIMITS: UnpackLimits = UnpackLimits { bytes: 16 << 20, entries: 10_000 };

type Attack = fn(&Path, &Canary) -> Result<(), Failed>;

/// Every attack.
pub fn all() -> Vec<Trial> {
    let attacks: [(&str, Attack); 3] = [
        ("e05_hostile_downloads", hostile_tree),
        ("e08_links_in_the_target", links_in_the_target),
        ("e08_target_became_a_link", target_is_a_link),
    ];
    attacks.map(|(name, attack)| Trial::test(format!("escape::downloads::{name}"), move || run(name, attack))).into()
}

fn run(name: &str, attack: Attack) -> Result<(), Failed> {
    if let Some(absence) = support::containers_absent() {
        return Ok(support::skip("local-container", name, &absence)?);
    }
    let target = tempfile::tempdir()?;
    let canary = Canary::new()?;
    attack(target.path(), &canary)?;
    canary.check().map_err(|fail| fail.to_string())?;
    Ok(())
}

/// Runs a script in a sandbox, and downloads the directory `tree` that it made.
fn downloaded(script: &str, target: &Path) -> Result<tierbox::Result<()>, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let environment = support::local("local-container", "local").start(&|_| ()).await?;
        let sandbox = environment.primary();
        let made = sandbox.run(ExecRequest::shell(script)).await?;
        if !made.success() {
            return Err(format!("the tree could not be made: {made:?}").into());
        }
        let got = download(&*sandbox, &GuestPath::from("tree"), target, LIMITS).await;
        Environment::stop(&*environment).await?;
        Ok(got.map(drop))
    })
}

fn typed(result: tierbox::Result<()>) -> Result<(), Failed> {
    let allowed = [
        ErrorKind::UnsafeArchive,
        ErrorKind::AlreadyExists,
        ErrorKind::NotAFile,
        ErrorKind::PermissionDenied,
        ErrorKind::InvalidInput,
    ];
    match result {
        Err(error) if !allowed.contains(&error.kind()) => Err(format!("not a refusal: {error:?}").into()),
        _ => Ok(()),
    }
}

/// Nothing in a downloaded tree leads out of it or has rights of its own.
fn harmless(dir: &Path) -> Result<(), Failed> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let bits = fs::symlink_metadata(&path)?.permissions().mode();
        if kind.is_symlink() {
            let leads = fs::read_link(&path)?;
            if leads.is_absolute() || leads.components().any(|part| part == std::path::Component::ParentDir) {
                return Err(format!("{} leads to {}", path.display(), leads.display()).into());
            }
        } else if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
            return Err(format!("{} is no file", path.display()).into());
        } else if bits & 0o6000 != 0 {
            return Err(format!("{} has mode {bits:o}", path.display()).into());
        } else if kind.is_dir() {
            harmless(&path)?;
        }
    }
    Ok(())
}

fn hostile_tree(target: &Path, canary: &Canary) -> Result<(), Failed> {
    let host = canary.directory();
    let pieces = [
        format!("ln -s {host} tree/link; mkdir tree/dir; ln -s ../../.. tree/dir/up"),
        format!("ln -s {host}/secret tree/secret"),
        "mkfifo tree/fifo".to_owned(),
        "cp /usr/bin/id tree/tool; chmod 6755 tree/tool".to_owned(),
        "touch tree/-rf tree/'a\nb' \"tree/$(printf '\\377')\"; ln -s tree tree/loop".to_owned(),
    ];
    for (number, piece) in pieces.iter().enumerate() {
        let into = target.join(number.to_string());
        typed(downloaded(&format!("mkdir tree; {piece}"), &into)?)?;
        harmless(&into)?;
    }
    // A TiB that takes no room inside would take it on the host.
    let sparse = downloaded("mkdir tree; truncate -s 1T tree/sparse", &target.join("sparse"))?;
    match sparse {
        Err(error) if error.kind() == ErrorKind::TooLarge => Ok(()),
        other => Err(format!("a sparse TiB: {other:?}").into()),
    }
}

fn links_in_the_target(target: &Path, canary: &Canary) -> Result<(), Failed> {
    // As an earlier download might have left it.
    symlink(canary.directory(), target.join("sub"))?;
    symlink(canary.secret_path(), target.join("file"))?;
    typed(downloaded(
        "mkdir -p tree/sub; echo changed > tree/sub/secret; echo changed > tree/sub/new; echo changed > tree/file",
        target,
    )?)
}

fn target_is_a_link(target: &Path, canary: &Canary) -> Result<(), Failed> {
    let link = target.join("link");
    symlink(canary.directory(), &link)?;
    typed(downloaded("mkdir tree; echo changed > tree/secret; echo changed > tree/new", &link)?)
}
