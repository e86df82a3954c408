use super::*;
use crate::wire::{FRAME_HEADER_BYTES, SERVICES_MAX};

fn service(name: &str, protocol: Protocol) -> Service {
    Service {
        name: name.parse().unwrap(),
        protocol,
        ext: Ext::new(),
    }
}

fn hello() -> AgentHello {
    AgentHello {
        instance: [7; 16],
        version: "1.2.3".to_owned(),
        services: Vec::new(),
        ext: Ext::new(),
    }
}

fn encode(frame: &AgentFrame) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::new();
    frame.encode(&mut out).map(|()| out)
}

fn decode(bytes: &[u8]) -> Result<AgentFrame, WireError> {
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    let header = FrameHeader::decode(*header, AgentFrame::BODY_BYTES_MAX)?;
    Ok(AgentFrame::decode(header, body)?.expect("a known frame"))
}

#[test]
fn protocols_are_pinned_and_later_ones_are_kept() {
    for (protocol, code, text) in [
        (Protocol::Tcp, 1, "tcp"),
        (Protocol::Http, 2, "http"),
        (Protocol::Https, 3, "https"),
    ] {
        assert_eq!(
            (protocol.code(), Protocol::from_code(code)),
            (code, protocol)
        );
        assert_eq!(protocol.to_string(), text);
        assert_eq!(text.parse(), Ok(protocol));
    }
    assert_eq!(Protocol::from_code(0), Protocol::Other(0));
    let frame = AgentFrame::Services(Services {
        services: vec![service("x", Protocol::Other(999))],
        ext: Ext::new(),
    });
    assert_eq!(decode(&encode(&frame).unwrap()), Ok(frame));
    for bad in ["", "TCP", "udp", "protocol 4"] {
        let error = bad.parse::<Protocol>().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("\"{bad}\" is no protocol; write tcp, http or https")
        );
    }
}

#[test]
fn services_have_a_limit() {
    let mut services: Vec<_> = (0..SERVICES_MAX)
        .map(|n| service(&format!("s{n}"), Protocol::Tcp))
        .collect();
    let full = AgentFrame::Hello(AgentHello {
        services: services.clone(),
        ..hello()
    });
    assert_eq!(decode(&encode(&full).unwrap()), Ok(full));
    services.push(service("one-more", Protocol::Tcp));
    let error = encode(&AgentFrame::Services(Services {
        services,
        ext: Ext::new(),
    }))
    .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("it has 1025 services, and at most 1024 are allowed"),
        "{error}"
    );
}

#[test]
fn the_largest_list_of_the_longest_names_fits() {
    let services = (0..SERVICES_MAX)
        .map(|n| service(&format!("{n:063}"), Protocol::Other(u16::MAX)))
        .collect();
    let frame = AgentFrame::Services(Services {
        services,
        ext: Ext::new(),
    });
    assert_eq!(decode(&encode(&frame).unwrap()), Ok(frame));
}

#[test]
fn many_small_entries_decode_as_they_were_encoded() {
    // What bincode counts is eight times what such a body has; both sides must still agree.
    let entries: Ext = vec![(0, Vec::new()); 64];
    let services = (0..SERVICES_MAX)
        .map(|n| Service {
            ext: entries.clone(),
            ..service(&format!("s{n}"), Protocol::Tcp)
        })
        .collect();
    let frame = AgentFrame::Services(Services {
        services,
        ext: entries,
    });
    assert_eq!(decode(&encode(&frame).unwrap()), Ok(frame));
}

#[test]
fn versions_are_short_and_printable() {
    for good in ["", "1.2.3+abc (debug)", &"x".repeat(VERSION_BYTES_MAX)] {
        let frame = AgentFrame::Hello(AgentHello {
            version: good.to_owned(),
            ..hello()
        });
        assert_eq!(decode(&encode(&frame).unwrap()), Ok(frame));
    }
    for bad in ["1\n2", "é", &"x".repeat(VERSION_BYTES_MAX + 1)] {
        let error = encode(&AgentFrame::Hello(AgentHello {
            version: bad.to_owned(),
            ..hello()
        }))
        .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("is not at most 64 printable ASCII characters"),
            "{error}"
        );
    }
    let mut bytes = encode(&AgentFrame::Hello(hello())).unwrap();
    let at = bytes
        .windows(5)
        .position(|window| window == b"1.2.3")
        .unwrap();
    bytes[at] = 0x1b;
    let error = decode(&bytes).unwrap_err().to_string();
    assert!(
        error.contains("the version \"\\u{1b}.2.3\" is not at most 64"),
        "{error}"
    );
}

#[test]
fn each_side_takes_its_own_frames_alone() {
    let mut bytes = Vec::new();
    ProxyFrame::Released(Released::default())
        .encode(&mut bytes)
        .unwrap();
    assert_eq!(
        decode(&bytes),
        Err(WireError::UnknownFrame {
            kind: PROXY_RELEASED
        })
    );
}
