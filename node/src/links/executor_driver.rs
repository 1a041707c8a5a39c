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
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::executor::{
    ActionProperties, AfterFile, CommandSource, Effect, Executor, IN_FLIGHT_MAX, IncomingCommand,
    RUNNING_MAX, WriteId,
};
use swarm_shared::proto::delivery::record::{Record, digest};
use swarm_shared::proto::delivery::{CommandId, Stage, StageMessage};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Header, Lane};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::CommandContext;
use crate::actions::{Actions, Command};
use crate::journal::Journal;
use crate::process::{DRAIN_GRACE, TERM_GRACE};

/// Writes that wait for the journal: one for each command at hand, and one for what was answered from memory.
const WRITES_MAX: usize = IN_FLIGHT_MAX + 1;
/// How long an action may take to end once it has been told to: a program is killed well before that.
const KILL_TIMEOUT: Duration = TERM_GRACE.saturating_add(DRAIN_GRACE.saturating_mul(2));

/// What concerns the desk and has happened elsewhere.
#[derive(Debug)]
pub(super) enum ExecutorEvent {
    Written(Vec<WriteId>, Result<(), String>),
    Finished(CommandId, Reply),
    /// It is time for what the desk waits for.
    Timeout,
}

/// Where a command came from.
enum ReplyTarget {
    /// A peer. Its session outlives connections: what is told while there is none goes with the next.
    Peer { link: PeerLink, lane: Lane },
    /// A door of this node. It hears of the end only.
    Gateway(oneshot::Sender<Reply>),
}

/// The desk and what it needs.
pub(super) struct ExecutorDriver {
    executor: Executor,
    actions: Actions,
    tasks: TaskTracker,
    /// What may have to run, until it does.
    pending: BTreeMap<CommandId, Command>,
    /// Who wants to hear of each command at hand.
    reply_targets: BTreeMap<CommandId, ReplyTarget>,
    running: BTreeMap<CommandId, CancellationToken>,
    writes: mpsc::Sender<(WriteId, Vec<Record>)>,
    written: mpsc::Receiver<(Vec<WriteId>, Result<(), String>)>,
    finishing: mpsc::Sender<(CommandId, Reply)>,
    finished: mpsc::Receiver<(CommandId, Reply)>,
}

impl ExecutorDriver {
    /// A desk on what the journal has told.
    pub(super) fn new(actions: Actions, journal: Journal, dedup: DedupTable, tasks: TaskTracker) -> Self {
        let (writes, to_write) = mpsc::channel(WRITES_MAX);
        let (writing, written) = mpsc::channel(WRITES_MAX);
        let (finishing, finished) = mpsc::channel(RUNNING_MAX);
        tasks.spawn(scribe(journal, to_write, writing));
        Self {
            executor: Executor::new(dedup),
            actions,
            tasks,
            pending: BTreeMap::new(),
            reply_targets: BTreeMap::new(),
            running: BTreeMap::new(),
            writes,
            written,
            finishing,
            finished,
        }
    }

    /// What has happened, as soon as something has. Nothing is lost if nobody waits for it any more.
    pub(super) async fn next_event(&mut self) -> ExecutorEvent {
        let timeout = self.executor.poll_timeout();
        tokio::select! {
            biased;
            Some((tickets, how)) = self.written.recv() => ExecutorEvent::Written(tickets, how),
            Some((id, reply)) = self.finished.recv() => ExecutorEvent::Finished(id, reply),
            () = clock::sleep_until(timeout.unwrap_or_else(clock::now)), if timeout.is_some() => ExecutorEvent::Timeout,
        }
    }

    /// Takes such a word.
    pub(super) fn on_event(&mut self, event: ExecutorEvent, context: &CommandContext) {
        let now = clock::now();
        match event {
            ExecutorEvent::Written(tickets, Ok(())) => {
                for ticket in tickets {
                    self.executor.on_written(ticket, now);
                }
            }
            ExecutorEvent::Written(tickets, Err(why)) => {
                for ticket in tickets {
                    self.executor.on_write_failed(ticket, &why, now);
                }
            }
            ExecutorEvent::Finished(id, reply) => {
                self.running.remove(&id);
                self.executor.on_finished(id, reply, now);
            }
            ExecutorEvent::Timeout => self.executor.handle_timeout(now),
        }
        self.apply_effects(context);
    }

    /// A command that acts has arrived; `content` is its frame's.
    pub(super) fn on_command(
        &mut self,
        command: Command,
        link: &PeerLink,
        header: &Header,
        content: &[u8],
        context: &CommandContext,
    ) {
        let target = ReplyTarget::Peer {
            link: link.clone(),
            lane: header.lane.unwrap_or_default(),
        };
        let incoming = IncomingCommand {
            id: command.id,
            digest: digest(&command.action, content),
            deadline: command.deadline,
            ttl_ms: header.life,
            properties: self.actions.properties(&command.action),
            source: CommandSource::Peer,
            after: None,
        };
        self.submit(command, incoming, target, context);
    }

    /// A command from a gateway of this node, with an identity of its own.
    pub(super) fn on_local_command(
        &mut self,
        command: Command,
        properties: ActionProperties,
        ttl_ms: u64,
        after: Option<AfterFile>,
        reply: oneshot::Sender<Reply>,
        context: &CommandContext,
    ) {
        let incoming = IncomingCommand {
            id: command.id,
            digest: digest(&command.action, &[]),
            deadline: command.deadline,
            ttl_ms: Some(ttl_ms),
            properties,
            source: CommandSource::Gateway,
            after,
        };
        self.submit(command, incoming, ReplyTarget::Gateway(reply), context);
    }

    /// A file that a gateway's commands wait for has ended.
    pub(super) fn on_file_ended(
        &mut self,
        file: u64,
        failed: Option<(Instant, &str)>,
        context: &CommandContext,
    ) {
        self.executor.on_file_ended(file, failed, clock::now());
        self.apply_effects(context);
    }

    /// A landing action was refused as busy: flight actions that arrived before it do not start after it.
    pub(super) fn cancel_waiting_flights(&mut self, context: &CommandContext) {
        self.executor.cancel_waiting_flights();
        self.apply_effects(context);
    }

    fn submit(
        &mut self,
        command: Command,
        incoming: IncomingCommand,
        target: ReplyTarget,
        context: &CommandContext,
    ) {
        let id = command.id;
        self.reply_targets.insert(id, target);
        if self.executor.on_command(incoming, clock::now()) {
            self.pending.insert(id, command);
        }
        self.apply_effects(context);
    }

    /// An emergency stop is in force, or no more.
    pub(super) fn on_stop_changed(&mut self, stopped: bool, context: &CommandContext) {
        if stopped {
            self.executor.on_stop(clock::now());
        } else {
            self.executor.on_release();
        }
        self.apply_effects(context);
    }

    /// The process ends: see [`Desk::close`].
    pub(super) fn close(&mut self, context: &CommandContext) {
        self.executor.shut_down(clock::now());
        self.pending.retain(|id, _| self.executor.contains(*id));
        self.apply_effects(context);
    }

    /// Whether nothing is left to be waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.executor.is_idle()
    }

    fn apply_effects(&mut self, context: &CommandContext) {
        for effect in self.executor.take_effects() {
            match effect {
                Effect::Write {
                    write_id: ticket,
                    records,
                } => self.write(ticket, records),
                Effect::Stage { id, stage } => self.send_stage(id, stage),
                Effect::Run { id } => self.run(id),
                Effect::Kill { id } => {
                    if let Some(cancel) = self.running.get(&id) {
                        cancel.cancel();
                    }
                }
                Effect::Reply { id, reply } => self.reply(id, reply, context),
            }
        }
    }

    fn write(&mut self, ticket: WriteId, records: Vec<Record>) {
        if let Err(refused) = self.writes.try_send((ticket, records)) {
            // The desk asks for no more than fits, so the scribe has fallen over.
            let why = format!("nobody writes it: {refused}");
            tracing::error!(why, "the journal is lost until the next start");
            self.executor.on_write_failed(ticket, &why, clock::now());
        }
    }

    fn run(&mut self, id: CommandId) {
        let Some(command) = self.pending.remove(&id) else {
            // Never: what may run is kept.
            let reply = Reply::failed("its arguments are lost");
            return self.executor.on_finished(id, reply, clock::now());
        };
        let cancel = command.cancel.clone();
        self.running.insert(id, cancel.clone());
        let completion = CompletionGuard {
            id,
            reply: None,
            completions: self.finishing.clone(),
        };
        let actions = self.actions.clone();
        self.tasks.spawn(async move {
            let mut completion = completion;
            let killed = async {
                cancel.cancelled().await;
                tokio::time::sleep(KILL_TIMEOUT).await;
            };
            let reply = tokio::select! {
                reply = actions.run(command) => reply,
                () = killed => Reply::failed("was told to end and did not"),
            };
            completion.reply = Some(reply);
        });
    }

    fn send_stage(&self, id: CommandId, stage: Stage) {
        let Some(ReplyTarget::Peer { link, lane }) = self.reply_targets.get(&id) else {
            return;
        };
        let sent = EncodedFrame::new(&StageMessage { stage }.to_frame(id))
            .map_err(|error| error.to_string())
            .and_then(|parcel| {
                let outgoing = Outgoing {
                    frame: parcel,
                    lane: *lane,
                    deadline: None,
                };
                link.try_send(outgoing).map_err(|error| error.to_string())
            });
        if let Err(error) = sent {
            tracing::debug!(%id, %stage, error, "a stage is not told");
        }
    }

    fn reply(&mut self, id: CommandId, reply: Reply, context: &CommandContext) {
        let (link, lane) = match self.reply_targets.remove(&id) {
            None => return,
            Some(ReplyTarget::Peer { link, lane }) => (link, lane),
            Some(ReplyTarget::Gateway(to)) => {
                self.pending.remove(&id);
                // The door may have closed meanwhile.
                let _gone = to.send(reply);
                return;
            }
        };
        if self.executor.contains(id) {
            // This was for a copy that is another command; the first goes on.
            let link = link.clone();
            self.reply_targets.insert(id, ReplyTarget::Peer { link, lane });
        } else {
            self.pending.remove(&id);
        }
        let command = Header {
            id: Some(id.seq),
            epoch: Some(id.epoch),
            lane: Some(lane),
            ..Header::default()
        };
        context.reply_in_background(&link, command, reply);
    }
}

/// Says how an action ended, also if it fell over.
struct CompletionGuard {
    id: CommandId,
    reply: Option<Reply>,
    completions: mpsc::Sender<(CommandId, Reply)>,
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        let reply = self.reply.take();
        let reply = reply.unwrap_or_else(|| Reply::failed("the action fell over; the node's log says more"));
        // There is room for as many as run at once; if nobody listens any more, the daemon has ended.
        let _ended = self.completions.try_send((self.id, reply));
    }
}

/// Has the journal write, in order: what waits while one write is under way goes into the next.
async fn scribe(
    journal: Journal,
    mut to_write: mpsc::Receiver<(WriteId, Vec<Record>)>,
    written: mpsc::Sender<(Vec<WriteId>, Result<(), String>)>,
) {
    let mut batch = Vec::new();
    while to_write.recv_many(&mut batch, WRITES_MAX).await > 0 {
        let (tickets, records): (Vec<WriteId>, Vec<Vec<Record>>) = batch.drain(..).unzip();
        let how = journal.append(records.concat()).await;
        let how = how.map_err(|fault| fault.to_string());
        if written.send((tickets, how)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
