//! Files, as raw bytes.

use tierbox::{ByteReader, DirEntry, Error, ErrorKind, FileKind, FileMeta, GuestPath, ReadOptions, Result, WriteOptions};
use tokio::io::AsyncReadExt;

use crate::answer::{self, Answer, BYTES, TAR};
use crate::environments::invalid;
use crate::exec::machine;
use crate::handler::Asked;
use crate::held::Busy;
use crate::principal::Principal;
use crate::routes::Op;
use crate::wire;

/// The most that an agent reads or writes at once.
pub(crate) const AGENT_MOST: u64 = 100 << 20;

/// Does what was asked with a file.
pub(crate) async fn file(asked: Asked, environment: Busy, op: Op) -> Result<Answer> {
    let path = GuestPath::from(asked.query.bytes("path").ok_or_else(|| invalid("the query has no `path`"))?);
    path.validate()?;
    let sandbox = machine(&asked.principal, &environment, asked.query.text("machine")?)?;
    if let Principal::Agent(_) = asked.principal {
        return agents(asked, &environment, sandbox.name(), op, path).await;
    }
    let with_path = |error: Error| named(error, &path);
    match op {
        Op::ReadFile => {
            let number = |name| asked.query.number(name);
            let offset = number("offset")?.unwrap_or(0);
            let options = ReadOptions { offset, length: number("length")?, max: number("max")? };
            let (_, reader) = sandbox.read(&path, options).await.map_err(with_path)?;
            Ok(answer::reader(BYTES, reader))
        }
        Op::WriteFile => {
            let mode = asked.query.number("mode")?.map(mode).transpose()?;
            let options = WriteOptions { mode, create_new: asked.query.yes("create_new")? };
            let contents: ByteReader = Box::new(asked.intake.into_reader());
            sandbox.write(&path, contents, options).await.map_err(with_path)?;
            answer::json(&wire::Done {})
        }
        Op::RemoveFile => {
            sandbox.remove(&path, asked.query.yes("recursive")?).await.map_err(with_path)?;
            answer::json(&wire::Done {})
        }
        Op::StatFile => answer::json(&stat(&sandbox.stat(&path, asked.query.yes("follow")?).await.map_err(with_path)?)),
        Op::ListDir => answer::json(&entries(&sandbox.list(&path).await.map_err(with_path)?)),
        Op::MakeDir => {
            sandbox.make_dir(&path).await.map_err(with_path)?;
            answer::json(&wire::Done {})
        }
        Op::Pack => Ok(answer::reader(TAR, sandbox.pack(&path).await.map_err(with_path)?)),
        Op::Unpack => {
            sandbox.unpack(&path, Box::new(asked.intake.into_reader())).await.map_err(with_path)?;
            answer::json(&wire::Done {})
        }
        _ => Err(Error::new(ErrorKind::Internal, "use file", "this is no operation on files")),
    }
}

/// What an agent may do with files; the rest was refused before.
async fn agents(asked: Asked, environment: &Busy, machine: &str, op: Op, path: GuestPath) -> Result<Answer> {
    let agent = environment.agent(machine).await?;
    if let Some(name) = ["offset", "length", "mode", "create_new"].into_iter().find(|name| asked.query.bytes(name).is_some()) {
        let error = invalid("an agent reads and writes whole files: this part of the query is for harnesses");
        return Err(error.with_context("query", name));
    }
    match op {
        Op::ReadFile => {
            let most = asked.query.number("max")?.unwrap_or(AGENT_MOST).min(AGENT_MOST);
            Ok(answer::reader(BYTES, agent.read(&path, most).await?))
        }
        Op::WriteFile => {
            // Whoever approves it looks at all of it.
            let length = asked.intake.length();
            let _place = environment.room(length.unwrap_or(AGENT_MOST)).await;
            let mut contents = Vec::with_capacity(length.unwrap_or(0).min(AGENT_MOST) as usize);
            let failed = |error| Error::io("read request", error);
            asked.intake.into_reader().take(AGENT_MOST + 1).read_to_end(&mut contents).await.map_err(failed)?;
            if contents.len() as u64 > AGENT_MOST {
                return Err(Error::new(ErrorKind::TooLarge, "write", format!("an agent writes at most {AGENT_MOST} bytes")));
            }
            agent.write_bytes(path, contents).await?;
            answer::json(&wire::Done {})
        }
        Op::StatFile => answer::json(&stat(&agent.stat(&path, asked.query.yes("follow")?).await?)),
        Op::ListDir => answer::json(&entries(&agent.list(&path).await?)),
        _ => Err(Error::new(ErrorKind::PolicyDenied, "act as agent", "this is for harnesses")),
    }
}

/// Every error about a file names it.
fn named(error: Error, path: &GuestPath) -> Error {
    if error.context().any(|(key, _)| key == "path") { error } else { error.with_context("path", path) }
}

fn mode(number: u64) -> Result<u32> {
    u32::try_from(number).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| invalid("mode is more than 4095"))
}

fn entries(listed: &[DirEntry]) -> wire::Entries {
    let entry = |entry: &DirEntry| wire::Entry { name: lossy(&entry.name), stat: stat(&entry.meta) };
    wire::Entries { entries: listed.iter().map(entry).collect() }
}

fn stat(meta: &FileMeta) -> wire::Stat {
    let kind = match meta.kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Other => "other",
    };
    wire::Stat {
        kind: kind.to_owned(),
        size: meta.size,
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        modified: meta.modified_ns as f64 / 1e9,
        target: meta.target.as_deref().map(lossy),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
