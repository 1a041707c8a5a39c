use std::time::{Duration, Instant};

use super::*;
use crate::net::clock;
use crate::proto::encoded::{OutBuffer, Trailer};
use crate::proto::id::NodeName;
use crate::proto::wire::{Frame, FrameReader, Limits};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn node(n: u8) -> PeerId {
    PeerId([n + 1; 32])
}

pub(super) fn named(n: u8) -> Addressee {
    Addressee {
        to: node(n),
        name: NodeName::parse(&format!("n{n}")).expect("a name"),
        queue: true,
        held: false,
        refused: None,
    }
}

pub(super) fn order(seq: u64) -> Order {
    Order {
        id: CommandId {
            issuer: PeerId([0; 32]),
            epoch: 7,
            seq,
        },
        action: "land".to_owned(),
        arguments: "{\"args\":[],\"kwargs\":{\"b\":1,\"a\":2}}".to_owned(),
        lane: Lane::Control,
        life_ms: 1_000,
    }
}

fn issue(seq: u64, deadline: Instant, targets: Vec<Addressee>) -> Issue {
    Issue {
        order: order(seq),
        selector: "all".to_owned(),
        deadline,
        targets,
    }
}

/// What a book wants done, in short. Writes are done at once unless they are kept.
struct Desk {
    book: Book,
    now: Instant,
    keep: Option<Vec<Ticket>>,
    changes: Vec<Change>,
    said: Vec<String>,
}

impl Desk {
    fn new(book: Book) -> Self {
        Self {
            book,
            now: clock::now() + Duration::from_secs(3_600),
            keep: None,
            changes: Vec::new(),
            said: Vec::new(),
        }
    }

    /// What has been done since it was asked last: `send 1 to 0`, `ask 1 of 0`, `1 of 0: started`, `1 of 0: done`.
    fn said(&mut self) -> Vec<String> {
        loop {
            let effects = self.book.take_effects();
            if effects.is_empty() {
                return std::mem::take(&mut self.said);
            }
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let who = |to: PeerId, id: CommandId| format!("{} of {}", id.seq, to.0[0] - 1);
        match effect {
            Effect::Store { ticket, changes } => {
                self.changes.extend(changes);
                match &mut self.keep {
                    Some(kept) => kept.push(ticket),
                    None => self.book.stored(ticket, self.now),
                }
            }
            Effect::Send { to, id, deadline, .. } => {
                let verb = if deadline.is_some() { "send" } else { "ask" };
                self.said.push(format!("{verb} {}", who(to, id)));
            }
            Effect::Stage { to, id, stage } => self.said.push(format!("{}: {stage}", who(to, id))),
            Effect::Ended { to, id, reply } => self.said.push(format!("{}: {}", who(to, id), reply.state)),
            Effect::NotIssued { id, why } => self.said.push(format!("{} not issued: {why}", id.seq)),
        }
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.book.handle_timeout(self.now);
        self.said()
    }

    fn done(&mut self, seq: u64, n: u8) -> Vec<String> {
        let reply = Reply::done(serde_json::Value::Null);
        self.book.reply(node(n), order(seq).id, reply, self.now);
        self.said()
    }
}

fn fresh(up: &[u8]) -> Desk {
    let mut desk = Desk::new(Book::default());
    for n in up {
        desk.book.up(node(*n), false, desk.now);
    }
    desk
}

#[test]
fn it_is_sent_when_it_is_stored_and_ended_when_that_is_stored() {
    let mut desk = fresh(&[0]);
    desk.keep = Some(Vec::new());
    let deadline = desk.now + SECOND;
    desk.book.issue(issue(1, deadline, vec![named(0)]));
    assert_eq!(desk.said(), [""; 0], "not before it is stored");
    let ticket = desk.keep.as_mut().and_then(Vec::pop).expect("a write");
    desk.book.stored(ticket, desk.now);
    assert_eq!(desk.said(), ["send 1 of 0"]);
    desk.book.stage(node(0), order(1).id, Stage::Received, desk.now);
    assert_eq!(desk.done(1, 0), ["1 of 0: received"], "the end is not stored");
    let ticket = desk.keep.as_mut().and_then(Vec::pop).expect("a write");
    desk.book.stored(ticket, desk.now);
    assert_eq!(desk.said(), ["1 of 0: done"]);
    assert_eq!((desk.done(1, 0), desk.book.open()), (Vec::new(), 0));
    // One write for the issue, one for the stage with the end.
    assert!(matches!(
        desk.changes[..],
        [Change::Issued(_), Change::Stage { .. }, Change::Ended { .. }]
    ));
}

#[test]
fn an_absent_node_gets_it_later_or_it_expires() {
    let mut desk = fresh(&[]);
    let deadline = desk.now + SECOND * 10;
    desk.book.issue(issue(1, deadline, vec![named(0), named(1)]));
    desk.book.issue(issue(2, deadline, vec![named(0)]));
    assert_eq!(desk.said(), [""; 0]);
    desk.book.up(node(0), false, desk.now);
    assert_eq!(desk.said(), ["send 1 of 0", "send 2 of 0"], "in order");
    assert_eq!(
        desk.pass(SECOND * 10),
        ["ask 1 of 0", "ask 2 of 0", "1 of 1: expired"]
    );
    desk.book.up(node(1), false, desk.now);
    assert_eq!(desk.said(), [""; 0]);
}

#[test]
fn one_that_may_not_wait_ends_at_once() {
    let mut desk = fresh(&[0]);
    let flight = |n| Addressee {
        queue: false,
        ..named(n)
    };
    let deadline = desk.now + SECOND;
    desk.book.issue(issue(1, deadline, vec![flight(0), flight(1)]));
    assert_eq!(desk.said(), ["1 of 1: no-answer", "send 1 of 0"]);
    assert!(matches!(&desk.changes[1], Change::Ended { reply, .. }
            if reply.error.as_deref() == Some("offline: flight actions are never queued for an absent node")));
}

#[test]
fn one_that_is_refused_is_stored_so_and_never_sent() {
    let mut desk = fresh(&[0, 1]);
    let refused = |n| Addressee {
        refused: Some("it is to stand still".to_owned()),
        ..named(n)
    };
    let later = Addressee {
        held: true,
        ..refused(2)
    };
    let deadline = desk.now + SECOND;
    desk.book
        .issue(issue(1, deadline, vec![named(0), refused(1), later]));
    let said = ["1 of 1: refused", "1 of 2: refused", "send 1 of 0"];
    assert_eq!(desk.said(), said);
    desk.book.up(node(2), false, desk.now);
    assert_eq!(desk.said(), [""; 0]);
}

#[test]
fn beyond_its_deadline_it_is_asked_about_until_it_is_known() {
    let mut desk = fresh(&[0]);
    let deadline = desk.now + SECOND;
    desk.book.issue(issue(1, deadline, vec![named(0)]));
    assert_eq!(desk.said(), ["send 1 of 0"]);
    assert_eq!(desk.pass(SECOND), ["ask 1 of 0"]);
    assert_eq!(desk.pass(ASK_EVERY), ["ask 1 of 0"]);
    desk.book.down(node(0));
    assert_eq!(desk.pass(ASK_EVERY), [""; 0]);
    desk.book.up(node(0), false, desk.now);
    assert_eq!(desk.said(), ["ask 1 of 0"]);
    assert_eq!(desk.done(1, 0), ["1 of 0: done"]);

    desk.book.issue(issue(2, desk.now + SECOND, vec![named(0)]));
    desk.said();
    desk.book.down(node(0));
    assert_eq!(desk.pass(SECOND + GIVE_UP_AFTER), ["2 of 0: no-answer"]);
    assert_eq!(desk.book.poll_timeout(), None);
}

#[test]
fn a_new_process_gets_all_that_is_open_and_a_resumed_one_nothing_again() {
    let mut desk = fresh(&[0]);
    let deadline = desk.now + SECOND * 10;
    desk.book.issue(issue(1, deadline, vec![named(0)]));
    desk.book.issue(issue(2, deadline, vec![named(0)]));
    desk.said();
    desk.book.down(node(0));
    desk.book.issue(issue(3, deadline, vec![named(0)]));
    desk.book.up(node(0), true, desk.now);
    assert_eq!(desk.said(), ["send 3 of 0"]);
    desk.book.down(node(0));
    desk.done(1, 0);
    desk.book.up(node(0), false, desk.now);
    assert_eq!(desk.said(), ["send 2 of 0", "send 3 of 0"]);
}

#[test]
fn a_restart_goes_on_where_the_store_stands() {
    let mut desk = fresh(&[]);
    let stored = |n, standing, deadline| OpenDelivery {
        to: node(n),
        standing,
        deadline,
        stage: None,
    };
    let (late, early) = (desk.now, desk.now + SECOND * 10);
    let deliveries = vec![
        stored(0, Standing::Waiting, late),
        stored(1, Standing::Waiting, early),
        stored(2, Standing::Sent, late),
        stored(3, Standing::Sent, early),
        stored(4, Standing::Held, early),
    ];
    desk.book = Book::restore(vec![OpenCommand {
        order: order(1),
        deliveries,
    }]);
    assert_eq!(desk.pass(Duration::ZERO), ["1 of 4: refused", "1 of 0: expired"]);
    for n in 0..5 {
        desk.book.up(node(n), false, desk.now);
    }
    assert_eq!(desk.said(), ["ask 1 of 2", "send 1 of 3", "send 1 of 1"]);
}

#[test]
fn a_later_batch_waits_for_its_turn() {
    let mut desk = fresh(&[0, 1, 2]);
    let held = |n| Addressee {
        held: true,
        ..named(n)
    };
    let deadline = desk.now + SECOND;
    let id = order(1).id;
    desk.book
        .issue(issue(1, deadline, vec![named(0), held(1), held(2), held(3)]));
    assert_eq!(desk.said(), ["send 1 of 0"]);
    assert_eq!(desk.pass(SECOND * 5), ["ask 1 of 0"], "what is held does not age");
    let deadline = desk.now + SECOND;
    desk.book
        .release(id, &[node(0), node(1), node(3)], deadline, desk.now);
    assert_eq!(desk.said(), ["send 1 of 1"]);
    assert_eq!(desk.pass(SECOND), ["ask 1 of 1", "1 of 3: expired"]);
    desk.book.withhold(id, "an earlier batch failed");
    assert_eq!(desk.said(), ["1 of 2: refused"]);
}

#[test]
fn what_cannot_be_stored_is_not_sent_and_what_ended_is_written_until_it_is() {
    let mut desk = fresh(&[0]);
    desk.keep = Some(Vec::new());
    let deadline = desk.now + SECOND * 10;
    desk.book.issue(issue(1, deadline, vec![named(0)]));
    desk.said();
    let ticket = desk.keep.as_mut().and_then(Vec::pop).expect("a write");
    desk.book.store_failed(ticket, "no space", desk.now);
    assert_eq!(
        desk.said(),
        ["1 not issued: the station cannot store it: no space"]
    );
    desk.keep = None;
    assert_eq!(desk.pass(RETRY_AFTER), [""; 0], "told already");
    assert_eq!(desk.book.open(), 0);

    desk.book.issue(issue(2, deadline, vec![named(0)]));
    desk.said();
    desk.keep = Some(Vec::new());
    assert_eq!(desk.done(2, 0), [""; 0]);
    let ticket = desk.keep.as_mut().and_then(Vec::pop).expect("a write");
    desk.book.store_failed(ticket, "no space", desk.now);
    desk.keep = None;
    assert_eq!(desk.said(), [""; 0]);
    assert_eq!(desk.pass(RETRY_AFTER), ["2 of 0: done"]);
}

#[test]
fn a_node_is_never_sent_more_than_it_can_take() {
    let mut desk = fresh(&[]);
    let deadline = desk.now + SECOND * 10;
    let most = u64::try_from(IN_FLIGHT_MAX).expect("fits");
    for seq in 1..=most + 2 {
        desk.book.issue(issue(seq, deadline, vec![named(0)]));
    }
    desk.said();
    desk.book.up(node(0), false, desk.now);
    assert_eq!(desk.said().len(), IN_FLIGHT_MAX);
    let started = |desk: &mut Desk, seq| {
        desk.book.stage(node(0), order(seq).id, Stage::Started, desk.now);
        desk.said()
    };
    let next = format!("send {} of 0", most + 1);
    assert_eq!(started(&mut desk, 2), ["2 of 0: started".to_owned(), next]);
    let next = format!("send {} of 0", most + 2);
    assert_eq!(desk.done(1, 0), ["1 of 0: done".to_owned(), next]);
}

#[test]
fn a_full_link_is_tried_again_in_order() {
    let mut desk = fresh(&[0]);
    let deadline = desk.now + SECOND;
    desk.book.issue(issue(1, deadline, vec![named(0)]));
    desk.book.issue(issue(2, deadline, vec![named(0)]));
    assert_eq!(desk.said(), ["send 1 of 0", "send 2 of 0"]);
    desk.book.not_sent(node(0), order(1).id, desk.now);
    desk.book.not_sent(node(0), order(2).id, desk.now);
    assert_eq!(desk.pass(SEND_RETRY_AFTER), ["send 1 of 0", "send 2 of 0"]);
    desk.book.not_sent(node(0), order(1).id, desk.now);
    assert_eq!(
        desk.pass(SECOND),
        ["ask 2 of 0", "1 of 0: expired"],
        "the first never went"
    );
}

#[test]
fn bounds_are_kept() {
    let mut desk = fresh(&[]);
    let deadline = desk.now + SECOND;
    let most = u64::try_from(NODE_OPEN_MAX).expect("fits");
    for seq in 1..=most {
        desk.book.issue(issue(seq, deadline, vec![named(0)]));
    }
    desk.said();
    desk.book
        .issue(issue(most + 1, deadline, vec![named(0), named(1)]));
    assert_eq!(desk.said(), [format!("{} of 0: refused", most + 1)]);
    assert_eq!(desk.book.open(), NODE_OPEN_MAX + 1);
}

#[test]
fn who_is_put_out_gets_nothing() {
    let mut desk = fresh(&[0]);
    let deadline = desk.now + SECOND;
    desk.book.issue(issue(1, deadline, vec![named(0), named(1)]));
    desk.said();
    desk.book.put_out(node(0), desk.now);
    desk.book.put_out(node(1), desk.now);
    assert_eq!(desk.said(), ["1 of 0: no-answer", "1 of 1: refused"]);
}

#[test]
fn a_stop_withdraws_what_its_targets_have_not_been_sent() {
    let mut desk = fresh(&[0]);
    let deadline = desk.now + SECOND * 100;
    let held = |n| Addressee {
        held: true,
        ..named(n)
    };
    // Sent to 0; waits for 1 and 2, held of 3.
    desk.book
        .issue(issue(1, deadline, vec![named(0), named(1), named(2), held(3)]));
    assert_eq!(desk.said(), ["send 1 of 0"]);
    // Being stored.
    desk.keep = Some(Vec::new());
    desk.book.issue(issue(2, deadline, vec![named(0), named(1)]));
    desk.said();
    let issued = desk.keep.as_mut().and_then(Vec::pop).expect("a write");
    // About to be sent.
    desk.book.up(node(2), false, desk.now);
    desk.said();
    let marked = desk.keep.as_mut().and_then(Vec::pop).expect("a write");
    let stopped = [node(0), node(1), node(2), node(3), node(9)];
    assert_eq!(desk.book.withdraw(&stopped, "a stop", desk.now), 5);
    assert_eq!(desk.said(), [""; 0], "told when it is stored");
    let ends = desk.keep.replace(Vec::new()).expect("kept");
    assert_eq!(ends.len(), 6, "five ends, and that nothing is sent to 0 again");
    for ticket in [marked, issued].into_iter().chain(ends) {
        desk.book.stored(ticket, desk.now);
    }
    desk.keep = None;
    for n in 0..4 {
        desk.book.up(node(n), n == 0, desk.now);
        desk.book.release(order(1).id, &[node(n)], deadline, desk.now);
    }
    let mut said = desk.said();
    said.sort();
    let refused = ["1 of 1", "1 of 2", "1 of 3", "2 of 0", "2 of 1"];
    assert_eq!(said, refused.map(|which| format!("{which}: refused")));
    let why = |change: &Change| match change {
        Change::Ended { reply, .. } => reply.error.clone(),
        Change::Issued(_) | Change::Moved { .. } | Change::Stage { .. } => None,
    };
    assert!(desk.changes.iter().filter_map(why).all(|why| why == "a stop"));
    // What it has been sent it refuses itself; what is given later goes out.
    assert_eq!(desk.done(1, 0), ["1 of 0: done"]);
    desk.book.issue(issue(3, deadline, vec![named(1)]));
    assert_eq!(desk.said(), ["send 3 of 1"]);
}

#[test]
fn what_an_absent_node_may_have_is_not_sent_again_after_a_stop() {
    let mut desk = fresh(&[0]);
    let deadline = desk.now + SECOND * 100;
    desk.book.issue(issue(1, deadline, vec![named(0)]));
    assert_eq!(desk.said(), ["send 1 of 0"]);
    desk.book.down(node(0));
    assert_eq!(desk.book.withdraw(&[node(0)], "a stop", desk.now), 0);
    assert_eq!(desk.said(), [""; 0]);
    assert!(matches!(desk.changes.last(), Some(Change::Moved { deadline, .. }) if *deadline == desk.now));
    desk.book.up(node(0), false, desk.now);
    assert_eq!(desk.said(), ["ask 1 of 0"], "it runs nothing");
}

#[test]
fn what_a_dead_link_took_is_not_sent_again_after_a_stop() {
    let mut desk = fresh(&[0]);
    let deadline = desk.now + SECOND * 100;
    desk.book.issue(issue(1, deadline, vec![named(0)]));
    assert_eq!(desk.said(), ["send 1 of 0"]);
    // The link counts as up still.
    assert_eq!(desk.book.withdraw(&[node(0)], "a stop", desk.now), 0);
    assert_eq!(desk.said(), [""; 0], "it may be at work");
    desk.book.down(node(0));
    desk.book.up(node(0), false, desk.now);
    assert_eq!(desk.said(), ["ask 1 of 0"], "it runs nothing");
}

#[test]
fn what_was_withdrawn_stays_so_though_it_cannot_be_stored_yet() {
    let mut desk = fresh(&[]);
    let deadline = desk.now + SECOND * 100;
    desk.book.issue(issue(1, deadline, vec![named(0)]));
    desk.said();
    desk.keep = Some(Vec::new());
    desk.book.withdraw(&[node(0)], "a stop", desk.now);
    desk.said();
    let ticket = desk.keep.take().and_then(|mut kept| kept.pop()).expect("a write");
    desk.book.store_failed(ticket, "no space", desk.now);
    desk.book.up(node(0), false, desk.now);
    assert_eq!(desk.said(), [""; 0], "never sent");
    assert_eq!(desk.pass(RETRY_AFTER), ["1 of 0: refused"]);
}

#[test]
fn the_frame_is_the_same_each_time_and_a_question_leaves_no_time() {
    let order = Order {
        id: CommandId {
            seq: 5,
            ..order(1).id
        },
        ..order(1)
    };
    let parcel = Parcel::new(&order.frame()).expect("a frame");
    let read = |parcel: &Parcel, ttl| {
        let mut out = OutBuffer::default();
        let trailer = Trailer {
            seq: Some(3),
            ttl,
            ..Trailer::default()
        };
        out.put(parcel, trailer);
        let mut slices = [std::io::IoSlice::new(&[]); 4];
        let filled = out.fill(&mut slices);
        let mut bytes = bytes::BytesMut::new();
        slices[..filled]
            .iter()
            .for_each(|slice| bytes.extend_from_slice(slice));
        let mut reader = FrameReader::new(Limits::CONTROL);
        reader.next_frame(&mut bytes).expect("reads").expect("a frame")
    };
    let mut sent: Frame = read(&parcel, Some(9));
    let question = parcel.clone().question();
    assert!(question.is_question() && !parcel.is_question());
    let mut asked: Frame = read(&question, Some(0));
    assert_eq!((sent.header.ttl, asked.header.ttl), (Some(9), Some(0)));
    assert_eq!(sent.header.life, Some(1_000));
    sent.header.set_trailer(Trailer::default());
    asked.header.set_trailer(Trailer::default());
    assert_eq!(sent, asked);
    assert_eq!(sent, order.frame());
}
