//! Stub.
use serde::{Deserialize, Serialize};
use super::codec;
use super::frame::Ext;
use crate::name::{Generation, Group, NodeName};
/// s
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile { /// s
 pub name: NodeName, /// s
 pub epoch: u64, /// s
 pub revision: u32, /// s
 pub group: Group, /// s
 pub generation: Generation, /// s
 pub addresses: Vec<String>, /// s
 pub peer_addresses: Vec<String>, /// s
 pub draining: bool, /// s
 #[serde(with = "codec::ext")]
 pub ext: Ext }
/// s
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesHead { /// s
 pub epoch: u64, /// s
 pub sequence: u64, /// s
 pub count: u32 }
