//! Properties: round trips of every frame and text form, names accepted iff their rule holds, and
//! mutated, cut and random input that does no harm.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Debug;
use std::net::SocketAddr;

use mesh_proto::wire::{
    AgentFrame, AgentHello, Answer, Dial, Draining, EXT_ENTRIES_MAX, Ext, FRAME_HEADER_BYTES,
    Frame, FrameHeader, Gossip, GossipKind, GossipMessage, Leaving, MemberHead, MemberState,
    MemberUpdate, Open, OpenAdmin, OpenControl, OpenFind, OpenRoutes, Opened, Profile, ProfileId,
    Protocol, ProxyFrame, ProxyHello, Refused, Released, RoutesApplied, RoutesDelta, RoutesFrame,
    RoutesHead, RoutesPosition, RoutesReaderFrame, RoutesRows, RoutesSnapshot, Row, Service,
    Services, TraceContext,
};
use mesh_proto::{
    AgentRef, AllowList, AllowRule, Cluster, Generation, HostName, NodeName, Principal, Reason,
    Target, fuzzing,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?";
const CLUSTER: &str =
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?){1,3}";
const HOST: &str =
    "([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,8}[a-zA-Z0-9_])?\\.){0,3}[a-zA-Z][a-zA-Z0-9_]{0,8}\\.?";
const PATH: &str = "(/[a-z0-9._-]{1,10}[a-z0-9]){1,4}";

fn parsed<T>(pattern: &'static str) -> impl Strategy<Value = T>
where
    T: std::str::FromStr<Err: Debug> + Debug,
{
    pattern.prop_map(|text| text.parse().unwrap())
}

fn ext() -> impl Strategy<Value = Ext> {
    prop_oneof![
        4 => vec((any::<u16>(), vec(any::<u8>(), 0..40)), 0..4),
        1 => vec((any::<u16>(), vec(any::<u8>(), 0..4)), EXT_ENTRIES_MAX),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        (any::<std::net::IpAddr>(), 1..=u16::MAX)
            .prop_map(|(ip, port)| Target::address(SocketAddr::new(ip, port)).unwrap()),
        (parsed::<HostName>(HOST), 1..=u16::MAX)
            .prop_map(|(host, port)| Target::host(host, port).unwrap()),
        parsed(PATH).prop_map(Target::Unix),
        parsed(LABEL).prop_map(Target::Service),
    ]
}

fn agent() -> impl Strategy<Value = AgentRef> {
    prop_oneof![parsed(LABEL), parsed(CLUSTER)]
}

fn principal() -> impl Strategy<Value = Principal> {
    prop_oneof![
        parsed(LABEL).prop_map(Principal::User),
        parsed(LABEL).prop_map(Principal::Agent),
        parsed(CLUSTER).prop_map(Principal::Cluster),
        parsed(LABEL).prop_map(Principal::Token),
        "[!-~]{1,64}".prop_map(Principal::Ingress),
    ]
}

fn trace() -> impl Strategy<Value = TraceContext> {
    any::<([u8; 16], [u8; 8], u8)>().prop_map(|(trace_id, span_id, flags)| TraceContext {
        trace_id,
        span_id,
        flags,
    })
}

fn open() -> impl Strategy<Value = Open> {
    prop_oneof![
        1 => ext().prop_map(|ext| Open::Control(OpenControl { ext })),
        1 => ext().prop_map(|ext| Open::Admin(OpenAdmin { ext })),
        4 => (target(), agent(), principal(), 0..=1u8, any::<u64>(), option::of(trace()), ext()).prop_map(
            |(target, agent, principal, hops_left, deadline_ms, trace, ext)| {
                Open::Dial(Dial { target, agent, principal, hops_left, deadline_ms, trace, ext })
            }
        ),
        1 => (option::of(any::<(u64, u64)>()), ext()).prop_map(|(have, ext)| {
            let have = have.map(|(epoch, sequence)| RoutesPosition { epoch, sequence });
            Open::Routes(OpenRoutes { have, ext })
        }),
        1 => (option::of(any::<(u64, u64)>()), ext()).prop_map(|(have, ext)| {
            let have = have.map(|(epoch, sequence)| RoutesPosition { epoch, sequence });
            Open::ClusterRoutes(OpenRoutes { have, ext })
        }),
        1 => (parsed(LABEL), ext()).prop_map(|(agent, ext)| Open::Find(OpenFind { agent, ext })),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        ext().prop_map(|ext| Answer::Opened(Opened { ext })),
        (select(&Reason::ALL[..]), "\\PC{0,300}", ext()).prop_map(|(reason, message, ext)| {
            Answer::Refused(Refused {
                ext,
                ..Refused::new(reason, &message)
            })
        }),
    ]
}

fn services() -> impl Strategy<Value = Vec<Service>> {
    let service = (parsed(LABEL), any::<u16>(), ext()).prop_map(|(name, code, ext)| Service {
        name,
        protocol: Protocol::from_code(code),
        ext,
    });
    vec(service, 0..6)
}

fn agent_frame() -> impl Strategy<Value = AgentFrame> {
    prop_oneof![
        (any::<[u8; 16]>(), "[ -~]{0,64}", services(), ext()).prop_map(
            |(instance, version, services, ext)| {
                AgentFrame::Hello(AgentHello {
                    instance,
                    version,
                    services,
                    ext,
                })
            }
        ),
        (services(), ext())
            .prop_map(|(services, ext)| AgentFrame::Services(Services { services, ext })),
        (any::<u64>(), ext())
            .prop_map(|(deadline_ms, ext)| AgentFrame::Leaving(Leaving { deadline_ms, ext })),
    ]
}

fn proxy_frame() -> impl Strategy<Value = ProxyFrame> {
    let hello = (
        parsed(LABEL),
        parsed(CLUSTER),
        any::<u64>(),
        parsed(LABEL),
        any::<u64>(),
        any::<Option<u32>>(),
        "[ -~]{0,64}",
        ext(),
    )
        .prop_map(
            |(name, cluster, epoch, group, generation, agent_connection_count, version, ext)| {
                ProxyFrame::Hello(ProxyHello {
                    name,
                    cluster,
                    epoch,
                    group,
                    generation: Generation(generation),
                    agent_connection_count,
                    version,
                    ext,
                })
            },
        );
    prop_oneof![
        hello,
        (any::<u64>(), ext())
            .prop_map(|(deadline_ms, ext)| ProxyFrame::Draining(Draining { deadline_ms, ext })),
        ext().prop_map(|ext| ProxyFrame::Released(Released { ext })),
    ]
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row =
        (parsed(LABEL), any::<[u8; 16]>()).prop_map(|(agent, instance)| Row { agent, instance });
    vec(row, 0..5)
}

fn routes_frame() -> impl Strategy<Value = RoutesFrame> {
    prop_oneof![
        (any::<[u64; 3]>(), ext()).prop_map(|([epoch, sequence, count], ext)| {
            RoutesFrame::Snapshot(RoutesSnapshot {
                epoch,
                sequence,
                count,
                ext,
            })
        }),
        (rows(), any::<bool>(), ext())
            .prop_map(|(rows, last, ext)| RoutesFrame::Rows(RoutesRows { rows, last, ext })),
        (any::<[u64; 3]>(), rows(), rows(), ext()).prop_map(
            |([epoch, from, to], added, removed, ext)| {
                RoutesFrame::Delta(RoutesDelta {
                    epoch,
                    from,
                    to,
                    added,
                    removed,
                    ext,
                })
            }
        ),
    ]
}

fn routes_reader_frame() -> impl Strategy<Value = RoutesReaderFrame> {
    (any::<[u64; 2]>(), ext()).prop_map(|([epoch, sequence], ext)| {
        RoutesReaderFrame::Applied(RoutesApplied {
            epoch,
            sequence,
            ext,
        })
    })
}

/// Encodes, and decodes as the same, with every shorter and one longer body refused.
fn round_trip<F: Frame + PartialEq + Debug>(frame: &F) -> Result<(), TestCaseError> {
    let mut bytes = b"kept".to_vec();
    frame.encode(&mut bytes).unwrap();
    let bytes = bytes.strip_prefix(b"kept").unwrap();
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    let header = FrameHeader::decode(*header, F::BODY_BYTES_MAX).unwrap();
    prop_assert_eq!(header.body_bytes as usize, body.len());
    let decoded = F::decode(header, body).unwrap();
    prop_assert_eq!(decoded.as_ref(), Some(frame));

    for cut in 0..body.len() {
        let header = FrameHeader {
            body_bytes: u32::try_from(cut).unwrap(),
            ..header
        };
        prop_assert!(F::decode(header, &body[..cut]).is_err(), "cut at {}", cut);
    }
    let mut longer = body.to_vec();
    longer.push(0);
    let header = FrameHeader {
        body_bytes: header.body_bytes + 1,
        ..header
    };
    prop_assert!(F::decode(header, &longer).is_err());
    Ok(())
}

fn profile() -> impl Strategy<Value = Profile> {
    let small = || vec((any::<u16>(), vec(any::<u8>(), 0..8)), 0..4);
    (
        (parsed(LABEL), any::<u64>(), any::<u32>()),
        (parsed(LABEL), any::<u64>()),
        vec("[!-~]{0,20}", 0..4),
        vec("[!-~]{0,20}", 0..4),
        any::<bool>(),
        small(),
    )
        .prop_map(
            |(id, group, addresses, peer_addresses, draining, ext)| Profile {
                name: id.0,
                epoch: id.1,
                revision: id.2,
                group: group.0,
                generation: Generation(group.1),
                addresses,
                peer_addresses,
                draining,
                ext,
            },
        )
}

fn gossip() -> impl Strategy<Value = Gossip> {
    let id = || {
        (parsed(LABEL), any::<u64>(), any::<u32>()).prop_map(|(name, epoch, revision)| ProfileId {
            name,
            epoch,
            revision,
        })
    };
    let head = || {
        any::<(u64, u64, u32)>().prop_map(|(epoch, sequence, count)| RoutesHead {
            epoch,
            sequence,
            count,
        })
    };
    let code = || prop_oneof![0..14u16, any::<u16>()];
    let message = (
        profile(),
        any::<u16>(),
        id(),
        code(),
        any::<u8>(),
        option::of(id()),
    )
        .prop_map(
            |(from, incarnation, to, code, probe, about)| GossipMessage {
                from,
                incarnation,
                to,
                kind: GossipKind::from_code(code),
                probe,
                about,
            },
        );
    let update =
        (profile(), any::<u16>(), code()).prop_map(|(profile, incarnation, code)| MemberUpdate {
            profile,
            incarnation,
            state: MemberState::from_code(code),
        });
    let heads = (parsed(LABEL), head()).prop_map(|(name, head)| MemberHead { name, head });
    let small = vec((any::<u16>(), vec(any::<u8>(), 0..8)), 0..4);
    (
        message,
        option::of(head()),
        vec(update, 0..3),
        vec(heads, 0..3),
        small,
    )
        .prop_map(|(message, head, updates, heads, ext)| Gossip {
            message,
            head,
            updates,
            heads,
            ext,
        })
}

/// Any frame's bytes.
fn frame_bytes() -> impl Strategy<Value = Vec<u8>> {
    fn encoded(frame: &impl Frame) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out).unwrap();
        out
    }
    prop_oneof![
        open().prop_map(|frame| encoded(&frame)),
        answer().prop_map(|frame| encoded(&frame)),
        agent_frame().prop_map(|frame| encoded(&frame)),
        proxy_frame().prop_map(|frame| encoded(&frame)),
        routes_frame().prop_map(|frame| encoded(&frame)),
        routes_reader_frame().prop_map(|frame| encoded(&frame)),
        gossip().prop_map(|frame| encoded(&frame))
    ]
}

fn every_target(data: &[u8]) {
    for (_, run) in fuzzing::TARGETS {
        run(data);
    }
}

/// The rule of a label, said another way than the code says it.
fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| inner(c) || c == '-')
        && text.starts_with(inner)
        && text.ends_with(inner)
}

proptest! {
    #[test]
    fn opens_survive(frame in open()) {
        round_trip(&frame)?;
    }

    #[test]
    fn answers_survive(frame in answer()) {
        round_trip(&frame)?;
    }

    #[test]
    fn agent_frames_survive(frame in agent_frame()) {
        round_trip(&frame)?;
    }

    #[test]
    fn proxy_frames_survive(frame in proxy_frame()) {
        round_trip(&frame)?;
    }

    #[test]
    fn routes_frames_survive(frame in routes_frame()) {
        round_trip(&frame)?;
    }

    #[test]
    fn routes_reader_frames_survive(frame in routes_reader_frame()) {
        round_trip(&frame)?;
    }

    #[test]
    fn gossip_survives(frame in gossip()) {
        round_trip(&frame)?;
    }

    #[test]
    fn headers_survive(kind in 0..0x8000u16, optional: bool, body_bytes: u32) {
        let header = FrameHeader { kind, optional, body_bytes };
        prop_assert_eq!(FrameHeader::decode(header.encode(), usize::MAX), Ok(header));
    }

    #[test]
    fn mutated_frames_do_no_harm(
        mut bytes in frame_bytes(),
        changes in vec((any::<Index>(), any::<u8>()), 1..8),
        cut: Index,
        tail in vec(any::<u8>(), 0..8),
    ) {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        every_target(&bytes);
        bytes.extend(tail);
        every_target(&bytes);
        bytes.truncate(cut.index(bytes.len() + 1));
        every_target(&bytes);
    }

    #[test]
    fn mutated_bodies_under_a_right_header_do_no_harm(
        mut bytes in frame_bytes(),
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let body = &mut bytes[FRAME_HEADER_BYTES..];
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        every_target(&bytes);
    }

    #[test]
    fn garbage_does_no_harm(bytes in vec(any::<u8>(), 0..300)) {
        every_target(&bytes);
    }

    #[test]
    fn random_text_does_no_harm(text in "\\PC{0,100}") {
        every_target(text.as_bytes());
    }

    #[test]
    fn text_that_looks_right_does_no_harm(text in "[a-c0-9:/.*\\[\\]_%x-]{0,40}", prefix in select(&["", "unix:", "Unix:", "service:", "service.:", "user:", "ingress:", "[::", "*."][..])) {
        every_target(format!("{prefix}{text}").as_bytes());
    }

    #[test]
    fn names_are_accepted_iff_the_rule_holds(text in "[a-zA-Z0-9._-]{0,4}|[a-z0-9-]{60,66}|\\PC{0,5}") {
        prop_assert_eq!(text.parse::<NodeName>().is_ok(), is_label(&text), "{}", text);
    }

    #[test]
    fn clusters_are_accepted_iff_the_rule_holds(text in "[a-z0-9.-]{0,8}|([a-z]{58,64}\\.){1,4}[a-z]{1,60}") {
        let rule = text.contains('.') && text.split('.').all(is_label) && text.len() <= 247;
        prop_assert_eq!(text.parse::<Cluster>().is_ok(), rule, "{}", text);
    }

    #[test]
    fn agents_are_accepted_iff_the_rule_holds(text in "[a-z0-9.-]{0,8}|([a-z]{58,64}\\.){1,5}[a-z]{1,60}") {
        let cluster = |text: &str| text.parse::<Cluster>().is_ok();
        let rule = is_label(&text)
            || cluster(&text)
            || text.split_once('.').is_some_and(|(name, rest)| is_label(name) && cluster(rest));
        prop_assert_eq!(text.parse::<AgentRef>().is_ok(), rule, "{}", text);
    }

    #[test]
    fn an_agent_is_local_or_not_at_all(name in parsed::<NodeName>(LABEL), own in parsed::<Cluster>(CLUSTER)) {
        let plain = AgentRef::from(name.clone());
        let qualified = AgentRef::qualified(&name, &own);
        prop_assert_eq!(plain.local_name(&own), Some(name.clone()));
        prop_assert_eq!(qualified.local_name(&own), Some(name));
        prop_assert!(!plain.is_cluster(&own) && !qualified.is_cluster(&own));
        prop_assert!(AgentRef::from(own.clone()).is_cluster(&own));
        prop_assert_eq!(AgentRef::from(own.clone()).local_name(&own), None);
    }

    #[test]
    fn targets_survive_as_text_and_as_json(target in target()) {
        prop_assert_eq!(target.to_string().parse(), Ok(target.clone()));
        let json = serde_json::to_string(&target).unwrap();
        prop_assert_eq!(&json, &format!("\"{target}\""));
        prop_assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), target);
    }

    #[test]
    fn principals_survive_as_text_and_as_json(principal in principal()) {
        prop_assert_eq!(principal.to_string().parse(), Ok(principal.clone()));
        let json = serde_json::to_string(&principal).unwrap();
        prop_assert_eq!(serde_json::from_str::<Principal>(&json).unwrap(), principal);
    }

    #[test]
    fn trace_contexts_survive_iff_they_are_valid(trace in trace()) {
        prop_assert_eq!(trace.to_string().parse().ok(), Some(trace).filter(TraceContext::is_valid));
    }

    #[test]
    fn a_network_rule_permits_what_the_network_has(a: [u8; 4], bits in 0..=32u8, b: [u8; 4], port in 1..=u16::MAX, first in 1..=u16::MAX, more: u16) {
        let mask = u32::MAX.checked_shl(u32::from(32 - bits)).unwrap_or(0);
        let (a, b) = (u32::from_be_bytes(a) & mask, u32::from_be_bytes(b));
        let last = first.saturating_add(more);
        let rule: AllowRule = format!("{}/{bits}:{first}-{last}", std::net::Ipv4Addr::from(a)).parse().unwrap();
        let permitted = b & mask == a && first <= port && port <= last;
        let list = AllowList(vec![rule]);
        prop_assert_eq!(list.permits_address(SocketAddr::from((b.to_be_bytes(), port))), permitted);
    }

    #[test]
    fn a_star_permits_what_ends_in_its_labels(name in "([ab]\\.){0,3}[ab]", below in "([ab]\\.){0,2}[ab]") {
        let list: AllowList = [format!("*.{below}:80").parse::<AllowRule>().unwrap()].into_iter().collect();
        let permitted = name.ends_with(&format!(".{below}"));
        prop_assert_eq!(list.permits_name(&name.parse().unwrap(), 80), permitted);
    }
}

#[test]
fn lists_of_rules_are_lists_of_texts() {
    let json = r#"["10.0.0.0/8:5432","*.svc.local:80-443","unix:/run/db.sock"]"#;
    let list: AllowList = serde_json::from_str(json).unwrap();
    assert_eq!(list.0.len(), 3);
    assert_eq!(serde_json::to_string(&list).unwrap(), json);
    let error = serde_json::from_str::<AllowList>(r#"["10.0.0.1/8:5432"]"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("write 10.0.0.0/8:5432 for the whole network"),
        "{error}"
    );
}

#[test]
fn reasons_and_protocols_are_words_where_people_read() {
    assert_eq!(
        serde_json::to_string(&Reason::NoAgent).unwrap(),
        "\"no_agent\""
    );
    assert_eq!(
        serde_json::from_str::<Reason>("\"no_agent\"").unwrap(),
        Reason::NoAgent
    );
    assert_eq!(
        serde_json::to_string(&Protocol::Https).unwrap(),
        "\"https\""
    );
    assert_eq!(
        serde_json::from_str::<Protocol>("\"https\"").unwrap(),
        Protocol::Https
    );
    assert!(serde_json::from_str::<Protocol>("\"udp\"").is_err());
    assert_eq!(
        serde_json::from_str::<Generation>("3").unwrap(),
        Generation(3)
    );
    let error = serde_json::from_str::<NodeName>("\"Alice\"")
        .unwrap_err()
        .to_string();
    assert!(error.contains("name \"Alice\" is not valid"), "{error}");
}
