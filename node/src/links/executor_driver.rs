//! The commands that act: carries out the effects of the [`Executor`].
//!
//! | task | owns | ends |
//! |---|---|---|
//! | links | the executor, the arguments of waiting commands, the cancellation of running ones | see [`super`] |
//! | one for each running action | its reply | with the reply, or [`KILL_TIMEOUT`] after its cancellation |
//!
//! Records go to the journal's thread from here, those of one burst of commands as one append. A peer that has restarted
//! misses replies; they are journaled, and it asks again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::executor::{
    ActionProperties, AfterFile, CommandSource, Effect, Executor, IN_FLIGHT_MAX, IncomingCommand, WriteId,
};
use swarm_shared::proto::delivery::record::{Record, digest};
use swarm_shared::proto::delivery::{CommandId, Stage, StageMessage};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::stop::StopState;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Header, Lane};
use tokio::sync::oneshot;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::CommandContext;
use crate::actions::{Actions, Command};
use crate::journal::{Journal, PendingAppends};
use crate::process::{DRAIN_GRACE, TERM_GRACE};

/// Appends under way: at most one write for each command in flight, and one for replies from memory.
const APPENDS_MAX: usize = IN_FLIGHT_MAX + 1;
/// Writes that are gathered before the journal gets them although more commands are waiting.
const WRITES_PER_APPEND_MAX: usize = 64;
/// How long an action may take to end after its cancellation. A program is killed well before that.
const KILL_TIMEOUT: Duration = TERM_GRACE.saturating_add(DRAIN_GRACE.saturating_mul(2));

/// An input of the executor that does not come from a peer.
#[derive(Debug)]
pub(super) enum ExecutorEvent {
    /// Records became durable, or the reason why not.
    Written(Vec<WriteId>, Result<(), String>),
    Finished(CommandId, Reply),
    Panicked(JoinError),
    Timeout,
}

/// Where the stages and the reply of a command go.
enum ReplyTarget {
    /// A session, which outlives connections: what is sent while there is none goes out with the next.
    Peer { link: PeerLink, lane: Lane },
    /// A gateway of this node. It gets the reply only.
    Gateway(oneshot::Sender<Reply>),
}

struct RunningAction {
    cancel: CancellationToken,
    task: Id,
}

/// The executor with its surroundings: journal, actions, sessions.
pub(super) struct ExecutorDriver {
    executor: Executor,
    actions: Actions,
    tracker: TaskTracker,
    /// Commands that may still have to run.
    pending: BTreeMap<CommandId, Command>,
    reply_targets: BTreeMap<CommandId, ReplyTarget>,
    running: BTreeMap<CommandId, RunningAction>,
    action_tasks: JoinSet<(CommandId, Reply)>,
    /// Gathered for the next append.
    unwritten: (Vec<WriteId>, Vec<Record>),
    appends: PendingAppends<Vec<WriteId>>,
}

impl ExecutorDriver {
    /// An executor that continues from what `journal` held, `dedup`.
    pub(super) fn new(actions: Actions, journal: Journal, dedup: DedupTable, tracker: TaskTracker) -> Self {
        Self {
            executor: Executor::new(dedup),
            actions,
            tracker,
            pending: BTreeMap::new(),
            reply_targets: BTreeMap::new(),
            running: BTreeMap::new(),
            action_tasks: JoinSet::new(),
            unwritten: (Vec::new(), Vec::new()),
            appends: PendingAppends::new(journal, APPENDS_MAX),
        }
    }

    /// The next event. Cancel safe.
    pub(super) async fn next_event(&mut self) -> ExecutorEvent {
        let timeout = self.executor.poll_timeout();
        tokio::select! {
            biased;
            (write_ids, result) = self.appends.next() => {
                ExecutorEvent::Written(write_ids, result.map_err(|fault| fault.to_string()))
            }
            Some(finished) = self.action_tasks.join_next() => finished_event(finished),
            () = clock::sleep_until(timeout.unwrap_or_else(clock::now)), if timeout.is_some() => ExecutorEvent::Timeout,
        }
    }

    /// Handles an event, and the actions that have finished meanwhile.
    pub(super) fn on_event(&mut self, event: ExecutorEvent, context: &CommandContext) {
        let mut next = Some(event);
        while let Some(event) = next {
            self.handle(event);
            next = self.action_tasks.try_join_next().map(finished_event);
        }
        self.apply_effects(context);
    }

    fn handle(&mut self, event: ExecutorEvent) {
        let now = clock::now();
        match event {
            ExecutorEvent::Written(write_ids, Ok(())) => {
                for write_id in write_ids {
                    self.executor.on_written(write_id, now);
                }
            }
            ExecutorEvent::Written(write_ids, Err(reason)) => self.fail_writes(write_ids, &reason),
            ExecutorEvent::Finished(id, reply) => {
                self.running.remove(&id);
                self.executor.on_finished(id, reply, now);
            }
            ExecutorEvent::Panicked(error) => {
                let found = self.running.iter().find(|(_, action)| action.task == error.id());
                if let Some((&id, _)) = found {
                    tracing::error!(%id, %error, "Action task panicked");
                    let reply =
                        Reply::failed("internal error: the action's task panicked; see the node's log");
                    self.handle(ExecutorEvent::Finished(id, reply));
                }
            }
            ExecutorEvent::Timeout => self.executor.handle_timeout(now),
        }
    }

    /// Hands the gathered records to the journal. Call it when no more commands are waiting.
    pub(super) fn flush_writes(&mut self) {
        if self.unwritten.0.is_empty() {
            return;
        }
        let (write_ids, records) = std::mem::take(&mut self.unwritten);
        if let Err((write_ids, fault)) = self.appends.push(records, write_ids) {
            // The executor bounds its writes, so the journal's thread has died.
            tracing::error!(%fault, "Records not written: commands are refused until the next start");
            self.fail_writes(write_ids, &fault.to_string());
        }
    }

    fn fail_writes(&mut self, write_ids: Vec<WriteId>, reason: &str) {
        for write_id in write_ids {
            self.executor.on_write_failed(write_id, reason, clock::now());
        }
    }

    /// A command that acts has come from a peer; `content` is that of its frame.
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

    /// A command that acts has come through a gateway of this node, under an identity that this node gave it.
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

    /// An emergency stop is in force, the node is held, or either has been released.
    pub(super) fn on_stop_changed(&mut self, state: StopState, context: &CommandContext) {
        match state {
            StopState::Free => self.executor.on_release(),
            StopState::Held => self.executor.on_hold(),
            StopState::Stopped => self.executor.on_stop(clock::now()),
        }
        self.apply_effects(context);
    }

    /// The program ends: see [`Executor::shut_down`].
    pub(super) fn close(&mut self, context: &CommandContext) {
        self.executor.shut_down(clock::now());
        self.pending.retain(|id, _| self.executor.contains(*id));
        self.apply_effects(context);
    }

    /// Leaves running actions to the task tracker of the node.
    pub(super) fn detach_running(&mut self) {
        self.action_tasks.detach_all();
    }

    /// Whether nothing runs and no record is on its way to the disk.
    pub(super) fn is_idle(&self) -> bool {
        self.executor.is_idle()
    }

    fn apply_effects(&mut self, context: &CommandContext) {
        for effect in self.executor.take_effects() {
            match effect {
                Effect::Write {
                    write_id,
                    mut records,
                } => {
                    self.unwritten.0.push(write_id);
                    self.unwritten.1.append(&mut records);
                }
                Effect::Stage { id, stage } => self.send_stage(id, stage),
                Effect::Run { id } => self.run(id),
                Effect::Kill { id } => {
                    if let Some(action) = self.running.get(&id) {
                        action.cancel.cancel();
                    }
                }
                Effect::Reply { id, reply } => self.reply(id, reply, context),
            }
        }
        if self.unwritten.0.len() >= WRITES_PER_APPEND_MAX {
            self.flush_writes();
        }
    }

    fn run(&mut self, id: CommandId) {
        let Some(command) = self.pending.remove(&id) else {
            // A command that may run is always pending.
            let reply = Reply::failed("internal error: the command's arguments are gone");
            return self.executor.on_finished(id, reply, clock::now());
        };
        let cancel = command.cancel.clone();
        let actions = self.actions.clone();
        let killed = cancel.clone();
        let action = async move {
            let killed = async {
                killed.cancelled().await;
                tokio::time::sleep(KILL_TIMEOUT).await;
            };
            let reply = tokio::select! {
                reply = actions.run(command) => reply,
                () = killed => Reply::failed(format!("was cancelled, and did not end within {KILL_TIMEOUT:?}")),
            };
            (id, reply)
        };
        let task = self.action_tasks.spawn(self.tracker.track_future(action)).id();
        self.running.insert(id, RunningAction { cancel, task });
    }

    fn send_stage(&self, id: CommandId, stage: Stage) {
        let Some(ReplyTarget::Peer { link, lane }) = self.reply_targets.get(&id) else {
            return;
        };
        let sent = EncodedFrame::new(&StageMessage { stage }.to_frame(id))
            .map_err(|error| error.to_string())
            .and_then(|frame| {
                let outgoing = Outgoing {
                    frame,
                    lane: *lane,
                    deadline: None,
                };
                link.try_send(outgoing).map_err(|error| error.to_string())
            });
        if let Err(error) = sent {
            tracing::debug!(%id, %stage, error, "Stage not sent");
        }
    }

    fn reply(&mut self, id: CommandId, reply: Reply, context: &CommandContext) {
        let (link, lane) = match self.reply_targets.remove(&id) {
            None => return,
            Some(ReplyTarget::Peer { link, lane }) => (link, lane),
            Some(ReplyTarget::Gateway(to)) => {
                self.pending.remove(&id);
                // The gateway's connection may have closed.
                to.send(reply).ok();
                return;
            }
        };
        if self.executor.contains(id) {
            // This reply refuses another command under the same identity; the first one goes on.
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
        context.reply_in_background(&link, &command, &reply);
    }
}

fn finished_event(finished: Result<(CommandId, Reply), JoinError>) -> ExecutorEvent {
    match finished {
        Ok((id, reply)) => ExecutorEvent::Finished(id, reply),
        Err(error) => ExecutorEvent::Panicked(error),
    }
}

#[cfg(test)]
mod tests;
