//! The dead-man: what this node does when it has not heard any commanding station for too long.
//!
//! | state | event | then |
//! |---|---|---|
//! | unarmed | a station that may command is linked | armed |
//! | armed | none of them was heard for `after` | lost: the command runs, once |
//! | armed | the same, while an emergency stop is in force | lost, and its command is held back |
//! | lost, held back | the stop is released | lost: the command runs, once |
//! | lost | one of them is heard again | armed; a command that was held back never runs |
//!
//! What outlives this process, but not the boot of the machine (`memory.rs`):
//!
//! | the process ends in state | the next one, same boot, starts | after a reboot |
//! |---|---|---|
//! | unarmed | unarmed | unarmed |
//! | armed | armed, as if a station had been heard at its start | unarmed |
//! | lost, and the command has not ended | the same: it runs again, `after` the start | unarmed |
//! | lost, and the command has ended | lost: it does not run again before a station was heard | unarmed |
//!
//! So a node whose program dies in flight is not left without its dead-man because the station went meanwhile, and one
//! that is switched on in its case does nothing. What is to outlive the process is written when it changes, once for
//! each link-up at most; where it cannot be written, the next process starts unarmed.
//!
//! A node that is stopped has been made safe, and a command for nodes that are on their way may undo that: so it is held
//! back, and killed if a stop comes while it runs, unless the owner says `while_stopped`.
//!
//! It counts from the last byte that was heard, on a clock that goes on while the machine is suspended.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::stop::StopId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::fleet_store::{FleetStore, LossState};
use crate::process::{self, Stderr};
use crate::status::{LinkLoss, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unarmed,
    Armed {
        last_heard: Instant,
    },
    Lost {
        last_heard: Instant,
        command: CommandState,
    },
}

/// The command of one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CommandState {
    /// Held back.
    Deferred,
    Running,
    Ended,
}

/// What has come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    /// Nothing.
    Nothing,
    /// The link is lost, and the command is held back.
    Deferred,
    /// The link is lost: the command is to run.
    Run,
    /// The link was lost before, and the command that was held back is to run.
    RunDeferred,
}

/// When to act; see the module.
#[derive(Debug)]
pub struct LostLinkDetector {
    after: Duration,
    state: State,
}

impl LostLinkDetector {
    /// As the process before this one left it, on the same boot; `now` is the start of this one.
    pub fn new(after: Duration, past: Option<LossState>, now: Instant) -> Self {
        let state = match past {
            None => State::Unarmed,
            Some(LossState::Linked) => State::Armed { last_heard: now },
            Some(LossState::CommandEnded) => State::Lost {
                last_heard: now,
                command: CommandState::Ended,
            },
        };
        Self { after, state }
    }

    /// What a process that comes after this one has to know; `None` if no station was ever linked.
    pub fn persisted_state(&self) -> Option<LossState> {
        match self.state {
            State::Unarmed => None,
            State::Armed { .. }
            | State::Lost {
                command: CommandState::Deferred | CommandState::Running,
                ..
            } => Some(LossState::Linked),
            State::Lost {
                command: CommandState::Ended,
                ..
            } => Some(LossState::CommandEnded),
        }
    }

    /// A station that may command was heard at this time.
    pub fn on_heard(&mut self, at: Instant) {
        self.state = match self.state {
            State::Armed { last_heard: heard } => State::Armed {
                last_heard: heard.max(at),
            },
            // Old news does not end a loss.
            State::Lost {
                last_heard: heard, ..
            } if at <= heard => self.state,
            State::Unarmed | State::Lost { .. } => State::Armed { last_heard: at },
        };
    }

    /// What is due now; `held`: whether the command may not run now.
    pub fn handle_timeout(&mut self, now: Instant, suppressed: bool) -> TimeoutAction {
        match self.state {
            State::Armed { last_heard: heard } if now >= heard + self.after => {
                let (command, due) = if suppressed {
                    (CommandState::Deferred, TimeoutAction::Deferred)
                } else {
                    (CommandState::Running, TimeoutAction::Run)
                };
                self.state = State::Lost {
                    last_heard: heard,
                    command,
                };
                due
            }
            State::Lost {
                last_heard: heard,
                command: CommandState::Deferred,
            } if !suppressed => {
                let command = CommandState::Running;
                self.state = State::Lost {
                    last_heard: heard,
                    command,
                };
                TimeoutAction::RunDeferred
            }
            State::Unarmed | State::Armed { .. } | State::Lost { .. } => TimeoutAction::Nothing,
        }
    }

    /// The command has ended, in whatever way.
    pub fn on_command_ended(&mut self) {
        if let State::Lost { command, .. } = &mut self.state {
            *command = CommandState::Ended;
        }
    }

    /// When the link will be lost, if nothing more is heard.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Armed { last_heard: heard } => Some(heard + self.after),
            State::Unarmed | State::Lost { .. } => None,
        }
    }

    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost { .. })
    }
}

/// The sessions of stations that may command and have been linked.
pub type CommandingStations = watch::Receiver<BTreeMap<PeerId, PeerLink>>;

/// How often it is looked whether a lost station is heard again; links come up rarely.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What the dead-man works with.
#[derive(Debug)]
pub struct Setup {
    /// What its owner wants.
    pub config: config::LostLink,
    /// Whom it listens to.
    pub stations: CommandingStations,
    /// The emergency stop.
    pub latch: watch::Receiver<Option<StopId>>,
    /// What outlives this process.
    pub store: FleetStore,
    /// The id of this boot; empty if it has none.
    pub boot: String,
    /// What is shown on this device.
    pub status: Status,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// Watches until it is told to stop.
pub async fn run(setup: Setup) {
    let past = setup.store.load_loss_state(&setup.boot);
    let (facts, to_keep) = watch::channel(past);
    // Beside each other: a memory card may take seconds, and the command is not to wait for it.
    tokio::join!(
        save_changes(setup.store.clone(), setup.boot.clone(), to_keep),
        monitor(setup, past, facts)
    );
}

async fn monitor(setup: Setup, past: Option<LossState>, facts: watch::Sender<Option<LossState>>) {
    let Setup {
        config,
        stations,
        mut latch,
        status,
        shutdown,
        ..
    } = setup;
    let mut lost_link = LostLinkDetector::new(config.after, past, clock::now());
    let mut losses = u32::from(lost_link.is_lost());
    match past {
        None => {}
        Some(LossState::Linked) => {
            tracing::warn!(after = ?config.after, "a station was linked before this start: the lost_link command runs unless one is heard");
        }
        Some(LossState::CommandEnded) => {
            tracing::warn!("the link was LOST before this start, and the lost_link command has run");
            status.update(|facts| {
                facts.lost_link = Some("LOST before this start; its command has run".to_owned());
            });
        }
    }
    loop {
        let was_lost = lost_link.is_lost();
        let heard = stations.borrow().values().filter_map(PeerLink::last_heard).max();
        if let Some(heard) = heard {
            lost_link.on_heard(heard);
        }
        publish_state(&facts, &lost_link);
        if was_lost && !lost_link.is_lost() {
            tracing::warn!(losses, "a station is heard again");
            status.update(|facts| facts.lost_link = Some(format!("heard again; lost {losses} times")));
        }
        let now = clock::now();
        let suppressed = latch.borrow_and_update().is_some() && !config.while_stopped;
        let due = lost_link.handle_timeout(now, suppressed);
        losses += u32::from(matches!(due, TimeoutAction::Deferred | TimeoutAction::Run));
        match due {
            TimeoutAction::Nothing => {}
            TimeoutAction::Deferred => {
                tracing::error!(after = ?config.after, losses, "LINK LOST: no station was heard; stopped, so the lost_link command is held back");
                update_status(&status, losses, None);
                continue;
            }
            TimeoutAction::Run | TimeoutAction::RunDeferred => {
                tracing::error!(after = ?config.after, losses, "LINK LOST: no station was heard; running the lost_link command");
                update_status(&status, losses, None);
                let ended = run_command(&config, &mut latch, &shutdown).await;
                match &ended {
                    Ok(()) => tracing::warn!("the lost_link command ended well"),
                    Err(why) => tracing::error!(why, "the lost_link command FAILED"),
                }
                update_status(&status, losses, Some(ended));
                if shutdown.is_cancelled() {
                    // It was killed: it runs again at the next start.
                    return;
                }
                lost_link.on_command_ended();
                continue;
            }
        }
        let next_poll = now + POLL_INTERVAL;
        let next = lost_link
            .poll_timeout()
            .map_or(next_poll, |due| due.min(next_poll));
        if shutdown
            .run_until_cancelled(clock::sleep_until(next))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// Writes down each change, the newest only if the disk is slower; ends with what tells of them.
async fn save_changes(store: FleetStore, boot: String, mut facts: watch::Receiver<Option<LossState>>) {
    while facts.changed().await.is_ok() {
        let state = *facts.borrow_and_update();
        if let Some(state) = state.filter(|_| !boot.is_empty()) {
            let boot = boot.clone();
            store.save_loss_state(boot, state).await;
        }
    }
}

fn publish_state(facts: &watch::Sender<Option<LossState>>, lost_link: &LostLinkDetector) {
    facts.send_if_modified(|kept| {
        let now = lost_link.persisted_state();
        std::mem::replace(kept, now) != now
    });
}

/// Runs the command; a stop that comes meanwhile kills it, unless it may run while stopped.
async fn run_command(
    config: &config::LostLink,
    latch: &mut watch::Receiver<Option<StopId>>,
    shutdown: &CancellationToken,
) -> Result<(), String> {
    let kill = shutdown.child_token();
    let command = process::run(config.command.as_slice(), Stderr::Merged, config.timeout, &kill);
    tokio::pin!(command);
    let stopped = async {
        // The stop's own task ends only when the node does.
        if config.while_stopped || latch.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let (ran, killed) = tokio::select! {
        ran = &mut command => (ran, false),
        () = stopped => {
            kill.cancel();
            (command.await, true)
        }
    };
    match ran {
        Ok(finished) if finished.exit_code == 0 => Ok(()),
        _ if killed => Err("killed by the emergency stop".to_owned()),
        Ok(finished) => Err(format!("exit status {}", finished.exit_code)),
        Err(error) => Err(error.to_string()),
    }
}

fn update_status(status: &Status, number: u32, command: Option<Result<(), String>>) {
    let how = match &command {
        None => String::new(),
        Some(Ok(())) => "; its command ended well".to_owned(),
        Some(Err(why)) => format!("; its command FAILED: {why}"),
    };
    status.update(|facts| {
        facts.lost_link = Some(format!("LOST, for the {number}. time{how}"));
        facts.last_loss = Some(LinkLoss { number, command });
    });
}
