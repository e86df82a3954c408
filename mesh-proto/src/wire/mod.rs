//! What travels on streams: frames, their limits, and one file per conversation.
//!
//! A frame is a header of [`FRAME_HEADER_BYTES`] (length of the body as u32, then u16: the high bit
//! says *optional*, the low 15 are the type; both big-endian) and a body in bincode's standard
//! encoding. A released body never changes. What is new is a new frame, or an entry in the trailing
//! [`Ext`] that every body has: unknown optional frames and unknown entries are skipped, an unknown
//! required frame is an error. `tests/golden.rs` pins the bytes.
//!
//! | file | what |
//! |---|---|
//! | `limits.rs` | every bound, with its unit |
//! | `frame.rs` | the header, the trait [`Frame`], errors |
//! | `codec.rs` | the only caller of bincode |
//! | `stream.rs` | how every stream starts: [`Open`] and [`Answer`] |
//! | `members.rs` | proxies, as a proxy tells agents of them |
//! | `peer.rs` | the control stream between proxies: [`PeerFrame`] |
//! | `routes.rs` | who holds which agent, between proxies: [`RoutesFrame`] and [`RoutesReaderFrame`] |
//! | `gossip.rs` | datagrams between proxies: [`Gossip`], [`Profile`], [`RoutesHead`] |
//! | `control.rs` | the control stream: [`AgentFrame`] and [`ProxyFrame`] |

mod codec;
pub mod control;
pub mod frame;
pub mod gossip;
pub mod limits;
pub mod members;
pub mod peer;
pub mod routes;
pub mod stream;

pub use control::{
    AgentFrame, AgentHello, Draining, Leaving, Protocol, ProxyFrame, ProxyHello, Released, Service,
    Services,
};
pub use frame::{Ext, Frame, FrameHeader, WireError};
pub use gossip::{
    About, Gossip, GossipKind, GossipMessage, MemberHead, MemberUpdate, Profile, ProfileError,
    ProfileId, RoutesHead,
};
pub use limits::*;
pub use members::{Member, MemberState, Members};
pub use peer::{PeerChanged, PeerFrame, PeerHello, TakenForDead};
pub use routes::{
    OpenFind, OpenRoutes, RoutesApplied, RoutesDelta, RoutesFrame, RoutesPosition,
    RoutesReaderFrame, RoutesRows, RoutesSnapshot, Row,
};
pub use stream::{
    Answer, Dial, InvalidTraceContext, Open, OpenAdmin, OpenControl, Opened, Refused, TraceContext,
};
