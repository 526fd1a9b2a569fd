//! Makes this host hostile for a command: system calls that it needs answer with an error.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::sys::{self, nr};

/// One instruction of a classic BPF program.
fn op(code: u16, jump_true: u8, jump_false: u8, value: u32) -> u64 {
    u64::from(code) | u64::from(jump_true) << 16 | u64::from(jump_false) << 24 | u64::from(value) << 32
}

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;

/// Every CLONE_NEW* flag but the time namespace's.
const NAMESPACES: u32 = 0x7e02_0000;

fn refuse(program: &mut Vec<u64>, number: i64, errno: i32) {
    program.push(op(JUMP_EQUAL, 0, 1, number as u32));
    program.push(op(RETURN, 0, 0, ERRNO | errno as u32));
}

fn refuse_flags(program: &mut Vec<u64>, number: i64, flags: u32, errno: i32) {
    program.push(op(JUMP_EQUAL, 0, 4, number as u32));
    program.push(op(LOAD, 0, 0, 16));
    program.push(op(JUMP_ANY_BIT, 0, 1, flags));
    program.push(op(RETURN, 0, 0, ERRNO | errno as u32));
    program.push(op(RETURN, 0, 0, ALLOW));
}

fn program(what: &str) -> Option<Vec<u64>> {
    let mut program = vec![op(LOAD, 0, 0, 0)];
    match what {
        "namespaces" => {
            refuse(&mut program, nr::CLONE3, sys::ENOSYS);
            refuse(&mut program, nr::SETNS, sys::EPERM);
            refuse_flags(&mut program, nr::UNSHARE, NAMESPACES, sys::EPERM);
            refuse_flags(&mut program, nr::CLONE, NAMESPACES, sys::EPERM);
        }
        "user-namespaces" => {
            refuse(&mut program, nr::CLONE3, sys::ENOSYS);
            refuse_flags(&mut program, nr::UNSHARE, 0x1000_0000, sys::EPERM);
            refuse_flags(&mut program, nr::CLONE, 0x1000_0000, sys::EPERM);
        }
        "memfd" => refuse(&mut program, nr::MEMFD_CREATE, sys::ENOSYS),
        "mount" => [nr::MOUNT, nr::FSOPEN, nr::OPEN_TREE, nr::MOVE_MOUNT, nr::MOUNT_SETATTR]
            .into_iter()
            .for_each(|number| refuse(&mut program, number, sys::EPERM)),
        "seccomp" => refuse(&mut program, nr::SECCOMP, sys::ENOSYS),
        _ => return None,
    }
    program.push(op(RETURN, 0, 0, ALLOW));
    Some(program)
}

/// Runs a command under a filter.
pub fn deny(what: &str, command: &[&str]) -> ExitCode {
    let (Some(program), [path, args @ ..]) = (program(what), command) else {
        eprintln!("unknown: {what}, or no command");
        return ExitCode::from(64);
    };
    let header: [usize; 2] = [program.len(), program.as_ptr() as usize];
    // PR_SET_NO_NEW_PRIVS lets a plain user install a filter.
    let installed = sys::call(nr::PRCTL, [38, 1, 0, 0, 0, 0])
        .and_then(|_| sys::call(nr::SECCOMP, [1, 0, header.as_ptr() as usize, 0, 0, 0]));
    if let Err(errno) = installed {
        eprintln!("the filter could not be installed: errno {errno}");
        return ExitCode::from(65);
    }
    let error = Command::new(path).args(args).exec();
    eprintln!("{path}: {error}");
    ExitCode::from(66)
}
