//! A node falls silent: how long until the station says that it is offline.

use rustix::process::Signal;
use swarm_shared::api::NodeState;
use swarm_shared::net::clock;
use tokio::time::sleep;

use super::real_station::{RealStation, wait_state};
use super::{Samples, Table};

/// Time between two runs, not a multiple of the heartbeat, so that silence begins anywhere within one.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(1_370);

/// Stops a real node's process and measures.
///
/// # Errors
/// If the station says nothing.
pub async fn run(runs: usize) -> anyhow::Result<()> {
    let station = RealStation::start().await?;
    let mut node = station.node("drone-1", "").await?;
    let (mut silent, mut offline) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        sleep(PAUSE).await;
        let mut events = station.watch().await;
        wait_state(&mut events, NodeState::Online).await?;
        let started = clock::now();
        node.signal(Signal::STOP);
        wait_state(&mut events, NodeState::Silent).await?;
        silent.add(clock::since(started).as_secs_f64());
        wait_state(&mut events, NodeState::Offline).await?;
        offline.add(clock::since(started).as_secs_f64());
        node.signal(Signal::CONT);
        wait_state(&mut events, NodeState::Online).await?;
    }
    let mut table = Table::new();
    table.add_row("SIGSTOP of a node until it is shown silent", "s", &silent);
    table.add_row("SIGSTOP of a node until it is shown offline", "s", &offline);
    Ok(table.print()?)
}
