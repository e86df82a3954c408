//! The bytes of every released frame. They never change: a value encodes to them and they decode to
//! the value. What is new is a new frame or an `ext` entry, with a line of its own here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "golden/kinds.rs"]
mod kinds;
#[path = "golden/routes.rs"]
mod routes;

use std::fmt::Debug;

use mesh_proto::wire::{
    About, AgentFrame, AgentHello, Answer, Dial, Draining, Ext, FRAME_HEADER_BYTES, Frame,
    FrameHeader, Gossip, GossipKind, GossipMessage, Leaving, Member, MemberHead, MemberState,
    MemberUpdate, Members, Open, OpenAdmin, OpenControl, Opened, PeerChanged, PeerFrame, PeerHello,
    Profile, ProfileId, Protocol, ProxyFrame, ProxyHello, Refused, Released, RoutesFrame,
    RoutesHead, RoutesReaderFrame, Service, Services, TakenForDead,
};
use mesh_proto::{Generation, Reason};

/// Checks both directions. The hex may have spaces.
#[track_caller]
fn pinned<F: Frame + PartialEq + Debug>(frame: &F, hex: &[&str]) {
    let bytes = from_hex(&hex.concat());
    let mut encoded = Vec::new();
    frame.encode(&mut encoded).unwrap();
    assert_eq!(
        to_hex(&encoded),
        to_hex(&bytes),
        "{frame:?} encodes differently"
    );

    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    let header = FrameHeader::decode(*header, F::BODY_BYTES_MAX).unwrap();
    assert_eq!(
        F::decode(header, body).unwrap().as_ref(),
        Some(frame),
        "decodes differently"
    );
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ' ')
        .map(|c| u8::try_from(c.to_digit(16).expect("a hex digit")).unwrap())
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tag 1 with two bytes, and tag 300 (a three-byte varint) with none.
fn ext() -> Ext {
    vec![(1, vec![0xaa, 0xbb]), (300, vec![])]
}

const EXT: &str = "02 01 02 aabb fb2c01 00";

#[test]
fn open_control() {
    pinned(
        &Open::Control(OpenControl { ext: Ext::new() }),
        &["00000001 0001", "00"],
    );
    pinned(
        &Open::Control(OpenControl { ext: ext() }),
        &["00000009 0001", EXT],
    );
}

#[test]
fn open_admin() {
    pinned(
        &Open::Admin(OpenAdmin { ext: Ext::new() }),
        &["00000001 0004", "00"],
    );
    pinned(
        &Open::Admin(OpenAdmin { ext: ext() }),
        &["00000009 0004", EXT],
    );
}

fn dial(target: &str, principal: &str) -> Dial {
    Dial {
        target: target.parse().unwrap(),
        agent: "a1".parse().unwrap(),
        principal: principal.parse().unwrap(),
        hops_left: 0,
        deadline_ms: 0,
        trace: None,
        ext: Ext::new(),
    }
}

#[test]
fn open_dial() {
    pinned(
        &Open::Dial(Dial {
            target: "10.0.0.7:5432".parse().unwrap(),
            agent: "a1.b.example.com".parse().unwrap(),
            principal: "user:alice".parse().unwrap(),
            hops_left: 1,
            deadline_ms: 10_000,
            trace: Some(
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
                    .parse()
                    .unwrap(),
            ),
            ext: ext(),
        }),
        &[
            "00000051 0002",
            "0d 31302e302e302e373a35343332",
            "10 61312e622e6578616d706c652e636f6d",
            "0a 757365723a616c696365",
            "01 fb1027",
            "01 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 01",
            EXT,
        ],
    );
}

#[test]
fn open_dial_to_every_kind_of_target_for_every_kind_of_principal() {
    for (target, principal, length, body) in [
        (
            "[2001:db8::7]:443",
            "agent:a2",
            "00000022",
            "11 5b323030313a6462383a3a375d3a343433 02 6131 08 6167656e743a6132",
        ),
        (
            "db.local:5432",
            "cluster:b.example.com",
            "0000002b",
            "0d 64622e6c6f63616c3a35343332 02 6131 15 636c75737465723a622e6578616d706c652e636f6d",
        ),
        (
            "unix:/run/db.sock",
            "token:ci",
            "00000022",
            "11 756e69783a2f72756e2f64622e736f636b 02 6131 08 746f6b656e3a6369",
        ),
        (
            "service:web",
            "ingress:127.0.0.1:8123",
            "0000002a",
            "0b 736572766963653a776562 02 6131 16 696e67726573733a3132372e302e302e313a38313233",
        ),
    ] {
        pinned(
            &Open::Dial(dial(target, principal)),
            &[length, "0002", body, "00 00 00 00"],
        );
    }
}

#[test]
fn answer_opened() {
    pinned(
        &Answer::Opened(Opened { ext: Ext::new() }),
        &["00000001 0101", "00"],
    );
    pinned(
        &Answer::Opened(Opened { ext: ext() }),
        &["00000009 0101", EXT],
    );
}

#[test]
fn answer_refused() {
    let codes = [
        "01", "02", "03", "04", "05", "06", "07", "08", "09", "0a", "0b", "0c",
    ];
    for (reason, code) in Reason::ALL.into_iter().zip(codes) {
        pinned(
            &Answer::Refused(Refused::new(reason, "")),
            &["00000003 0102", code, "00", "00"],
        );
    }
    let beyond = Refused::new(Reason::NoAgent, "").by_other_cluster();
    assert!(beyond.is_by_other_cluster() && !beyond.is_by_leaving_proxy());
    let of_proxy = Refused::new(Reason::Draining, "").by_leaving_proxy();
    assert!(!of_proxy.is_by_other_cluster());
    pinned(
        &Answer::Refused(beyond),
        &["00000005 0102", "03", "00", "01 02 00"],
    );
    assert!(of_proxy.is_by_leaving_proxy());
    pinned(
        &Answer::Refused(of_proxy),
        &["00000005 0102", "09", "00", "01 01 00"],
    );
    let message = "db.local:5432: connection refused".to_owned();
    pinned(
        &Answer::Refused(Refused {
            reason: Reason::Refused,
            message,
            ext: ext(),
        }),
        &[
            "0000002c 0102",
            "04",
            "21 64622e6c6f63616c3a353433323a20636f6e6e656374696f6e2072656675736564",
            EXT,
        ],
    );
}

fn services() -> Vec<Service> {
    let service = |name: &str, protocol, ext| Service {
        name: name.parse().unwrap(),
        protocol,
        ext,
    };
    vec![
        service("db", Protocol::Tcp, Ext::new()),
        service("web", Protocol::Http, Ext::new()),
        service("api", Protocol::Https, ext()),
        service("new", Protocol::Other(999), Ext::new()),
    ]
}

const SERVICES: &[&str] = &[
    "04",
    "02 6462 01 00",
    "03 776562 02 00",
    "03 617069 03",
    EXT,
    "03 6e6577 fbe703 00",
];

#[test]
fn agent_hello() {
    let instance = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    let hello = AgentHello {
        instance,
        version: "1.2.3".to_owned(),
        services: services(),
        ext: ext(),
    };
    pinned(
        &AgentFrame::Hello(hello),
        &[
            "00000041 0201",
            "000102030405060708090a0b0c0d0e0f",
            "05 312e322e33",
            &SERVICES.concat(),
            EXT,
        ],
    );
}

#[test]
fn agent_services() {
    let none = Services {
        services: Vec::new(),
        ext: Ext::new(),
    };
    pinned(&AgentFrame::Services(none), &["00000002 0202", "00 00"]);
    let some = Services {
        services: services(),
        ext: ext(),
    };
    pinned(
        &AgentFrame::Services(some),
        &["0000002b 0202", &SERVICES.concat(), EXT],
    );
}

#[test]
fn agent_leaving() {
    pinned(
        &AgentFrame::Leaving(Leaving {
            deadline_ms: 30_000,
            ext: Ext::new(),
        }),
        &["00000004 0203", "fb3075", "00"],
    );
    pinned(
        &AgentFrame::Leaving(Leaving {
            deadline_ms: u64::MAX,
            ext: ext(),
        }),
        &["00000012 0203", "fdffffffffffffffff", EXT],
    );
}

fn proxy_hello(agent_connection_count: Option<u32>) -> ProxyHello {
    ProxyHello {
        name: "proxy-1".parse().unwrap(),
        cluster: "example.com".parse().unwrap(),
        epoch: 4,
        group: "blue".parse().unwrap(),
        generation: Generation(70_000),
        agent_connection_count,
        version: "1.2.3".to_owned(),
        ext: ext(),
    }
}

#[test]
fn proxy_hellos() {
    let start = "07 70726f78792d31 0b 6578616d706c652e636f6d 04 04 626c7565 fc70110100";
    for (count, length, hex) in [
        (None, "0000002f", "00"),
        (Some(0), "00000030", "01 00"),
        (Some(300), "00000032", "01 fb2c01"),
    ] {
        pinned(
            &ProxyFrame::Hello(proxy_hello(count)),
            &[length, "0301", start, hex, "05 312e322e33", EXT],
        );
    }
}

#[test]
fn proxy_draining() {
    pinned(
        &ProxyFrame::Draining(Draining {
            deadline_ms: 30_000,
            ext: Ext::new(),
        }),
        &["00000004 0302", "fb3075", "00"],
    );
    pinned(
        &ProxyFrame::Draining(Draining {
            deadline_ms: 250,
            ext: ext(),
        }),
        &["0000000a 0302", "fa", EXT],
    );
}

#[test]
fn proxy_released() {
    pinned(
        &ProxyFrame::Released(Released { ext: Ext::new() }),
        &["00000001 0303", "00"],
    );
    pinned(
        &ProxyFrame::Released(Released { ext: ext() }),
        &["00000009 0303", EXT],
    );
}

#[test]
fn an_optional_frame_of_a_later_version_is_skipped_everywhere() {
    fn skipped<F: Frame + PartialEq + Debug>() {
        let bytes = from_hex("00000003 ffff 010203");
        let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
        let header = FrameHeader::decode(*header, F::BODY_BYTES_MAX).unwrap();
        assert_eq!(F::decode(header, body), Ok(None));
    }
    skipped::<Open>();
    skipped::<Answer>();
    skipped::<AgentFrame>();
    skipped::<ProxyFrame>();
    skipped::<PeerFrame>();
    skipped::<RoutesFrame>();
    skipped::<RoutesReaderFrame>();
    skipped::<Gossip>();
}

fn member() -> Member {
    Member {
        name: "p1".parse().unwrap(),
        group: "blue".parse().unwrap(),
        generation: Generation(3),
        epoch: 4,
        addresses: vec!["203.0.113.10:7443".into()],
        state: MemberState::Draining,
        ttl_ms: 180_000,
        ext: Ext::new(),
    }
}

const MEMBER: &str =
    "02 7031 04 626c7565 03 04 01 11 3230332e302e3131332e31303a37343433 03 fc20bf0200 00";

#[test]
fn proxy_members() {
    pinned(
        &ProxyFrame::Members(Members {
            members: vec![member()],
            agent_connection_count: Some(2),
            reconnect_spread_ms: 50_000,
            ext: ext(),
        }),
        &["00000033 0304", "01", MEMBER, "01 02", "fb50c3", EXT],
    );
    pinned(
        &ProxyFrame::Members(Members {
            members: Vec::new(),
            agent_connection_count: None,
            reconnect_spread_ms: 0,
            ext: Ext::new(),
        }),
        &["00000004 0304", "00 00 00 00"],
    );
}

fn leaving_profile() -> Profile {
    Profile {
        name: "p1".parse().unwrap(),
        epoch: 4,
        revision: 5,
        group: "blue".parse().unwrap(),
        generation: Generation(3),
        addresses: vec!["203.0.113.10:7443".into()],
        peer_addresses: Vec::new(),
        draining: true,
        ext: Ext::new(),
    }
}

const LEAVING_PROFILE: &str =
    "02 7031 04 05 04 626c7565 03 01 11 3230332e302e3131332e31303a37343433 00 01 00";

#[test]
fn peers() {
    pinned(
        &PeerFrame::Hello(PeerHello {
            profile: leaving_profile(),
            ext: Ext::new(),
        }),
        &["00000022 0401", LEAVING_PROFILE, "00"],
    );
    pinned(
        &PeerFrame::Changed(PeerChanged {
            profile: leaving_profile(),
            ext: ext(),
        }),
        &["0000002a 0402", LEAVING_PROFILE, EXT],
    );
    pinned(
        &PeerFrame::TakenForDead(TakenForDead {
            epoch: 4,
            revision: 300,
            ext: ext(),
        }),
        &["0000000d 0403", "04 fb2c01", EXT],
    );
}

fn profile(draining: bool, ext: Ext) -> Profile {
    Profile {
        name: "p1".parse().unwrap(),
        epoch: 4,
        revision: 300,
        group: "blue".parse().unwrap(),
        generation: Generation(3),
        addresses: vec!["203.0.113.10:7443".into()],
        peer_addresses: vec!["10.0.0.10:7443".into()],
        draining,
        ext,
    }
}

const PROFILE: &str = "02 7031 04 fb2c01 04 626c7565 03 \
    01 11 3230332e302e3131332e31303a37343433 01 0e 31302e302e302e31303a37343433";

fn gossip(kind: GossipKind) -> Gossip {
    let third = ProfileId {
        name: "p3".parse().unwrap(),
        epoch: 6,
        revision: 1,
    };
    Gossip {
        message: GossipMessage {
            from: profile(false, Ext::new()),
            incarnation: 1,
            to: ProfileId {
                name: "p2".parse().unwrap(),
                epoch: 5,
                revision: 0,
            },
            kind,
            probe: 255,
            about: (kind.about() == About::Third).then_some(third),
        },
        head: None,
        updates: Vec::new(),
        heads: Vec::new(),
        ext: Ext::new(),
    }
}

#[test]
fn gossip_of_every_kind() {
    let codes = [
        "01", "02", "03", "04", "05", "06", "07", "08", "09", "0a", "0b",
    ];
    for (kind, code) in GossipKind::ALL.into_iter().zip(codes) {
        let (length, about) = match kind.about() {
            About::Third => ("00000044", "01 02 7033 06 01"),
            About::Nobody => ("0000003f", "00"),
        };
        pinned(
            &gossip(kind),
            &[
                length,
                "0501",
                PROFILE,
                "00 00",
                "01",
                "02 7032 05 00",
                code,
                "ff",
                about,
                "00 00 00 00",
            ],
        );
    }
    let later = gossip(GossipKind::Other(999));
    pinned(
        &later,
        &[
            "00000041 0501",
            PROFILE,
            "00 00",
            "01",
            "02 7032 05 00",
            "fbe703",
            "ff",
            "00",
            "00 00 00 00",
        ],
    );
}

#[test]
fn gossip_with_all_that_it_may_carry() {
    let states = [
        (MemberState::Alive, 0),
        (MemberState::Suspect, 65_535),
        (MemberState::Down, 1),
        (MemberState::Other(999), 2),
    ];
    let updates = states.map(|(state, incarnation)| MemberUpdate {
        profile: profile(true, ext()),
        incarnation,
        state,
    });
    let head = |sequence| RoutesHead {
        epoch: 4,
        sequence,
        count: 10,
    };
    let told = Gossip {
        head: Some(head(70_000)),
        updates: updates.into(),
        heads: vec![MemberHead {
            name: "p3".parse().unwrap(),
            head: head(9),
        }],
        ext: ext(),
        ..gossip(GossipKind::Tell)
    };
    pinned(
        &told,
        &[
            "00000148 0501",
            PROFILE,
            "00 00",
            "01",
            "02 7032 05 00",
            "09 ff 00",
            "01 04 fc70110100 0a",
            "04",
            PROFILE,
            "01",
            EXT,
            "00 01",
            PROFILE,
            "01",
            EXT,
            "fbffff 02",
            PROFILE,
            "01",
            EXT,
            "01 05",
            PROFILE,
            "01",
            EXT,
            "02 fbe703",
            "01 02 7033 04 09 0a",
            EXT,
        ],
    );
}
