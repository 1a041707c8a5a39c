//! Knut's clients: the nodes' temperatures as Knut's server sends them, and an API of our own for nodes and actions.
//!
//! | `apiId` | `msgId` | request | answer |
//! |---|---|---|---|
//! | 1 | 1, 2, 3 | temperatures: one, all, past ones (`temperatures`) | 0x0101, 0x0102, 0x0103; 0x0101 is pushed too |
//! | 21335 | 1, 2 | nodes; an action (`api`) | 0x0101, 0x0102 |
//! | any | 0 | none | none |
//! | another | | none | the same message |
//!
//! | limit | beyond it |
//! |---|---|
//! | [`FIRST_BYTE_TIMEOUT`](super::framing::FIRST_BYTE_TIMEOUT) until the first message, [`MESSAGE_TIMEOUT`](super::framing::MESSAGE_TIMEOUT) for one that has begun | closed |
//! | [`WRITE_TIMEOUT`](super::framing::WRITE_TIMEOUT) in which nothing is read | closed |
//! | [`PUSHES_MAX`] pushes that wait for a slow reader | dropped; then it is sent all temperatures |
//!
//! A client that has sent a message may be silent for ever, as Knut's clients are. Heartbeats find lost connections.

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
use tokio::sync::broadcast;

use super::access::{AccessPolicy, Client};
use super::context::{GatewayContext, GatewayError};
use super::listener::GatewayListener;
use crate::config::gateways::KnutConfig;
use swarm_shared::api::NodesRequest;
use swarm_shared::client::EventStream;
use temperatures::TemperatureCache;

/// The gateway's name in the configuration.
const GATEWAY: &str = KnutConfig::NAME;
/// Time between two heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Pushes that wait for one slow reader.
pub const PUSHES_MAX: usize = 256;

/// Opens the gateway.
///
/// # Errors
/// [`GatewayError::Listen`].
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
    /// Encoded messages with changed temperatures.
    pushes: broadcast::Sender<Bytes>,
}

impl ServerState {
    fn temperatures(&self) -> MutexGuard<'_, TemperatureCache> {
        self.temperatures.lock()
    }

    /// Updates the temperatures and pushes changes, until the fleet ends.
    async fn follow_events(&self, mut events: EventStream) {
        let mut ticks = tokio::time::interval(self.config.history_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    if let Some(warning) = self.temperatures().missing_sensor_warning(&event) {
                        tracing::warn!(gateway = GATEWAY, "{warning}");
                    }
                    let changed = self.temperatures().on_event(event);
                    if let Some(message) = changed {
                        // There may be no client.
                        let _receivers = self.pushes.send(message.encode().into());
                    }
                }
                _tick = ticks.tick() => self.temperatures().record_history(clock::unix_time_ms()),
            }
        }
    }

    /// The answer to a message, if it has one.
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
            api::FLEET_API => Some(api::handle(self, client, message).await),
            _ => {
                tracing::debug!(gateway = GATEWAY, api, id, "Message returned: unknown API");
                Some(message)
            }
        }
    }
}
