//! The frame: its header, the trait of everything that travels in one, and what can be wrong.

use super::limits::{FRAME_HEADER_BYTES, SKIPPED_FRAMES_MAX};

/// Trailing entries of a body, by tag: how a released body is extended. Unknown tags are kept as
/// they are and mean nothing. At most [`EXT_ENTRIES_MAX`](super::EXT_ENTRIES_MAX).
pub type Ext = Vec<(u16, Vec<u8>)>;

/// The high bit of the second field: the reader may skip the frame if it does not know the type.
const OPTIONAL_BIT: u16 = 0x8000;

/// The first six bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The type, in 15 bits.
    pub kind: u16,
    /// Whether a reader that does not know the type skips the frame.
    pub optional: bool,
    /// Length of the body that follows, in bytes.
    pub body_bytes: u32,
}

impl FrameHeader {
    /// The header's bytes. Of `kind` the low 15 bits count.
    #[must_use]
    pub fn encode(self) -> [u8; FRAME_HEADER_BYTES] {
        let [a, b, c, d] = self.body_bytes.to_be_bytes();
        let optional = if self.optional { OPTIONAL_BIT } else { 0 };
        let [e, f] = (self.kind & !OPTIONAL_BIT | optional).to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Reads a header, before anything is allocated for its body.
    ///
    /// # Errors
    /// [`WireError::TooLarge`] when it announces more than `body_bytes_max`.
    pub fn decode(
        bytes: [u8; FRAME_HEADER_BYTES],
        body_bytes_max: usize,
    ) -> Result<Self, WireError> {
        let [a, b, c, d, e, f] = bytes;
        let body_bytes = u32::from_be_bytes([a, b, c, d]);
        let field = u16::from_be_bytes([e, f]);
        let header = Self {
            kind: field & !OPTIONAL_BIT,
            optional: field & OPTIONAL_BIT != 0,
            body_bytes,
        };
        match usize::try_from(body_bytes) {
            Ok(bytes) if bytes <= body_bytes_max => Ok(header),
            _ => Err(WireError::TooLarge {
                kind: header.kind,
                body_bytes: u64::from(body_bytes),
                body_bytes_max,
            }),
        }
    }
}

/// The frames that one reader understands.
pub trait Frame: Sized {
    /// The longest body, in bytes, known or not.
    const BODY_BYTES_MAX: usize;

    /// Appends header and body to `out`.
    ///
    /// # Errors
    /// When the value breaks a bound that its reader enforces; `out` is then as it was.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError>;

    /// Reads the body that belongs to `header`. `Ok(None)`: unknown but optional, skip it.
    ///
    /// # Errors
    /// When the type is unknown and required, or the body is not exactly one value within its
    /// bounds. Never panics, and allocates in proportion to `body` alone, whatever lengths it claims.
    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError>;
}

/// What is wrong with bytes from the wire, or with a value that should go there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The body is longer than this reader takes.
    #[error(
        "frame type {kind:#06x} has a body of {body_bytes} bytes, and at most {body_bytes_max} are allowed here"
    )]
    TooLarge {
        /// The frame's type.
        kind: u16,
        /// Length of the body, in bytes.
        body_bytes: u64,
        /// The limit, in bytes.
        body_bytes_max: usize,
    },
    /// A required frame of a type that has no meaning here. In place of an `Open` it is refused as
    /// `unsupported`.
    #[error(
        "frame type {kind:#06x} is not known here and not optional: the other side speaks a later version, or another conversation"
    )]
    UnknownFrame {
        /// The frame's type.
        kind: u16,
    },
    /// The body is not one of its type, or a value breaks a bound.
    #[error("frame type {kind:#06x} is malformed: {why}")]
    Malformed {
        /// The frame's type.
        kind: u16,
        /// What is wrong; hostile text in it is escaped and cut.
        why: String,
    },
    /// Bytes follow the value in the body.
    #[error("frame type {kind:#06x} has {extra} bytes too many in its body")]
    TrailingBytes {
        /// The frame's type.
        kind: u16,
        /// How many bytes are left over.
        extra: usize,
    },
    /// Only unknown optional frames came while a known one was awaited.
    #[error("{SKIPPED_FRAMES_MAX} unknown frames were skipped and no known one came")]
    TooManySkipped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_pinned() {
        for (header, bytes) in [
            (
                FrameHeader {
                    kind: 1,
                    optional: false,
                    body_bytes: 0,
                },
                [0, 0, 0, 0, 0, 1],
            ),
            (
                FrameHeader {
                    kind: 0x0201,
                    optional: true,
                    body_bytes: 258,
                },
                [0, 0, 1, 2, 0x82, 1],
            ),
            (
                FrameHeader {
                    kind: 0x7fff,
                    optional: true,
                    body_bytes: 65_536,
                },
                [0, 1, 0, 0, 0xff, 0xff],
            ),
        ] {
            assert_eq!(header.encode(), bytes);
            assert_eq!(FrameHeader::decode(bytes, 65_536), Ok(header));
        }
    }

    #[test]
    fn a_kind_of_sixteen_bits_does_not_set_the_optional_bit() {
        let header = FrameHeader {
            kind: 0xffff,
            optional: false,
            body_bytes: 0,
        };
        assert_eq!(header.encode(), [0, 0, 0, 0, 0x7f, 0xff]);
    }

    #[test]
    fn a_header_above_the_limit_is_refused() {
        let header = FrameHeader {
            kind: 2,
            optional: true,
            body_bytes: 1025,
        };
        assert!(FrameHeader::decode(header.encode(), 1025).is_ok());
        let error = FrameHeader::decode(header.encode(), 1024).unwrap_err();
        assert_eq!(
            error,
            WireError::TooLarge {
                kind: 2,
                body_bytes: 1025,
                body_bytes_max: 1024
            }
        );
        assert_eq!(
            error.to_string(),
            "frame type 0x0002 has a body of 1025 bytes, and at most 1024 are allowed here"
        );
        assert!(FrameHeader::decode([0xff; 6], usize::MAX).is_ok());
    }
}
