//! A station is killed and started again: how long until every node is linked.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use swarm_shared::api::{Event, NodeState};
use swarm_shared::net::clock;
use swarm_shared::net::identity::{self, KeyFile};
use tokio::time::{sleep, timeout};

use super::node_host::NodeHosts;
use super::real_station::{RealStation, TEST_TIMEOUT};
use super::{Samples, SeededFleet, Table};

/// How long the station is linked before it is killed: it stores its members' addresses every second.
const UPTIME: Duration = Duration::from_secs(4);
/// How long the station is away, while the nodes dial ever less often.
const DOWNTIME: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(2);

/// Measures.
///
/// # Errors
/// If the nodes do not link.
pub async fn run(nodes: u32, runs: usize, processes: u32) -> anyhow::Result<()> {
    let mut station = RealStation::start().await?;
    let root = identity::load(&station.state_dir(), KeyFile::FleetRoot)?.context("no root key")?;
    let members = SeededFleet::from_seed(*root.seed())?;
    let _hosts = NodeHosts::start(&members, nodes, processes, station.addr)?;
    wait_all_online(&station, nodes).await?;
    let mut samples = Samples::default();
    for _ in 0..runs {
        sleep(UPTIME).await;
        station.kill();
        sleep(DOWNTIME).await;
        let started = clock::now();
        station.spawn();
        wait_all_online(&station, nodes).await?;
        samples.add(clock::since(started).as_secs_f64());
    }
    let mut table = Table::new();
    let what = format!("{nodes} nodes linked again, from the start of the station");
    table.add_row(what, "s", &samples);
    Ok(table.print()?)
}

async fn wait_all_online(station: &RealStation, nodes: u32) -> anyhow::Result<()> {
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
    timeout(TEST_TIMEOUT, waited).await.context("not all nodes link")
}
