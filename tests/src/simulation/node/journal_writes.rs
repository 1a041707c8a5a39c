//! The journal's thread of a simulated node.

use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::outcome::Reply;

use super::super::disk::AppendResult;
use super::super::world::{KillPoint, Killed, TICK};
use super::{Node, WritePurpose};

/// Longest time of a write, in ticks.
const WRITE_TICKS_MAX: u64 = 3;

impl Node {
    pub(super) fn enqueue_write(&mut self, records: Vec<Record>, wait: WritePurpose) {
        let ticks = self.world.controls[self.own_host]
            .borrow_mut()
            .rng
            .between(0, WRITE_TICKS_MAX);
        let tick = u64::try_from(TICK.as_millis()).unwrap_or(1);
        let due = self.world.now_ms() + ticks * tick;
        self.pending_writes.push_back((due, records, wait));
    }

    /// The writes that are due: in order, each synced before it is confirmed.
    pub(super) fn perform_journal_writes(&mut self) -> Result<(), Killed> {
        while self
            .pending_writes
            .front()
            .is_some_and(|(due, _, _)| *due <= self.world.now_ms())
        {
            let Some((_, records, wait)) = self.pending_writes.pop_front() else {
                break;
            };
            self.world
                .reach_kill_point(self.own_host, KillPoint::BeforeJournal)?;
            let written = self.journal.append(&records)?;
            self.world
                .reach_kill_point(self.own_host, KillPoint::AfterJournal)?;
            let now = self.world.monotonic_now(self.own_host);
            if let AppendResult::Failed(why) = &written {
                self.world.log(self.own_host, format_args!("cannot write: {why}"));
            }
            match (wait, written) {
                (WritePurpose::Executor(ticket), AppendResult::Written) => {
                    self.executor.on_written(ticket, now);
                }
                (WritePurpose::Executor(ticket), AppendResult::Failed(why)) => {
                    self.executor.on_write_failed(ticket, &why, now);
                }
                (WritePurpose::Stop(order), AppendResult::Written) => {
                    self.world
                        .truth
                        .borrow_mut()
                        .record_stop_persisted(self.own_host, order);
                    if self.stop_receiver.on_written(order) {
                        self.send_stop_reports(None, Some(order));
                    }
                }
                (WritePurpose::Stop(order), AppendResult::Failed(why)) => {
                    if self.stop_receiver.on_write_failed(order, &why) {
                        self.send_stop_reports(None, Some(order));
                    }
                    // It is tried again until it is on the disk.
                    let record = Record::Stopped {
                        issuer: order.issuer,
                        number: order.number,
                    };
                    let due = self.world.now_ms() + 500;
                    self.pending_writes
                        .push_back((due, vec![record], WritePurpose::Stop(order)));
                }
                (WritePurpose::Release(order, id, named), AppendResult::Written) => {
                    let reply = match self.stop_receiver.release(order) {
                        Ok(()) => {
                            self.world
                                .log(self.own_host, format_args!("released from stop {}", order.number));
                            self.world
                                .truth
                                .borrow_mut()
                                .record_released(self.own_host, named);
                            self.executor.on_release();
                            Reply::done(serde_json::json!("released"))
                        }
                        Err(refused) => Reply::failed(refused.to_string()),
                    };
                    self.executor.on_finished(id, reply, now);
                    self.send_stop_reports(None, None);
                }
                (WritePurpose::Release(_, id, _), AppendResult::Failed(why)) => {
                    self.executor.on_finished(id, Reply::failed(why), now);
                }
                (WritePurpose::Unawaited, AppendResult::Written | AppendResult::Failed(_)) => {}
            }
        }
        Ok(())
    }
}
