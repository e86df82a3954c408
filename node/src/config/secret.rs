//! Tokens that users present, and the files that they are read from.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::digest;
use mesh_proto::name::TokenName;

/// The most tokens that one file may hold.
pub const TOKENS_MAX: usize = 10_000;

/// The largest file of tokens, in bytes.
pub const TOKENS_FILE_BYTES_MAX: usize = 1 << 20;

/// The shortest token, in characters: below it, guessing is a matter of patience.
pub const TOKEN_CHARS_MIN: usize = 16;

/// The longest token, in characters: it travels in a header.
pub const TOKEN_CHARS_MAX: usize = 1024;

/// The most faults of one file that are listed.
const FAULTS_MAX: usize = 50;

/// A SHA-256 digest.
type Digest = [u8; digest::SHA256_OUTPUT_LEN];

/// The tokens that an ingress or the admin listener accepts, by name.
///
/// Only digests are kept: a token is looked up by its SHA-256, so that how long a comparison
/// takes says nothing about how much of a guess was right, and a memory dump shows no token.
#[derive(Clone, Default)]
pub struct TokenTable {
    by_digest: BTreeMap<Digest, TokenName>,
}

impl TokenTable {
    /// Reads the text of a tokens file: a `name:token` a line, `#` comments, blank lines.
    ///
    /// # Errors
    /// All faulty lines at once; the text of a token is in none of them.
    pub fn from_text(text: &str) -> Result<Self, TokenTableErrors> {
        let mut table = Self::default();
        let mut names = BTreeMap::new();
        let mut lines_by_digest = BTreeMap::new();
        let mut faults = Vec::new();
        if text.len() > TOKENS_FILE_BYTES_MAX {
            faults.push(TokenFault::at(
                1,
                format!("the file is over the limit of {TOKENS_FILE_BYTES_MAX} bytes"),
                "split it over several ingresses",
            ));
            return Err(TokenTableErrors(faults));
        }
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if faults.len() == FAULTS_MAX {
                faults.push(TokenFault::at(
                    line_number,
                    "further lines were not checked".into(),
                    "correct the lines above first",
                ));
                break;
            }
            let (name, token) = match entry(line) {
                Ok(entry) => entry,
                Err((what, remedy)) => {
                    faults.push(TokenFault::at(line_number, what, remedy));
                    continue;
                }
            };
            if let Some(first) = names.insert(name.clone(), line_number) {
                faults.push(TokenFault::at(
                    line_number,
                    format!(
                        "the name {:?} is used on line {first} already",
                        name.as_str()
                    ),
                    "give every token a name of its own",
                ));
                continue;
            }
            let digest = digest_of(token.as_bytes());
            if let Some(first) = lines_by_digest.insert(digest, line_number) {
                faults.push(TokenFault::at(
                    line_number,
                    format!(
                        "the token of {:?} stands on line {first} too",
                        name.as_str()
                    ),
                    "give every name a token of its own",
                ));
                continue;
            }
            if table.by_digest.len() == TOKENS_MAX {
                faults.push(TokenFault::at(
                    line_number,
                    format!("there are more than {TOKENS_MAX} tokens"),
                    "remove tokens that nobody uses",
                ));
                break;
            }
            table.by_digest.insert(digest, name);
        }
        if faults.is_empty() && table.by_digest.is_empty() {
            faults.push(TokenFault::at(
                1,
                "there is no token in the file".into(),
                "add a line `name:token`",
            ));
        }
        if faults.is_empty() {
            Ok(table)
        } else {
            Err(TokenTableErrors(faults))
        }
    }

    /// The name of the presented token, or `None` for one that is not in the table.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> Option<&TokenName> {
        if presented.len() > TOKEN_CHARS_MAX {
            return None;
        }
        self.by_digest.get(&digest_of(presented))
    }

    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// Whether there is no token, so that nobody is admitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTable")
            .field("tokens", &self.len())
            .finish_non_exhaustive()
    }
}

/// All faulty lines of a tokens file; never empty. `Display` is one fault a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTableErrors(Vec<TokenFault>);

impl TokenTableErrors {
    /// The faults, in the order of their lines.
    #[must_use]
    pub fn faults(&self) -> &[TokenFault] {
        &self.0
    }
}

impl fmt::Display for TokenTableErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "line {}: {}: {}", fault.line, fault.what, fault.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for TokenTableErrors {}

/// One faulty line of a tokens file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it; never the token itself.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl TokenFault {
    fn at(line: usize, what: String, remedy: &str) -> Self {
        Self {
            line,
            what,
            remedy: remedy.to_owned(),
        }
    }
}

/// The name and the token of a line, or what is wrong with it and what to do.
fn entry(line: &str) -> Result<(TokenName, &str), (String, &'static str)> {
    // A line without a colon may be a bare token: it is not repeated in the message.
    let Some((name, token)) = line.split_once(':') else {
        return Err((
            "there is no `:` between a name and a token".into(),
            "write `name:token`",
        ));
    };
    let name = name.trim_end();
    let token = token.trim_start();
    let parsed: TokenName = name.parse().map_err(|_| {
        (
            "what stands before the `:` is not a token's name".to_owned(),
            "write `name:token`, the name of 1 to 63 characters a-z, 0-9 and `-`, neither first nor last a `-`",
        )
    })?;
    let chars = token.chars().count();
    if chars == 0 {
        return Err((
            format!("the token of {name:?} is empty"),
            "generate one, for example with `openssl rand -hex 32`",
        ));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err((
            format!("the token of {name:?} has a character that a header cannot carry"),
            "use printable ASCII without spaces, for example from `openssl rand -hex 32`",
        ));
    }
    if chars < TOKEN_CHARS_MIN {
        return Err((
            format!("the token of {name:?} has {chars} characters, fewer than {TOKEN_CHARS_MIN}"),
            "generate a longer one, for example with `openssl rand -hex 32`",
        ));
    }
    if chars > TOKEN_CHARS_MAX {
        return Err((
            format!(
                "the token of {name:?} has {chars} characters, over the limit of {TOKEN_CHARS_MAX}"
            ),
            "generate a shorter one, for example with `openssl rand -hex 32`",
        ));
    }
    Ok((parsed, token))
}

fn digest_of(bytes: &[u8]) -> Digest {
    let mut out = Digest::default();
    // SHA-256 always has 32 bytes, so the zip fills the array.
    for (to, from) in out
        .iter_mut()
        .zip(digest::digest(&digest::SHA256, bytes).as_ref())
    {
        *to = *from;
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    const A: &str = "0123456789abcdef";
    const B: &str = "fedcba9876543210";

    #[test]
    fn tokens_are_found_by_their_text() {
        let table =
            TokenTable::from_text(&format!("# who\n\nci:{A}\n  deploy : {B}:x \n")).unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(table.matches(A.as_bytes()).unwrap().as_str(), "ci");
        assert_eq!(
            table.matches(format!("{B}:x").as_bytes()).unwrap().as_str(),
            "deploy"
        );
        assert!(table.matches(b"").is_none());
        assert!(table.matches(b"0123456789abcdeF").is_none());
        assert!(table.matches(B.as_bytes()).is_none());
        assert!(table.matches(&vec![b'a'; 1 << 20]).is_none());
    }

    #[test]
    fn faults_come_with_their_lines_and_without_tokens() {
        let text = format!(
            "ci:{A}\nBad!:{B}\nnothing-here-at-all\nx:\ny:short\nci:{B}\nz:{A}\nv:with space in the token\n"
        );
        let errors = TokenTable::from_text(&text).unwrap_err();
        let shown = errors.to_string();
        let lines: Vec<usize> = errors.faults().iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8]);
        for secret in [A, B, "short\"", "nothing-here", "with space"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(
            shown.contains("line 5: the token of \"y\" has 5 characters, fewer than 16: generate"),
            "{shown}"
        );
        assert!(
            shown.contains("line 6: the name \"ci\" is used on line 1 already"),
            "{shown}"
        );
        assert!(
            shown.contains("line 7: the token of \"z\" stands on line 1 too"),
            "{shown}"
        );
    }

    #[test]
    fn a_file_without_tokens_admits_nobody_and_is_an_error() {
        assert!(TokenTable::from_text("# none yet\n").is_err());
    }

    #[test]
    fn files_are_bounded() {
        let many: String = (0..=TOKENS_MAX)
            .map(|n| format!("t{n}:{n:032}\n"))
            .collect();
        let shown = TokenTable::from_text(&many).unwrap_err().to_string();
        assert_eq!(
            shown,
            "line 10001: there are more than 10000 tokens: remove tokens that nobody uses"
        );
        assert!(TokenTable::from_text(&" ".repeat(TOKENS_FILE_BYTES_MAX + 1)).is_err());
        let faulty = TokenTable::from_text(&"x\n".repeat(1000)).unwrap_err();
        assert_eq!(faulty.faults().len(), FAULTS_MAX + 1);
    }

    #[test]
    fn debug_shows_no_token() {
        let table = TokenTable::from_text(&format!("ci:{A}\n")).unwrap();
        assert_eq!(format!("{table:?}"), "TokenTable { tokens: 1, .. }");
    }
}
