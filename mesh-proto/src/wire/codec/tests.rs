use super::*;
use crate::wire::{Answer, Ext, OPEN_BYTES_MAX, Open, OpenControl, Opened};

const CONTROL: u16 = 1;

fn header(kind: u16, optional: bool, body: &[u8]) -> FrameHeader {
    FrameHeader {
        kind,
        optional,
        body_bytes: u32::try_from(body.len()).unwrap(),
    }
}

fn decode(body: &[u8]) -> Result<Option<Open>, WireError> {
    Open::decode(header(CONTROL, false, body), body)
}

fn why(result: Result<Option<Open>, WireError>) -> String {
    match result {
        Err(WireError::Malformed { kind: CONTROL, why }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ext_entries_are_kept() {
    // Two entries: tag 1 with two bytes, tag 300 with none.
    let body = [2, 1, 2, 0xaa, 0xbb, 251, 44, 1, 0];
    let open = decode(&body).unwrap().unwrap();
    let ext: Ext = vec![(1, vec![0xaa, 0xbb]), (300, vec![])];
    assert_eq!(open, Open::Control(OpenControl { ext }));
    let mut out = Vec::new();
    open.encode(&mut out).unwrap();
    assert_eq!(out[FRAME_HEADER_BYTES..], body);
}

#[test]
fn trailing_bytes_are_refused() {
    assert_eq!(
        decode(&[0, 0, 0]),
        Err(WireError::TrailingBytes {
            kind: CONTROL,
            extra: 2
        })
    );
}

#[test]
fn a_header_that_belongs_to_another_body_is_refused() {
    let result = Open::decode(header(CONTROL, false, &[0, 0]), &[0]);
    assert_eq!(
        why(result),
        "the header announces 2 bytes and the body has 1"
    );
}

#[test]
fn an_empty_body_ends_too_early() {
    assert_eq!(why(decode(&[])), "the body ends too early");
}

#[test]
fn lists_have_a_limit() {
    let entry = (7, Vec::new());
    let mut ext = vec![entry.clone(); EXT_ENTRIES_MAX];
    let mut out = Vec::new();
    Opened::encode_for_test(ext.clone(), &mut out).unwrap();
    let body = &out[FRAME_HEADER_BYTES..];
    assert!(Answer::decode(header(0x0101, false, body), body).is_ok());

    ext.push(entry);
    let mut out = b"before".to_vec();
    let error = Opened::encode_for_test(ext, &mut out).unwrap_err();
    assert_eq!(
        error.to_string(),
        "frame type 0x0101 is malformed: it has 65 ext entries, and at most 64 are allowed"
    );
    assert_eq!(out, b"before", "an error leaves the buffer as it was");
    assert_eq!(
        why(decode(&[65])),
        "it has 65 ext entries, and at most 64 are allowed"
    );
}

impl Opened {
    fn encode_for_test(ext: Ext, out: &mut Vec<u8>) -> Result<(), WireError> {
        Answer::Opened(Self { ext }).encode(out)
    }
}

#[test]
fn bodies_have_a_limit() {
    // One entry: its count, its tag and the three bytes of its length are not its own.
    let longest = OPEN_BYTES_MAX - 5;
    for (bytes, fits) in [(longest, true), (longest + 1, false)] {
        let open = Open::Control(OpenControl {
            ext: vec![(0, vec![0; bytes])],
        });
        let mut out = Vec::new();
        let result = open.encode(&mut out);
        if fits {
            assert_eq!(result, Ok(()));
            assert_eq!(decode(&out[FRAME_HEADER_BYTES..]), Ok(Some(open)));
        } else {
            let body_bytes = OPEN_BYTES_MAX as u64 + 1;
            let error = WireError::TooLarge {
                kind: CONTROL,
                body_bytes,
                body_bytes_max: OPEN_BYTES_MAX,
            };
            assert_eq!(result, Err(error.clone()));
            assert!(out.is_empty());
            assert_eq!(decode(&vec![0; OPEN_BYTES_MAX + 1]), Err(error));
        }
    }
}

#[test]
fn lengths_above_what_is_there_are_refused() {
    // One entry with tag 0 whose length claims u64::MAX, 2 MiB, and one byte more than there is.
    let huge = [1, 0, 253, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0];
    assert_eq!(huge.len(), 13);
    assert_eq!(
        why(decode(&huge)),
        "a length in the body is larger than any body"
    );
    assert_eq!(
        why(decode(&[1, 0, 252, 0, 0, 32, 0, 0])),
        "a length in the body is larger than any body"
    );
    assert_eq!(why(decode(&[1, 0, 2, 9])), "the body ends too early");
}

#[test]
fn unknown_frames_are_skipped_only_when_optional() {
    let body = [1, 2, 3];
    assert_eq!(Open::decode(header(0x7001, true, &body), &body), Ok(None));
    let error = Open::decode(header(0x7001, false, &body), &body).unwrap_err();
    assert_eq!(error, WireError::UnknownFrame { kind: 0x7001 });
    // Too large is too large, known or not.
    let body = vec![0; OPEN_BYTES_MAX + 1];
    assert!(matches!(
        Open::decode(header(0x7001, true, &body), &body),
        Err(WireError::TooLarge { .. })
    ));
}

#[test]
fn a_long_complaint_is_cut() {
    let cut = cut("é".repeat(1000));
    assert_eq!(cut.chars().count(), WHY_CHARS_MAX + 1);
    assert!(cut.ends_with("é…"));
}
