//! A station is killed and started again: how long until every node is linked.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use ground_station::fleet::{Event, NodeState};
use swarm_shared::net::clock;
use swarm_shared::net::identity::{self, KeyFile};
use tokio::time::{sleep, timeout};

use super::node_host::Hosts;
use super::real_station::{PATIENCE, RealStation};
use super::{Members, Samples, Table};

/// How long the station is linked before it is killed: it stores its members' addresses every second.
const LINKED: Duration = Duration::from_secs(4);
/// How long the station is away, while the nodes dial ever less often.
const AWAY: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(2);

/// Measures.
///
/// # Errors
/// If the nodes do not link.
pub async fn run(nodes: u32, runs: usize, processes: u32) -> anyhow::Result<()> {
    let mut station = RealStation::start().await?;
    let root = identity::load(&station.state_dir(), KeyFile::FleetRoot)?.context("no root key")?;
    let members = Members::of(*root.seed())?;
    let _hosts = Hosts::start(&members, nodes, processes, station.addr)?;
    all_online(&station, nodes).await?;
    let mut samples = Samples::default();
    for _ in 0..runs {
        sleep(LINKED).await;
        station.kill();
        sleep(AWAY).await;
        let started = clock::now();
        station.spawn();
        all_online(&station, nodes).await?;
        samples.add(clock::since(started).as_secs_f64());
    }
    let mut table = Table::new();
    let what = format!("{nodes} nodes linked again, from the start of the station");
    table.row(what, "s", &samples);
    Ok(table.print()?)
}

async fn all_online(station: &RealStation, nodes: u32) -> anyhow::Result<()> {
    let waited = async {
        loop {
            let mut events = station.watch().await;
            let mut online = BTreeSet::new();
            while let Some(event) = events.recv().await {
                if let Event::Node(view) = event
                    && view.state == NodeState::Online
                {
                    online.insert(view.id);
                    if online.len() == nodes as usize {
                        return;
                    }
                }
            }
            sleep(RETRY).await;
        }
    };
    timeout(PATIENCE, waited).await.context("not all nodes link")
}
