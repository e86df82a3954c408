//! What the fuzz targets under `fuzz/` do with one input; `tests/corpus.rs` does the same with the
//! committed corpus. Each function panics when a promise of this crate is broken, and only then.

use std::fmt::{Debug, Display};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use crate::allow::{AllowList, AllowRule};
use crate::membership::{Membership, Output, Settings};
use crate::name::{AgentRef, Cluster, Generation, Group, NodeName, ServiceName, TokenName};
use crate::principal::Principal;
use crate::refusal::Reason;
use crate::routes::{Limits, PeerRoutes};
use crate::target::{HostName, Target, UnixPath};
use crate::time::Time;
use crate::wire::{
    AgentFrame, Answer, FRAME_HEADER_BYTES, Frame, FrameHeader, GOSSIP_BYTES_MAX, Gossip, Open,
    Profile, ProxyFrame, RoutesFrame, RoutesReaderFrame, TraceContext,
};

/// What a fuzz target does with one input.
pub type Run = fn(&[u8]);

/// Every target by its name, which is also its directory under `fuzz/corpus/`.
pub const TARGETS: &[(&str, Run)] = &[
    ("open", open),
    ("answer", answer),
    ("agent", agent),
    ("proxy", proxy),
    ("routes", routes),
    ("routes_reader", routes_reader),
    ("gossip", gossip),
    ("membership", membership),
    ("text", text),
    ("allow", allow),
];

/// Frames that open a stream.
pub fn open(data: &[u8]) {
    frames::<Open>(data);
}

/// Answers to them.
pub fn answer(data: &[u8]) {
    frames::<Answer>(data);
}

/// A control stream as a proxy reads it.
pub fn agent(data: &[u8]) {
    frames::<AgentFrame>(data);
}

/// A control stream as an agent reads it.
pub fn proxy(data: &[u8]) {
    frames::<ProxyFrame>(data);
}

/// Routes as a reader takes them from their owner, and what its copies become.
pub fn routes(data: &[u8]) {
    frames::<RoutesFrame>(data);
    copies(data);
}

/// What an owner of routes hears from a reader.
pub fn routes_reader(data: &[u8]) {
    frames::<RoutesReaderFrame>(data);
}

/// A gossip datagram.
pub fn gossip(data: &[u8]) {
    frames::<Gossip>(data);
}

/// How many others `p2` may know in [`membership`].
const OTHERS_MAX: usize = 4;

/// Gossip datagrams, frame behind frame, from `p1` to the proxy `p2`, which knows `p3`: what was
/// refused has changed nothing, and what is answered is within its bounds.
pub fn membership(mut data: &[u8]) {
    let profile = |name: &str| {
        Some(Profile {
            name: name.parse().ok()?,
            epoch: 5,
            revision: 0,
            group: "blue".parse().ok()?,
            generation: Generation(3),
            addresses: Vec::new(),
            peer_addresses: Vec::new(),
            draining: false,
            ext: Vec::new(),
        })
    };
    let settings = Settings {
        members_max: OTHERS_MAX + 1,
        ..Settings::default()
    };
    let (Some(own), Some(from), Some(third)) = (profile("p2"), profile("p1"), profile("p3")) else {
        return;
    };
    let Ok(mut membership) = Membership::new(own, 1, settings) else {
        return;
    };
    let from = from.name;
    let mut now = Time::ZERO;
    membership.connected(now, third);
    while let Some((header, rest)) = data.split_first_chunk::<FRAME_HEADER_BYTES>() {
        answers(&mut membership, now);
        let [a, b, c, d, ..] = *header;
        let body_bytes = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let end = FRAME_HEADER_BYTES.saturating_add(body_bytes.min(rest.len()));
        let (datagram, rest) = data.split_at_checked(end).unwrap_or((data, &[]));
        let before = format!("{membership:?}");
        if membership.receive(now, &from, datagram).is_err() {
            let after = format!("{membership:?}");
            assert_eq!(before, after, "what was refused changes nothing");
        }
        assert!(membership.members().count() <= OTHERS_MAX, "too many");
        now = now + Duration::from_millis(300);
        data = rest;
    }
    for _ in 0..10 {
        answers(&mut membership, now);
        now = now + Duration::from_millis(900);
    }
}

fn answers(membership: &mut Membership, now: Time) {
    let mut count = 0;
    while let Some(output) = membership.poll(now) {
        count += 1;
        assert!(count <= 200, "it never ends");
        if let Output::Send { to, datagram } = output {
            assert!(datagram.len() <= GOSSIP_BYTES_MAX, "it is too long");
            let read = Gossip::from_datagram(&datagram);
            let own = membership.own();
            assert!(
                matches!(read, Ok(Some(gossip)) if gossip.message.to.name == to
                    && gossip.message.from.name == own.name),
                "it cannot be read"
            );
        }
    }
    assert_eq!(membership.faults(), 0, "something failed that cannot");
}

/// Every text form: what is read is written as something that reads as the same.
pub fn text(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    round_trip::<Cluster>(text);
    round_trip::<NodeName>(text);
    round_trip::<Group>(text);
    round_trip::<ServiceName>(text);
    round_trip::<TokenName>(text);
    round_trip::<AgentRef>(text);
    round_trip::<Generation>(text);
    round_trip::<Target>(text);
    round_trip::<HostName>(text);
    round_trip::<UnixPath>(text);
    round_trip::<AllowRule>(text);
    round_trip::<Principal>(text);
    round_trip::<Reason>(text);
    round_trip::<TraceContext>(text);
    if let Ok(target) = Target::default_port(text, 443) {
        round_trip::<Target>(&target.to_string());
    }
}

/// A rule and, behind a newline, a target that is checked against it.
pub fn allow(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let (rule, target) = text.split_once('\n').unwrap_or((text, "db.svc.local:5432"));
    round_trip::<AllowRule>(rule);
    let (Ok(rule), Ok(target)) = (rule.parse::<AllowRule>(), target.parse::<Target>()) else {
        return;
    };
    let list = AllowList(vec![rule]);
    match target {
        Target::Address(address) => {
            let mapped = match address.ip() {
                IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
                ip @ IpAddr::V6(_) => ip,
            };
            let mapped = SocketAddr::new(mapped, address.port());
            assert_eq!(
                list.permits_address(address),
                list.permits_address(mapped),
                "an address by its other name"
            );
        }
        Target::Host { host, port } => {
            let link_local = SocketAddr::from(([169, 254, 169, 254], port));
            assert!(
                list.permits_address(link_local) || !list.permits_name_address(&host, link_local),
                "a name must not lead to the metadata service"
            );
        }
        Target::Unix(path) => {
            let own: AllowList = format!("unix:{path}")
                .parse::<AllowRule>()
                .into_iter()
                .collect();
            assert!(own.permits_unix(&path), "a path permits itself");
        }
        Target::Service(_) => {}
    }
}

/// Reads frame after frame, as a stream's reader does, until one is cut or refused.
fn frames<F: Frame + PartialEq + Debug>(mut data: &[u8]) {
    while let Some((header, rest)) = data.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let Ok(header) = FrameHeader::decode(*header, F::BODY_BYTES_MAX) else {
            return;
        };
        let Ok(body_bytes) = usize::try_from(header.body_bytes) else {
            return;
        };
        let Some((body, rest)) = rest.split_at_checked(body_bytes) else {
            // A reader would wait for more; what there is must do no harm either.
            let cut = FrameHeader {
                body_bytes: u32::try_from(rest.len()).unwrap_or(u32::MAX),
                ..header
            };
            let _ = F::decode(cut, rest);
            return;
        };
        match F::decode(header, body) {
            Ok(Some(frame)) => reencoded(&frame),
            Ok(None) => assert!(header.optional, "only an optional frame is skipped"),
            Err(_) => return,
        }
        data = rest;
    }
}

/// What was decoded can be encoded, and decodes as the same.
fn reencoded<F: Frame + PartialEq + Debug>(frame: &F) {
    let mut bytes = Vec::new();
    let encoded = frame.encode(&mut bytes);
    assert_eq!(encoded, Ok(()), "what was decoded can be encoded");
    let decoded = bytes.split_first_chunk().and_then(|(header, body)| {
        let header = FrameHeader::decode(*header, F::BODY_BYTES_MAX).ok()?;
        F::decode(header, body).ok()?
    });
    assert_eq!(
        decoded.as_ref(),
        Some(frame),
        "a frame survives its round trip"
    );
}

/// Applies every frame, for two owners in turn, whatever came before it.
fn copies(mut data: &[u8]) {
    let limits = Limits {
        rows_per_owner_max: 6,
        rows_max: 8,
        ..Limits::default()
    };
    let rows_max = limits.rows_max;
    let mut copies = PeerRoutes::new(limits);
    let owners = ["p1", "p2"].map(|name| name.parse::<NodeName>().ok());
    for owner in owners.iter().flatten().cycle() {
        let Some((header, rest)) = data.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            break;
        };
        let Ok(header) = FrameHeader::decode(*header, RoutesFrame::BODY_BYTES_MAX) else {
            break;
        };
        let Ok(body_bytes) = usize::try_from(header.body_bytes) else {
            break;
        };
        let Some((body, rest)) = rest.split_at_checked(body_bytes) else {
            break;
        };
        data = rest;
        let Ok(frame) = RoutesFrame::decode(header, body) else {
            break;
        };
        let Some(frame) = frame else { continue };
        let before = copies.len();
        let result = copies.apply(owner, frame.clone());
        if let (Err(_), RoutesFrame::Delta(_)) = (&result, &frame) {
            assert_eq!(copies.len(), before, "a refused delta changed rows");
        }
        if let Ok(Some(applied)) = &result {
            let have = copies.have(owner).map(|have| have.sequence);
            assert_eq!(
                have,
                Some(applied.sequence),
                "an incomplete copy was acknowledged"
            );
        }
        let of_owners: usize = copies.owners().map(|(_, rows, _)| rows).sum();
        assert_eq!(copies.len(), of_owners, "rows that belong to nobody");
        let claims: usize = copies
            .agents(None, usize::MAX)
            .map(|agent| copies.instances(agent).count())
            .sum();
        assert_eq!(copies.len(), claims, "rows that cannot be found");
        assert!(copies.len() <= rows_max, "more rows than the limit");
    }
    for owner in owners.iter().flatten() {
        copies.forget(owner);
    }
    assert!(copies.is_empty(), "rows outlive their owners");
    assert_eq!(copies.agents_len(), 0, "agents outlive their rows");
}

fn round_trip<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => assert_eq!(value.to_string().parse().ok(), Some(value), "{text:?}"),
        Err(error) => {
            let error = error.to_string();
            assert!(
                !error.chars().any(char::is_control),
                "an error repeats hostile text raw: {error:?}"
            );
            assert!(
                error.chars().count() <= 700,
                "an error has no bound: {error:?}"
            );
        }
    }
}
