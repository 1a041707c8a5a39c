//! Cancelling deliveries that have not been sent.

use std::time::Instant;

use super::super::CommandId;
use super::{DeliveryTracker, Phase};
use crate::proto::id::PeerId;
use crate::proto::outcome::Reply;

/// Result of [`DeliveryTracker::cancel`]. A delivery that was ending already is in neither list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CancelResult {
    /// End as `refused`, and are never sent.
    pub cancelled: Vec<(PeerId, CommandId)>,
    /// May be at their node: not changed.
    pub already_sent: Vec<(PeerId, CommandId)>,
}

impl DeliveryTracker {
    /// Ends as `refused` all selected deliveries that no link has taken yet: those that wait for their node, for
    /// their batch, for their own write, or for room. After this returns none of them is ever sent, even if its end
    /// is not stored yet, unless the station is killed before that.
    pub fn cancel(
        &mut self,
        selected: impl Fn(&CommandId, &PeerId) -> bool,
        why: &str,
        now: Instant,
    ) -> CancelResult {
        let mut found = CancelResult::default();
        for (to, node) in &self.nodes {
            for (id, delivery) in node.open.iter().filter(|(id, _)| selected(id, to)) {
                match delivery.phase {
                    Phase::Ending { .. } => {}
                    Phase::Open if delivery.sent => found.already_sent.push((*to, *id)),
                    Phase::Issuing { .. } | Phase::Deferred | Phase::Open => {
                        found.cancelled.push((*to, *id));
                    }
                }
            }
        }
        for (to, id) in &found.cancelled {
            self.end(*to, *id, Reply::refused(why));
        }
        for (to, _) in &found.cancelled {
            // Other deliveries may have waited behind it.
            self.send_ready(*to, now);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{command, node, target};
    use super::super::{Change, DeliveryTarget, Effect, IN_FLIGHT_MAX, IssueRequest, WriteId};
    use super::*;
    use crate::net::clock;
    use crate::proto::delivery::Stage;

    const SECOND: Duration = Duration::from_secs(1);

    struct Station {
        tracker: DeliveryTracker,
        now: Instant,
        writes: Vec<(WriteId, Vec<Change>)>,
        events: Vec<String>,
    }

    impl Station {
        fn new() -> Self {
            Self {
                tracker: DeliveryTracker::default(),
                now: clock::now(),
                writes: Vec::new(),
                events: Vec::new(),
            }
        }

        fn issue(&mut self, seq: u64, targets: Vec<DeliveryTarget>) {
            self.tracker.issue(IssueRequest {
                command: command(seq),
                selector: "all".to_owned(),
                deadline: self.now + SECOND * 10,
                targets,
            });
            self.apply_effects();
        }

        fn apply_effects(&mut self) {
            for effect in self.tracker.take_effects() {
                let text = match effect {
                    Effect::Store { write_id, changes } => {
                        self.writes.push((write_id, changes));
                        continue;
                    }
                    Effect::Send { to, id, .. } => format!("send {} to {}", id.seq, to.0[0] - 1),
                    Effect::Stage { .. } => continue,
                    Effect::Ended { to, id, reply } => {
                        let why = reply.error.unwrap_or_default();
                        format!("{} of {}: {} {why}", id.seq, to.0[0] - 1, reply.state)
                    }
                    Effect::NotIssued { id, reason: why } => format!("{} not issued: {why}", id.seq),
                };
                self.events.push(text);
            }
        }

        /// Completes all writes that are held back.
        fn write_all(&mut self) -> Vec<String> {
            loop {
                self.apply_effects();
                if self.writes.is_empty() {
                    return std::mem::take(&mut self.events);
                }
                let (write_id, _) = self.writes.remove(0);
                self.tracker.on_stored(write_id, self.now);
            }
        }

        /// By command and node: the cancelled deliveries, and those already sent.
        fn cancel(&mut self, seq: u64) -> (Vec<u8>, Vec<u8>) {
            let id = command(seq).id;
            let CancelResult {
                cancelled: taken_back,
                already_sent: sent,
            } = self.tracker.cancel(|selected, _| *selected == id, "no", self.now);
            let numbers = |all: Vec<(PeerId, CommandId)>| -> Vec<u8> {
                assert!(all.iter().all(|(_, selected)| *selected == id));
                all.into_iter().map(|(to, _)| to.0[0] - 1).collect()
            };
            (numbers(taken_back), numbers(sent))
        }
    }

    #[test]
    fn cancel_ends_unsent_deliveries_and_keeps_sent_ones() {
        let mut station = Station::new();
        station.tracker.on_connected(node(0), false, station.now);
        let held = DeliveryTarget {
            deferred: true,
            ..target(2)
        };
        station.issue(1, vec![target(0), target(1), held]);
        station.issue(2, vec![target(1)]);
        assert_eq!(station.write_all(), ["send 1 to 0"]);
        assert_eq!(station.cancel(1), (vec![1, 2], vec![0]));
        assert_eq!(station.cancel(1), (vec![], vec![0]), "once");
        station.tracker.on_connected(node(1), false, station.now);
        station
            .tracker
            .start_batch(command(1).id, &[node(2)], station.now + SECOND, station.now);
        station.tracker.on_connected(node(2), false, station.now);
        station.apply_effects();
        assert_eq!(station.events, [""; 0], "told when it is stored, and not before");
        assert_eq!(
            station.write_all(),
            ["1 of 1: refused no", "1 of 2: refused no", "send 2 to 1"]
        );
        station.tracker.on_reply(
            node(0),
            command(1).id,
            Reply::done(serde_json::Value::Null),
            station.now,
        );
        assert_eq!(station.write_all(), ["1 of 0: done "]);
    }

    #[test]
    fn cancel_during_a_store_write_prevents_sending() {
        let mut station = Station::new();
        station.tracker.on_connected(node(0), false, station.now);
        station.issue(1, vec![target(0)]);
        assert_eq!(station.writes.len(), 1, "its own write is under way");
        assert_eq!(station.cancel(1), (vec![0], vec![]));
        assert_eq!(station.write_all(), ["1 of 0: refused no"]);

        station.issue(2, vec![target(1)]);
        station.issue(3, vec![target(1)]);
        station.write_all();
        station.tracker.on_connected(node(1), false, station.now);
        station.apply_effects();
        assert!(matches!(station.writes[..], [(_, ref marks)] if marks.len() == 2));
        assert_eq!(station.cancel(2), (vec![1], vec![]));
        assert_eq!(station.write_all(), ["send 3 to 1", "2 of 1: refused no"]);
        assert_eq!(station.tracker.open_deliveries(), 1);
    }

    #[test]
    fn failed_issue_is_reported_once_after_cancel() {
        let mut station = Station::new();
        station.issue(1, vec![target(0)]);
        assert_eq!(station.cancel(1), (vec![0], vec![]));
        station.apply_effects();
        let (write_id, _) = station.writes.remove(0);
        station.tracker.on_store_failed(write_id, "no space", station.now);
        assert_eq!(
            station.write_all(),
            ["1 not issued: the station cannot store it: no space"]
        );
        station.now += SECOND * 20;
        station.tracker.handle_timeout(station.now);
        assert_eq!(station.write_all(), [""; 0]);
        assert_eq!(
            (station.tracker.open_deliveries(), station.tracker.poll_timeout()),
            (0, None)
        );
    }

    #[test]
    fn cancel_ends_deliveries_waiting_for_a_free_slot() {
        let mut station = Station::new();
        station.tracker.on_connected(node(0), false, station.now);
        let limit = u64::try_from(IN_FLIGHT_MAX).expect("fits");
        for seq in 1..=limit + 2 {
            station.issue(seq, vec![target(0)]);
        }
        assert_eq!(station.write_all().len(), IN_FLIGHT_MAX);
        assert_eq!(station.cancel(limit + 1), (vec![0], vec![]));
        assert_eq!(station.write_all(), [format!("{} of 0: refused no", limit + 1)]);
        station
            .tracker
            .on_stage(node(0), command(1).id, Stage::Started, station.now);
        assert_eq!(station.write_all(), [format!("send {} to 0", limit + 2)]);
        station
            .tracker
            .on_send_failed(node(0), command(limit + 2).id, station.now);
        assert_eq!(
            station.cancel(limit + 2),
            (vec![0], vec![]),
            "the link had no room"
        );
        assert_eq!(station.cancel(limit + 1), (vec![], vec![]), "it has ended");
    }
}
