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

#[cfg(all(test, feature = "embed", target_os = "linux"))]
mod unit {
    #[test]
    fn the_program_is_a_static_executable() {
        let bytes = super::BYTES.expect("built on Linux");
        assert_eq!(&bytes[..4], b"\x7fELF");
        // A dynamic executable names its interpreter.
        assert!(!bytes.windows(8).any(|window| window == b"ld-linux"));
        assert!(super::sha256().is_some());
    }
}
