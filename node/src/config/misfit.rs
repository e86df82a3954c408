//! What is wrong with a value that does not fit the shape, or is no TOML, in words.

use toml::de::DeValue;

use super::errors::{nearest, quoted};

/// What an error of deserialization says, in the words of this crate.
pub(super) struct Misfit {
    pub(super) what: String,
    pub(super) remedy: String,
    /// The key that a misspelt one stands for.
    pub(super) meant: Option<String>,
}

impl Misfit {
    /// `value` is what was found at `key`, and `message` what `serde` says of it.
    pub(super) fn of(message: &str, key: &str, value: &DeValue<'_>) -> Self {
        if let Some(rest) = message.strip_prefix("unknown field ") {
            return Self::unknown(rest, key);
        }
        let expected = message
            .strip_prefix("invalid type: ")
            .and_then(|rest| rest.rsplit_once(", expected "))
            .map(|(_, expected)| expected);
        let remedy = match (expected, value) {
            (Some("a sequence"), DeValue::Table(_)) => {
                format!("write [[{key}]], since there may be several")
            }
            (Some("a sequence"), _) => format!("write it as tables, [[{key}]]"),
            (Some("a table"), DeValue::Array(_)) if !key.contains(['.', '[']) => {
                format!("write [{key}], since there is but one")
            }
            // A number that is none is one of more than 64 bits.
            (Some(expected), DeValue::Integer(_)) if expected.starts_with("a whole number") => {
                "write a smaller one".to_owned()
            }
            (Some(expected), _) => format!("write {expected}"),
            (None, _) => format!("correct the value ({})", cut(message)),
        };
        Self {
            what: format!("{} does not fit", found_text(value)),
            remedy,
            meant: None,
        }
    }

    /// `rest` is as in "`lisen`, expected one of `listen`, `advertise`".
    fn unknown(rest: &str, key: &str) -> Self {
        let known: Vec<&str> = rest
            .rsplit_once(", expected ")
            .map(|(_, known)| known.split('`').skip(1).step_by(2).collect())
            .unwrap_or_default();
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        let meant = nearest(name, known.iter().copied());
        let remedy = match meant {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("known here are {}", known.join(", ")),
        };
        Self {
            what: "unknown key".into(),
            remedy,
            meant: meant.map(|meant| join(table, meant)),
        }
    }
}

/// What is wrong with the syntax, and what to do; `value` is the text that it is wrong with, empty
/// when it is not about a value.
pub(super) fn syntax_text(message: &str, value: &str) -> (String, String) {
    // The parser guesses what a bare text was meant to be, and explains that guess.
    let bare = [
        "string values must be quoted",
        "invalid float",
        "invalid boolean",
        "invalid integer",
        "invalid datetime",
    ];
    if !value.is_empty() && bare.iter().any(|start| message.starts_with(start)) {
        return (
            format!(
                "{} is no TOML value",
                cut(&value.escape_debug().to_string())
            ),
            "put a text in quotes; write numbers, true and false without".to_owned(),
        );
    }
    (
        format!("not valid TOML ({})", cut(message)),
        "correct the line".to_owned(),
    )
}

/// A key within a table.
pub(super) fn join(table: &str, name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let name = if bare { name.to_owned() } else { quoted(name) };
    if table.is_empty() {
        name
    } else {
        format!("{table}.{name}")
    }
}

/// A value in words.
fn found_text(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {}", quoted(text)),
        DeValue::Integer(number) => format!("the number {}", cut(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", cut(number.as_str())),
        DeValue::Boolean(flag) => format!("the value {flag}"),
        DeValue::Datetime(datetime) => format!("the time {datetime}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// As much of a text as is worth showing.
fn cut(text: &str) -> String {
    const CHARS_MAX: usize = 120;
    if text.chars().nth(CHARS_MAX).is_none() {
        return text.to_owned();
    }
    let start: String = text.chars().take(CHARS_MAX).collect();
    format!("{start}…")
}
