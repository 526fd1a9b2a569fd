//! Which loader a program names for itself.

use crate::{Error, ErrorKind, Result};

/// The longest path of a loader.
const LONGEST: usize = 4096;

/// The loader that an ELF program names (`PT_INTERP`), from the beginning of its file; `None` for a static program.
///
/// The file is untrusted: everything is checked before it is used.
///
/// # Errors
/// `InvalidInput` for what is no ELF program (a script, an archive), or names its loader beyond the bytes that are given.
pub fn elf_loader(file: &[u8]) -> Result<Option<Vec<u8>>> {
    let bad = |message: &str| Err(Error::new(ErrorKind::InvalidInput, "read program", message));
    if file.get(..4) != Some(b"\x7fELF") {
        return bad("it is no ELF program");
    }
    let (wide, little) = (file.get(4) == Some(&2), file.get(5) == Some(&1));
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = file.get(at..at.checked_add(size)?)?;
        let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) })
    };
    let (table, size_at, count_at, word) = if wide { (32, 54, 56, 8) } else { (28, 42, 44, 4) };
    let header = (number(table, word), number(size_at, 2), number(count_at, 2));
    let (Some(start), Some(size), Some(count)) = header else { return bad("its header is cut off") };
    for index in 0..count {
        let at = index.checked_mul(size).and_then(|offset| offset.checked_add(start)).and_then(|at| usize::try_from(at).ok());
        let Some(at) = at else { return bad("its header makes no sense") };
        let Some(kind) = number(at, 4) else { return bad("its program headers are cut off") };
        if kind != 3 {
            continue;
        }
        let (offset_at, length_at) = if wide { (at + 8, at + 32) } else { (at + 4, at + 16) };
        let place = number(offset_at, word).zip(number(length_at, word));
        let place = place.and_then(|(offset, length)| Some((usize::try_from(offset).ok()?, usize::try_from(length).ok()?)));
        let Some((offset, length)) = place.filter(|(_, length)| *length <= LONGEST) else {
            return bad("its loader's name makes no sense");
        };
        let Some(path) = offset.checked_add(length).and_then(|end| file.get(offset..end)) else {
            return bad("its loader's name is cut off");
        };
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        return if path.starts_with(b"/") { Ok(Some(path.to_vec())) } else { bad("its loader has no absolute path") };
    }
    Ok(None)
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_very_program_names_its_loader() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let loader = elf_loader(&file).unwrap().expect("a test program is linked dynamically");
        assert!(std::path::Path::new(std::str::from_utf8(&loader).unwrap()).exists());
        assert!(elf_loader(&file[..70]).is_err());
    }

    #[test]
    fn a_script_is_no_program() {
        assert!(elf_loader(b"#!/bin/sh\n").is_err());
        assert!(elf_loader(b"").is_err());
    }

    proptest! {
        #[test]
        fn any_file_gets_an_answer(rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = elf_loader(&[b"\x7fELF\x02\x01".as_slice(), &rest].concat());
        }
    }
}
