//! The commands that act: carries out what the [`Desk`] decides.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | links | the desk, the arguments of what waits, how to end what runs | see the module above |
//! | scribe | nothing: hands writes to the journal, in order, as many at once as wait | with the desk |
//! | one for each action that runs | its reply | with the reply, or [`KILL_PATIENCE`] after it was to end |
//!
//! Whoever asked may have restarted when there is something to tell: answers are kept, and it asks again.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::delivery::dedup::Ledger;
use swarm_shared::proto::delivery::executor::{Desk, Effect, Incoming, OPEN_MAX, RUNNING_MAX, Ticket};
use swarm_shared::proto::delivery::record::{Record, digest};
use swarm_shared::proto::delivery::{CommandId, Stage, StageMessage};
use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::{Header, Lane};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Work;
use crate::actions::{Actions, Command};
use crate::journal::Journal;
use crate::process::{DRAIN_GRACE, TERM_GRACE};

/// Writes that wait for the journal: one for each command at hand, and one for what was answered from memory.
const WRITES_MAX: usize = OPEN_MAX + 1;
/// How long an action may take to end once it has been told to: a program is killed well before that.
const KILL_PATIENCE: Duration = TERM_GRACE.saturating_add(DRAIN_GRACE.saturating_mul(2));

/// What concerns the desk and has happened elsewhere.
#[derive(Debug)]
pub(super) enum Word {
    Written(Vec<Ticket>, Result<(), String>),
    Finished(CommandId, Reply),
    /// It is time for what the desk waits for.
    Timeout,
}

/// Where a command came from.
enum Asker {
    /// A peer. Its session outlives connections: what is told while there is none goes with the next.
    Peer { link: PeerLink, lane: Lane },
    /// A door of this node. It hears of the end only.
    Door(oneshot::Sender<Reply>),
}

/// The desk and what it needs.
pub(super) struct Acts {
    desk: Desk,
    actions: Actions,
    tasks: TaskTracker,
    /// What may have to run, until it does.
    kept: BTreeMap<CommandId, Command>,
    /// Who wants to hear of each command at hand.
    askers: BTreeMap<CommandId, Asker>,
    running: BTreeMap<CommandId, CancellationToken>,
    writes: mpsc::Sender<(Ticket, Vec<Record>)>,
    written: mpsc::Receiver<(Vec<Ticket>, Result<(), String>)>,
    finishing: mpsc::Sender<(CommandId, Reply)>,
    finished: mpsc::Receiver<(CommandId, Reply)>,
}

impl Acts {
    /// A desk on what the journal has told.
    pub(super) fn new(actions: Actions, journal: Journal, ledger: Ledger, tasks: TaskTracker) -> Self {
        let (writes, to_write) = mpsc::channel(WRITES_MAX);
        let (writing, written) = mpsc::channel(WRITES_MAX);
        let (finishing, finished) = mpsc::channel(RUNNING_MAX);
        tasks.spawn(scribe(journal, to_write, writing));
        Self {
            desk: Desk::new(ledger),
            actions,
            tasks,
            kept: BTreeMap::new(),
            askers: BTreeMap::new(),
            running: BTreeMap::new(),
            writes,
            written,
            finishing,
            finished,
        }
    }

    /// What has happened, as soon as something has. Nothing is lost if nobody waits for it any more.
    pub(super) async fn word(&mut self) -> Word {
        let timeout = self.desk.poll_timeout();
        tokio::select! {
            biased;
            Some((tickets, how)) = self.written.recv() => Word::Written(tickets, how),
            Some((id, reply)) = self.finished.recv() => Word::Finished(id, reply),
            () = clock::sleep_until(timeout.unwrap_or_else(clock::now)), if timeout.is_some() => Word::Timeout,
        }
    }

    /// Takes such a word.
    pub(super) fn take(&mut self, word: Word, work: &Work) {
        let now = clock::now();
        match word {
            Word::Written(tickets, Ok(())) => {
                for ticket in tickets {
                    self.desk.written(ticket, now);
                }
            }
            Word::Written(tickets, Err(why)) => {
                for ticket in tickets {
                    self.desk.not_written(ticket, &why, now);
                }
            }
            Word::Finished(id, reply) => {
                self.running.remove(&id);
                self.desk.finished(id, reply, now);
            }
            Word::Timeout => self.desk.handle_timeout(now),
        }
        self.carry_out(work);
    }

    /// A command that acts has arrived; `content` is its frame's.
    pub(super) fn command(
        &mut self,
        command: Command,
        link: &PeerLink,
        header: &Header,
        content: &[u8],
        work: &Work,
    ) {
        let asker = Asker::Peer {
            link: link.clone(),
            lane: header.lane.unwrap_or_default(),
        };
        self.judge(command, asker, header.life, content, work);
    }

    /// One that has come through a door of this node, with an identity that nothing else has.
    pub(super) fn errand(
        &mut self,
        command: Command,
        life_ms: u64,
        reply: oneshot::Sender<Reply>,
        work: &Work,
    ) {
        self.judge(command, Asker::Door(reply), Some(life_ms), &[], work);
    }

    fn judge(&mut self, command: Command, asker: Asker, life_ms: Option<u64>, content: &[u8], work: &Work) {
        let id = command.id;
        let incoming = Incoming {
            id,
            digest: digest(&command.action, content),
            deadline: command.deadline,
            life_ms,
            traits: self.actions.traits(&command.action),
        };
        self.askers.insert(id, asker);
        if self.desk.command(incoming, clock::now()) {
            self.kept.insert(id, command);
        }
        self.carry_out(work);
    }

    /// An emergency stop is in force, or no more.
    pub(super) fn stopped(&mut self, stopped: bool, work: &Work) {
        if stopped {
            self.desk.stopped(clock::now());
        } else {
            self.desk.released();
        }
        self.carry_out(work);
    }

    /// The process ends: see [`Desk::close`].
    pub(super) fn close(&mut self, work: &Work) {
        self.desk.close(clock::now());
        self.kept.retain(|id, _| self.desk.holds(*id));
        self.carry_out(work);
    }

    /// Whether nothing is left to be waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.desk.is_idle()
    }

    fn carry_out(&mut self, work: &Work) {
        for effect in self.desk.take_effects() {
            match effect {
                Effect::Write { ticket, records } => self.write(ticket, records),
                Effect::Stage { id, stage } => self.tell(id, stage),
                Effect::Run { id } => self.run(id),
                Effect::Kill { id } => {
                    if let Some(stop) = self.running.get(&id) {
                        stop.cancel();
                    }
                }
                Effect::Answer { id, reply } => self.answer(id, reply, work),
            }
        }
    }

    fn write(&mut self, ticket: Ticket, records: Vec<Record>) {
        if let Err(refused) = self.writes.try_send((ticket, records)) {
            // The desk asks for no more than fits, so the scribe has fallen over.
            let why = format!("nobody writes it: {refused}");
            tracing::error!(why, "the journal is lost until the next start");
            self.desk.not_written(ticket, &why, clock::now());
        }
    }

    fn run(&mut self, id: CommandId) {
        let Some(command) = self.kept.remove(&id) else {
            // Never: what may run is kept.
            let reply = Reply::failed("its arguments are lost");
            return self.desk.finished(id, reply, clock::now());
        };
        let stop = command.stop.clone();
        self.running.insert(id, stop.clone());
        let end = End {
            id,
            reply: None,
            to: self.finishing.clone(),
        };
        let actions = self.actions.clone();
        self.tasks.spawn(async move {
            let mut end = end;
            let killed = async {
                stop.cancelled().await;
                tokio::time::sleep(KILL_PATIENCE).await;
            };
            let reply = tokio::select! {
                reply = actions.run(command) => reply,
                () = killed => Reply::failed("was told to end and did not"),
            };
            end.reply = Some(reply);
        });
    }

    fn tell(&self, id: CommandId, stage: Stage) {
        let Some(Asker::Peer { link, lane }) = self.askers.get(&id) else {
            return;
        };
        let told = Parcel::new(&StageMessage { stage }.to_frame(id))
            .map_err(|error| error.to_string())
            .and_then(|parcel| {
                let outgoing = Outgoing {
                    parcel,
                    lane: *lane,
                    deadline: None,
                };
                link.try_send(outgoing).map_err(|error| error.to_string())
            });
        if let Err(error) = told {
            tracing::debug!(%id, %stage, error, "a stage is not told");
        }
    }

    fn answer(&mut self, id: CommandId, reply: Reply, work: &Work) {
        let (link, lane) = match self.askers.remove(&id) {
            None => return,
            Some(Asker::Peer { link, lane }) => (link, lane),
            Some(Asker::Door(to)) => {
                self.kept.remove(&id);
                // The door may have closed meanwhile.
                let _gone = to.send(reply);
                return;
            }
        };
        if self.desk.holds(id) {
            // This was for a copy that is another command; the first goes on.
            let link = link.clone();
            self.askers.insert(id, Asker::Peer { link, lane });
        } else {
            self.kept.remove(&id);
        }
        let command = Header {
            id: Some(id.seq),
            epoch: Some(id.epoch),
            lane: Some(lane),
            ..Header::default()
        };
        work.answer_soon(&link, command, reply);
    }
}

/// Says how an action ended, also if it fell over.
struct End {
    id: CommandId,
    reply: Option<Reply>,
    to: mpsc::Sender<(CommandId, Reply)>,
}

impl Drop for End {
    fn drop(&mut self) {
        let reply = self.reply.take();
        let reply = reply.unwrap_or_else(|| Reply::failed("the action fell over; the node's log says more"));
        // There is room for as many as run at once; if nobody listens any more, the daemon has ended.
        let _ended = self.to.try_send((self.id, reply));
    }
}

/// Has the journal write, in order: what waits while one write is under way goes into the next.
async fn scribe(
    journal: Journal,
    mut to_write: mpsc::Receiver<(Ticket, Vec<Record>)>,
    written: mpsc::Sender<(Vec<Ticket>, Result<(), String>)>,
) {
    let mut batch = Vec::new();
    while to_write.recv_many(&mut batch, WRITES_MAX).await > 0 {
        let (tickets, records): (Vec<Ticket>, Vec<Vec<Record>>) = batch.drain(..).unzip();
        let how = journal.append(records.concat()).await;
        let how = how.map_err(|fault| fault.to_string());
        if written.send((tickets, how)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
