//! The daemon: builds the node's parts, runs them, and shuts them down.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | [`run`] | the parts, the signals | `SIGTERM`, `SIGINT`, or after joining for `join` |
//! | links, enrolment | see [`crate::links`] | at shutdown |
//! | telemetry | the samples | at shutdown |
//! | status | the status socket | at shutdown |
//! | plug-ins | see [`crate::plugins`] | at shutdown |
//! | gateways | see [`crate::gateways`] | at shutdown |
//! | watchdog | systemd's watchdog timer | at shutdown |

use std::time::Duration;

use anyhow::{Context as _, bail};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::gateways;
use crate::links::Links;
use crate::node::{Node, Settings};
use crate::status::{JOIN_UPDATES_MAX, JoinRequest};

/// Runs the node until a signal ends it.
///
/// # Errors
/// The reason why it could not start.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let code = settings.config.join.clone().filter(|_| settings.exit_once_joined);
    let mut node = Node::start(settings)?;
    let join_sender = node.join_sender.clone();
    let links = match Links::start(&mut node).await {
        Ok(links) => links,
        Err(error) => {
            node.shut_down().await;
            return Err(error);
        }
    };
    gateways::open(&node, &links);
    if let Some(patience) = sd_notify::watchdog_enabled() {
        node.tasks.spawn(watchdog(patience, node.shutdown.clone()));
    }
    notify_systemd(&[NotifyState::Ready]);
    tracing::info!(name = %*node.name.borrow(), id = node.key.public().id().short(), "Node is ready");
    let mut ended = Ok(());
    tokio::select! {
        _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "Node shuts down"),
        _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "Node shuts down"),
        joined = join_with_code(code.clone().unwrap_or_default(), join_sender), if code.is_some() => ended = joined,
    }
    notify_systemd(&[NotifyState::Stopping]);
    node.shutdown.cancel();
    links.shut_down().await;
    node.shut_down().await;
    ended
}

/// Joins a fleet with this code, for `swarm-node join`, and logs the progress.
async fn join_with_code(code: String, join_sender: mpsc::Sender<JoinRequest>) -> anyhow::Result<()> {
    let (reply, mut joined) = oneshot::channel();
    let (updates, mut updates_rx) = mpsc::channel(JOIN_UPDATES_MAX);
    join_sender
        .send(JoinRequest { code, updates, reply })
        .await
        .context("the node is shutting down")?;
    let joined = loop {
        tokio::select! {
            biased;
            // The log is the output of the verb.
            Some(update) = updates_rx.recv() => tracing::info!("{update}"),
            joined = &mut joined => break joined,
        }
    };
    match joined.context("the node is shutting down")? {
        Ok(fleet) => {
            tracing::info!(fleet, "Node joined a fleet");
            Ok(())
        }
        Err(why) => bail!("not joined: {why}"),
    }
}

async fn watchdog(timeout: Duration, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(timeout / 2);
    // After a pause one notification is enough; several at once could fill systemd's socket and block this task.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        notify_systemd(&[NotifyState::Watchdog]);
    }
}

fn notify_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "Systemd watchdog could not be notified");
    }
}
