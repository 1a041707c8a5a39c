//! The lost-link command (dead-man switch): what this node runs when it has lost all commanding stations for too
//! long.
//!
//! | state | event | then |
//! |---|---|---|
//! | unarmed | a station that may command is linked | armed |
//! | armed | nothing was received from any of them for `after` | lost: the command runs, once |
//! | armed | the same, while an emergency stop is in force | lost, and the command is deferred |
//! | lost, deferred | the stop is released | lost: the command runs, once |
//! | lost | something is received from one of them | armed; a deferred command never runs |
//!
//! The state that outlives this process, but not the boot of the machine:
//!
//! | the process ends in state | the next one starts on the same boot | after a reboot |
//! |---|---|---|
//! | unarmed | unarmed | unarmed |
//! | armed | armed, as if a station had been heard at the start | unarmed |
//! | lost, and the command has not ended | the same: it runs again, `after` the start | unarmed |
//! | lost, and the command has ended | lost: it runs again only after a station was heard | unarmed |
//!
//! So a node whose program crashes in flight still runs its command if its station disappears meanwhile, and a node
//! that is switched on without a station does nothing. The state is stored when it changes, at most once for each new
//! link; where it cannot be stored, the next process starts unarmed.
//!
//! A stopped node is in a safe state, and a command for nodes in motion could end that: so it is deferred, and killed
//! if a stop comes while it runs, unless the configuration sets `while_stopped`.
//!
//! The time counts from the last received byte, on a clock that also counts while the machine is suspended.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::stop::StopState;
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

/// State of the command for one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CommandState {
    /// Not started because an emergency stop is in force.
    Deferred,
    Running,
    Ended,
}

/// Result of [`LostLinkDetector::handle_timeout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    /// There is nothing to do.
    Nothing,
    /// The link is lost, and the command is deferred.
    Deferred,
    /// The link is lost: run the command.
    Run,
    /// The link was lost before: run the deferred command.
    RunDeferred,
}

/// Detects the loss of all commanding stations; see the module.
#[derive(Debug)]
pub struct LostLinkDetector {
    after: Duration,
    state: State,
}

impl LostLinkDetector {
    /// A detector with the state of the process before this one, on the same boot; `now` is the start of this
    /// process.
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

    /// The state for the next process; `None` if no commanding station was ever linked.
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

    /// Records that something was received from a commanding station at this time.
    pub fn on_heard(&mut self, at: Instant) {
        self.state = match self.state {
            State::Armed { last_heard: heard } => State::Armed {
                last_heard: heard.max(at),
            },
            // Bytes from before the loss do not end it.
            State::Lost {
                last_heard: heard, ..
            } if at <= heard => self.state,
            State::Unarmed | State::Lost { .. } => State::Armed { last_heard: at },
        };
    }

    /// Handles the timer; `suppressed`: whether the command may not run now.
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

    /// Records that the command has ended, successfully or not.
    pub fn on_command_ended(&mut self) {
        if let State::Lost { command, .. } = &mut self.state {
            *command = CommandState::Ended;
        }
    }

    /// When the link counts as lost if nothing more is received.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Armed { last_heard: heard } => Some(heard + self.after),
            State::Unarmed | State::Lost { .. } => None,
        }
    }

    /// Whether the link is lost.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost { .. })
    }
}

/// The links of the commanding stations that have been linked.
pub type CommandingStations = watch::Receiver<BTreeMap<PeerId, PeerLink>>;

/// Interval of checking whether a lost station is heard again; links open rarely.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Everything that the task uses.
#[derive(Debug)]
pub struct Setup {
    /// The table `[lost_link]` of the configuration.
    pub config: config::LostLink,
    /// The commanding stations.
    pub stations: CommandingStations,
    /// Whether an emergency stop is in force. A hold changes nothing: the device may be flying.
    pub stop_state: watch::Receiver<StopState>,
    /// Stores the state for the next process.
    pub store: FleetStore,
    /// The id of this boot; empty if the system gives none.
    pub boot: String,
    /// The facts of the status socket.
    pub status: Status,
    /// Ends the task.
    pub shutdown: CancellationToken,
}

/// Runs the detector until shutdown.
pub async fn run(setup: Setup) {
    let past = setup.store.load_loss_state(&setup.boot);
    let (facts, to_keep) = watch::channel(past);
    // Concurrently: a memory card may take seconds, and must not delay the command.
    tokio::join!(
        save_changes(setup.store.clone(), setup.boot.clone(), to_keep),
        monitor(setup, past, facts)
    );
}

async fn monitor(setup: Setup, past: Option<LossState>, facts: watch::Sender<Option<LossState>>) {
    let Setup {
        config,
        stations,
        mut stop_state,
        status,
        shutdown,
        ..
    } = setup;
    let mut lost_link = LostLinkDetector::new(config.after, past, clock::now());
    let mut losses = u32::from(lost_link.is_lost());
    match past {
        None => {}
        Some(LossState::Linked) => {
            tracing::warn!(after = ?config.after, "Lost-link command armed by a station that was linked before this start");
        }
        Some(LossState::CommandEnded) => {
            tracing::warn!("LINK LOST before this start, and the lost_link command has run");
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
            tracing::warn!(losses, "Station heard again");
            status.update(|facts| facts.lost_link = Some(format!("heard again; lost {losses} times")));
        }
        let now = clock::now();
        let suppressed = *stop_state.borrow_and_update() == StopState::Stopped && !config.while_stopped;
        let due = lost_link.handle_timeout(now, suppressed);
        losses += u32::from(matches!(due, TimeoutAction::Deferred | TimeoutAction::Run));
        match due {
            TimeoutAction::Nothing => {}
            TimeoutAction::Deferred => {
                tracing::error!(after = ?config.after, losses, "LINK LOST: no station was heard; the lost_link command is deferred by the stop");
                update_status(&status, losses, None);
                continue;
            }
            TimeoutAction::Run | TimeoutAction::RunDeferred => {
                tracing::error!(after = ?config.after, losses, "LINK LOST: no station was heard; running the lost_link command");
                update_status(&status, losses, None);
                let ended = run_command(&config, &mut stop_state, &shutdown).await;
                match &ended {
                    Ok(()) => tracing::warn!("Lost-link command succeeded"),
                    Err(why) => tracing::error!(why, "Lost-link command FAILED"),
                }
                update_status(&status, losses, Some(ended));
                if shutdown.is_cancelled() {
                    // It was killed by the shutdown: it runs again at the next start.
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

/// Stores each change, only the newest if the disk is slower; ends with the sender.
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

/// Runs the command. A stop during it kills it, unless it may run while stopped.
async fn run_command(
    config: &config::LostLink,
    stop_state: &mut watch::Receiver<StopState>,
    shutdown: &CancellationToken,
) -> Result<(), String> {
    let kill = shutdown.child_token();
    let command = process::run(config.command.as_slice(), Stderr::Merged, config.timeout, &kill);
    tokio::pin!(command);
    let stopped = async {
        // The stop's own task ends only at shutdown.
        let stopped = stop_state.wait_for(|state| *state == StopState::Stopped);
        if config.while_stopped || stopped.await.is_err() {
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
    let result = match &command {
        None => String::new(),
        Some(Ok(())) => "; its command succeeded".to_owned(),
        Some(Err(why)) => format!("; its command FAILED: {why}"),
    };
    status.update(|facts| {
        facts.lost_link = Some(format!("LOST, for the {number}. time{result}"));
        facts.last_loss = Some(LinkLoss { number, command });
    });
}
