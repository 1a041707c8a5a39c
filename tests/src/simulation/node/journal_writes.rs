//! What its journal's thread does.

use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::outcome::Reply;

use super::super::disk::Written;
use super::super::world::{Died, Moment, TICK};
use super::{Node, Wait};

/// A journal's thread takes up to so many ticks for a write.
const WRITE_TICKS_MAX: u64 = 3;

impl Node {
    pub(super) fn write(&mut self, records: Vec<Record>, wait: Wait) {
        let ticks = self.world.controls[self.me]
            .borrow_mut()
            .rng
            .between(0, WRITE_TICKS_MAX);
        let tick = u64::try_from(TICK.as_millis()).unwrap_or(1);
        let due = self.world.now_ms() + ticks * tick;
        self.writes.push_back((due, records, wait));
    }

    /// What the journal's thread does: in order, and each write synced before it is answered.
    pub(super) fn write_journal(&mut self) -> Result<(), Died> {
        while self
            .writes
            .front()
            .is_some_and(|(due, _, _)| *due <= self.world.now_ms())
        {
            let Some((_, records, wait)) = self.writes.pop_front() else {
                break;
            };
            self.world.pass(self.me, Moment::BeforeJournal)?;
            let written = self.journal.append(&records)?;
            self.world.pass(self.me, Moment::AfterJournal)?;
            let now = self.world.instant(self.me);
            if let Written::No(why) = &written {
                self.world.note(self.me, format_args!("cannot write: {why}"));
            }
            match (wait, written) {
                (Wait::Desk(ticket), Written::Yes) => self.desk.written(ticket, now),
                (Wait::Desk(ticket), Written::No(why)) => self.desk.not_written(ticket, &why, now),
                (Wait::Stop(order), Written::Yes) => {
                    self.world.truth.borrow_mut().wrote_stop(self.me, order);
                    if self.stop.written(order) {
                        self.report(None, Some(order));
                    }
                }
                (Wait::Stop(order), Written::No(why)) => {
                    if self.stop.not_written(order, &why) {
                        self.report(None, Some(order));
                    }
                    // It is tried again until it is on the disk.
                    let record = Record::Stopped {
                        issuer: order.issuer,
                        number: order.number,
                    };
                    let due = self.world.now_ms() + 500;
                    self.writes.push_back((due, vec![record], Wait::Stop(order)));
                }
                (Wait::Release(order, id, named), Written::Yes) => {
                    let reply = match self.stop.release(order) {
                        Ok(()) => {
                            self.world
                                .note(self.me, format_args!("released from stop {}", order.number));
                            self.world.truth.borrow_mut().released(self.me, named);
                            self.desk.released();
                            Reply::done(serde_json::json!("released"))
                        }
                        Err(refused) => Reply::failed(refused.to_string()),
                    };
                    self.desk.finished(id, reply, now);
                    self.report(None, None);
                }
                (Wait::Release(_, id, _), Written::No(why)) => {
                    self.desk.finished(id, Reply::failed(why), now);
                }
                (Wait::Note, Written::Yes | Written::No(_)) => {}
            }
        }
        Ok(())
    }
}
