//! No frame is without golden bytes: what each conversation knows is listed here.

use std::collections::BTreeSet;

use mesh_proto::wire::{
    AgentFrame, Answer, Frame, FrameHeader, Gossip, Member, MemberState, Members, Open, PeerFrame,
    ProxyFrame, RoutesFrame, RoutesReaderFrame, WireError,
};

use super::{MEMBER, member, pinned};

/// Types of frames that are not refused as unknown.
fn known<F: Frame>() -> BTreeSet<u16> {
    let is_known = |kind: &u16| {
        let header = FrameHeader {
            kind: *kind,
            optional: false,
            body_bytes: 0,
        };
        !matches!(F::decode(header, &[]), Err(WireError::UnknownFrame { .. }))
    };
    (0..0x8000).filter(is_known).collect()
}

/// Whoever adds a frame adds its bytes to this directory, and then its type here.
#[test]
fn every_frame_is_pinned() {
    assert_eq!(known::<Open>(), [1, 2, 3, 4, 5, 6].into());
    assert_eq!(known::<Answer>(), [0x0101, 0x0102].into());
    assert_eq!(known::<AgentFrame>(), [0x0201, 0x0202, 0x0203].into());
    assert_eq!(
        known::<ProxyFrame>(),
        [0x0301, 0x0302, 0x0303, 0x0304].into()
    );
    assert_eq!(known::<PeerFrame>(), [0x0401, 0x0402, 0x0403].into());
    assert_eq!(known::<Gossip>(), [0x0501].into());
    assert_eq!(known::<RoutesFrame>(), [0x0501, 0x0502, 0x0503].into());
    assert_eq!(known::<RoutesReaderFrame>(), [0x0581].into());
}

#[test]
fn every_state_of_a_member() {
    for (state, code, length) in [
        (MemberState::Alive, "01", "00000028 0304"),
        (MemberState::Suspect, "02", "00000028 0304"),
        (MemberState::Draining, "03", "00000028 0304"),
        (MemberState::Left, "04", "00000028 0304"),
        (MemberState::Down, "05", "00000028 0304"),
        (MemberState::Other(999), "fbe703", "0000002a 0304"),
    ] {
        let members = Members {
            members: vec![Member { state, ..member() }],
            agent_connection_count: None,
            reconnect_spread_ms: 0,
            ext: Vec::new(),
        };
        let (before, after) = MEMBER.split_once(" 03 fc20bf0200").unwrap();
        pinned(
            &ProxyFrame::Members(members),
            &[length, "01", before, code, "fc20bf0200", after, "00 00 00"],
        );
    }
}
