//! Taking back what has not been sent.

use std::time::Instant;

use super::super::CommandId;
use super::{Book, Phase};
use crate::proto::id::PeerId;
use crate::proto::outcome::Reply;

/// What [`Book::take_back`] found. What was ending already is in neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenBack {
    /// Ends as `refused`, and will never be sent.
    pub taken_back: Vec<(PeerId, CommandId)>,
    /// Perhaps at its node: left as it is.
    pub sent: Vec<(PeerId, CommandId)>,
}

impl Book {
    /// Ends as `refused` whatever `which` means and no link has been given yet: what waits for its node, for its batch,
    /// for its own write, or for room. Once this returns none of it is ever sent, whether its end is stored by then or
    /// not, unless the station is killed before that.
    pub fn take_back(
        &mut self,
        which: impl Fn(&CommandId, &PeerId) -> bool,
        why: &str,
        now: Instant,
    ) -> TakenBack {
        let mut found = TakenBack::default();
        for (to, node) in &self.nodes {
            for (id, delivery) in node.open.iter().filter(|(id, _)| which(id, to)) {
                match delivery.phase {
                    Phase::Ending { .. } => {}
                    Phase::Open if delivery.sent => found.sent.push((*to, *id)),
                    Phase::Issuing { .. } | Phase::Held | Phase::Open => {
                        found.taken_back.push((*to, *id));
                    }
                }
            }
        }
        for (to, id) in &found.taken_back {
            self.end(*to, *id, Reply::refused(why));
        }
        for (to, _) in &found.taken_back {
            // Others may have waited behind it.
            self.stir(*to, now);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{named, node, order};
    use super::super::{Addressee, Change, Effect, IN_FLIGHT_MAX, Issue, Ticket};
    use super::*;
    use crate::net::clock;
    use crate::proto::delivery::Stage;

    const SECOND: Duration = Duration::from_secs(1);

    struct Station {
        book: Book,
        now: Instant,
        writes: Vec<(Ticket, Vec<Change>)>,
        said: Vec<String>,
    }

    impl Station {
        fn new() -> Self {
            Self {
                book: Book::default(),
                now: clock::now(),
                writes: Vec::new(),
                said: Vec::new(),
            }
        }

        fn issue(&mut self, seq: u64, targets: Vec<Addressee>) {
            self.book.issue(Issue {
                order: order(seq),
                selector: "all".to_owned(),
                deadline: self.now + SECOND * 10,
                targets,
            });
            self.hear();
        }

        fn hear(&mut self) {
            for effect in self.book.take_effects() {
                let text = match effect {
                    Effect::Store { ticket, changes } => {
                        self.writes.push((ticket, changes));
                        continue;
                    }
                    Effect::Send { to, id, .. } => format!("send {} to {}", id.seq, to.0[0] - 1),
                    Effect::Stage { .. } => continue,
                    Effect::Ended { to, id, reply } => {
                        let why = reply.error.unwrap_or_default();
                        format!("{} of {}: {} {why}", id.seq, to.0[0] - 1, reply.state)
                    }
                    Effect::NotIssued { id, why } => format!("{} not issued: {why}", id.seq),
                };
                self.said.push(text);
            }
        }

        /// All that waits is written.
        fn written(&mut self) -> Vec<String> {
            loop {
                self.hear();
                if self.writes.is_empty() {
                    return std::mem::take(&mut self.said);
                }
                let (ticket, _) = self.writes.remove(0);
                self.book.stored(ticket, self.now);
            }
        }

        /// By command and node: what was taken back, and what was sent.
        fn take_back(&mut self, seq: u64) -> (Vec<u8>, Vec<u8>) {
            let id = order(seq).id;
            let TakenBack { taken_back, sent } = self.book.take_back(|which, _| *which == id, "no", self.now);
            let numbers = |all: Vec<(PeerId, CommandId)>| -> Vec<u8> {
                assert!(all.iter().all(|(_, which)| *which == id));
                all.into_iter().map(|(to, _)| to.0[0] - 1).collect()
            };
            (numbers(taken_back), numbers(sent))
        }
    }

    #[test]
    fn what_waits_is_taken_back_and_what_was_sent_stays() {
        let mut station = Station::new();
        station.book.up(node(0), false, station.now);
        let held = Addressee {
            held: true,
            ..named(2)
        };
        station.issue(1, vec![named(0), named(1), held]);
        station.issue(2, vec![named(1)]);
        assert_eq!(station.written(), ["send 1 to 0"]);
        assert_eq!(station.take_back(1), (vec![1, 2], vec![0]));
        assert_eq!(station.take_back(1), (vec![], vec![0]), "once");
        station.book.up(node(1), false, station.now);
        station
            .book
            .release(order(1).id, &[node(2)], station.now + SECOND, station.now);
        station.book.up(node(2), false, station.now);
        station.hear();
        assert_eq!(station.said, [""; 0], "told when it is stored, and not before");
        assert_eq!(
            station.written(),
            ["1 of 1: refused no", "1 of 2: refused no", "send 2 to 1"]
        );
        station.book.reply(
            node(0),
            order(1).id,
            Reply::done(serde_json::Value::Null),
            station.now,
        );
        assert_eq!(station.written(), ["1 of 0: done "]);
    }

    #[test]
    fn what_is_being_stored_or_marked_is_never_sent() {
        let mut station = Station::new();
        station.book.up(node(0), false, station.now);
        station.issue(1, vec![named(0)]);
        assert_eq!(station.writes.len(), 1, "its own write is under way");
        assert_eq!(station.take_back(1), (vec![0], vec![]));
        assert_eq!(station.written(), ["1 of 0: refused no"]);

        station.issue(2, vec![named(1)]);
        station.issue(3, vec![named(1)]);
        station.written();
        station.book.up(node(1), false, station.now);
        station.hear();
        assert!(matches!(station.writes[..], [(_, ref marks)] if marks.len() == 2));
        assert_eq!(station.take_back(2), (vec![1], vec![]));
        assert_eq!(station.written(), ["send 3 to 1", "2 of 1: refused no"]);
        assert_eq!(station.book.open(), 1);
    }

    #[test]
    fn one_whose_issue_is_not_stored_is_told_of_once() {
        let mut station = Station::new();
        station.issue(1, vec![named(0)]);
        assert_eq!(station.take_back(1), (vec![0], vec![]));
        station.hear();
        let (ticket, _) = station.writes.remove(0);
        station.book.store_failed(ticket, "no space", station.now);
        assert_eq!(
            station.written(),
            ["1 not issued: the station cannot store it: no space"]
        );
        station.now += SECOND * 20;
        station.book.handle_timeout(station.now);
        assert_eq!(station.written(), [""; 0]);
        assert_eq!((station.book.open(), station.book.poll_timeout()), (0, None));
    }

    #[test]
    fn what_waits_for_room_is_taken_back_too() {
        let mut station = Station::new();
        station.book.up(node(0), false, station.now);
        let most = u64::try_from(IN_FLIGHT_MAX).expect("fits");
        for seq in 1..=most + 2 {
            station.issue(seq, vec![named(0)]);
        }
        assert_eq!(station.written().len(), IN_FLIGHT_MAX);
        assert_eq!(station.take_back(most + 1), (vec![0], vec![]));
        assert_eq!(station.written(), [format!("{} of 0: refused no", most + 1)]);
        station
            .book
            .stage(node(0), order(1).id, Stage::Started, station.now);
        assert_eq!(station.written(), [format!("send {} to 0", most + 2)]);
        station.book.not_sent(node(0), order(most + 2).id, station.now);
        assert_eq!(
            station.take_back(most + 2),
            (vec![0], vec![]),
            "the link had no room"
        );
        assert_eq!(station.take_back(most + 1), (vec![], vec![]), "it has ended");
    }
}
