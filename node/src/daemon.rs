//! The daemon: its parts put together, and its life from start to a clean end.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | [`run`] | the parts, the signals | `SIGTERM`, `SIGINT`, or joined when that was all |
//! | links, enrolment | see [`crate::links`] | at stop |
//! | telemetry | the readings | at stop |
//! | status | the status socket | at stop |
//! | plug-ins | see [`crate::plugins`] | at stop |
//! | gateways | see [`crate::gateways`] | at stop |
//! | watchdog | systemd's patience | at stop |

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

/// Runs the node until it is told to stop.
///
/// # Errors
/// Why it could not start.
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
    tracing::info!(name = %*node.name.borrow(), id = node.key.public().id().short(), "ready");
    let mut ended = Ok(());
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping: interrupted"),
        joined = join_with_code(code.clone().unwrap_or_default(), join_sender), if code.is_some() => ended = joined,
    }
    notify_systemd(&[NotifyState::Stopping]);
    node.shutdown.cancel();
    links.shut_down().await;
    node.shut_down().await;
    ended
}

/// Has a code tried, for `swarm-node join`.
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
            // Whoever typed the verb reads the log.
            Some(word) = updates_rx.recv() => tracing::info!("{word}"),
            joined = &mut joined => break joined,
        }
    };
    match joined.context("the node is shutting down")? {
        Ok(fleet) => {
            tracing::info!(fleet, "joined");
            Ok(())
        }
        Err(why) => bail!("not joined: {why}"),
    }
}

async fn watchdog(timeout: Duration, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(timeout / 2);
    // One word after a pause is enough; many at once would fill systemd's socket, and this task would wait for room.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        notify_systemd(&[NotifyState::Watchdog]);
    }
}

fn notify_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
