//! Who is trusted with what: identities, handshakes, and what an agent may be asked to reach.
//!
//! | file | subject |
//! |---|---|
//! | `names` | names of agents, everywhere |
//! | `targets` | what an agent may be asked to reach |
//! | `handshakes` | who may connect to whom |
//! | `resumption` | every handshake is a full one |
//! | `hooks` | the say of an application that embeds a node |
//! | `support` | what several of these use |

mod handshakes;
mod hooks;
mod names;
mod peers;
mod resumption;
mod support;
mod targets;
