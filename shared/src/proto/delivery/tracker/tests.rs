use std::time::{Duration, Instant};

use super::*;
use crate::net::clock;
use crate::proto::id::NodeName;
use crate::proto::wire::encoded::{EncodedFrame, OutBuffer, Trailer};
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
            Effect::Store { write_id, changes } => {
                self.changes.extend(changes);
                match &mut self.unanswered_writes {
                    Some(kept) => kept.push(write_id),
                    None => self.tracker.on_stored(write_id, self.now),
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
    let mut station = station(&[0]);
    station.unanswered_writes = Some(Vec::new());
    let deadline = station.now + SECOND;
    station.tracker.issue(issue(1, deadline, vec![target(0)]));
    assert_eq!(station.take_events(), [""; 0], "not before it is stored");
    let write_id = station
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    station.tracker.on_stored(write_id, station.now);
    assert_eq!(station.take_events(), ["send 1 of 0"]);
    station
        .tracker
        .on_stage(node(0), command(1).id, Stage::Received, station.now);
    assert_eq!(
        station.reply_done(1, 0),
        ["1 of 0: received"],
        "the end is not stored"
    );
    let write_id = station
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    station.tracker.on_stored(write_id, station.now);
    assert_eq!(station.take_events(), ["1 of 0: done"]);
    assert_eq!(
        (station.reply_done(1, 0), station.tracker.open_deliveries()),
        (Vec::new(), 0)
    );
    // One write for the issue, one for the stage with the end.
    assert!(matches!(
        station.changes[..],
        [Change::Issued(_), Change::Stage { .. }, Change::Ended { .. }]
    ));
}

#[test]
fn queued_command_is_sent_on_connect_or_expires() {
    let mut station = station(&[]);
    let deadline = station.now + SECOND * 10;
    station
        .tracker
        .issue(issue(1, deadline, vec![target(0), target(1)]));
    station.tracker.issue(issue(2, deadline, vec![target(0)]));
    assert_eq!(station.take_events(), [""; 0]);
    station.tracker.on_connected(node(0), false, station.now);
    assert_eq!(station.take_events(), ["send 1 of 0", "send 2 of 0"], "in order");
    assert_eq!(
        station.advance(SECOND * 10),
        ["ask 1 of 0", "ask 2 of 0", "1 of 1: expired"]
    );
    station.tracker.on_connected(node(1), false, station.now);
    assert_eq!(station.take_events(), [""; 0]);
}

#[test]
fn unqueued_command_to_absent_node_ends_at_once() {
    let mut station = station(&[0]);
    let flight = |n| DeliveryTarget {
        may_queue: false,
        ..target(n)
    };
    let deadline = station.now + SECOND;
    station
        .tracker
        .issue(issue(1, deadline, vec![flight(0), flight(1)]));
    assert_eq!(station.take_events(), ["1 of 1: no-answer", "send 1 of 0"]);
    assert!(matches!(&station.changes[1], Change::Ended { reply, .. }
            if reply.error.as_deref() == Some("offline: flight actions are never queued for an absent node")));
}

#[test]
fn refused_delivery_is_stored_and_never_sent() {
    let mut station = station(&[0, 1]);
    let refused = |n| DeliveryTarget {
        refusal_reason: Some("it is to stand still".to_owned()),
        ..target(n)
    };
    let later = DeliveryTarget {
        deferred: true,
        ..refused(2)
    };
    let deadline = station.now + SECOND;
    station
        .tracker
        .issue(issue(1, deadline, vec![target(0), refused(1), later]));
    let events = ["1 of 1: refused", "1 of 2: refused", "send 1 of 0"];
    assert_eq!(station.take_events(), events);
    station.tracker.on_connected(node(2), false, station.now);
    assert_eq!(station.take_events(), [""; 0]);
}

#[test]
fn overdue_delivery_is_queried_until_its_outcome_is_known() {
    let mut station = station(&[0]);
    let deadline = station.now + SECOND;
    station.tracker.issue(issue(1, deadline, vec![target(0)]));
    assert_eq!(station.take_events(), ["send 1 of 0"]);
    assert_eq!(station.advance(SECOND), ["ask 1 of 0"]);
    assert_eq!(station.advance(QUERY_INTERVAL), ["ask 1 of 0"]);
    station.tracker.on_disconnected(node(0));
    assert_eq!(station.advance(QUERY_INTERVAL), [""; 0]);
    station.tracker.on_connected(node(0), false, station.now);
    assert_eq!(station.take_events(), ["ask 1 of 0"]);
    assert_eq!(station.reply_done(1, 0), ["1 of 0: done"]);

    station
        .tracker
        .issue(issue(2, station.now + SECOND, vec![target(0)]));
    station.take_events();
    station.tracker.on_disconnected(node(0));
    assert_eq!(station.advance(SECOND + ABANDON_AFTER), ["2 of 0: no-answer"]);
    assert_eq!(station.tracker.poll_timeout(), None);
}

#[test]
fn open_deliveries_are_resent_only_after_a_node_restart() {
    let mut station = station(&[0]);
    let deadline = station.now + SECOND * 10;
    station.tracker.issue(issue(1, deadline, vec![target(0)]));
    station.tracker.issue(issue(2, deadline, vec![target(0)]));
    station.take_events();
    station.tracker.on_disconnected(node(0));
    station.tracker.issue(issue(3, deadline, vec![target(0)]));
    station.tracker.on_connected(node(0), true, station.now);
    assert_eq!(station.take_events(), ["send 3 of 0"]);
    station.tracker.on_disconnected(node(0));
    station.reply_done(1, 0);
    station.tracker.on_connected(node(0), false, station.now);
    assert_eq!(station.take_events(), ["send 2 of 0", "send 3 of 0"]);
}

#[test]
fn tracker_restores_from_the_stored_state() {
    let mut station = station(&[]);
    let stored = |n, standing, deadline| OpenDelivery {
        to: node(n),
        state: standing,
        deadline,
        stage: None,
    };
    let (late, early) = (station.now, station.now + SECOND * 10);
    let deliveries = vec![
        stored(0, StoredState::Waiting, late),
        stored(1, StoredState::Waiting, early),
        stored(2, StoredState::Sent, late),
        stored(3, StoredState::Sent, early),
        stored(4, StoredState::Deferred, early),
    ];
    station.tracker = DeliveryTracker::restore(vec![OpenCommand {
        command: command(1),
        deliveries,
    }]);
    assert_eq!(
        station.advance(Duration::ZERO),
        ["1 of 4: refused", "1 of 0: expired"]
    );
    for n in 0..5 {
        station.tracker.on_connected(node(n), false, station.now);
    }
    assert_eq!(
        station.take_events(),
        ["ask 1 of 2", "send 1 of 3", "send 1 of 1"]
    );
}

#[test]
fn later_batch_is_sent_only_when_started() {
    let mut station = station(&[0, 1, 2]);
    let held = |n| DeliveryTarget {
        deferred: true,
        ..target(n)
    };
    let deadline = station.now + SECOND;
    let id = command(1).id;
    station
        .tracker
        .issue(issue(1, deadline, vec![target(0), held(1), held(2), held(3)]));
    assert_eq!(station.take_events(), ["send 1 of 0"]);
    assert_eq!(
        station.advance(SECOND * 5),
        ["ask 1 of 0"],
        "what is held does not age"
    );
    let deadline = station.now + SECOND;
    station
        .tracker
        .start_batch(id, &[node(0), node(1), node(3)], deadline, station.now);
    assert_eq!(station.take_events(), ["send 1 of 1"]);
    assert_eq!(station.advance(SECOND), ["ask 1 of 1", "1 of 3: expired"]);
    station.tracker.cancel_deferred(id, "an earlier batch failed");
    assert_eq!(station.take_events(), ["1 of 2: refused"]);
}

#[test]
fn store_failure_blocks_sending_and_retries_outcomes() {
    let mut station = station(&[0]);
    station.unanswered_writes = Some(Vec::new());
    let deadline = station.now + SECOND * 10;
    station.tracker.issue(issue(1, deadline, vec![target(0)]));
    station.take_events();
    let write_id = station
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    station.tracker.on_store_failed(write_id, "no space", station.now);
    assert_eq!(
        station.take_events(),
        ["1 not issued: the station cannot store it: no space"]
    );
    station.unanswered_writes = None;
    assert_eq!(station.advance(STORE_RETRY_DELAY), [""; 0], "told already");
    assert_eq!(station.tracker.open_deliveries(), 0);

    station.tracker.issue(issue(2, deadline, vec![target(0)]));
    station.take_events();
    station.unanswered_writes = Some(Vec::new());
    assert_eq!(station.reply_done(2, 0), [""; 0]);
    let write_id = station
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    station.tracker.on_store_failed(write_id, "no space", station.now);
    station.unanswered_writes = None;
    assert_eq!(station.take_events(), [""; 0]);
    assert_eq!(station.advance(STORE_RETRY_DELAY), ["2 of 0: done"]);
}

#[test]
fn in_flight_commands_per_node_are_bounded() {
    let mut station = station(&[]);
    let deadline = station.now + SECOND * 10;
    let limit = u64::try_from(IN_FLIGHT_MAX).expect("fits");
    for seq in 1..=limit + 2 {
        station.tracker.issue(issue(seq, deadline, vec![target(0)]));
    }
    station.take_events();
    station.tracker.on_connected(node(0), false, station.now);
    assert_eq!(station.take_events().len(), IN_FLIGHT_MAX);
    let started = |station: &mut Station, seq| {
        station
            .tracker
            .on_stage(node(0), command(seq).id, Stage::Started, station.now);
        station.take_events()
    };
    let next = format!("send {} of 0", limit + 1);
    assert_eq!(started(&mut station, 2), ["2 of 0: started".to_owned(), next]);
    let next = format!("send {} of 0", limit + 2);
    assert_eq!(station.reply_done(1, 0), ["1 of 0: done".to_owned(), next]);
}

#[test]
fn full_outbox_is_retried_in_order() {
    let mut station = station(&[0]);
    let deadline = station.now + SECOND;
    station.tracker.issue(issue(1, deadline, vec![target(0)]));
    station.tracker.issue(issue(2, deadline, vec![target(0)]));
    assert_eq!(station.take_events(), ["send 1 of 0", "send 2 of 0"]);
    station
        .tracker
        .on_send_failed(node(0), command(1).id, station.now);
    station
        .tracker
        .on_send_failed(node(0), command(2).id, station.now);
    assert_eq!(station.advance(SEND_RETRY_DELAY), ["send 1 of 0", "send 2 of 0"]);
    station
        .tracker
        .on_send_failed(node(0), command(1).id, station.now);
    assert_eq!(
        station.advance(SECOND),
        ["ask 2 of 0", "1 of 0: expired"],
        "the first never went"
    );
}

#[test]
fn open_delivery_limits_answer_busy() {
    let mut station = station(&[]);
    let deadline = station.now + SECOND;
    let limit = u64::try_from(OPEN_PER_NODE_MAX).expect("fits");
    for seq in 1..=limit {
        station.tracker.issue(issue(seq, deadline, vec![target(0)]));
    }
    station.take_events();
    station
        .tracker
        .issue(issue(limit + 1, deadline, vec![target(0), target(1)]));
    assert_eq!(station.take_events(), [format!("{} of 0: refused", limit + 1)]);
    assert_eq!(station.tracker.open_deliveries(), OPEN_PER_NODE_MAX + 1);
}

#[test]
fn revoked_node_is_sent_nothing() {
    let mut station = station(&[0]);
    let deadline = station.now + SECOND;
    station
        .tracker
        .issue(issue(1, deadline, vec![target(0), target(1)]));
    station.take_events();
    station.tracker.on_revoked(node(0), station.now);
    station.tracker.on_revoked(node(1), station.now);
    assert_eq!(station.take_events(), ["1 of 0: no-answer", "1 of 1: refused"]);
}

#[test]
fn stop_withdraws_unsent_deliveries_of_its_targets() {
    let mut station = station(&[0]);
    let deadline = station.now + SECOND * 100;
    let held = |n| DeliveryTarget {
        deferred: true,
        ..target(n)
    };
    // Sent to 0; waits for 1 and 2, deferred for 3.
    station
        .tracker
        .issue(issue(1, deadline, vec![target(0), target(1), target(2), held(3)]));
    assert_eq!(station.take_events(), ["send 1 of 0"]);
    // Its write is in progress.
    station.unanswered_writes = Some(Vec::new());
    station
        .tracker
        .issue(issue(2, deadline, vec![target(0), target(1)]));
    station.take_events();
    let issued = station
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    // About to be sent.
    station.tracker.on_connected(node(2), false, station.now);
    station.take_events();
    let marked = station
        .unanswered_writes
        .as_mut()
        .and_then(Vec::pop)
        .expect("a write");
    let stopped = [node(0), node(1), node(2), node(3), node(9)];
    assert_eq!(station.tracker.withdraw(&stopped, "a stop", station.now), 5);
    assert_eq!(station.take_events(), [""; 0], "told when it is stored");
    let ends = station.unanswered_writes.replace(Vec::new()).expect("kept");
    assert_eq!(ends.len(), 6, "five ends, and that nothing is sent to 0 again");
    for write_id in [marked, issued].into_iter().chain(ends) {
        station.tracker.on_stored(write_id, station.now);
    }
    station.unanswered_writes = None;
    for n in 0..4 {
        station.tracker.on_connected(node(n), n == 0, station.now);
        station
            .tracker
            .start_batch(command(1).id, &[node(n)], deadline, station.now);
    }
    let mut events = station.take_events();
    events.sort();
    let refused = ["1 of 1", "1 of 2", "1 of 3", "2 of 0", "2 of 1"];
    assert_eq!(events, refused.map(|delivery| format!("{delivery}: refused")));
    let why = |change: &Change| match change {
        Change::Ended { reply, .. } => reply.error.clone(),
        Change::Issued(_) | Change::StateChanged { .. } | Change::Stage { .. } => None,
    };
    assert!(station.changes.iter().filter_map(why).all(|why| why == "a stop"));
    // The node itself refuses what was sent before the stop; commands issued later are sent.
    assert_eq!(station.reply_done(1, 0), ["1 of 0: done"]);
    station.tracker.issue(issue(3, deadline, vec![target(1)]));
    assert_eq!(station.take_events(), ["send 3 of 1"]);
}

#[test]
fn stop_prevents_resend_to_an_absent_node() {
    let mut station = station(&[0]);
    let deadline = station.now + SECOND * 100;
    station.tracker.issue(issue(1, deadline, vec![target(0)]));
    assert_eq!(station.take_events(), ["send 1 of 0"]);
    station.tracker.on_disconnected(node(0));
    assert_eq!(station.tracker.withdraw(&[node(0)], "a stop", station.now), 0);
    assert_eq!(station.take_events(), [""; 0]);
    assert!(
        matches!(station.changes.last(), Some(Change::StateChanged { deadline, .. }) if *deadline == station.now)
    );
    station.tracker.on_connected(node(0), false, station.now);
    assert_eq!(station.take_events(), ["ask 1 of 0"], "it runs nothing");
}

#[test]
fn stop_prevents_resend_after_a_lost_link() {
    let mut station = station(&[0]);
    let deadline = station.now + SECOND * 100;
    station.tracker.issue(issue(1, deadline, vec![target(0)]));
    assert_eq!(station.take_events(), ["send 1 of 0"]);
    // The link still counts as open.
    assert_eq!(station.tracker.withdraw(&[node(0)], "a stop", station.now), 0);
    assert_eq!(station.take_events(), [""; 0], "it may be at work");
    station.tracker.on_disconnected(node(0));
    station.tracker.on_connected(node(0), false, station.now);
    assert_eq!(station.take_events(), ["ask 1 of 0"], "it runs nothing");
}

#[test]
fn withdrawal_stands_while_the_store_fails() {
    let mut station = station(&[]);
    let deadline = station.now + SECOND * 100;
    station.tracker.issue(issue(1, deadline, vec![target(0)]));
    station.take_events();
    station.unanswered_writes = Some(Vec::new());
    station.tracker.withdraw(&[node(0)], "a stop", station.now);
    station.take_events();
    let write_id = station
        .unanswered_writes
        .take()
        .and_then(|mut kept| kept.pop())
        .expect("a write");
    station.tracker.on_store_failed(write_id, "no space", station.now);
    station.tracker.on_connected(node(0), false, station.now);
    assert_eq!(station.take_events(), [""; 0], "never sent");
    assert_eq!(station.advance(STORE_RETRY_DELAY), ["1 of 0: refused"]);
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
    let frame = EncodedFrame::new(&order.to_frame()).expect("a frame");
    let read = |frame: &EncodedFrame, ttl| {
        let mut out = OutBuffer::default();
        let trailer = Trailer {
            seq: Some(3),
            ttl,
            ..Trailer::default()
        };
        out.push(frame, trailer);
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        let filled = out.fill_slices(&mut slices);
        let mut bytes = bytes::BytesMut::new();
        slices[..filled]
            .iter()
            .for_each(|slice| bytes.extend_from_slice(slice));
        let mut reader = FrameReader::new(FrameLimits::CONTROL);
        reader.next_frame(&mut bytes).expect("reads").expect("a frame")
    };
    let mut sent: Frame = read(&frame, Some(9));
    let question = frame.clone().into_status_query();
    assert!(question.is_status_query() && !frame.is_status_query());
    let mut asked: Frame = read(&question, Some(0));
    assert_eq!((sent.header.ttl, asked.header.ttl), (Some(9), Some(0)));
    assert_eq!(sent.header.life, Some(1_000));
    sent.header.set_trailer(Trailer::default());
    asked.header.set_trailer(Trailer::default());
    assert_eq!(sent, asked);
    assert_eq!(sent, order.to_frame());
}
