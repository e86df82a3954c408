//! Every bound of the wire, with its unit.

/// ALPN of connections from agents, and from proxies of another cluster, to proxies (RFC 7301).
pub const ALPN_AGENT: &[u8] = b"mesh-agent/1";
/// ALPN of connections between proxies of one cluster.
pub const ALPN_PEER: &[u8] = b"mesh-peer/1";
/// ALPN of connections from users to proxies.
pub const ALPN_USER: &[u8] = b"mesh-user/1";

/// The header of a frame, in bytes: u32 length of the body, u16 optional bit and type.
pub const FRAME_HEADER_BYTES: usize = 6;

/// The longest body of a frame that opens a stream or answers, in bytes.
pub const OPEN_BYTES_MAX: usize = 64 * 1024;

/// The longest body of a frame on a control stream, in bytes.
pub const CONTROL_BYTES_MAX: usize = 256 * 1024;

/// How many raw bytes may follow `Open` before the answer.
pub const EARLY_BYTES_MAX: usize = 16 * 1024;

/// The longest text of a refusal, in bytes. A longer one is cut at a character's boundary when it
/// is encoded, and refused when it is decoded.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// The longest version text in a hello, in bytes.
pub const VERSION_BYTES_MAX: usize = 64;

/// How many unknown optional frames may be skipped while one known frame is awaited. A control
/// stream past its hello awaits none and may bring any number in its lifetime.
pub const SKIPPED_FRAMES_MAX: usize = 64;

/// How many entries one `ext` may have.
pub const EXT_ENTRIES_MAX: usize = 64;

/// How many services one agent may announce.
pub const SERVICES_MAX: usize = 1024;

/// How many proxies one view may tell of.
pub const MEMBERS_MAX: usize = 1024;

/// How many rows one list of a routes frame may have.
pub const ROUTES_ROWS_MAX: usize = 4096;

/// How many addresses one proxy may advertise.
pub const ADDRESSES_MAX: usize = 16;

/// The longest address, in bytes: a DNS name, a colon and a port.
pub const ADDRESS_BYTES_MAX: usize = 259;

/// How many hops between proxies a dial may have left.
pub const HOPS_LEFT_MAX: u8 = 1;

/// The longest gossip datagram, header and all, in bytes: less than what fits the first packets of
/// a QUIC connection, whose datagrams may have 1,200 bytes with all headers (RFC 9000, section 14).
pub const GOSSIP_BYTES_MAX: usize = 1150;

/// How many members one gossip datagram may tell of, besides its sender.
pub const GOSSIP_UPDATES_MAX: usize = 128;

/// How many route heads one gossip datagram may tell of, besides its sender's.
pub const GOSSIP_HEADS_MAX: usize = 256;

/// How long the addresses of one profile may be together, in bytes.
pub const PROFILE_ADDRESSES_BYTES_MAX: usize = 200;

/// How long the `ext` entries of one profile may be together, in bytes: four for each, and its value.
pub const PROFILE_EXT_BYTES_MAX: usize = 48;
