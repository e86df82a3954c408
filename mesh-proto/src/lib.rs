//! The mesh's protocol as pure code: names, targets, rules and frames.
//!
//! # Contract
//!
//! - Nothing here does I/O, reads a clock, draws randomness, starts a thread or knows of an async
//!   runtime. Whatever depends on time takes it as an argument.
//! - Whatever comes from the wire is bounded before it is copied, and no input makes this crate
//!   panic: every decoder returns an error that says what is wrong.
//! - What is valid is decided here, once: a value of [`Cluster`], [`NodeName`], [`Target`] or
//!   [`Principal`] that was read from text or from the wire keeps its rule everywhere.
//! - A released frame never changes its bytes; `tests/golden.rs` pins them.
//!
//! # Map
//!
//! | module | what |
//! |---|---|
//! | [`name`] | validated names: clusters, nodes, groups, services, tokens; how users name agents |
//! | [`target`] | what an agent is asked to reach |
//! | [`allow`] | allow lists: which addresses, names and sockets may be reached |
//! | [`grant`] | who may do what at a proxy |
//! | [`membership`] | the proxies' view of each other |
//! | [`pool`] | the agent's pool: whom to dial and when, which connections to let go |
//! | [`principal`] | on whose behalf |
//! | [`refusal`] | why a dial was refused |
//! | [`close`] | codes with which streams are reset and connections closed |
//! | [`routes`] | who holds which agent: a proxy's own rows, and its copies of its peers' rows |
//! | [`time`] | points in time, which every state machine takes as arguments |
//! | [`tracker`] | leases: whether an agent should dial one more proxy |
//! | [`tunnel`] | tunnel resources: fields, checks, the stored form |
//! | [`wire`] | frames, their limits and their encoding |

pub mod allow;
pub mod close;
#[doc(hidden)]
pub mod fuzzing;
pub mod grant;
pub mod membership;
pub mod name;
pub mod pool;
pub mod principal;
pub mod refusal;
pub mod routes;
pub mod target;
mod text;
pub mod time;
pub mod tracker;
pub mod tunnel;
pub mod wire;

pub use allow::{AllowList, AllowRule, InvalidAllowRule};
pub use close::{CloseCode, ResetCode};
pub use grant::{
    AgentPattern, Denied, Grant, InvalidPattern, May, Policy, TargetPattern, UnknownMay, WhoPattern,
};
pub use name::{
    AgentRef, Cluster, Generation, Group, InvalidName, NodeName, ServiceName, TokenName,
};
pub use principal::{InvalidPrincipal, Principal};
pub use refusal::Reason;
pub use target::{HostName, InvalidTarget, Target, UnixPath};
