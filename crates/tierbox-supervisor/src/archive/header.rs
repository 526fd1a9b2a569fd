//! The 512 bytes before an entry.

use super::ArchiveError;

/// The unit of the format.
pub const BLOCK: usize = 512;

/// One block.
pub type Block = [u8; BLOCK];

/// The fields of a header that matter here.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// The path, unless an extension gave a longer one.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Bytes that follow, as claimed.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
    /// The type byte.
    pub kind: u8,
    /// A link's target.
    pub target: Vec<u8>,
}

impl Header {
    /// Reads a block; `None` for the block of zeros that ends an archive.
    pub fn parse(block: &Block) -> Result<Option<Self>, ArchiveError> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let claimed = number(&block[148..156])?;
        if i64::from(checksum(block)) != claimed && i64::from(signed_checksum(block)) != claimed {
            return Err(ArchiveError::Malformed("has a header with a wrong checksum"));
        }
        let mut path = text(&block[..100]).to_vec();
        // Only POSIX has the prefix; GNU keeps other things there.
        if &block[257..263] == b"ustar\0" && block[345] != 0 {
            path = [text(&block[345..500]), b"/", &path].concat();
        }
        let size = u64::try_from(number(&block[124..136])?).map_err(|_| ArchiveError::Malformed("has a negative size"))?;
        Ok(Some(Self {
            path,
            mode: u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0),
            size,
            modified: number(&block[136..148])?,
            kind: block[156],
            target: text(&block[157..257]).to_vec(),
        }))
    }

    /// The block; a path or target beyond its field must have gone before in an extension, and is cut.
    pub fn format(&self) -> Block {
        let mut block = [0; BLOCK];
        put_text(&mut block[..100], &self.path);
        put_number(&mut block[100..108], i64::from(self.mode));
        put_number(&mut block[108..116], 0);
        put_number(&mut block[116..124], 0);
        put_number(&mut block[124..136], i64::try_from(self.size).unwrap_or(i64::MAX));
        put_number(&mut block[136..148], self.modified);
        block[156] = self.kind;
        put_text(&mut block[157..257], &self.target);
        block[257..265].copy_from_slice(b"ustar  \0");
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// A number in octal digits, or in base 256 if the first bit is set.
fn number(field: &[u8]) -> Result<i64, ArchiveError> {
    const BAD: ArchiveError = ArchiveError::Malformed("has a number that cannot be read");
    if field[0] & 0x80 != 0 {
        let start = if field[0] & 0x40 != 0 { -1 } else { i128::from(field[0] & 0x3f) };
        let wide = field[1..].iter().try_fold(start, |sum: i128, &byte| sum.checked_mul(256)?.checked_add(i128::from(byte)));
        return wide.and_then(|wide| i64::try_from(wide).ok()).ok_or(BAD);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |sum, &digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8).and_then(|sum| sum.checked_add(i64::from(digit - b'0'))).ok_or(BAD),
        _ => Err(BAD),
    })
}

fn put_number(field: &mut [u8], value: i64) {
    let digits = field.len() - 1;
    if value >= 0 && value < 1_i64.checked_shl(3 * digits as u32).unwrap_or(i64::MAX) {
        let text = format!("{value:0digits$o}");
        field[..digits].copy_from_slice(text.as_bytes());
        return;
    }
    let wide = i128::from(value).to_be_bytes();
    let length = field.len();
    if length <= wide.len() {
        field.copy_from_slice(&wide[wide.len() - length..]);
    }
    field[0] = if value < 0 { 0xff } else { 0x80 };
}

fn checksum(block: &Block) -> u32 {
    block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u32::from(byte) }).sum()
}

/// Some old programs summed signed bytes.
fn signed_checksum(block: &Block) -> i32 {
    block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { i32::from(byte.cast_signed()) }).sum()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn numbers_of_any_size_survive() {
        for value in [0, 1, 0o777_7777, (1 << 33) - 1, 1 << 33, 1 << 50, i64::MAX, -1, -86_400, i64::MIN] {
            let mut field = [0; 12];
            put_number(&mut field, value);
            assert_eq!(number(&field).unwrap(), value);
        }
    }

    #[test]
    fn a_changed_header_is_refused() {
        let header = Header { path: b"x".into(), mode: 0o644, size: 3, modified: 0, kind: b'0', target: Vec::new() };
        let mut block = header.format();
        assert_eq!(Header::parse(&block).unwrap(), Some(header));
        block[0] = b'y';
        assert!(matches!(Header::parse(&block), Err(ArchiveError::Malformed(_))));
    }
}
