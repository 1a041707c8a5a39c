//! Knut's clients: temperatures of the nodes as Knut's server tells them, and an interface of our own for the rest.
//!
//! | `apiId` | `msgId` | what is done | answer |
//! |---|---|---|---|
//! | 1 | 1, 2, 3 | temperatures: one, all, past ones (`temperatures`) | 0x0101, 0x0102, 0x0103; 0x0101 also by itself |
//! | 21335 | 1, 2 | who is there; an action (`api`) | 0x0101, 0x0102 |
//! | any | 0 | nothing | none |
//! | another | | nothing | the same message |
//!
//! | bound | beyond it |
//! |---|---|
//! | [`FIRST_MESSAGE_TIMEOUT`] until anything is said, [`MESSAGE_TIMEOUT`] for a message that has begun | closed |
//! | [`WRITE_TIMEOUT`] without anything being read of what is written | closed: whoever does not read is not waited for |
//! | pushes that wait for a slow reader ([`PUSHES_MAX`]) | passed over; then it is told all temperatures anew |
//!
//! Whoever has said something once may be silent for good: clients of Knut listen. Heartbeats find out who is gone.

mod api;
mod connection;
mod temperatures;
#[cfg(test)]
mod tests;

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::foreign::knut::Message;
use tokio::sync::{broadcast, mpsc};

use super::access::{AccessPolicy, Client};
use super::listener::GatewayListener;
use super::{GatewayContext, GatewayError};
use crate::config::gateways::KnutConfig;
use crate::fleet::{Event, NodesRequest};
use temperatures::TemperatureCache;

/// As the configuration calls it.
const GATEWAY: &str = "knut";
/// How long a new connection may say nothing.
pub const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a message may take from its first byte to its last.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing may be taken of what is written.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Pushes that wait for one reader.
pub const PUSHES_MAX: usize = 256;

/// Opens the gateway.
///
/// # Errors
/// [`DoorError::Listen`].
pub async fn open(config: &KnutConfig, context: &GatewayContext) -> Result<(), GatewayError> {
    let listener = GatewayListener::open(GATEWAY, &config.common, context)?;
    let state = Arc::new(ServerState {
        access: AccessPolicy::new(GATEWAY, &config.common, context),
        config: config.clone(),
        temperatures: Mutex::new(TemperatureCache::new(config)),
        pushes: broadcast::Sender::new(PUSHES_MAX),
    });
    let follow = NodesRequest::Follow { telemetry: true };
    let events = context
        .fleet
        .perform_as(follow, format!("{GATEWAY} gateway"))
        .await;
    let (keeper, shutdown) = (Arc::clone(&state), context.shutdown.clone());
    context.tasks.spawn(async move {
        shutdown.run_until_cancelled(keeper.follow_events(events)).await;
    });
    context.tasks.spawn(listener.serve(move |stream, permit| {
        let state = Arc::clone(&state);
        async move { connection::serve(&state, stream, &permit).await }
    }));
    Ok(())
}

/// What all connections share.
#[derive(Debug)]
struct ServerState {
    access: AccessPolicy,
    config: KnutConfig,
    temperatures: Mutex<TemperatureCache>,
    /// Temperatures that have changed, as messages.
    pushes: broadcast::Sender<Bytes>,
}

impl ServerState {
    fn temperatures(&self) -> MutexGuard<'_, TemperatureCache> {
        self.temperatures.lock()
    }

    /// Keeps the temperatures and pushes what changes, for as long as there is a station.
    async fn follow_events(&self, mut events: mpsc::Receiver<Event>) {
        let mut ticks = tokio::time::interval(self.config.history_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    if let Some(complaint) = self.temperatures().missing_sensor_warning(&event) {
                        tracing::warn!(gateway = GATEWAY, "{complaint}");
                    }
                    let changed = self.temperatures().on_event(event);
                    if let Some(message) = changed {
                        // Nobody may be there.
                        let _nobody = self.pushes.send(message.encode().into());
                    }
                }
                _tick = ticks.tick() => self.temperatures().record_history(clock::unix_time_ms()),
            }
        }
    }

    /// The answer to a message; `None` if it asks for none.
    async fn handle(&self, client: &Client, message: Message) -> Option<Message> {
        let Message { api, id, .. } = message;
        if id == 0 {
            return None;
        }
        match api {
            temperatures::TEMPERATURE => {
                let (what, answer) = self.temperatures().respond(&message);
                self.access
                    .audit(client, "temperature", what, "told".to_owned())
                    .await;
                Some(answer)
            }
            api::FLEET_API => Some(api::handle(&self.access, &self.config.common, client, message).await),
            _ => {
                tracing::debug!(gateway = GATEWAY, api, id, "an interface that is not here");
                Some(message)
            }
        }
    }
}
