//! Names and what they resolve to.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

/// What the resolver does with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, A and AAAA alike, in this order.
    Addresses(Vec<IpAddr>),
    /// These addresses; each question finds the next one first.
    Rotated(Vec<IpAddr>),
    /// No address, though the name exists.
    Empty,
    /// The resolver fails.
    Failure,
    /// The resolver does not answer.
    Silence,
}

#[derive(Debug, Default)]
pub(super) struct Names {
    answers: BTreeMap<String, Answer>,
    questions: BTreeMap<String, usize>,
    pub(super) delay: Duration,
}

impl Names {
    pub(super) fn set(&mut self, name: &str, answer: Answer) {
        self.answers.insert(name.to_ascii_lowercase(), answer);
    }

    pub(super) fn questions(&self, name: &str) -> usize {
        self.questions
            .get(&name.to_ascii_lowercase())
            .copied()
            .unwrap_or(0)
    }

    /// `Ok(None)`: no answer will come.
    pub(super) fn resolve(&mut self, name: &str) -> io::Result<Option<Vec<IpAddr>>> {
        let name = name.to_ascii_lowercase();
        let asked = self.questions.entry(name.clone()).or_default();
        let before = *asked;
        *asked += 1;
        let no_address = || {
            let message = format!("the name {name} has no address");
            Err(io::Error::new(io::ErrorKind::NotFound, message))
        };
        match self.answers.get(&name) {
            Some(Answer::Addresses(addresses)) if !addresses.is_empty() => {
                Ok(Some(addresses.clone()))
            }
            Some(Answer::Rotated(addresses)) if !addresses.is_empty() => {
                let mut addresses = addresses.clone();
                let turn = before % addresses.len();
                addresses.rotate_left(turn);
                Ok(Some(addresses))
            }
            Some(Answer::Silence) => Ok(None),
            Some(Answer::Failure) => Err(io::Error::other("the resolver failed")),
            Some(Answer::Empty | Answer::Addresses(_) | Answer::Rotated(_)) | None => no_address(),
        }
    }
}
