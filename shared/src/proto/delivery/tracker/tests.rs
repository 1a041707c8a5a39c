use std::time::{Duration, Instant};

use super::*;
use crate::net::clock;
use crate::proto::id::NodeName;
use crate::proto::wire::encoded::{OutBuffer, Trailer};
use crate::proto::wire::{Frame, FrameLimits, FrameReader};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn node(n: u8) -> PeerId {
    PeerId([n + 1; 32])
}

pub(super) fn target(n: u8) -> DeliveryTarget {
    DeliveryTarget {
        to: node(n),
        name: NodeName::parse(&format!("n{n}")).expect("a name"),
        may_queue: true,
        deferred: false,
        refusal_reason: None,
    }
}

pub(super) fn command(seq: u64) -> StoredCommand {
    StoredCommand {
        id: CommandId {
            issuer: PeerId([0; 32]),
            epoch: 7,
            seq,
        },
        action: "land".to_owned(),
        arguments: "{\"args\":[],\"kwargs\":{\"b\":1,\"a\":2}}".to_owned(),
        lane: Lane::Control,
        ttl_ms: 1_000,
    }
}

fn issue(seq: u64, deadline: Instant, targets: Vec<DeliveryTarget>) -> IssueRequest {
    IssueRequest {
        command: command(seq),
        selector: "all".to_owned(),
        deadline,
        targets,
    }
}

/// The effects of a tracker, as short texts. Writes complete at once unless they are held back.
struct Station {
    tracker: DeliveryTracker,
    now: Instant,
    unanswered_writes: Option<Vec<WriteId>>,
    changes: Vec<Change>,
    events: Vec<String>,
}

impl Station {
    fn new(book: DeliveryTracker) -> Self {
        Self {
            tracker: book,
            now: clock::now() + Duration::from_secs(3_600),
            unanswered_writes: None,
            changes: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The effects since the last call: `send 1 to 0`, `ask 1 of 0`, `1 of 0: started`, `1 of 0: done`.
    fn take_events(&mut self) -> Vec<String> {
        loop {
            let effects = self.tracker.take_effects();
            if effects.is_empty() {
                return std::mem::take(&mut self.events);
            }
            for effect in effects {
                self.apply_effect(effect);
            }
        }
    }

    fn apply_effect(&mut self, effect: Effect) {
        let who = |to: PeerId, id: CommandId| format!("{} of {}", id.seq, to.0[0] - 1);
        match effect {
            Effect::Store {
                write_id: ticket,
                changes,
            } => {
                self.changes.extend(changes);
                match &mut self.unanswered_writes {
                    Some(kept) => kept.push(ticket),
                    None => self.tracker.on_stored(ticket, self.now),
                }
            }
            Effect::Send { to, id, deadline, .. } => {
                let verb = if deadline.is_some() { "send" } else { "ask" };
                self.events.push(format!("{verb} {}", who(to, id)));
            }
            Effect::Stage { to, id, stage } => self.events.push(format!("{}: {stage}", who(to, id))),
            Effect::Ended { to, id, reply } => self.events.push(format!("{}: {}", who(to, id), reply.state)),
            Effect::NotIssued { id, reason: why } => {
                self.events.push(format!("{} not issued: {why}", id.seq));
            }
        }
    }

    fn advance(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.tracker.handle_timeout(self.now);
        self.take_events()
    }

    fn reply_done(&mut self, seq: u64, n: u8) -> Vec<String> {
        let reply = Reply::done(serde_json::Value::Null);
        self.tracker.on_reply(node(n), command(seq).id, reply, self.now);
        self.take_events()
    }
}

fn station(up: &[u8]) -> Station {
    let mut station = Station::new(DeliveryTracker::default());
    for n in up {
        station.tracker.on_connected(node(*n), false, station.now);
    }
    station
}

#[test]
fn delivery_is_stored_before_it_is_sent_or_reported() {
    let mut desk = station(&[0]);
    desk.unanswered_writes = Some(Vec::new());
    let deadline = desk.now + SECOND;
    desk.tracker.issue(issue(1, deadline, vec![target(0)]));
    assert_eq!(desk.take_events(), [""; 0], "not before it is stored");
    let ticket = desk
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    desk.tracker.on_stored(ticket, desk.now);
    assert_eq!(desk.take_events(), ["send 1 of 0"]);
    desk.tracker
        .on_stage(node(0), command(1).id, Stage::Received, desk.now);
    assert_eq!(
        desk.reply_done(1, 0),
        ["1 of 0: received"],
        "the end is not stored"
    );
    let ticket = desk
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    desk.tracker.on_stored(ticket, desk.now);
    assert_eq!(desk.take_events(), ["1 of 0: done"]);
    assert_eq!(
        (desk.reply_done(1, 0), desk.tracker.open_deliveries()),
        (Vec::new(), 0)
    );
    // One write for the issue, one for the stage with the end.
    assert!(matches!(
        desk.changes[..],
        [Change::Issued(_), Change::Stage { .. }, Change::Ended { .. }]
    ));
}

#[test]
fn queued_command_is_sent_on_connect_or_expires() {
    let mut desk = station(&[]);
    let deadline = desk.now + SECOND * 10;
    desk.tracker.issue(issue(1, deadline, vec![target(0), target(1)]));
    desk.tracker.issue(issue(2, deadline, vec![target(0)]));
    assert_eq!(desk.take_events(), [""; 0]);
    desk.tracker.on_connected(node(0), false, desk.now);
    assert_eq!(desk.take_events(), ["send 1 of 0", "send 2 of 0"], "in order");
    assert_eq!(
        desk.advance(SECOND * 10),
        ["ask 1 of 0", "ask 2 of 0", "1 of 1: expired"]
    );
    desk.tracker.on_connected(node(1), false, desk.now);
    assert_eq!(desk.take_events(), [""; 0]);
}

#[test]
fn unqueued_command_to_absent_node_ends_at_once() {
    let mut desk = station(&[0]);
    let flight = |n| DeliveryTarget {
        may_queue: false,
        ..target(n)
    };
    let deadline = desk.now + SECOND;
    desk.tracker.issue(issue(1, deadline, vec![flight(0), flight(1)]));
    assert_eq!(desk.take_events(), ["1 of 1: no-answer", "send 1 of 0"]);
    assert!(matches!(&desk.changes[1], Change::Ended { reply, .. }
            if reply.error.as_deref() == Some("offline: flight actions are never queued for an absent node")));
}

#[test]
fn refused_delivery_is_stored_and_never_sent() {
    let mut desk = station(&[0, 1]);
    let refused = |n| DeliveryTarget {
        refusal_reason: Some("it is to stand still".to_owned()),
        ..target(n)
    };
    let later = DeliveryTarget {
        deferred: true,
        ..refused(2)
    };
    let deadline = desk.now + SECOND;
    desk.tracker
        .issue(issue(1, deadline, vec![target(0), refused(1), later]));
    let said = ["1 of 1: refused", "1 of 2: refused", "send 1 of 0"];
    assert_eq!(desk.take_events(), said);
    desk.tracker.on_connected(node(2), false, desk.now);
    assert_eq!(desk.take_events(), [""; 0]);
}

#[test]
fn overdue_delivery_is_queried_until_its_outcome_is_known() {
    let mut desk = station(&[0]);
    let deadline = desk.now + SECOND;
    desk.tracker.issue(issue(1, deadline, vec![target(0)]));
    assert_eq!(desk.take_events(), ["send 1 of 0"]);
    assert_eq!(desk.advance(SECOND), ["ask 1 of 0"]);
    assert_eq!(desk.advance(QUERY_INTERVAL), ["ask 1 of 0"]);
    desk.tracker.on_disconnected(node(0));
    assert_eq!(desk.advance(QUERY_INTERVAL), [""; 0]);
    desk.tracker.on_connected(node(0), false, desk.now);
    assert_eq!(desk.take_events(), ["ask 1 of 0"]);
    assert_eq!(desk.reply_done(1, 0), ["1 of 0: done"]);

    desk.tracker.issue(issue(2, desk.now + SECOND, vec![target(0)]));
    desk.take_events();
    desk.tracker.on_disconnected(node(0));
    assert_eq!(desk.advance(SECOND + ABANDON_AFTER), ["2 of 0: no-answer"]);
    assert_eq!(desk.tracker.poll_timeout(), None);
}

#[test]
fn open_deliveries_are_resent_only_after_a_node_restart() {
    let mut desk = station(&[0]);
    let deadline = desk.now + SECOND * 10;
    desk.tracker.issue(issue(1, deadline, vec![target(0)]));
    desk.tracker.issue(issue(2, deadline, vec![target(0)]));
    desk.take_events();
    desk.tracker.on_disconnected(node(0));
    desk.tracker.issue(issue(3, deadline, vec![target(0)]));
    desk.tracker.on_connected(node(0), true, desk.now);
    assert_eq!(desk.take_events(), ["send 3 of 0"]);
    desk.tracker.on_disconnected(node(0));
    desk.reply_done(1, 0);
    desk.tracker.on_connected(node(0), false, desk.now);
    assert_eq!(desk.take_events(), ["send 2 of 0", "send 3 of 0"]);
}

#[test]
fn tracker_restores_from_the_stored_state() {
    let mut desk = station(&[]);
    let stored = |n, standing, deadline| OpenDelivery {
        to: node(n),
        state: standing,
        deadline,
        stage: None,
    };
    let (late, early) = (desk.now, desk.now + SECOND * 10);
    let deliveries = vec![
        stored(0, StoredState::Waiting, late),
        stored(1, StoredState::Waiting, early),
        stored(2, StoredState::Sent, late),
        stored(3, StoredState::Sent, early),
        stored(4, StoredState::Deferred, early),
    ];
    desk.tracker = DeliveryTracker::restore(vec![OpenCommand {
        command: command(1),
        deliveries,
    }]);
    assert_eq!(
        desk.advance(Duration::ZERO),
        ["1 of 4: refused", "1 of 0: expired"]
    );
    for n in 0..5 {
        desk.tracker.on_connected(node(n), false, desk.now);
    }
    assert_eq!(desk.take_events(), ["ask 1 of 2", "send 1 of 3", "send 1 of 1"]);
}

#[test]
fn later_batch_is_sent_only_when_started() {
    let mut desk = station(&[0, 1, 2]);
    let held = |n| DeliveryTarget {
        deferred: true,
        ..target(n)
    };
    let deadline = desk.now + SECOND;
    let id = command(1).id;
    desk.tracker
        .issue(issue(1, deadline, vec![target(0), held(1), held(2), held(3)]));
    assert_eq!(desk.take_events(), ["send 1 of 0"]);
    assert_eq!(
        desk.advance(SECOND * 5),
        ["ask 1 of 0"],
        "what is held does not age"
    );
    let deadline = desk.now + SECOND;
    desk.tracker
        .start_batch(id, &[node(0), node(1), node(3)], deadline, desk.now);
    assert_eq!(desk.take_events(), ["send 1 of 1"]);
    assert_eq!(desk.advance(SECOND), ["ask 1 of 1", "1 of 3: expired"]);
    desk.tracker.cancel_deferred(id, "an earlier batch failed");
    assert_eq!(desk.take_events(), ["1 of 2: refused"]);
}

#[test]
fn store_failure_blocks_sending_and_retries_outcomes() {
    let mut desk = station(&[0]);
    desk.unanswered_writes = Some(Vec::new());
    let deadline = desk.now + SECOND * 10;
    desk.tracker.issue(issue(1, deadline, vec![target(0)]));
    desk.take_events();
    let ticket = desk
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    desk.tracker.on_store_failed(ticket, "no space", desk.now);
    assert_eq!(
        desk.take_events(),
        ["1 not issued: the station cannot store it: no space"]
    );
    desk.unanswered_writes = None;
    assert_eq!(desk.advance(STORE_RETRY_DELAY), [""; 0], "told already");
    assert_eq!(desk.tracker.open_deliveries(), 0);

    desk.tracker.issue(issue(2, deadline, vec![target(0)]));
    desk.take_events();
    desk.unanswered_writes = Some(Vec::new());
    assert_eq!(desk.reply_done(2, 0), [""; 0]);
    let ticket = desk
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    desk.tracker.on_store_failed(ticket, "no space", desk.now);
    desk.unanswered_writes = None;
    assert_eq!(desk.take_events(), [""; 0]);
    assert_eq!(desk.advance(STORE_RETRY_DELAY), ["2 of 0: done"]);
}

#[test]
fn in_flight_commands_per_node_are_bounded() {
    let mut desk = station(&[]);
    let deadline = desk.now + SECOND * 10;
    let most = u64::try_from(IN_FLIGHT_MAX).expect("fits");
    for seq in 1..=most + 2 {
        desk.tracker.issue(issue(seq, deadline, vec![target(0)]));
    }
    desk.take_events();
    desk.tracker.on_connected(node(0), false, desk.now);
    assert_eq!(desk.take_events().len(), IN_FLIGHT_MAX);
    let started = |desk: &mut Station, seq| {
        desk.tracker
            .on_stage(node(0), command(seq).id, Stage::Started, desk.now);
        desk.take_events()
    };
    let next = format!("send {} of 0", most + 1);
    assert_eq!(started(&mut desk, 2), ["2 of 0: started".to_owned(), next]);
    let next = format!("send {} of 0", most + 2);
    assert_eq!(desk.reply_done(1, 0), ["1 of 0: done".to_owned(), next]);
}

#[test]
fn full_outbox_is_retried_in_order() {
    let mut desk = station(&[0]);
    let deadline = desk.now + SECOND;
    desk.tracker.issue(issue(1, deadline, vec![target(0)]));
    desk.tracker.issue(issue(2, deadline, vec![target(0)]));
    assert_eq!(desk.take_events(), ["send 1 of 0", "send 2 of 0"]);
    desk.tracker.on_send_failed(node(0), command(1).id, desk.now);
    desk.tracker.on_send_failed(node(0), command(2).id, desk.now);
    assert_eq!(desk.advance(SEND_RETRY_DELAY), ["send 1 of 0", "send 2 of 0"]);
    desk.tracker.on_send_failed(node(0), command(1).id, desk.now);
    assert_eq!(
        desk.advance(SECOND),
        ["ask 2 of 0", "1 of 0: expired"],
        "the first never went"
    );
}

#[test]
fn open_delivery_limits_answer_busy() {
    let mut desk = station(&[]);
    let deadline = desk.now + SECOND;
    let most = u64::try_from(OPEN_PER_NODE_MAX).expect("fits");
    for seq in 1..=most {
        desk.tracker.issue(issue(seq, deadline, vec![target(0)]));
    }
    desk.take_events();
    desk.tracker
        .issue(issue(most + 1, deadline, vec![target(0), target(1)]));
    assert_eq!(desk.take_events(), [format!("{} of 0: refused", most + 1)]);
    assert_eq!(desk.tracker.open_deliveries(), OPEN_PER_NODE_MAX + 1);
}

#[test]
fn revoked_node_is_sent_nothing() {
    let mut desk = station(&[0]);
    let deadline = desk.now + SECOND;
    desk.tracker.issue(issue(1, deadline, vec![target(0), target(1)]));
    desk.take_events();
    desk.tracker.on_revoked(node(0), desk.now);
    desk.tracker.on_revoked(node(1), desk.now);
    assert_eq!(desk.take_events(), ["1 of 0: no-answer", "1 of 1: refused"]);
}

#[test]
fn stop_withdraws_unsent_deliveries_of_its_targets() {
    let mut desk = station(&[0]);
    let deadline = desk.now + SECOND * 100;
    let held = |n| DeliveryTarget {
        deferred: true,
        ..target(n)
    };
    // Sent to 0; waits for 1 and 2, deferred for 3.
    desk.tracker
        .issue(issue(1, deadline, vec![target(0), target(1), target(2), held(3)]));
    assert_eq!(desk.take_events(), ["send 1 of 0"]);
    // Its write is in progress.
    desk.unanswered_writes = Some(Vec::new());
    desk.tracker.issue(issue(2, deadline, vec![target(0), target(1)]));
    desk.take_events();
    let issued = desk
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    // About to be sent.
    desk.tracker.on_connected(node(2), false, desk.now);
    desk.take_events();
    let marked = desk
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    let stopped = [node(0), node(1), node(2), node(3), node(9)];
    assert_eq!(desk.tracker.withdraw(&stopped, "a stop", desk.now), 5);
    assert_eq!(desk.take_events(), [""; 0], "told when it is stored");
    let ends = desk.unanswered_writes.replace(Vec::new()).expect("kept");
    assert_eq!(ends.len(), 6, "five ends, and that nothing is sent to 0 again");
    for ticket in [marked, issued].into_iter().chain(ends) {
        desk.tracker.on_stored(ticket, desk.now);
    }
    desk.unanswered_writes = None;
    for n in 0..4 {
        desk.tracker.on_connected(node(n), n == 0, desk.now);
        desk.tracker
            .start_batch(command(1).id, &[node(n)], deadline, desk.now);
    }
    let mut said = desk.take_events();
    said.sort();
    let refused = ["1 of 1", "1 of 2", "1 of 3", "2 of 0", "2 of 1"];
    assert_eq!(said, refused.map(|which| format!("{which}: refused")));
    let why = |change: &Change| match change {
        Change::Ended { reply, .. } => reply.error.clone(),
        Change::Issued(_) | Change::StateChanged { .. } | Change::Stage { .. } => None,
    };
    assert!(desk.changes.iter().filter_map(why).all(|why| why == "a stop"));
    // The node itself refuses what was sent before the stop; commands issued later are sent.
    assert_eq!(desk.reply_done(1, 0), ["1 of 0: done"]);
    desk.tracker.issue(issue(3, deadline, vec![target(1)]));
    assert_eq!(desk.take_events(), ["send 3 of 1"]);
}

#[test]
fn stop_prevents_resend_to_an_absent_node() {
    let mut desk = station(&[0]);
    let deadline = desk.now + SECOND * 100;
    desk.tracker.issue(issue(1, deadline, vec![target(0)]));
    assert_eq!(desk.take_events(), ["send 1 of 0"]);
    desk.tracker.on_disconnected(node(0));
    assert_eq!(desk.tracker.withdraw(&[node(0)], "a stop", desk.now), 0);
    assert_eq!(desk.take_events(), [""; 0]);
    assert!(
        matches!(desk.changes.last(), Some(Change::StateChanged { deadline, .. }) if *deadline == desk.now)
    );
    desk.tracker.on_connected(node(0), false, desk.now);
    assert_eq!(desk.take_events(), ["ask 1 of 0"], "it runs nothing");
}

#[test]
fn stop_prevents_resend_after_a_lost_link() {
    let mut desk = station(&[0]);
    let deadline = desk.now + SECOND * 100;
    desk.tracker.issue(issue(1, deadline, vec![target(0)]));
    assert_eq!(desk.take_events(), ["send 1 of 0"]);
    // The link still counts as open.
    assert_eq!(desk.tracker.withdraw(&[node(0)], "a stop", desk.now), 0);
    assert_eq!(desk.take_events(), [""; 0], "it may be at work");
    desk.tracker.on_disconnected(node(0));
    desk.tracker.on_connected(node(0), false, desk.now);
    assert_eq!(desk.take_events(), ["ask 1 of 0"], "it runs nothing");
}

#[test]
fn withdrawal_stands_while_the_store_fails() {
    let mut desk = station(&[]);
    let deadline = desk.now + SECOND * 100;
    desk.tracker.issue(issue(1, deadline, vec![target(0)]));
    desk.take_events();
    desk.unanswered_writes = Some(Vec::new());
    desk.tracker.withdraw(&[node(0)], "a stop", desk.now);
    desk.take_events();
    let ticket = desk
        .unanswered_writes
        .take()
        .and_then(|mut kept| kept.pop())
        .expect("a write");
    desk.tracker.on_store_failed(ticket, "no space", desk.now);
    desk.tracker.on_connected(node(0), false, desk.now);
    assert_eq!(desk.take_events(), [""; 0], "never sent");
    assert_eq!(desk.advance(STORE_RETRY_DELAY), ["1 of 0: refused"]);
}

#[test]
fn resent_frame_is_equal_and_status_query_has_zero_ttl() {
    let order = StoredCommand {
        id: CommandId {
            seq: 5,
            ..command(1).id
        },
        ..command(1)
    };
    let parcel = EncodedFrame::new(&order.to_frame()).expect("a frame");
    let read = |parcel: &EncodedFrame, ttl| {
        let mut out = OutBuffer::default();
        let trailer = Trailer {
            seq: Some(3),
            ttl,
            ..Trailer::default()
        };
        out.push(parcel, trailer);
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        let filled = out.fill_slices(&mut slices);
        let mut bytes = bytes::BytesMut::new();
        slices[..filled]
            .iter()
            .for_each(|slice| bytes.extend_from_slice(slice));
        let mut reader = FrameReader::new(FrameLimits::CONTROL);
        reader.next_frame(&mut bytes).expect("reads").expect("a frame")
    };
    let mut sent: Frame = read(&parcel, Some(9));
    let question = parcel.clone().into_status_query();
    assert!(question.is_status_query() && !parcel.is_status_query());
    let mut asked: Frame = read(&question, Some(0));
    assert_eq!((sent.header.ttl, asked.header.ttl), (Some(9), Some(0)));
    assert_eq!(sent.header.life, Some(1_000));
    sent.header.set_trailer(Trailer::default());
    asked.header.set_trailer(Trailer::default());
    assert_eq!(sent, asked);
    assert_eq!(sent, order.to_frame());
}
