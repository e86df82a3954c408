//! Stub.
use std::time::Duration;
use crate::name::NodeName;
use crate::time::Time;
use crate::wire::{MemberState, Profile, RoutesHead};
/// s
#[derive(Debug)]
pub struct Membership { own: Profile, members: Vec<Known> }
/// s
#[derive(Debug, Clone, Default)]
pub struct Settings { /// s
 pub x: Duration }
/// s
#[derive(Debug, Clone)]
pub struct Known { /// s
 pub profile: Profile, /// s
 pub state: MemberState, /// s
 pub since: Time }
/// s
#[derive(Debug)]
pub enum Standing { /// s
 Taken, /// s
 Dead { /// s
 epoch: u64, /// s
 revision: u32 }, /// s
 Older { /// s
 epoch: u64 }, /// s
 SameName }
/// s
#[derive(Debug)]
pub enum Output { /// s
 Send { /// s
 to: NodeName, /// s
 datagram: Vec<u8> }, /// s
 Event(Event) }
/// s
#[derive(Debug)]
pub enum Event { /// s
 Changed(NodeName), /// s
 Removed(NodeName), /// s
 Head { /// s
 name: NodeName, /// s
 head: RoutesHead }, /// s
 Superseded { /// s
 epoch: u64 }, /// s
 Renewed }
/// s
#[derive(Debug, thiserror::Error)]
#[error("s")]
pub struct GossipError;
#[allow(missing_docs, clippy::all)]
impl Membership {
  pub fn new(own: Profile, _seed: u64, _settings: Settings) -> Self { Self { own, members: Vec::new() } }
  pub fn own(&self) -> &Profile { &self.own }
  pub fn update_own(&mut self, _now: Time, change: impl FnOnce(&mut Profile)) { change(&mut self.own); self.own.revision += 1; }
  pub fn connected(&mut self, now: Time, peer: Profile) -> Standing { self.members.push(Known { profile: peer, state: MemberState::Alive, since: now }); Standing::Taken }
  pub fn told(&mut self, _now: Time, _peer: Profile) -> Standing { Standing::Taken }
  pub fn closed(&mut self, _now: Time, _peer: &NodeName) {}
  pub fn taken_for_dead(&mut self, _now: Time, _epoch: u64, _revision: u32) {}
  pub fn receive(&mut self, _now: Time, _from: &NodeName, _datagram: &[u8]) -> Result<(), GossipError> { Ok(()) }
  pub fn leave(&mut self, _now: Time) {}
  pub fn set_head(&mut self, _now: Time, _head: RoutesHead) {}
  pub fn poll(&mut self, _now: Time) -> Option<Output> { None }
  pub fn next_wake(&self) -> Option<Time> { None }
  pub fn members(&self) -> impl Iterator<Item = &Known> { self.members.iter() }
  pub fn head(&self, _name: &NodeName) -> Option<RoutesHead> { None }
}
