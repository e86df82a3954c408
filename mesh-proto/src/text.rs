//! Helpers of every type that has a text form: quoting a stranger's text in an error, and serde.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};

/// How much of a rejected value an error repeats, in characters.
pub(crate) const QUOTED_CHARS_MAX: usize = 80;

/// A value as an error shows it: escaped, so that it can neither break a log line nor drive a
/// terminal, and cut, so that a long one does not fill the screen.
pub(crate) fn quote(value: &str) -> String {
    let mut quoted = String::new();
    let mut room = QUOTED_CHARS_MAX;
    for character in value.chars() {
        let escaped = character.escape_debug();
        let width = escaped.len();
        if width > room {
            quoted.push('…');
            break;
        }
        room -= width;
        quoted.extend(escaped);
    }
    quoted
}

/// Deserializes through `FromStr`. A borrowed string is parsed where it lies, so that a hostile
/// length costs no allocation.
pub(crate) fn deserialize<'de, D, T>(
    deserializer: D,
    expecting: &'static str,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    deserializer.deserialize_str(TextVisitor {
        expecting,
        parsed: PhantomData,
    })
}

/// Implements serde as a string by way of `Display` and `FromStr`.
macro_rules! serde_as_text {
    ($type:ty, $expecting:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::text::deserialize(deserializer, $expecting)
            }
        }
    };
}
pub(crate) use serde_as_text;

struct TextVisitor<T> {
    expecting: &'static str,
    parsed: PhantomData<T>,
}

impl<T: FromStr<Err: Display>> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_escapes_and_cuts() {
        assert_eq!(quote("plain"), "plain");
        assert_eq!(quote("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(quote(&"x".repeat(80)), "x".repeat(80));
        assert_eq!(quote(&"x".repeat(81)), format!("{}…", "x".repeat(80)));
        // A cut never falls inside an escape.
        assert_eq!(
            quote(&format!("{}\n", "x".repeat(79))),
            format!("{}…", "x".repeat(79))
        );
    }
}
