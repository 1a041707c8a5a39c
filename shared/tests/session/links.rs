//! Opening and closing of links, replies, and faults.

use swarm_shared::proto::id::Instance;
use swarm_shared::proto::message::{RefusalCode, Refused, Welcome};
use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::pending::PendingError;
use swarm_shared::proto::session::{LinkFault, SendError};
use swarm_shared::proto::wire::{Frame, Kind, Lane};

use super::rig::{PEER, Rig, US, ack, heartbeat, kinds, limits, ms, numbered, outgoing, reply, welcome};

#[test]
fn reply_ends_its_request_once_and_late_ones_are_frames() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.request(5, None, ms(100)).expect("room");
    rig.request(6, None, ms(100)).expect("room");
    rig.transmit();
    assert!(matches!(
        rig.request(5, None, ms(100)),
        Err(SendError::Pending(PendingError::Repeated(5)))
    ));
    rig.receive(reply(1, 5, Some(7))).expect("in order");
    assert_eq!(rig.event_names(), ["reply"]);
    rig.advance(ms(100));
    assert_eq!(rig.event_names(), ["timed out"]);
    rig.receive(reply(2, 6, Some(7))).expect("in order");
    rig.receive(reply(3, 5, Some(7))).expect("in order");
    assert_eq!(rig.event_names(), ["frame", "frame"]);
    rig.request(5, None, ms(100)).expect("the number is free again");
}

#[test]
fn reply_of_an_old_epoch_matches_no_new_request() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.request(5, None, ms(100)).expect("room");
    rig.transmit();
    rig.receive(reply(1, 5, Some(6))).expect("in order");
    assert_eq!(rig.event_names(), ["frame"]);
    rig.receive(reply(2, 5, Some(7))).expect("in order");
    assert_eq!(rig.event_names(), ["reply"]);
}

#[test]
fn restarted_peer_receives_only_unsent_messages() {
    let mut rig = Rig::open(limits(10, 2));
    rig.events();
    for id in 1..=4 {
        rig.request(id, None, ms(10_000)).expect("room");
    }
    // 1 is acknowledged and not answered, 2 is in transit, 3 and 4 are queued.
    assert_eq!(rig.transmit().len(), 2);
    rig.receive(ack(1)).expect("sent");
    rig.session.detach();
    rig.send(Lane::Control, None).expect("room");

    for expected in [vec!["lost", "lost", "opened"], vec!["resumed"]] {
        rig.link(Instance(3), 0);
        assert_eq!(rig.event_names(), expected);
        let sent: Vec<_> = rig
            .transmit()
            .iter()
            .map(|f| (f.header.seq, f.header.id))
            .collect();
        assert_eq!(sent, [(Some(1), Some(3)), (Some(2), Some(4))]);
    }
    rig.receive(ack(2)).expect("sent");
    assert_eq!(kinds(&rig.transmit()), [Kind::Roster]);
}

#[test]
fn restart_is_detected_if_its_first_link_never_opened() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    assert_eq!(rig.event_names(), ["opened"]);
    rig.session.detach();
    // It has sent its hello, and its welcome was lost with the link.
    rig.session.attach(Instance(3), rig.now);
    rig.session.detach();
    assert_eq!(rig.event_names(), Vec::<&str>::new());
    rig.link(Instance(3), 0);
    assert_eq!(rig.event_names(), ["opened"]);
    rig.link(Instance(3), 0);
    assert_eq!(rig.event_names(), ["resumed"]);
}

#[test]
fn replaced_instance_is_told_until_it_starts_anew() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    for id in 1..=2 {
        let roster = outgoing(Kind::Roster, Lane::Control, id, None);
        rig.session.send(roster, None).expect("room");
    }
    assert_eq!(rig.transmit().len(), 2);
    // Another process with the same key, and then the first again, which has read both.
    rig.link(Instance(3), 0);
    rig.events();
    for _again in 0..2 {
        rig.session.attach(PEER, rig.now);
        let told: Welcome = rig.transmit()[0].parse_content().expect("a welcome");
        assert_ne!(told.peer_instance, PEER);
        assert_eq!(told.received, 0);
        rig.receive(welcome(PEER, 2)).expect("no fault: it forgets, too");
        assert_eq!(rig.event_names(), ["opened"]);
    }
    rig.receive(heartbeat()).expect("open");
    rig.session.attach(PEER, rig.now);
    let told: Welcome = rig.transmit()[0].parse_content().expect("a welcome");
    assert_eq!(told.peer_instance, PEER);
    rig.receive(welcome(PEER, 0)).expect("a good welcome");
    assert_eq!(rig.event_names(), ["resumed"]);
}

#[test]
fn a_new_link_resumes_where_the_old_one_broke() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    assert_eq!(rig.event_names(), ["opened"]);
    for id in 1..=3 {
        rig.session
            .send(outgoing(Kind::Roster, Lane::Control, id, None), None)
            .expect("room");
    }
    rig.transmit();
    rig.receive(numbered(Kind::Roster, 1)).expect("in order");
    rig.session.detach();
    assert_eq!(rig.transmit(), []);
    rig.session.attach(PEER, rig.now);
    let told: Welcome = rig.transmit()[0].parse_content().expect("a welcome");
    assert_eq!(
        told,
        Welcome {
            instance: US,
            peer_instance: PEER,
            received: 1
        }
    );
    rig.receive(welcome(PEER, 2)).expect("a good welcome");
    assert_eq!(rig.event_names(), ["frame", "resumed"]);
    let sent: Vec<_> = rig
        .transmit()
        .iter()
        .map(|f| (f.header.seq, f.header.id))
        .collect();
    assert_eq!(sent, [(Some(3), Some(3))]);
    rig.receive(numbered(Kind::Roster, 2)).expect("in order");
}

#[test]
fn faults_close_the_link_and_the_session_survives() {
    type Check = fn(&LinkFault) -> bool;
    let other = Frame::json(
        Kind::Welcome,
        &Welcome {
            instance: Instance(9),
            peer_instance: US,
            received: 0,
        },
    );
    let refused = Frame::json(
        Kind::Refused,
        &Refused::new(RefusalCode::Revoked, "revoked by the operator"),
    );
    let open: [(Frame, Check); 8] = [
        (numbered(Kind::Roster, 2), |f| {
            matches!(f, LinkFault::SequenceGap { got: 2, expected: 1 })
        }),
        (ack(1), |f| matches!(f, LinkFault::AckAhead { ack: 1, sent: 0 })),
        (welcome(PEER, 0), |f| {
            matches!(f, LinkFault::UnexpectedFrame(Some(Kind::Welcome)))
        }),
        (Frame::json(Kind::Hello, &()), |f| {
            matches!(f, LinkFault::UnexpectedFrame(Some(Kind::Hello)))
        }),
        (Frame::json(Kind::Join, &()), |f| {
            matches!(f, LinkFault::UnexpectedFrame(Some(Kind::Join)))
        }),
        (Frame::json(Kind::Joined, &()), |f| {
            matches!(f, LinkFault::UnexpectedFrame(Some(Kind::Joined)))
        }),
        (refused.clone(), |f| {
            f.to_string() == "refused: revoked by the operator"
        }),
        (Frame::json(Kind::Refused, &1), |f| {
            matches!(
                f,
                LinkFault::Unreadable {
                    kind: Kind::Refused,
                    ..
                }
            )
        }),
    ];
    let greeting: [(Frame, Check); 7] = [
        (other, |f| matches!(f, LinkFault::OtherInstance)),
        (welcome(PEER, 1), |f| {
            matches!(f, LinkFault::AckAhead { ack: 1, sent: 0 })
        }),
        (Frame::json(Kind::Welcome, &1), |f| {
            matches!(
                f,
                LinkFault::Unreadable {
                    kind: Kind::Welcome,
                    ..
                }
            )
        }),
        (heartbeat(), |f| {
            matches!(f, LinkFault::UnexpectedFrame(Some(Kind::Heartbeat)))
        }),
        (numbered(Kind::Command, 1), |f| {
            matches!(f, LinkFault::UnexpectedFrame(Some(Kind::Command)))
        }),
        (Frame::default(), |f| {
            matches!(f, LinkFault::UnexpectedFrame(None))
        }),
        (refused, |f| matches!(f, LinkFault::Refused(_))),
    ];
    for (is_open, cases) in [(true, &open[..]), (false, &greeting[..])] {
        for (frame, check) in cases {
            let mut rig = Rig::new(OutboxLimits::CONTROL);
            if is_open {
                rig.link(PEER, 0);
            } else {
                rig.session.attach(PEER, rig.now);
                rig.transmit();
            }
            let fault = rig.receive(frame.clone()).expect_err("a fault");
            assert!(check(&fault), "{fault:?}");
            assert!(!rig.session.is_open());
            assert!(
                matches!(rig.receive(heartbeat()), Err(LinkFault::UnexpectedFrame(_))),
                "detached"
            );
            rig.link(PEER, 0);
            rig.receive(numbered(Kind::Roster, 1)).expect("in order");
        }
    }
}

#[test]
fn duplicate_sequence_number_is_ignored() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.receive(numbered(Kind::Roster, 1)).expect("in order");
    rig.receive(numbered(Kind::Roster, 1)).expect("passed over");
    assert_eq!(rig.event_names(), ["frame"]);
}

#[test]
fn unknown_frame_kinds_are_counted_and_ignored() {
    let mut rig = Rig::open(OutboxLimits::CONTROL);
    rig.events();
    rig.receive(numbered(Kind::Unknown, 1)).expect("in order");
    rig.receive(numbered(Kind::Roster, 2)).expect("in order");
    assert_eq!(rig.event_names(), ["frame"]);
}
