//! The harness of the end-to-end tests.
//!
//! | module | what |
//! |---|---|
//! | [`pki`] | a throwaway authority and its identities |
//! | [`fleet`] | proxies and agents in this process, on free ports |
//! | [`binary`] | the real binary, from config files |
//! | [`installation`] | a proxy and an agent as a user installs them, of the real binary |
//! | [`programs`] | running real programs, as they are installed here |
//! | [`curl`] | curl |
//! | [`sshd`] | a real sshd, and clients that know it |
//! | [`services`] | targets for agents: echo, sources, sinks, scripts |
//! | [`store`] | stores of tunnel resources: in memory, and cut off |
//! | [`web`] | a target that makes and checks HTTP bodies of any size |
//! | [`network`] | a network for nodes that counts bytes and breaks connections |
//! | [`http`] | a plain HTTP/1.1 client and raw requests |
//! | [`quic`] | a QUIC client that can misbehave |
//! | [`hostile`] | QUIC peers that misbehave: any certificate, no checks |
//! | [`rogue`] | proxies of a simulated world that speak the wire by hand |
//! | [`scripted`] | a network whose names and failures a test decides |
//! | [`sim`] | a fleet in virtual time, on a network in memory |
//! | [`probe`] | waiting for a condition, reading metrics, reading logs |

pub mod binary;
pub mod curl;
pub mod fleet;
pub mod hostile;
pub mod http;
pub mod installation;
pub mod logs;
pub mod netns;
pub mod network;
pub mod pki;
pub mod probe;
pub mod programs;
pub mod quic;
pub mod rogue;
pub mod scripted;
pub mod services;
pub mod sim;
pub mod sshd;
pub mod store;
pub mod web;

/// What tests return: any error fails the test with its chain.
pub type Result<T = ()> = anyhow::Result<T>;
