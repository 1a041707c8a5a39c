//! The daemon: its parts put together, and its life from start to a clean end.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | [`run`] | the parts, the signals | `SIGTERM`, `SIGINT`, or joined when that was all |
//! | links, enrolment | see [`crate::links`] | at stop |
//! | telemetry | the readings | at stop |
//! | status | the status socket | at stop |
//! | plug-ins | see [`crate::plugins`] | at stop |
//! | doors | see [`crate::doors`] | at stop |
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
use crate::status::{JOIN_WORDS_MAX, JoinRequest};

/// Runs the node until it is told to stop.
///
/// # Errors
/// Why it could not start.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let code = settings.config.join.clone().filter(|_| settings.until_joined);
    let mut node = Node::start(settings)?;
    let codes = node.codes.clone();
    let links = match Links::start(&mut node).await {
        Ok(links) => links,
        Err(error) => {
            node.shut_down().await;
            return Err(error);
        }
    };
    gateways::open(&node, &links);
    if let Some(patience) = sd_notify::watchdog_enabled() {
        node.tasks.spawn(watchdog(patience, node.stop.clone()));
    }
    tell_systemd(&[NotifyState::Ready]);
    tracing::info!(name = %*node.name.borrow(), id = node.key.public().id().short(), "ready");
    let mut ended = Ok(());
    tokio::select! {
        _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping: interrupted"),
        joined = hand_in(code.clone().unwrap_or_default(), codes), if code.is_some() => ended = joined,
    }
    tell_systemd(&[NotifyState::Stopping]);
    node.stop.cancel();
    links.shut_down().await;
    node.shut_down().await;
    ended
}

/// Has a code tried, for `swarm-node join`.
async fn hand_in(code: String, codes: mpsc::Sender<JoinRequest>) -> anyhow::Result<()> {
    let (done, mut joined) = oneshot::channel();
    let (words, mut told) = mpsc::channel(JOIN_WORDS_MAX);
    codes
        .send(JoinRequest { code, words, done })
        .await
        .context("the node is shutting down")?;
    let joined = loop {
        tokio::select! {
            biased;
            // Whoever typed the verb reads the log.
            Some(word) = told.recv() => tracing::info!("{word}"),
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

async fn watchdog(patience: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(patience / 2);
    // One word after a pause is enough; many at once would fill systemd's socket, and this task would wait for room.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        tell_systemd(&[NotifyState::Watchdog]);
    }
}

fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
