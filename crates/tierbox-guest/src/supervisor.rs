//! The supervisor's program, built for this host and carried as bytes (feature `embed`).

#[cfg(feature = "embed")]
include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

#[cfg(not(feature = "embed"))]
mod absent {
    /// The program, a static executable for this host; `None` without feature `embed`, and where it cannot be built.
    pub static BYTES: Option<&[u8]> = None;
    pub(super) const SHA256: Option<[u8; 32]> = None;
}
#[cfg(not(feature = "embed"))]
pub use absent::BYTES;
#[cfg(not(feature = "embed"))]
use absent::SHA256;

/// The SHA-256 of [`BYTES`].
pub fn sha256() -> Option<[u8; 32]> {
    SHA256
}

/// The program as a sealed memory file, which nobody can change and a child can execute as `/proc/self/fd/N`.
///
/// # Errors
/// `Unsupported` where the program is not embedded; what the kernel says where memory files are forbidden.
#[cfg(all(target_os = "linux", feature = "embed"))]
pub fn memory_file() -> std::io::Result<std::os::fd::OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::io::Write;
    let bytes = BYTES.ok_or(std::io::ErrorKind::Unsupported)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create("tierbox-supervisor", flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 do not know the flag, and need none.
        Err(rustix::io::Errno::INVAL) => memfd_create("tierbox-supervisor", flags)?,
        other => other?,
    };
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    let file = std::os::fd::OwnedFd::from(file);
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file)
}

#[cfg(all(test, feature = "embed", target_os = "linux", target_pointer_width = "64", target_endian = "little"))]
mod unit {
    /// The type of a program header that names an interpreter, which only dynamic executables have.
    const PT_INTERP: u32 = 3;

    #[test]
    fn the_program_is_a_static_executable() {
        let bytes = super::BYTES.expect("built on Linux");
        assert_eq!(&bytes[..5], b"\x7fELF\x02");
        let start = u64::from_le_bytes(bytes[32..40].try_into().unwrap()) as usize;
        let [size, count] = [54, 56].map(|at| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])));
        let types: Vec<u32> =
            bytes[start..].chunks(size).take(count).map(|header| u32::from_le_bytes(header[..4].try_into().unwrap())).collect();
        assert!(!types.is_empty() && !types.contains(&PT_INTERP), "{types:?}");
        assert!(super::sha256().is_some());
    }
}
