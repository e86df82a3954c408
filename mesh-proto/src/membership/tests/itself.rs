//! What a membership hears of its own proxy.

use super::*;

#[test]
fn a_suspicion_is_refuted_and_absurd_ones_too() {
    let mut membership = membership();
    for (told, answered) in [(0, 1), (0, 1), (1, 2), (65_000, 65_001), (65_534, 65_535)] {
        let own = update(membership.own().clone(), told, MemberState::Suspect);
        tell(&mut membership, vec![own]);
        let (sent, _) = drained(&mut membership, 100);
        assert!(!sent.is_empty());
        let last = sent.last().unwrap();
        assert_eq!(last.message.incarnation, answered, "told {told}");
        assert_eq!(membership.own().revision, 0);
    }
    // There is no higher incarnation: it becomes another revision.
    let own = update(membership.own().clone(), u16::MAX, MemberState::Suspect);
    tell(&mut membership, vec![own]);
    let (sent, events) = drained(&mut membership, 100);
    assert_eq!(events, [Event::Renewed]);
    assert_eq!(membership.own().revision, 1);
    assert_eq!(sent.last().unwrap().message.incarnation, 0);
}

#[test]
fn whoever_is_taken_for_dead_renews_itself_once() {
    let mut membership = membership();
    let down = update(membership.own().clone(), 0, MemberState::Down);
    tell(&mut membership, vec![down.clone()]);
    assert_eq!(membership.own().revision, 1);
    let (_, events) = drained(&mut membership, 100);
    assert_eq!(events, [Event::Renewed]);
    // The same again is stale: its sender is told the present revision.
    tell(&mut membership, vec![down]);
    let (sent, events) = drained(&mut membership, 100);
    assert_eq!(events, []);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].message.from.revision, 1);

    membership.taken_for_dead(at(100), OWN_EPOCH, 0);
    membership.taken_for_dead(at(100), OWN_EPOCH - 1, 9);
    membership.taken_for_dead(at(100), OWN_EPOCH, u32::MAX);
    assert_eq!(membership.own().revision, 1);
    membership.taken_for_dead(at(100), OWN_EPOCH, 7);
    assert_eq!(membership.own().revision, 8);
    let (_, events) = drained(&mut membership, 100);
    assert_eq!(events, [Event::Renewed]);
}

#[test]
fn a_later_start_of_the_own_name_silences_for_good() {
    let later = || profile("own", OWN_EPOCH + 1, 0);
    let hearsay = |membership: &mut Membership| {
        tell(membership, vec![update(later(), 0, MemberState::Alive)]);
    };
    let told = |membership: &mut Membership| membership.taken_for_dead(at(100), OWN_EPOCH + 1, 0);
    let hello = |membership: &mut Membership| {
        assert_eq!(membership.connected(at(100), later()), Standing::SameName);
    };
    let addressed = |membership: &mut Membership| {
        let mut gossip = gossip(profile("a", 1, 0), GossipKind::Ping, Vec::new());
        gossip.message.to = later().id();
        receive(membership, &gossip).unwrap();
    };
    let ways: [&dyn Fn(&mut Membership); 4] = [&hearsay, &told, &hello, &addressed];
    for way in ways {
        let mut membership = membership();
        way(&mut membership);
        way(&mut membership);
        let (sent, events) = drained(&mut membership, 100);
        let epoch = OWN_EPOCH + 1;
        assert_eq!(events, [Event::Superseded { epoch }]);
        assert_eq!(sent, []);
        assert_eq!(membership.next_wake(), None);
        membership.closed(at(200), &name("a"));
        membership
            .update_own(at(200), |own| own.draining = true)
            .unwrap();
        membership.leave(at(200));
        membership.set_head(
            at(200),
            RoutesHead {
                epoch,
                sequence: 1,
                count: 1,
            },
        );
        assert_eq!(drained(&mut membership, 100_000), (vec![], vec![]));
    }
}

#[test]
fn an_earlier_start_of_the_own_name_is_no_news() {
    let mut membership = membership();
    let before = membership.own().clone();
    for state in [MemberState::Alive, MemberState::Suspect, MemberState::Down] {
        let left = update(profile("own", OWN_EPOCH - 1, 4), 0, state);
        tell(&mut membership, vec![left]);
        let (sent, events) = drained(&mut membership, 100);
        // Who believes in it is told better.
        assert_eq!((sent.len(), events), (1, Vec::new()));
    }
    let standing = membership.connected(at(100), profile("own", OWN_EPOCH - 1, 4));
    assert_eq!(standing, Standing::SameName);
    assert_eq!(*membership.own(), before);
    assert_eq!(membership.members().count(), 2);
}

#[test]
fn a_packet_for_an_earlier_revision_is_answered() {
    let mut membership = membership();
    membership
        .update_own(at(1), |own| own.draining = true)
        .unwrap();
    drained(&mut membership, 1);
    let ping = gossip(profile("a", 1, 0), GossipKind::Ping, Vec::new());
    receive(&mut membership, &ping).unwrap();
    let (sent, _) = drained(&mut membership, 100);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].message.kind, GossipKind::Ack);
    assert_eq!(sent[0].message.from.revision, 1);
    // That the earlier one is dead is no news.
    let undead = gossip(profile("a", 1, 0), GossipKind::TurnUndead, Vec::new());
    receive(&mut membership, &undead).unwrap();
    assert_eq!(membership.own().revision, 1);
}

#[test]
fn after_goodbye_nothing_is_heard_or_said() {
    let mut membership = membership();
    membership.leave(at(1));
    let (sent, events) = drained(&mut membership, 1);
    assert_eq!(events, []);
    let own = membership.own().clone();
    assert!(own.draining);
    let goodbye = update(own.clone(), 0, MemberState::Down);
    assert!(sent.iter().any(|gossip| gossip.updates.contains(&goodbye)));
    // It was meant: it does not renew itself.
    let mut undead = gossip(profile("a", 1, 0), GossipKind::TurnUndead, vec![goodbye]);
    undead.message.to = own.id();
    receive(&mut membership, &undead).unwrap();
    membership.taken_for_dead(at(2), own.epoch, own.revision);
    assert_eq!(*membership.own(), own);
    assert_eq!(drained(&mut membership, 100_000), (vec![], vec![]));
    assert_eq!(membership.next_wake(), None);
}
