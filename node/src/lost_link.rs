//! The dead-man: what this node does when it has not heard any commanding station for too long.
//!
//! | state | event | then |
//! |---|---|---|
//! | unarmed | a station that may command is linked | armed |
//! | armed | none of them was heard for `after` | lost: the command runs, once |
//! | lost | one of them is heard again | armed |
//!
//! It counts from the last byte that was heard, on a clock that goes on while the machine is suspended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::id::PeerId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::process::{self, Stderr};
use crate::status::{Loss, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unarmed,
    Armed { heard: Instant },
    Lost { heard: Instant },
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
            State::Lost { heard } if at <= heard => self.state,
            State::Unarmed | State::Lost { .. } => State::Armed { heard: at },
        };
    }

    /// Whether the link is lost now and was not before.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return false;
        }
        if let State::Armed { heard } = self.state {
            self.state = State::Lost { heard };
        }
        true
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

/// Watches until `stop`.
pub async fn run(config: config::LostLink, stations: Stations, status: Status, stop: CancellationToken) {
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
        if lost_link.handle_timeout(now) {
            losses += 1;
            tracing::error!(after = ?config.after, losses, "LINK LOST: no station was heard; running the lost_link command");
            show(&status, losses, None);
            let ran = process::run(config.command.as_slice(), Stderr::Merged, config.timeout, &stop).await;
            let ended = match ran {
                Ok(finished) if finished.exit == 0 => Ok(()),
                Ok(finished) => Err(format!("exit status {}", finished.exit)),
                Err(error) => Err(error.to_string()),
            };
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
        let look = now + LOOK_INTERVAL;
        let next = lost_link.poll_timeout().map_or(look, |due| due.min(look));
        if stop.run_until_cancelled(clock::sleep_until(next)).await.is_none() {
            return;
        }
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
        assert!(!lost.handle_timeout(at(1_000)), "never linked, never lost");
        lost.heard(at(1_000));
        lost.heard(at(1_005));
        lost.heard(at(1_004));
        assert_eq!(lost.poll_timeout(), Some(at(1_015)));
        assert!(!lost.handle_timeout(at(1_014)));
        assert!(lost.handle_timeout(at(1_015)));
        for s in 1_015..1_100 {
            assert!(!lost.handle_timeout(at(s)), "once");
        }
        lost.heard(at(1_005));
        assert!(lost.is_lost(), "old news does not end a loss");
        lost.heard(at(1_200));
        assert!(!lost.is_lost() && !lost.handle_timeout(at(1_209)));
        assert!(lost.handle_timeout(at(1_210)), "and again after a second loss");
    }

    #[test]
    fn time_that_passed_in_one_leap_counts() {
        let start = clock::now();
        let mut lost = LostLink::new(AFTER);
        lost.heard(start);
        assert!(lost.handle_timeout(start + Duration::from_secs(3_600)));
        assert!(!lost.handle_timeout(start + Duration::from_secs(7_200)));
    }
}
