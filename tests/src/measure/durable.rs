//! Commands that act, with everything durable: a station's whole engine with its store on disk, in this process; real
//! `swarm-node` processes with their journals. The action is `log`, the cheapest that is written down: it runs no
//! program, so that only writing, sending and reporting are measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use ground_station::config::Config;
use ground_station::engine::{Engine, Mode, Settings};
use swarm_node::state::StateDir;
use swarm_node::status::{self, JournalView, StatusView};
use swarm_shared::api::{ActRequest, FleetRequest};
use swarm_shared::client::Fleet;
use swarm_shared::net::clock;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::fanout::{count_done, count_online};
use super::real_station::{TEST_TIMEOUT, spawn_node};
use super::{Samples, Table};
use crate::process::Process;

/// Quiet time after linking, so that self-checks are over.
const SETTLE: Duration = Duration::from_secs(2);

/// Options of the measurement.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many nodes each command goes to, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    nodes: Vec<usize>,
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Commands one after the other in each run.
    #[arg(long, default_value_t = 100)]
    single: usize,
    /// Commands in each run under load.
    #[arg(long, default_value_t = 1_000)]
    commands: usize,
    /// How many of them are in flight.
    #[arg(long, default_value_t = 32)]
    in_flight: usize,
    /// Where the store and the journals are.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

/// Measures fleets of each size.
///
/// # Errors
/// If the nodes do not link, or a command is not done.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let mut table = Table::new();
    for nodes in &options.nodes {
        let fleet = DurableFleet::start(*nodes, &options.dir).await?;
        let one = Load {
            commands: options.single,
            in_flight: 1,
        };
        let many = Load {
            commands: options.commands,
            in_flight: options.in_flight,
        };
        for load in [one, many] {
            fleet.measure(load, options.runs, &mut table).await?;
        }
        fleet.engine.shut_down().await;
    }
    Ok(table.print()?)
}

#[derive(Clone, Copy, Debug)]
struct Load {
    commands: usize,
    in_flight: usize,
}

/// A station in this process, and the nodes that do what it says.
struct DurableFleet {
    engine: Engine,
    nodes: Vec<Process>,
    dir: tempfile::TempDir,
}

/// Bytes and flushes that were written so far.
struct WriteCounters {
    journal: JournalView,
    /// As the kernel counts: whole pages, without what the file system adds.
    node_bytes: u64,
    station_bytes: u64,
}

impl DurableFleet {
    async fn start(nodes: usize, dir: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("measure-").tempdir_in(dir)?;
        let state_dir = dir.path().join("station");
        std::fs::create_dir_all(&state_dir)?;
        let mut config = Config::load(None, &state_dir)?;
        config.listen = ([127, 0, 0, 1], 0).into();
        config.mdns = false;
        config.pings = false;
        let settings = Settings {
            config,
            state_dir,
            mode: Mode::Daemon,
            bridges_devices: false,
        };
        let engine = Engine::start(settings).await?;
        let fleet = engine.fleet();
        count_done(&fleet, FleetRequest::Init).await?;
        let mut processes = Vec::new();
        for number in 0..nodes {
            processes.push(spawn_node(&fleet, dir.path(), &node_name(number), "").await?);
        }
        let all_linked = async {
            while count_online(&fleet).await? < nodes {}
            anyhow::Ok(())
        };
        timeout(TEST_TIMEOUT, all_linked)
            .await
            .context("not all nodes link")??;
        sleep(SETTLE).await;
        Ok(Self {
            engine,
            nodes: processes,
            dir,
        })
    }

    async fn measure(&self, load: Load, runs: usize, table: &mut Table) -> anyhow::Result<()> {
        let [mut latency, mut rate, mut deliveries] = [const { Samples::new() }; 3];
        let [mut bytes, mut syncs, mut kernel, mut station] = [const { Samples::new() }; 4];
        // The first is a rehearsal.
        for run in 0..=runs {
            let (before, started) = (self.writes()?, clock::now());
            let took = self.run_commands(load).await?;
            let seconds = clock::since(started).as_secs_f64();
            if run == 0 {
                continue;
            }
            let (after, count) = (self.writes()?, load.commands as f64);
            took.into_iter().for_each(|ms| latency.add(ms));
            rate.add(count / seconds);
            deliveries.add(count * self.nodes.len() as f64 / seconds);
            let journal = [&before.journal, &after.journal];
            bytes.add((journal[1].bytes_written - journal[0].bytes_written) as f64 / count);
            syncs.add((journal[1].syncs - journal[0].syncs) as f64 / count);
            kernel.add((after.node_bytes - before.node_bytes) as f64 / count);
            station.add((after.station_bytes - before.station_bytes) as f64 / count);
        }
        let (nodes, in_flight) = (self.nodes.len(), load.in_flight);
        table.add_row(
            format!("an act of {nodes} nodes, {in_flight} in flight: until all outcomes are stored"),
            "ms",
            &latency,
        );
        table.add_row("  commands", "1/s", &rate);
        table.add_row("  deliveries", "1/s", &deliveries);
        table.add_row("  a node's journal, each command", "bytes", &bytes);
        table.add_row("  its flushes, each command", "", &syncs);
        table.add_row("  pages that it has written, each", "bytes", &kernel);
        table.add_row("  pages of the station, each", "bytes", &station);
        Ok(())
    }

    /// The time of each command, in milliseconds.
    async fn run_commands(&self, load: Load) -> anyhow::Result<Vec<f64>> {
        let (begun, nodes) = (Arc::new(AtomicUsize::new(0)), self.nodes.len());
        let mut at_work = JoinSet::new();
        for _ in 0..load.in_flight {
            let (begun, fleet) = (Arc::clone(&begun), self.engine.fleet());
            at_work.spawn(async move {
                let mut took = Vec::new();
                while begun.fetch_add(1, Ordering::SeqCst) < load.commands {
                    took.push(run_command(&fleet, nodes).await?);
                }
                anyhow::Ok(took)
            });
        }
        let mut took = Vec::new();
        while let Some(part) = at_work.join_next().await {
            took.extend(part??);
        }
        Ok(took)
    }

    fn writes(&self) -> anyhow::Result<WriteCounters> {
        let first = self.nodes.first().context("there is no node")?;
        let socket = StateDir::socket(&self.dir.path().join(node_name(0)));
        let said = status::query(&socket, &status::Request::Status)?.context("the node is gone")?;
        let view: StatusView = serde_json::from_str(&said)?;
        Ok(WriteCounters {
            journal: view.journal.context("the node has no journal")?,
            node_bytes: bytes_written_by(&first.pid().to_string())?,
            station_bytes: bytes_written_by("self")?,
        })
    }
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

/// One command to all nodes until its last outcome is reported, and so stored, in milliseconds.
async fn run_command(fleet: &Fleet, nodes: usize) -> anyhow::Result<f64> {
    let mut arguments = Arguments::default();
    arguments.kwargs.insert("lines".to_owned(), 1.into());
    let request = ActRequest::Command {
        selector: Selector::all(),
        action: "log".to_owned(),
        arguments,
        lane: Lane::Control,
        ttl_ms: 30_000,
        ttl_given: false,
        timeout_ms: 30_000,
        batch: None,
    };
    let started = clock::now();
    let done = count_done(fleet, request).await?;
    ensure!(done == nodes, "{done} of {nodes} nodes are done");
    Ok(clock::since(started).as_secs_f64() * 1_000.0)
}

/// Bytes that a process has had written to disks so far.
fn bytes_written_by(process: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/io");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line
        .with_context(|| format!("{path} has no write_bytes"))?
        .parse()?)
}
