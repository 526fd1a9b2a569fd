//! A small binary codec: little-endian integers, length-prefixed bytes, one tag byte per enum.
//!
//! Hand-written because the supervisor must stay tiny and free of proc macros, and because every length has to be checked
//! against what is really there before anything is allocated.

use std::fmt;

/// Why bytes are not a message. Deliberately without contents: what was read is hostile and may be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The message ends too early.
    Truncated,
    /// Bytes are left over after the message.
    Trailing,
    /// A tag or flag has no meaning.
    BadTag(u8),
    /// A text is not UTF-8.
    BadText,
    /// A length or count is beyond what the field allows.
    TooLong,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the message ends too early"),
            Self::Trailing => f.write_str("bytes are left over after the message"),
            Self::BadTag(tag) => write!(f, "tag {tag} has no meaning"),
            Self::BadText => f.write_str("a text is not UTF-8"),
            Self::TooLong => f.write_str("a length is beyond its bound"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// What remains of a message.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A reader over a whole message.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }
}

/// A value that can be written to and read from a message.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads the value.
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The value alone as bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// The value from bytes that hold nothing else.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = Self::get(&mut reader)?;
        if reader.remaining() == 0 { Ok(value) } else { Err(DecodeError::Trailing) }
    }
}

macro_rules! integer {
    ($($int:ty),+) => { $(
        impl Wire for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let bytes = reader.take(size_of::<$int>())?;
                Ok(Self::from_le_bytes(bytes.try_into().map_err(|_| DecodeError::Truncated)?))
            }
        }
    )+ };
}
integer!(u8, u16, u32, u64, i32, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::get(reader)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(DecodeError::BadTag(tag)),
        }
    }
}

/// Raw bytes with a length; the bound is the message's own end.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

fn put_length(length: usize, out: &mut Vec<u8>) {
    // Messages are bounded far below 4 GiB; a longer one is refused when it is framed.
    u32::try_from(length).unwrap_or(u32::MAX).put(out);
}

impl Wire for Blob {
    fn put(&self, out: &mut Vec<u8>) {
        put_length(self.0.len(), out);
        out.extend_from_slice(&self.0);
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = u32::get(reader)? as usize;
        Ok(Self(reader.take(length)?.to_vec()))
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_length(self.len(), out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        String::from_utf8(Blob::get(reader)?.0).map_err(|_| DecodeError::BadText)
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.take(N)?.try_into().map_err(|_| DecodeError::Truncated)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(if bool::get(reader)? { Some(T::get(reader)?) } else { None })
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_length(self.len(), out);
        self.iter().for_each(|value| value.put(out));
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = u32::get(reader)? as usize;
        // Every value takes at least a byte, so a count beyond the rest is a lie; allocation grows with what is read.
        if count > reader.remaining() {
            return Err(DecodeError::TooLong);
        }
        (0..count).map(|_| T::get(reader)).collect()
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::get(reader)?, B::get(reader)?))
    }
}

/// Declares a struct whose fields are written in order.
#[macro_export]
macro_rules! wire_struct {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $type),* }

        impl $crate::wire::Wire for $name {
            fn put(&self, _out: &mut Vec<u8>) { $(self.$field.put(_out);)* }
            fn get(_reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::DecodeError> {
                Ok(Self { $($field: <$type as $crate::wire::Wire>::get(_reader)?),* })
            }
        }
    };
}

/// Declares an enum: a tag byte, then the variant's fields in order.
#[macro_export]
macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident $({ $($(#[$fmeta:meta])* $field:ident : $type:ty),* $(,)? })? = $tag:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant $({ $($(#[$fmeta])* $field: $type),* })?),* }

        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self { $(Self::$variant $({ $($field),* })? => { out.push($tag); $($($field.put(out);)*)? })* }
            }
            fn get(reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::DecodeError> {
                match <u8 as $crate::wire::Wire>::get(reader)? {
                    $($tag => Ok(Self::$variant $({ $($field: <$type as $crate::wire::Wire>::get(reader)?),* })?),)*
                    tag => Err($crate::wire::DecodeError::BadTag(tag)),
                }
            }
        }
    };
}
