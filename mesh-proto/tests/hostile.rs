//! Hostile bytes cost their sender more than their reader: what a decoder allocates is counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mesh_proto::wire::{
    AgentFrame, Answer, CONTROL_BYTES_MAX, EXT_ENTRIES_MAX, Ext, FRAME_HEADER_BYTES, Frame,
    FrameHeader, Gossip, Open, Protocol, ProxyFrame, ROUTES_ROWS_MAX, RoutesFrame,
    RoutesReaderFrame, RoutesRows, Row, SERVICES_MAX, Service, Services, WireError,
};

/// What an error and its text may cost, in bytes.
const ERROR_BYTES_MAX: u64 = 4 * 1024;

/// Decodes a body as every type of its conversation, and returns the most bytes that were held.
fn held_bytes<F: Frame>(kinds: &[u16], body: &[u8]) -> u64 {
    let body_bytes = u32::try_from(body.len()).unwrap();
    let most = kinds.iter().map(|&kind| {
        let header = FrameHeader {
            kind,
            optional: false,
            body_bytes,
        };
        let count = allocation_counter::measure(|| {
            assert!(
                F::decode(header, body).is_err(),
                "type {kind:#06x} took {body:02x?}"
            );
        });
        count.bytes_max
    });
    most.max().unwrap()
}

fn all(body: &[u8]) -> u64 {
    [
        held_bytes::<Open>(&[1, 2, 3, 4, 5], body),
        held_bytes::<Answer>(&[0x0101, 0x0102], body),
        held_bytes::<AgentFrame>(&[0x0201, 0x0202, 0x0203], body),
        held_bytes::<ProxyFrame>(&[0x0301, 0x0302, 0x0303], body),
        held_bytes::<RoutesFrame>(&[0x0501, 0x0502, 0x0503], body),
        held_bytes::<RoutesReaderFrame>(&[0x0581], body),
        held_bytes::<Gossip>(&[0x0501], body),
    ]
    .into_iter()
    .max()
    .unwrap()
}

/// A varint of nine bytes.
fn claim(length: u64) -> [u8; 9] {
    let mut bytes = [253; 9];
    bytes[1..].copy_from_slice(&length.to_le_bytes());
    bytes
}

#[test]
fn thirteen_bytes_that_claim_tebibytes() {
    // An unlimited decoder allocates what the first nine bytes claim, 8 TiB, and aborts the process.
    for length in [8 << 40, u64::MAX, 1 << 32, 2 << 20, 256 << 10] {
        let mut message = [0; 13];
        message[..9].copy_from_slice(&claim(length));
        let held = all(&message);
        assert!(
            held <= ERROR_BYTES_MAX,
            "{length} claimed, {held} bytes held"
        );
        // The same claim one level down: an entry's bytes, a service's name.
        let mut message = [1; 13];
        message[2..11].copy_from_slice(&claim(length));
        let held = all(&message);
        assert!(
            held <= ERROR_BYTES_MAX,
            "{length} claimed, {held} bytes held"
        );
    }
}

#[test]
fn a_header_is_refused_before_its_body_is_read() {
    let bytes = FrameHeader {
        kind: 2,
        optional: true,
        body_bytes: u32::MAX,
    }
    .encode();
    let count = allocation_counter::measure(|| {
        let error = FrameHeader::decode(bytes, Open::BODY_BYTES_MAX).unwrap_err();
        assert!(matches!(error, WireError::TooLarge { .. }));
    });
    assert_eq!(count.bytes_total, 0);
}

#[test]
fn the_worst_body_costs_a_bounded_multiple_of_itself() {
    let ext: Ext = vec![(0, Vec::new()); EXT_ENTRIES_MAX];
    let services = (0..SERVICES_MAX)
        .map(|n| Service {
            name: format!("s{n}").parse().unwrap(),
            protocol: Protocol::Tcp,
            ext: ext.clone(),
        })
        .collect();
    let mut bytes = Vec::new();
    AgentFrame::Services(Services { services, ext })
        .encode(&mut bytes)
        .unwrap();
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    let header = FrameHeader::decode(*header, CONTROL_BYTES_MAX).unwrap();
    let count = allocation_counter::measure(|| {
        assert!(AgentFrame::decode(header, body).is_ok());
    });
    let held_bytes_max = 32 * body.len() as u64;
    assert!(
        count.bytes_max <= held_bytes_max,
        "{} of {held_bytes_max} bytes held",
        count.bytes_max
    );
}

#[test]
fn gossip_that_claims_tebibytes() {
    // What comes before the updates is right.
    let mut start = vec![2, b'p', b'1', 1, 0, 1, b'g', 3, 0, 0, 0, 0];
    start.extend([0, 2, b'p', b'2', 1, 0, 9, 0, 0, 0]);
    let mut nothing = start.clone();
    nothing.extend([0, 0, 0]);
    let header = |body: &[u8]| FrameHeader {
        kind: 0x0501,
        optional: false,
        body_bytes: u32::try_from(body.len()).unwrap(),
    };
    assert!(Gossip::decode(header(&nothing), &nothing).is_ok());
    for length in [8 << 40, u64::MAX, 129, 1024] {
        let mut body = start.clone();
        body.extend(claim(length));
        body.resize(Gossip::BODY_BYTES_MAX, 0);
        let held = held_bytes::<Gossip>(&[0x0501], &body);
        assert!(held <= ERROR_BYTES_MAX, "{length} claimed, {held} held");
    }
    let long = vec![0; Gossip::BODY_BYTES_MAX + 1];
    let error = Gossip::decode(header(&long), &long).unwrap_err();
    assert!(matches!(error, WireError::TooLarge { .. }));
}

#[test]
fn a_list_that_never_ends_is_stopped_at_its_limit() {
    // Zeros and ones are valid entries for as long as they come; the claimed count is the hostile part.
    let mut body = vec![0; CONTROL_BYTES_MAX];
    body[..9].copy_from_slice(&claim(u64::MAX));
    let header = FrameHeader {
        kind: 0x0202,
        optional: false,
        body_bytes: u32::try_from(body.len()).unwrap(),
    };
    let count = allocation_counter::measure(|| {
        let error = AgentFrame::decode(header, &body).unwrap_err().to_string();
        assert!(error.contains("at most 1024 are allowed"), "{error}");
    });
    assert!(
        count.bytes_max <= ERROR_BYTES_MAX,
        "{} bytes held",
        count.bytes_max
    );
}

#[test]
fn rows_cost_a_bounded_multiple_of_themselves_and_have_a_limit() {
    let rows = |count: usize| {
        let row = |n: usize| Row {
            agent: format!("a{n}").parse().unwrap(),
            instance: [0; 16],
        };
        RoutesFrame::Rows(RoutesRows {
            rows: (0..count).map(row).collect(),
            last: false,
            ext: Ext::new(),
        })
    };
    let mut bytes = Vec::new();
    let error = rows(ROUTES_ROWS_MAX + 1).encode(&mut bytes).unwrap_err();
    assert!(error.to_string().contains("at most 4096"), "{error}");
    rows(ROUTES_ROWS_MAX).encode(&mut bytes).unwrap();
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    let header = FrameHeader::decode(*header, CONTROL_BYTES_MAX).unwrap();
    let count = allocation_counter::measure(|| {
        assert!(RoutesFrame::decode(header, body).is_ok());
    });
    let held_bytes_max = 8 * body.len() as u64;
    assert!(
        count.bytes_max <= held_bytes_max,
        "{} of {held_bytes_max} bytes held",
        count.bytes_max
    );
    // One more in the count alone, and the same bytes: refused before they are looked at.
    let mut body = body.to_vec();
    body[..3].copy_from_slice(&[251, 0x01, 0x10]);
    let error = RoutesFrame::decode(header, &body).unwrap_err().to_string();
    assert!(error.contains("it has 4097 rows"), "{error}");
}
