use super::*;
use crate::wire::FRAME_HEADER_BYTES;

fn dial() -> Dial {
    Dial {
        target: "db.local:5432".parse().unwrap(),
        agent: "a1".parse().unwrap(),
        principal: "user:alice".parse().unwrap(),
        hops_left: 1,
        deadline_ms: 10_000,
        trace: None,
        ext: Ext::new(),
    }
}

fn encode(frame: &impl Frame) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::new();
    frame.encode(&mut out).map(|()| out)
}

fn decode<F: Frame>(bytes: &[u8]) -> Result<F, WireError> {
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    let header = FrameHeader::decode(*header, F::BODY_BYTES_MAX)?;
    Ok(F::decode(header, body)?.expect("a known frame"))
}

/// The frame with the first occurrence of one byte sequence replaced by another of the same length.
fn with(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|window| window == from)
        .expect("the bytes to replace");
    let mut changed = bytes.to_vec();
    changed[at..at + from.len()].copy_from_slice(to);
    changed
}

#[test]
fn a_dial_may_have_one_hop_left() {
    let open = Open::Dial(dial());
    let bytes = encode(&open).unwrap();
    assert_eq!(decode(&bytes), Ok(open));
    let says = "frame type 0x0002 is malformed: it has 2 hops left, and at most 1 is allowed";
    let error = encode(&Open::Dial(Dial {
        hops_left: 2,
        ..dial()
    }))
    .unwrap_err();
    assert_eq!(error.to_string(), says);
    let error = decode::<Open>(&with(&bytes, b"alice\x01", b"alice\x02")).unwrap_err();
    assert_eq!(error.to_string(), says);
}

#[test]
fn what_a_reader_would_refuse_is_not_written() {
    let host = "db.local".parse().unwrap();
    for open in [
        Dial {
            target: Target::Host { host, port: 0 },
            ..dial()
        },
        Dial {
            target: Target::Address("192.0.2.7:0".parse().unwrap()),
            ..dial()
        },
        Dial {
            principal: Principal::Ingress(String::new()),
            ..dial()
        },
        Dial {
            principal: Principal::Ingress("a\nb".to_owned()),
            ..dial()
        },
        Dial {
            ext: vec![(0, vec![0; OPEN_BYTES_MAX])],
            ..dial()
        },
    ] {
        assert!(encode(&Open::Dial(open.clone())).is_err(), "{open:?}");
    }
    // One that has another spelling is written in the right one.
    let mapped = Target::Address("[::ffff:192.0.2.7]:80".parse().unwrap());
    let bytes = encode(&Open::Dial(Dial {
        target: mapped,
        ..dial()
    }))
    .unwrap();
    let Open::Dial(read) = decode(&bytes).unwrap() else {
        panic!("a dial")
    };
    assert_eq!(read.target, "192.0.2.7:80".parse().unwrap());
}

#[test]
fn names_in_a_dial_are_validated() {
    let bytes = encode(&Open::Dial(dial())).unwrap();
    for (from, to, says) in [
        (
            b"db.local:5432",
            b"db/local:5432",
            "target \"db/local:5432\" is not valid",
        ),
        (
            b"\x02a1\x0auser:ali",
            b"\x02A1\x0auser:ali",
            "agent \"A1\" is not valid",
        ),
        (
            b"\x0auser:alice\x01",
            b"\x0auser:ali/e\x01",
            "principal \"user:ali/e\" is not valid",
        ),
        (
            b"\x0auser:alice\x01",
            b"\x0auser:ali\xffe\x01",
            "a text is not UTF-8",
        ),
    ] as [(&[u8], &[u8], &str); 4]
    {
        let error = decode::<Open>(&with(&bytes, from, to))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn every_reason_travels_and_an_unknown_one_is_internal() {
    for reason in Reason::ALL {
        let answer = Answer::Refused(Refused::new(reason, "why"));
        let bytes = encode(&answer).unwrap();
        assert_eq!(
            bytes[FRAME_HEADER_BYTES],
            u8::try_from(reason.code()).unwrap()
        );
        assert_eq!(decode(&bytes), Ok(answer));
    }
    let bytes = encode(&Answer::Refused(Refused::new(Reason::Lost, "why"))).unwrap();
    let answer: Answer = decode(&with(&bytes, b"\x07\x03why", b"\x63\x03why")).unwrap();
    assert_eq!(
        answer,
        Answer::Refused(Refused::new(Reason::Internal, "why"))
    );
}

#[test]
fn a_message_is_cut_at_a_character() {
    for (message, bytes) in [
        ("x".repeat(MESSAGE_BYTES_MAX), MESSAGE_BYTES_MAX),
        ("x".repeat(MESSAGE_BYTES_MAX + 1), MESSAGE_BYTES_MAX),
        ("é".repeat(MESSAGE_BYTES_MAX), MESSAGE_BYTES_MAX),
        (
            "x".to_owned() + &"é".repeat(MESSAGE_BYTES_MAX),
            MESSAGE_BYTES_MAX - 1,
        ),
    ] {
        let answer = Answer::Refused(Refused {
            reason: Reason::Timeout,
            message: message.clone(),
            ext: Ext::new(),
        });
        let Answer::Refused(read) = decode(&encode(&answer).unwrap()).unwrap() else {
            panic!("refused")
        };
        assert_eq!(read.message.len(), bytes);
        assert!(message.starts_with(&read.message));
        assert_eq!(read, Refused::new(Reason::Timeout, &message));
    }
}

#[test]
fn a_message_longer_than_allowed_is_refused() {
    let mut body = vec![7, 251, 1, 4];
    body.extend([b'x'; 1025]);
    body.push(0);
    let header = FrameHeader {
        kind: REFUSED,
        optional: false,
        body_bytes: u32::try_from(body.len()).unwrap(),
    };
    let error = Answer::decode(header, &body).unwrap_err().to_string();
    assert!(
        error.ends_with("the message has 1025 bytes, and at most 1024 are allowed"),
        "{error}"
    );
}

#[test]
fn a_message_drives_no_terminal() {
    assert_eq!(
        Refused::new(Reason::Lost, "a\r\nb\u{1b}[2J\u{9b}c").message,
        "a  b [2J c"
    );
    let bytes = encode(&Answer::Refused(Refused::new(Reason::Lost, "a-b"))).unwrap();
    let answer: Answer = decode(&with(&bytes, b"a-b", b"a\x1bb")).unwrap();
    assert_eq!(answer, Answer::Refused(Refused::new(Reason::Lost, "a b")));
}

#[test]
fn trace_contexts_are_traceparents() {
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let context: TraceContext = text.parse().unwrap();
    assert_eq!(context.to_string(), text);
    assert_eq!(
        (context.trace_id[0], context.span_id[1], context.flags),
        (0x4b, 0xf0, 1)
    );
    assert!(context.is_valid());
    // A later version may say more behind what is known.
    for later in [
        format!("cc-{}", &text[3..]),
        format!("cc-{}-what-the-future", &text[3..]),
    ] {
        assert_eq!(later.parse(), Ok(context), "{later}");
    }
    for bad in [
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    ] {
        assert!(bad.parse::<TraceContext>().is_err(), "{bad}");
    }
}
