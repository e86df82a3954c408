//! One membership against packets and calls made by hand. What a cluster does is in
//! `tests/membership_model.rs`.

use std::time::Duration;

use super::*;
use crate::name::Generation;
use crate::wire::{
    Frame, GOSSIP_BYTES_MAX, Gossip, GossipKind, GossipMessage, MemberState, MemberUpdate,
    PROFILE_ADDRESSES_BYTES_MAX, PROFILE_EXT_BYTES_MAX, ProfileId, WireError,
};

mod itself;

const OWN_EPOCH: u64 = 5;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn profile(text: &str, epoch: u64, revision: u32) -> Profile {
    Profile {
        name: name(text),
        epoch,
        revision,
        group: "blue".parse().unwrap(),
        generation: Generation(3),
        addresses: vec!["192.0.2.1:7443".to_owned()],
        peer_addresses: Vec::new(),
        draining: false,
        ext: Vec::new(),
    }
}

fn at(millis: u64) -> Time {
    Time::since_start(Duration::from_millis(millis))
}

/// `own`, which knows `a` and `b`, and has nothing left to say.
fn membership() -> Membership {
    let own = profile("own", OWN_EPOCH, 0);
    let settings = Settings {
        members_max: 5,
        ..Settings::default()
    };
    let mut membership = Membership::new(own, 7, settings).unwrap();
    for peer in ["a", "b"] {
        let standing = membership.connected(at(0), profile(peer, 1, 0));
        assert_eq!(standing, Standing::Taken);
    }
    let (sent, events) = drained(&mut membership, 0);
    assert_eq!(sent.len(), 2);
    assert_eq!(events.len(), 2);
    membership
}

fn drained(membership: &mut Membership, millis: u64) -> (Vec<Gossip>, Vec<Event>) {
    let (mut sent, mut events) = (Vec::new(), Vec::new());
    while let Some(output) = membership.poll(at(millis)) {
        match output {
            Output::Send { to, datagram } => {
                let gossip = Gossip::from_datagram(&datagram).unwrap().unwrap();
                assert_eq!(gossip.message.to.name, to);
                sent.push(gossip);
            }
            Output::Event(event) => events.push(event),
        }
    }
    assert_eq!(membership.faults(), 0);
    (sent, events)
}

fn gossip(from: Profile, kind: GossipKind, updates: Vec<MemberUpdate>) -> Gossip {
    Gossip {
        message: GossipMessage {
            from,
            incarnation: 0,
            to: profile("own", OWN_EPOCH, 0).id(),
            kind,
            probe: 1,
            about: None,
        },
        head: None,
        updates,
        heads: Vec::new(),
        ext: Vec::new(),
    }
}

fn update(profile: Profile, incarnation: u16, state: MemberState) -> MemberUpdate {
    MemberUpdate {
        profile,
        incarnation,
        state,
    }
}

fn receive(membership: &mut Membership, gossip: &Gossip) -> Result<(), GossipError> {
    let mut datagram = Vec::new();
    gossip.encode(&mut datagram).unwrap();
    membership.receive(at(100), &name("a"), &datagram)
}

fn tell(membership: &mut Membership, updates: Vec<MemberUpdate>) {
    let told = gossip(profile("a", 1, 0), GossipKind::Tell, updates);
    receive(membership, &told).unwrap();
}

/// Everything that shows.
fn state(membership: &Membership) -> String {
    format!("{membership:?} {:?}", membership.next_wake())
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut membership = membership();
    let before = state(&membership);
    let ping = || gossip(profile("a", 1, 0), GossipKind::Ping, Vec::new());
    let with = |change: &dyn Fn(&mut Gossip)| {
        let mut gossip = ping();
        gossip.updates = vec![update(profile("b", 1, 0), 0, MemberState::Down)];
        change(&mut gossip);
        gossip
    };
    let own = profile("own", OWN_EPOCH, 0);
    let third = |name: &str| Some(profile(name, 1, 0).id());
    let a = || name("a");
    for (hostile, error) in [
        (
            with(&|gossip| gossip.message.from = profile("b", 1, 0)),
            GossipError::Lies {
                from: a(),
                claimed: name("b"),
            },
        ),
        (
            with(&|gossip| gossip.message.to.name = name("b")),
            GossipError::Misaddressed {
                from: a(),
                to: name("b"),
            },
        ),
        (
            with(&|gossip| gossip.message.kind = GossipKind::Other(99)),
            GossipError::UnknownKind {
                from: a(),
                code: 99,
            },
        ),
        (
            with(&|gossip| gossip.message.kind = GossipKind::PingReq),
            GossipError::Senseless { from: a() },
        ),
        (
            with(&|gossip| {
                gossip.message.kind = GossipKind::ForwardedAck;
                gossip.message.about = Some(own.id());
            }),
            GossipError::Senseless { from: a() },
        ),
        (
            with(&|gossip| {
                gossip.message.kind = GossipKind::IndirectPing;
                gossip.message.about = third("a");
            }),
            GossipError::Senseless { from: a() },
        ),
    ] {
        assert_eq!(receive(&mut membership, &hostile), Err(error));
    }
    let mut bytes = Vec::new();
    ping().encode(&mut bytes).unwrap();
    for end in 0..bytes.len() {
        let error = membership.receive(at(100), &name("a"), &bytes[..end]);
        assert!(matches!(error, Err(GossipError::Wire(_))), "{error:?}");
    }
    let long = vec![0; GOSSIP_BYTES_MAX + 1];
    let error = membership.receive(at(100), &name("a"), &long);
    assert_eq!(error, Err(GossipError::TooLong { bytes: 1151 }));
    let from = gossip(own, GossipKind::Ping, Vec::new());
    let mut bytes = Vec::new();
    from.encode(&mut bytes).unwrap();
    let error = membership.receive(at(100), &name("own"), &bytes);
    assert_eq!(error, Err(GossipError::SameName(name("own"))));

    assert_eq!(drained(&mut membership, 100), (Vec::new(), Vec::new()));
    assert_eq!(state(&membership), before);
}

#[test]
fn frames_of_later_versions_are_skipped_or_refused() {
    let mut membership = membership();
    let later = |bit: u8| [0, 0, 0, 1, bit | 5, 0xff, 9];
    let skipped = membership.receive(at(1), &name("a"), &later(0x80));
    assert_eq!(skipped, Ok(()));
    let refused = membership.receive(at(1), &name("a"), &later(0));
    let kind = 0x05ff;
    let error = GossipError::Wire(WireError::UnknownFrame { kind });
    assert_eq!(refused, Err(error));
    // A state of a later version says nothing.
    let new = update(profile("b", 1, 0), 9, MemberState::Other(9));
    tell(&mut membership, vec![new]);
    assert_eq!(
        membership.member(&name("b")).unwrap().state,
        MemberState::Alive
    );
}

#[test]
fn the_longest_names_and_addresses_fit() {
    let long = |letter: char| letter.to_string().repeat(63);
    let full = |letter: char| Profile {
        name: name(&long(letter)),
        epoch: u64::MAX,
        revision: u32::MAX - 1,
        group: long(letter).parse().unwrap(),
        generation: Generation(u64::MAX),
        addresses: vec!["x".repeat(PROFILE_ADDRESSES_BYTES_MAX - 15)],
        peer_addresses: vec!["x".to_owned(); 15],
        draining: true,
        ext: vec![(u16::MAX, vec![0; PROFILE_EXT_BYTES_MAX - 4])],
    };
    let gossip = Gossip {
        message: GossipMessage {
            from: full('a'),
            incarnation: u16::MAX,
            to: full('b').id(),
            kind: GossipKind::PingReq,
            probe: u8::MAX,
            about: Some(full('c').id()),
        },
        head: Some(RoutesHead {
            epoch: u64::MAX,
            sequence: u64::MAX,
            count: u32::MAX,
        }),
        updates: vec![update(full('d'), u16::MAX, MemberState::Down)],
        heads: Vec::new(),
        ext: Vec::new(),
    };
    let mut bytes = Vec::new();
    gossip.encode(&mut bytes).unwrap();
    assert!(bytes.len() <= GOSSIP_BYTES_MAX, "{}", bytes.len());

    // And such a proxy is told of.
    let mut one = Membership::new(full('a'), 1, Settings::default()).unwrap();
    assert_eq!(one.connected(at(0), full('b')), Standing::Taken);
    assert_eq!(one.connected(at(0), full('c')), Standing::Taken);
    let (sent, _) = drained(&mut one, 200);
    assert!(sent.iter().any(|gossip| !gossip.updates.is_empty()));
}

#[test]
fn profiles_are_bounded() {
    let good = profile("p", 1, 0);
    let bad = [
        Profile {
            addresses: vec!["a".to_owned(); 17],
            ..good.clone()
        },
        Profile {
            peer_addresses: vec!["a".repeat(PROFILE_ADDRESSES_BYTES_MAX)],
            ..good.clone()
        },
        Profile {
            addresses: vec!["a b:1".to_owned()],
            ..good.clone()
        },
        Profile {
            ext: vec![(1, vec![0; PROFILE_EXT_BYTES_MAX - 3])],
            ..good
        },
    ];
    for bad in bad {
        let error = bad.check().unwrap_err();
        let made = Membership::new(bad.clone(), 1, Settings::default());
        assert_eq!(made.err(), Some(error.clone()));
        let mut membership = membership();
        let standing = membership.connected(at(1), bad.clone());
        assert_eq!(standing, Standing::Invalid(error.clone()));
        let result = membership.update_own(at(1), |own| *own = bad.clone());
        assert_eq!(result, Err(error));
        assert_eq!(membership.own().revision, 0);
        let mut bytes = Vec::new();
        let gossip = gossip(bad, GossipKind::Ping, Vec::new());
        assert!(gossip.encode(&mut bytes).is_err());
    }
}

#[test]
fn a_change_raises_the_revision_and_nothing_else_may() {
    let mut membership = membership();
    membership.update_own(at(1), |_| {}).unwrap();
    assert_eq!(membership.own().revision, 0);
    membership
        .update_own(at(1), |own| {
            own.draining = true;
            own.name = name("other");
            own.epoch = 99;
            own.revision = 99;
        })
        .unwrap();
    let own = membership.own();
    assert_eq!((own.name.as_str(), own.epoch, own.revision), ("own", 5, 1));
    // Nobody is told that the earlier revision is dead.
    let (sent, events) = drained(&mut membership, 1);
    assert_eq!(events, []);
    assert!(!sent.is_empty());
    for gossip in sent {
        assert_eq!(gossip.message.from, *membership.own());
        let updates = gossip.updates.iter();
        assert!(
            updates
                .clone()
                .all(|update| update.profile.name != name("own"))
        );
    }
}

#[test]
fn members_are_bounded_and_the_dead_make_room() {
    let mut membership = membership();
    let all = |state| {
        let new = (0..9).map(|index| update(profile(&format!("n{index}"), 1, 0), 0, state));
        new.collect::<Vec<_>>()
    };
    tell(&mut membership, all(MemberState::Alive));
    assert_eq!(membership.members().count(), 4);
    let standing = membership.connected(at(100), profile("c", 1, 0));
    assert_eq!(standing, Standing::Full);
    let mut stranger = Vec::new();
    gossip(profile("c", 1, 0), GossipKind::Ping, Vec::new())
        .encode(&mut stranger)
        .unwrap();
    let error = membership.receive(at(100), &name("c"), &stranger);
    assert_eq!(error, Err(GossipError::Full { from: name("c") }));

    let dead = update(profile("n0", 1, 0), 0, MemberState::Down);
    tell(&mut membership, vec![dead]);
    assert_eq!(membership.members().count(), 4);
    drained(&mut membership, 100);
    let standing = membership.connected(at(100), profile("c", 1, 0));
    assert_eq!(standing, Standing::Taken);
    let (_, events) = drained(&mut membership, 100);
    assert_eq!(
        events,
        [Event::Removed(name("n0")), Event::Changed(name("c"))]
    );
    // The dead of whom one only hears are bounded too.
    let told = gossip(profile("a", 1, 0), GossipKind::Tell, all(MemberState::Down));
    receive(&mut membership, &told).unwrap();
    assert_eq!(membership.members().count(), 4);
}

#[test]
fn an_earlier_start_of_another_is_told_of_the_later_one() {
    let mut membership = membership();
    assert_eq!(membership.told(at(1), profile("a", 3, 0)), Standing::Taken);
    assert_eq!(
        membership.connected(at(1), profile("a", 2, 9)),
        Standing::Older { epoch: 3 }
    );
    drained(&mut membership, 1);
    let old = gossip(profile("a", 2, 9), GossipKind::Ping, Vec::new());
    receive(&mut membership, &old).unwrap();
    let (sent, events) = drained(&mut membership, 100);
    assert_eq!(events, []);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].message.to, profile("a", 2, 9).id());
    assert_eq!(sent[0].updates[0].profile, profile("a", 3, 0));
    assert_eq!(membership.member(&name("a")).unwrap().profile.epoch, 3);
}

#[test]
fn heads_are_of_members_that_live_now_and_only_rise() {
    let mut membership = membership();
    let head = |epoch, sequence| RoutesHead {
        epoch,
        sequence,
        count: 1,
    };
    let told = |sender, of: &str, head| {
        let mut gossip = gossip(profile("a", 1, 0), GossipKind::Tell, Vec::new());
        gossip.head = sender;
        gossip.heads = vec![MemberHead {
            name: name(of),
            head,
        }];
        gossip
    };
    let first = told(Some(head(1, 3)), "b", head(1, 8));
    receive(&mut membership, &first).unwrap();
    let (_, events) = drained(&mut membership, 100);
    assert_eq!(events.len(), 2);
    for (of, wrong) in [
        ("b", head(1, 7)),
        ("b", head(2, 9)),
        ("b", head(0, 9)),
        ("unknown", head(1, 1)),
        ("own", head(OWN_EPOCH, 1)),
    ] {
        receive(&mut membership, &told(None, of, wrong)).unwrap();
        assert_eq!(drained(&mut membership, 100).1, []);
    }
    assert_eq!(membership.head(&name("a")), Some(head(1, 3)));
    assert_eq!(membership.head(&name("b")), Some(head(1, 8)));
    // A new start begins anew.
    membership.told(at(100), profile("b", 2, 0));
    assert_eq!(membership.head(&name("b")), None);
    receive(&mut membership, &told(None, "b", head(2, 0))).unwrap();
    assert_eq!(membership.head(&name("b")), Some(head(2, 0)));
}

#[test]
fn a_suspect_that_talks_gets_more_time_but_not_for_ever() {
    let mut membership = membership();
    membership.closed(at(0), &name("a"));
    let ping = gossip(profile("a", 1, 0), GossipKind::Ping, Vec::new());
    let mut datagram = Vec::new();
    ping.encode(&mut datagram).unwrap();
    let mut died = None;
    for millis in (0..30_000).step_by(100) {
        if died.is_none() {
            membership
                .receive(at(millis), &name("a"), &datagram)
                .unwrap();
        }
        let (sent, _) = drained(&mut membership, millis);
        let state = membership.member(&name("a")).unwrap().state;
        if state == MemberState::Suspect {
            // It is told of the suspicion each time.
            let suspect = update(profile("a", 1, 0), 0, MemberState::Suspect);
            assert!(sent.iter().any(|gossip| gossip.updates.contains(&suspect)));
        } else {
            assert_eq!(state, MemberState::Down);
            died = died.or(Some(millis));
        }
    }
    assert_eq!(died, Some(12_000));
}

#[test]
fn an_unsuitable_setting_does_no_harm() {
    let zero = Settings {
        probe_period: Duration::ZERO,
        probe_rtt: Duration::ZERO,
        suspicion: Duration::ZERO,
        remember: Duration::ZERO,
        gossip_period: Duration::ZERO,
        announce_period: Duration::ZERO,
        revive_period: Duration::ZERO,
        members_max: 0,
    };
    let mut membership = Membership::new(profile("own", 1, 0), 1, zero).unwrap();
    assert_eq!(
        membership.connected(at(0), profile("a", 1, 0)),
        Standing::Full
    );
    drained(&mut membership, 5000);
    let few = ProfileId {
        name: name("a"),
        epoch: 1,
        revision: 0,
    };
    assert_eq!(few, profile("a", 1, 0).id());
}
