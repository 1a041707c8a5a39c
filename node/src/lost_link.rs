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
//! A node that is stopped has been made safe, and a command for nodes that are on their way may undo that: so it is held
//! back, and killed if a stop comes while it runs, unless the owner says `while_stopped`.
//!
//! It counts from the last byte that was heard, on a clock that goes on while the machine is suspended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::stop::Latch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::process::{self, Stderr};
use crate::status::{Loss, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unarmed,
    Armed { heard: Instant },
    Lost { heard: Instant, owed: bool },
}

/// What has come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// The link is lost, and the command is held back.
    Held,
    /// The link is lost: the command is to run.
    Run,
    /// The link was lost before, and the command that was held back is to run.
    RunNow,
}

/// When to act; see the module.
#[derive(Debug)]
pub struct LostLink {
    after: Duration,
    state: State,
}

impl LostLink {
    /// Unarmed.
    pub fn new(after: Duration) -> Self {
        Self {
            after,
            state: State::Unarmed,
        }
    }

    /// A station that may command was heard at this time.
    pub fn heard(&mut self, at: Instant) {
        self.state = match self.state {
            State::Armed { heard } => State::Armed { heard: heard.max(at) },
            // Old news does not end a loss.
            State::Lost { heard, .. } if at <= heard => self.state,
            State::Unarmed | State::Lost { .. } => State::Armed { heard: at },
        };
    }

    /// What is due now; `held`: whether the command may not run now.
    pub fn handle_timeout(&mut self, now: Instant, held: bool) -> Due {
        match self.state {
            State::Armed { heard } if now >= heard + self.after => {
                self.state = State::Lost { heard, owed: held };
                if held { Due::Held } else { Due::Run }
            }
            State::Lost { heard, owed: true } if !held => {
                self.state = State::Lost { heard, owed: false };
                Due::RunNow
            }
            State::Unarmed | State::Armed { .. } | State::Lost { .. } => Due::Nothing,
        }
    }

    /// When the link will be lost, if nothing more is heard.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Armed { heard } => Some(heard + self.after),
            State::Unarmed | State::Lost { .. } => None,
        }
    }

    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost { .. })
    }
}

/// The sessions of stations that may command and have been linked.
pub type Stations = watch::Receiver<BTreeMap<PeerId, PeerLink>>;

/// How often it is looked whether a lost station is heard again; links come up rarely.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Watches until `stop`. `in_force`: the emergency stop.
pub async fn run(
    config: config::LostLink,
    stations: Stations,
    mut in_force: watch::Receiver<Option<Latch>>,
    status: Status,
    stop: CancellationToken,
) {
    let mut lost_link = LostLink::new(config.after);
    let mut losses = 0_u32;
    loop {
        let was_lost = lost_link.is_lost();
        let heard = stations.borrow().values().filter_map(PeerLink::last_heard).max();
        if let Some(heard) = heard {
            lost_link.heard(heard);
        }
        if was_lost && !lost_link.is_lost() {
            tracing::warn!(losses, "a station is heard again");
            status.update(|facts| facts.lost_link = Some(format!("heard again; lost {losses} times")));
        }
        let now = clock::now();
        let held = in_force.borrow_and_update().is_some() && !config.while_stopped;
        let due = lost_link.handle_timeout(now, held);
        losses += u32::from(matches!(due, Due::Held | Due::Run));
        match due {
            Due::Nothing => {}
            Due::Held => {
                tracing::error!(after = ?config.after, losses, "LINK LOST: no station was heard; stopped, so the lost_link command is held back");
                show(&status, losses, None);
                continue;
            }
            Due::Run | Due::RunNow => {
                tracing::error!(after = ?config.after, losses, "LINK LOST: no station was heard; running the lost_link command");
                show(&status, losses, None);
                let ended = run_command(&config, &mut in_force, &stop).await;
                match &ended {
                    Ok(()) => tracing::warn!("the lost_link command ended well"),
                    Err(why) => tracing::error!(why, "the lost_link command FAILED"),
                }
                show(&status, losses, Some(ended));
                if stop.is_cancelled() {
                    return;
                }
                continue;
            }
        }
        let look = now + LOOK_INTERVAL;
        let next = lost_link.poll_timeout().map_or(look, |due| due.min(look));
        if stop.run_until_cancelled(clock::sleep_until(next)).await.is_none() {
            return;
        }
    }
}

/// Runs the command; a stop that comes meanwhile kills it, unless it may run while stopped.
async fn run_command(
    config: &config::LostLink,
    in_force: &mut watch::Receiver<Option<Latch>>,
    stop: &CancellationToken,
) -> Result<(), String> {
    let kill = stop.child_token();
    let command = process::run(config.command.as_slice(), Stderr::Merged, config.timeout, &kill);
    tokio::pin!(command);
    let stopped = async {
        // The stop's own task ends only when the node does.
        if config.while_stopped || in_force.wait_for(Option::is_some).await.is_err() {
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
        Ok(finished) if finished.exit == 0 => Ok(()),
        _ if killed => Err("killed by the emergency stop".to_owned()),
        Ok(finished) => Err(format!("exit status {}", finished.exit)),
        Err(error) => Err(error.to_string()),
    }
}

fn show(status: &Status, number: u32, command: Option<Result<(), String>>) {
    let how = match &command {
        None => String::new(),
        Some(Ok(())) => "; its command ended well".to_owned(),
        Some(Err(why)) => format!("; its command FAILED: {why}"),
    };
    status.update(|facts| {
        facts.lost_link = Some(format!("LOST, for the {number}. time{how}"));
        facts.last_loss = Some(Loss { number, command });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    #[test]
    fn it_runs_once_for_each_loss() {
        let start = clock::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut lost = LostLink::new(AFTER);
        assert!(
            lost.handle_timeout(at(1_000), false) == Due::Nothing,
            "never linked, never lost"
        );
        lost.heard(at(1_000));
        lost.heard(at(1_005));
        lost.heard(at(1_004));
        assert_eq!(lost.poll_timeout(), Some(at(1_015)));
        assert!(lost.handle_timeout(at(1_014), false) == Due::Nothing);
        assert!(lost.handle_timeout(at(1_015), false) == Due::Run);
        for s in 1_015..1_100 {
            assert!(lost.handle_timeout(at(s), false) == Due::Nothing, "once");
        }
        lost.heard(at(1_005));
        assert!(lost.is_lost(), "old news does not end a loss");
        lost.heard(at(1_200));
        assert!(!lost.is_lost() && lost.handle_timeout(at(1_209), false) == Due::Nothing);
        assert!(
            lost.handle_timeout(at(1_210), false) == Due::Run,
            "and again after a second loss"
        );
    }

    #[test]
    fn time_that_passed_in_one_leap_counts() {
        let start = clock::now();
        let mut lost = LostLink::new(AFTER);
        lost.heard(start);
        assert!(lost.handle_timeout(start + Duration::from_secs(3_600), false) == Due::Run);
        assert!(lost.handle_timeout(start + Duration::from_secs(7_200), false) == Due::Nothing);
    }

    #[test]
    fn a_stop_holds_the_command_back_until_its_release_if_the_loss_still_lasts() {
        let start = clock::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut lost = LostLink::new(AFTER);
        lost.heard(start);
        assert_eq!(lost.handle_timeout(at(10), true), Due::Held);
        assert_eq!(lost.handle_timeout(at(60), true), Due::Nothing, "stopped");
        assert_eq!(lost.handle_timeout(at(61), false), Due::RunNow, "released");
        assert_eq!(lost.handle_timeout(at(62), false), Due::Nothing, "once");
        assert_eq!(lost.handle_timeout(at(63), true), Due::Nothing);
        assert_eq!(
            lost.handle_timeout(at(64), false),
            Due::Nothing,
            "once for each loss"
        );
        lost.heard(at(100));
        assert_eq!(lost.handle_timeout(at(110), true), Due::Held);
        lost.heard(at(120));
        assert_eq!(
            lost.handle_timeout(at(121), false),
            Due::Nothing,
            "the loss is over"
        );
    }

    #[tokio::test]
    async fn a_stop_kills_the_command_unless_it_may_run_while_stopped() {
        let mut config = config::Config::parse(
            "[lost_link]\nafter = \"1s\"\ncommand = [\"/bin/sleep\", \"0.3\"]",
            &config::Origin::Text(None),
        )
        .expect("a configuration")
        .0
        .lost_link
        .expect("is there");
        assert!(!config.while_stopped, "unless its owner says so");
        let order = Latch {
            issuer: swarm_shared::proto::id::PublicKey([1; 32]).id(),
            number: 1,
        };
        let (_task, mut in_force) = watch::channel(Some(order));
        let stop = CancellationToken::new();
        run_command(&config, &mut in_force, &stop)
            .await
            .expect_err("killed");
        config.while_stopped = true;
        assert_eq!(run_command(&config, &mut in_force, &stop).await, Ok(()));
    }
}
