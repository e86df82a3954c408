//! What is wrong with a tunnel.

use std::fmt;

use super::FAULTS_MAX;

/// A tunnel that is not valid: everything that is wrong with it. `Display` is one fault a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidTunnel {
    faults: Vec<Fault>,
    unlisted: usize,
}

/// One thing that is wrong with a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub field: Field,
    /// What is wrong, and what to do. What was written is escaped and cut.
    pub what: String,
}

/// A part of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The stored form as a whole.
    Stored,
    /// The cluster at the other end.
    Cluster,
    /// The addresses together.
    Addresses,
    /// One address, from 0.
    Address(usize),
    /// The connection count.
    Connections,
    /// The labels.
    Labels,
    /// When it was created and when it ends.
    Expiry,
}

impl InvalidTunnel {
    /// The faults, never none: of the cluster, then of the addresses in their order, then of the
    /// rest. At most [`FAULTS_MAX`].
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for InvalidTunnel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{}: {}", fault.field, fault.what)?;
        }
        if self.unlisted > 0 {
            write!(formatter, "\nand {} more", self.unlisted)?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidTunnel {}

impl fmt::Display for Field {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored => formatter.write_str("stored form"),
            Self::Cluster => formatter.write_str("cluster"),
            Self::Addresses => formatter.write_str("addresses"),
            // People count from one.
            Self::Address(index) => write!(formatter, "address {}", index + 1),
            Self::Connections => formatter.write_str("connection count"),
            Self::Labels => formatter.write_str("labels"),
            Self::Expiry => formatter.write_str("expiry"),
        }
    }
}

#[derive(Default)]
pub(super) struct Faults {
    list: Vec<Fault>,
    unlisted: usize,
}

impl Faults {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn push(&mut self, field: Field, what: String) {
        if self.list.len() < FAULTS_MAX {
            self.list.push(Fault { field, what });
        } else {
            self.unlisted += 1;
        }
    }
}

impl From<Faults> for InvalidTunnel {
    fn from(faults: Faults) -> Self {
        Self {
            faults: faults.list,
            unlisted: faults.unlisted,
        }
    }
}
