//! `tierbox cp`.

use std::path::Path;

use serde_json::json;
use tierbox::transfer::{TransferReport, UnpackLimits};
use tierbox::{Error, ErrorKind, Result, Sandbox};

use crate::args::CpArgs;
use crate::interrupt::Failure;
use crate::parse::{Side, side};
use crate::{Context, output};

pub(crate) async fn cp(context: &mut Context, args: CpArgs) -> Result<u8, Failure> {
    let client = context.client.clone();
    let work = async {
        match (side(&args.from), side(&args.to)) {
            (Side::Host(from), Side::Guest { sandbox, path }) => {
                let running = client.attach(&sandbox).await?;
                let path = if path.is_empty() { own_name(&from) } else { path };
                let moved = tierbox::transfer::upload(running.sandbox().as_ref(), &from, &path.into()).await?;
                if let Some(note) = tierbox::transfer::left_out_note(&from, moved) {
                    output::remark(&note);
                }
                Ok(moved)
            }
            (Side::Guest { sandbox, path }, Side::Host(to)) => {
                let running = client.attach(&sandbox).await?;
                out(running.sandbox().as_ref(), &path, &to, args.max.unwrap_or_default()).await
            }
            _ => Err(Error::new(ErrorKind::InvalidInput, "cp", "exactly one side must be SANDBOX:PATH")
                .with_help("for example `tierbox cp ./data demo:data`")),
        }
    };
    let moved = context.interrupts.guard(work).await?;
    if context.global.json {
        let TransferReport { entries, bytes, left_out } = moved;
        output::json(&json!({ "copied": true, "entries": entries, "bytes": bytes, "left_out": left_out }));
    }
    Ok(0)
}

/// Copies a file or directory out. Into an existing directory it goes under its own name. A link is not followed, whoever made
/// it: one that names a directory is only with a slash behind it.
pub(crate) async fn out(sandbox: &dyn Sandbox, path: &[u8], to: &Path, limits: UnpackLimits) -> Result<TransferReport> {
    use std::os::unix::ffi::OsStrExt;
    let name = Path::new(std::ffi::OsStr::from_bytes(path)).file_name();
    let to = match name {
        Some(name) if to.symlink_metadata().is_ok_and(|found| found.is_dir()) => to.join(name),
        _ => to.to_owned(),
    };
    tierbox::transfer::download(sandbox, &path.into(), &to, limits).await.map_err(|error| {
        if error.kind() != ErrorKind::TooLarge {
            return error;
        }
        let more = "`tierbox cp --max SIZE` (or `--max none`) lets more out of a sandbox that is kept";
        let help = error.help().map_or_else(|| more.to_owned(), |help| format!("{more}; {help}"));
        error.with_help(help)
    })
}

fn own_name(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.file_name().map_or_else(|| b".".to_vec(), |name| name.as_bytes().to_vec())
}
