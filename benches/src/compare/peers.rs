//! Other tunnels, by name.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};

use crate::subjects::Subject;
use crate::subjects::frp::Frp;
use crate::subjects::node::Node;
use crate::subjects::rathole::Rathole;

/// `NAME=PATH`.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    kind: Kind,
    binary: PathBuf,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Rathole,
    Frp,
    FrpQuic,
    Node,
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, path) = text.split_once('=').context("write NAME=PATH")?;
        let kind = match name {
            "rathole" => Kind::Rathole,
            "frp" => Kind::Frp,
            "frp-quic" => Kind::FrpQuic,
            "node" => Kind::Node,
            _ => bail!("{name:?} is not known: rathole, frp, frp-quic and node are"),
        };
        // Its processes run in directories of their own.
        let binary = std::path::absolute(path)?;
        ensure!(binary.is_file(), "{} is not there", binary.display());
        Ok(Self { kind, binary })
    }
}

impl Peer {
    /// `settings` are those of `node`.
    pub(crate) fn subject(&self, settings: &[String]) -> Box<dyn Subject> {
        let binary = self.binary.clone();
        match self.kind {
            Kind::Rathole => Box::new(Rathole { binary }),
            Kind::Frp => Box::new(Frp {
                binary,
                quic: false,
            }),
            Kind::FrpQuic => Box::new(Frp { binary, quic: true }),
            Kind::Node => Box::new(Node::other(binary, settings)),
        }
    }
}
