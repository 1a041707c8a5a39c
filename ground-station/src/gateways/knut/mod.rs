//! Knut's clients: temperatures of the nodes as Knut's server tells them, and an interface of our own for the rest.
//!
//! | `apiId` | `msgId` | what is done | answer |
//! |---|---|---|---|
//! | 1 | 1, 2, 3 | temperatures: one, all, past ones (`board`) | 0x0101, 0x0102, 0x0103; 0x0101 also by itself |
//! | 21335 | 1, 2 | who is there; an action (`api`) | 0x0101, 0x0102 |
//! | any | 0 | nothing | none |
//! | another | | nothing | the same message |
//!
//! | bound | beyond it |
//! |---|---|
//! | [`FIRST_WORD`] until anything is said, [`MESSAGE_TIME`] for a message that has begun | closed |
//! | [`WRITE_TIME`] without anything being read of what is written | closed: whoever does not read is not waited for |
//! | pushes that wait for a slow reader ([`PUSHES_MAX`]) | passed over; then it is told all temperatures anew |
//!
//! Whoever has said something once may be silent for good: clients of Knut listen. Heartbeats find out who is gone.

mod api;
mod connection;
mod temperatures;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::proto::knut::Message;
use tokio::sync::{broadcast, mpsc};

use super::access::{Guard, Visitor};
use super::listener::Hall;
use super::{DoorError, House};
use crate::config::gateways::Knut;
use crate::fleet::{Event, Request};
use temperatures::Board;

/// As the configuration calls it.
const DOOR: &str = "knut";
/// How long a new connection may say nothing.
pub const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long a message may take from its first byte to its last.
pub const MESSAGE_TIME: Duration = Duration::from_secs(10);
/// How long nothing may be taken of what is written.
pub const WRITE_TIME: Duration = Duration::from_secs(10);
/// Time between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Pushes that wait for one reader.
pub const PUSHES_MAX: usize = 256;

/// Opens the door.
///
/// # Errors
/// [`DoorError::Listen`].
pub async fn open(config: &Knut, house: &House) -> Result<(), DoorError> {
    let hall = Hall::open(DOOR, &config.common, house)?;
    let desk = Arc::new(Desk {
        guard: Guard::new(DOOR, &config.common, house),
        config: config.clone(),
        board: Mutex::new(Board::new(config)),
        pushes: broadcast::Sender::new(PUSHES_MAX),
    });
    let follow = Request::Follow { telemetry: true };
    let events = house.fleet.perform_as(follow, format!("{DOOR} door")).await;
    let (keeper, stop) = (Arc::clone(&desk), house.stop.clone());
    house.tasks.spawn(async move {
        stop.run_until_cancelled(keeper.keep(events)).await;
    });
    house.tasks.spawn(hall.receive(move |stream, entrance| {
        let desk = Arc::clone(&desk);
        async move { connection::serve(&desk, stream, &entrance).await }
    }));
    Ok(())
}

/// What all connections share.
#[derive(Debug)]
struct Desk {
    guard: Guard,
    config: Knut,
    board: Mutex<Board>,
    /// Temperatures that have changed, as messages.
    pushes: broadcast::Sender<Bytes>,
}

impl Desk {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the board and pushes what changes, for as long as there is a station.
    async fn keep(&self, mut events: mpsc::Receiver<Event>) {
        let mut ticks = tokio::time::interval(self.config.history_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    if let Some(complaint) = self.board().complaint(&event) {
                        tracing::warn!(door = DOOR, "{complaint}");
                    }
                    let changed = self.board().take(event);
                    if let Some(message) = changed {
                        // Nobody may be there.
                        let _nobody = self.pushes.send(message.encode().into());
                    }
                }
                _tick = ticks.tick() => self.board().remember(clock::unix_time_ms()),
            }
        }
    }

    /// The answer to a message; `None` if it asks for none.
    async fn answer(&self, visitor: &Visitor, message: Message) -> Option<Message> {
        let Message { api, id, .. } = message;
        if id == 0 {
            return None;
        }
        match api {
            temperatures::TEMPERATURE => {
                let (what, answer) = self.board().answer(&message);
                self.guard
                    .note(visitor, "temperature", what, "told".to_owned())
                    .await;
                Some(answer)
            }
            api::FLEET => Some(api::answer(&self.guard, &self.config.common, visitor, message).await),
            _ => {
                tracing::debug!(door = DOOR, api, id, "an interface that is not here");
                Some(message)
            }
        }
    }
}
