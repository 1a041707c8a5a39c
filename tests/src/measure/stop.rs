//! An emergency stop of many nodes, until each node's report is at the station: the station's whole engine, its store
//! and its datagrams, with the nodes of [`super::stop_host`].

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use ground_station::config::Config;
use ground_station::engine::{Engine, Mode, Settings};
use swarm_shared::api::{ActRequest, FleetRequest};
use swarm_shared::client::Fleet;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use tokio::time::{sleep, timeout};

use super::fanout::{count_done, count_online};
use super::node_host::NodeHosts;
use super::stop_host::node_ip;
use super::{Samples, SeededFleet, Table};

/// How long linking may take before the measurement is given up.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one stop or release may take, in milliseconds.
const ROUND_MS: u64 = 30_000;
/// Quiet time after linking, so that self-checks are over.
const SETTLE: Duration = Duration::from_secs(2);
/// Between a release and the next stop: longer than the burst of datagrams.
const PAUSE: Duration = Duration::from_millis(400);

/// The fleets that are stopped, and the ways of the orders.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Numbers of nodes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000")]
    nodes: Vec<u32>,
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Number of processes that the nodes share.
    #[arg(long, default_value_t = 2)]
    processes: u32,
    /// Percentage of datagrams that are lost.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    drop: u8,
    /// Orders go by datagram only; links carry reports and releases.
    #[arg(long)]
    datagrams_only: bool,
    /// Directory of the nodes' journals and the station's store.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

/// Times of the nodes of one fleet, in milliseconds.
#[derive(Default)]
struct StopTimes {
    /// Until the first report that it is stopped.
    stopped: Samples,
    last_stopped: Samples,
    /// Until the report that its journal has it, too.
    latched: Samples,
    last_latched: Samples,
}

/// Stops and releases fleets of each size so many times.
///
/// # Errors
/// If the nodes do not link, or one is not stopped or not released in time.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let mut table = Table::new();
    for nodes in &options.nodes {
        let times = measure_fleet(*nodes, options).await?;
        table.add_row(
            format!("{nodes} nodes stopped: each one's report"),
            "ms",
            &times.stopped,
        );
        table.add_row("  the last one's", "ms", &times.last_stopped);
        table.add_row("  each one's, that it is on disk", "ms", &times.latched);
        table.add_row("  the last one's, that it is on disk", "ms", &times.last_latched);
    }
    Ok(table.print()?)
}

async fn measure_fleet(nodes: u32, options: &Options) -> anyhow::Result<StopTimes> {
    let dir = tempfile::Builder::new()
        .prefix("measure-")
        .tempdir_in(&options.dir)?;
    let state_dir = dir.path().join("station");
    std::fs::create_dir_all(&state_dir)?;
    // Free now; nothing else on this machine takes ports at random while it is measured.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let ping_port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let engine = start_engine(&state_dir, ping_port, Vec::new()).await?;
    count_done(&engine.fleet(), FleetRequest::Init).await?;
    engine.shut_down().await;
    let root = identity::load(&state_dir, KeyFile::FleetRoot)?.context("no root key")?;
    let members = SeededFleet::from_seed(*root.seed())?;
    let mut arguments = vec![
        format!("--port={port}"),
        format!("--ping-port={ping_port}"),
        format!("--drop={}", options.drop),
        format!("--dir={}", dir.path().display()),
    ];
    if options.datagrams_only {
        arguments.push("--datagrams-only".to_owned());
    }
    let _hosts = NodeHosts::start_as("stop-host", &arguments, &members, nodes, options.processes)?;
    // It dials them, so that it has seen each at its own address, to which datagrams go.
    let addresses = (0..nodes).map(|number| SocketAddr::from((node_ip(number), port)));
    let engine = start_engine(&state_dir, ping_port, addresses.collect()).await?;
    let fleet = engine.fleet();
    let all_linked = async {
        while count_online(&fleet).await? < nodes as usize {}
        anyhow::Ok(())
    };
    timeout(TEST_TIMEOUT, all_linked)
        .await
        .context("not all nodes link")??;
    sleep(SETTLE).await;
    let (mut times, mut rehearsal) = (StopTimes::default(), StopTimes::default());
    for run in 0..=options.runs {
        let times = if run == 0 { &mut rehearsal } else { &mut times };
        stop_all(&fleet, nodes, times).await?;
        let released = count_done(&fleet, release_request()).await?;
        ensure!(
            released == nodes as usize,
            "{released} of {nodes} nodes are released"
        );
        sleep(PAUSE).await;
    }
    engine.shut_down().await;
    Ok(times)
}

async fn start_engine(state_dir: &Path, ping_port: u16, nodes: Vec<SocketAddr>) -> anyhow::Result<Engine> {
    let mut config = Config::load(None, state_dir)?;
    config.listen = ([127, 0, 0, 1], 0).into();
    config.mdns = false;
    config.pings = true;
    config.ping_port = ping_port;
    config.nodes = nodes;
    let settings = Settings {
        config,
        state_dir: state_dir.to_owned(),
        mode: Mode::Daemon,
        bridges_devices: false,
    };
    Ok(Engine::start(settings).await?)
}

pub(super) fn stop_request() -> ActRequest {
    ActRequest::Stop {
        selector: Selector::all(),
        timeout_ms: Some(ROUND_MS),
    }
}

pub(super) fn release_request() -> ActRequest {
    ActRequest::Release {
        selector: Selector::all(),
        timeout_ms: ROUND_MS,
    }
}

async fn stop_all(fleet: &Fleet, nodes: u32, times: &mut StopTimes) -> anyhow::Result<()> {
    let events = fleet.perform(stop_request()).await;
    let (mut count, mut last_stopped, mut last_latched) = (0, 0.0_f64, 0.0_f64);
    for delivery in events.deliveries().await? {
        ensure!(delivery.state == Outcome::Done, "not stopped: {delivery:?}");
        let value = delivery.value.as_ref();
        let stopped = value.and_then(|value| value.get("acknowledged_ms")?.as_f64());
        let stopped = stopped.context("the delivery has no acknowledged_ms")?;
        times.stopped.add(stopped);
        times.latched.add(delivery.ms);
        last_stopped = last_stopped.max(stopped);
        last_latched = last_latched.max(delivery.ms);
        count += 1;
    }
    ensure!(count == nodes, "{count} of {nodes} nodes are stopped");
    times.last_stopped.add(last_stopped);
    times.last_latched.add(last_latched);
    Ok(())
}
