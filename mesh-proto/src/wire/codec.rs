//! The only caller of bincode.
//!
//! Three things keep a hostile body harmless: it is decoded by borrowing from it, so that a claimed
//! length is checked against what is there before anything is copied; lists grow entry by entry and
//! have a limit each; and bincode counts what it reads against a limit of its own.

use std::fmt;
use std::marker::PhantomData;

use bincode::config::{Configuration, Limit, LittleEndian, Varint, standard};
use bincode::error::{DecodeError, EncodeError};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serialize, Serializer};

use super::frame::{Frame, FrameHeader, WireError};
use super::limits::{CONTROL_BYTES_MAX, EXT_ENTRIES_MAX, FRAME_HEADER_BYTES};
use crate::text::quote;

/// What bincode may count in one body. It counts integers by their size in memory, a length as 8
/// bytes although one of a varint may hold it; so eight times the longest body lets every body
/// through that is short enough, and still stops any claim above.
const COUNTED_BYTES_MAX: usize = 8 * CONTROL_BYTES_MAX;

/// How much of a decoder's complaint is repeated, in characters.
const WHY_CHARS_MAX: usize = 300;

const CONFIG: Configuration<LittleEndian, Varint, Limit<COUNTED_BYTES_MAX>> =
    standard().with_limit::<COUNTED_BYTES_MAX>();

/// Appends a frame to `out`; on error `out` is as it was.
pub(crate) fn encode_frame<F: Frame>(
    kind: u16,
    body: &impl Serialize,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let start = out.len();
    let result = append(kind, body, F::BODY_BYTES_MAX, out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn append(
    kind: u16,
    body: &impl Serialize,
    body_bytes_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    let written = bincode::serde::encode_into_std_write(body, out, CONFIG).map_err(|error| {
        WireError::Malformed {
            kind,
            why: encode_fault(error),
        }
    })?;
    let body_bytes = u32::try_from(written)
        .ok()
        .filter(|_| written <= body_bytes_max)
        .ok_or(WireError::TooLarge {
            kind,
            body_bytes: written as u64,
            body_bytes_max,
        })?;
    let header = FrameHeader {
        kind,
        optional: false,
        body_bytes,
    }
    .encode();
    for (slot, byte) in out.iter_mut().skip(start).zip(header) {
        *slot = byte;
    }
    Ok(())
}

/// Checks what is the same for every body, then decodes the one of `header` as a `T`.
pub(crate) fn decode_body<'de, F: Frame, T: Deserialize<'de>>(
    header: FrameHeader,
    body: &'de [u8],
) -> Result<T, WireError> {
    let kind = header.kind;
    check_body::<F>(header, body)?;
    let (value, consumed) =
        bincode::serde::borrow_decode_from_slice(body, CONFIG).map_err(|error| {
            WireError::Malformed {
                kind,
                why: decode_fault(error),
            }
        })?;
    match body.len() - consumed {
        0 => Ok(value),
        extra => Err(WireError::TrailingBytes { kind, extra }),
    }
}

/// Encodes one of the values that a body of type `kind` is made of.
pub(crate) fn encode_part(kind: u16, part: &impl Serialize) -> Result<Vec<u8>, WireError> {
    bincode::serde::encode_to_vec(part, CONFIG).map_err(|error| WireError::Malformed {
        kind,
        why: encode_fault(error),
    })
}

/// The counterpart of [`encode_part`]; also tells how many bytes the value had.
pub(crate) fn decode_part<'de, T: Deserialize<'de>>(
    kind: u16,
    bytes: &'de [u8],
) -> Result<(T, usize), WireError> {
    bincode::serde::borrow_decode_from_slice(bytes, CONFIG).map_err(|error| WireError::Malformed {
        kind,
        why: decode_fault(error),
    })
}

/// What to do with a frame of unknown type: skip it if it is optional.
pub(crate) fn unknown<F: Frame>(header: FrameHeader, body: &[u8]) -> Result<Option<F>, WireError> {
    check_body::<F>(header, body)?;
    if header.optional {
        Ok(None)
    } else {
        Err(WireError::UnknownFrame { kind: header.kind })
    }
}

fn check_body<F: Frame>(header: FrameHeader, body: &[u8]) -> Result<(), WireError> {
    let kind = header.kind;
    let body_bytes = body.len() as u64;
    if body.len() > F::BODY_BYTES_MAX {
        return Err(WireError::TooLarge {
            kind,
            body_bytes,
            body_bytes_max: F::BODY_BYTES_MAX,
        });
    }
    if body_bytes != u64::from(header.body_bytes) {
        let why = format!(
            "the header announces {} bytes and the body has {body_bytes}",
            header.body_bytes
        );
        return Err(WireError::Malformed { kind, why });
    }
    Ok(())
}

fn decode_fault(error: DecodeError) -> String {
    if let DecodeError::OtherString(why) = error {
        return cut(why);
    }
    if let DecodeError::Other(why) = error {
        return why.to_owned();
    }
    if matches!(error, DecodeError::UnexpectedEnd { .. }) {
        return "the body ends too early".to_owned();
    }
    if matches!(error, DecodeError::LimitExceeded) {
        return "a length in the body is larger than any body".to_owned();
    }
    if matches!(error, DecodeError::Utf8 { .. }) {
        return "a text is not UTF-8".to_owned();
    }
    quote(&error.to_string())
}

fn encode_fault(error: EncodeError) -> String {
    if let EncodeError::OtherString(why) = error {
        return cut(why);
    }
    quote(&error.to_string())
}

/// The complaints are this crate's own and have quoted what is hostile; only their length is bounded.
fn cut(mut why: String) -> String {
    if let Some((end, _)) = why.char_indices().nth(WHY_CHARS_MAX) {
        why.truncate(end);
        why.push('…');
    }
    why
}

/// Lists with a limit, for `#[serde(with)]` of the fields that have one.
pub(crate) fn serialize_list<S: Serializer, T: Serialize>(
    list: &[T],
    what: &'static str,
    entries_max: usize,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if list.len() > entries_max {
        return Err(ser::Error::custom(too_many(what, list.len(), entries_max)));
    }
    list.serialize(serializer)
}

/// The counterpart of [`serialize_list`]: takes no more room than entries have come.
pub(crate) fn deserialize_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    what: &'static str,
    entries_max: usize,
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(ListVisitor {
        what,
        entries_max,
        entry: PhantomData,
    })
}

struct ListVisitor<T> {
    what: &'static str,
    entries_max: usize,
    entry: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at most {} {}", self.entries_max, self.what)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        if let Some(claimed) = entries.size_hint()
            && claimed > self.entries_max
        {
            return Err(de::Error::custom(too_many(
                self.what,
                claimed,
                self.entries_max,
            )));
        }
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            if list.len() == self.entries_max {
                return Err(de::Error::custom(too_many(
                    self.what,
                    list.len() + 1,
                    self.entries_max,
                )));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

fn too_many(what: &str, count: usize, entries_max: usize) -> String {
    format!("it has {count} {what}, and at most {entries_max} are allowed")
}

/// `Ext` for `#[serde(with)]`: a list of (tag, bytes).
pub(crate) mod ext {
    use super::{
        Deserialize, Deserializer, EXT_ENTRIES_MAX, Serialize, Serializer, Visitor, de,
        deserialize_list, fmt, serialize_list,
    };
    use crate::wire::frame::Ext;

    pub(crate) fn serialize<S: Serializer>(ext: &Ext, serializer: S) -> Result<S::Ok, S::Error> {
        let entries: Vec<_> = ext
            .iter()
            .map(|(tag, value)| (*tag, Bytes(value)))
            .collect();
        serialize_list(&entries, "ext entries", EXT_ENTRIES_MAX, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ext, D::Error> {
        let entries: Vec<(u16, Bytes<'de>)> =
            deserialize_list("ext entries", EXT_ENTRIES_MAX, deserializer)?;
        Ok(entries
            .into_iter()
            .map(|(tag, Bytes(value))| (tag, value.to_vec()))
            .collect())
    }

    /// Bytes where they lie: serde's own `Vec<u8>` would take them one by one.
    struct Bytes<'a>(&'a [u8]);

    impl Serialize for Bytes<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    impl<'de> Deserialize<'de> for Bytes<'de> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct BytesVisitor;

            impl<'de> Visitor<'de> for BytesVisitor {
                type Value = Bytes<'de>;

                fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    formatter.write_str("bytes")
                }

                fn visit_borrowed_bytes<E: de::Error>(
                    self,
                    bytes: &'de [u8],
                ) -> Result<Bytes<'de>, E> {
                    Ok(Bytes(bytes))
                }
            }

            deserializer.deserialize_bytes(BytesVisitor)
        }
    }
}

#[cfg(test)]
mod tests;
