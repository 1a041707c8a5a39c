//! Measures the product on this machine: `cargo run --release -p swarm-tests --bin measure -- WHAT`.
//! docs/benchmarks.md holds what came of it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use swarm_tests::measure::{
    SeededFleet, bare_tcp, durable, fanout, file, gateways, idle, node_host, raise_file_limit, reconnect,
    recovery, saturated, silence, stop, stop_host,
};

/// Measures the product on this machine. Build it with --release, and leave the machine alone meanwhile.
#[derive(Parser)]
enum Measurement {
    /// One command to many linked nodes until the last reply, and the same over bare TCP.
    Fanout {
        /// How many nodes, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "16,64,256,1000")]
        nodes: Vec<u32>,
        #[arg(long, default_value_t = 100)]
        runs: usize,
        /// In how many processes the nodes are.
        #[arg(long, default_value_t = 2)]
        processes: u32,
        /// Ask the station's whole engine, as the command line does, and not its links alone.
        #[arg(long)]
        engine: bool,
    },
    /// Many commands in flight to each node.
    Pipelined {
        #[arg(long, default_value_t = 256)]
        nodes: u32,
        #[arg(long, default_value_t = 5)]
        runs: usize,
        #[arg(long, default_value_t = 2)]
        processes: u32,
        /// Commands to each node in one run.
        #[arg(long, default_value_t = 4_000)]
        commands: usize,
    },
    /// A station is killed and started again: until the last node is linked.
    Reconnect {
        #[arg(long, default_value_t = 256)]
        nodes: u32,
        #[arg(long, default_value_t = 5)]
        runs: usize,
        #[arg(long, default_value_t = 2)]
        processes: u32,
    },
    /// A node is stopped: until it is shown offline.
    Silence {
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// Memory of an idle node.
    Idle {
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// A station's memory for each link.
    Links {
        #[arg(long, default_value_t = 1_000)]
        nodes: u32,
        #[arg(long, default_value_t = 5)]
        runs: usize,
        #[arg(long, default_value_t = 2)]
        processes: u32,
    },
    /// One large file, hashed and encrypted, beside the speed of hashing and encrypting alone.
    File {
        /// In MiB.
        #[arg(long, default_value_t = 1_024)]
        size: u64,
        #[arg(long, default_value_t = 5)]
        runs: usize,
        #[arg(long, default_value = "/dev/shm")]
        from: PathBuf,
        /// Where the node writes, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "/dev/shm,/var/tmp")]
        to: Vec<PathBuf>,
    },
    /// `ping all` while crowds are at the gateways for other programs.
    Gateways(gateways::Options),
    /// Commands that act, written down on both sides.
    Durable(durable::Options),
    /// A station with many deliveries in its store starts again.
    Recovery {
        /// A node with a full journal instead.
        #[arg(long)]
        node: bool,
        #[arg(long, default_value_t = 1_000_000)]
        deliveries: u64,
        #[arg(long, default_value_t = 20)]
        runs: usize,
        /// Where the store, or the journal, is.
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
    },
    /// Round trips of a command over a narrow link that a file keeps busy, in network namespaces; needs root.
    Saturated {
        /// In `tc`'s words.
        #[arg(long, default_value = "20mbit")]
        rate: String,
        /// How long the narrow link's queue may get.
        #[arg(long, default_value = "400ms")]
        queue: String,
        /// Which way the file goes.
        #[arg(long, value_enum, default_value = "send")]
        direction: saturated::Direction,
        /// How long commands are sent meanwhile, in seconds.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// How many emergency stops after them.
        #[arg(long, default_value_t = 40)]
        stops: usize,
        /// Size of the file, in MiB.
        #[arg(long, default_value_t = 1_024)]
        size: u64,
    },
    /// Emergency stops of many nodes, until each node's report is at the station.
    Stop(stop::Options),
    #[command(hide = true)]
    StopHost(stop_host::Options),
    #[command(hide = true)]
    NodeHost {
        #[arg(long)]
        seed: String,
        #[arg(long)]
        first: u32,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        station: SocketAddr,
    },
    #[command(hide = true)]
    TcpHost {
        #[arg(long)]
        seed: String,
        #[arg(long)]
        first: u32,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        station: SocketAddr,
    },
    #[command(hide = true)]
    StationHost {
        #[arg(long)]
        seed: String,
        #[arg(long)]
        listen: SocketAddr,
    },
}

fn main() -> anyhow::Result<()> {
    raise_file_limit()?;
    let what = Measurement::parse();
    // As the programs themselves do: a node has one thread, a station one for each core.
    let mut runtime = if matches!(
        what,
        Measurement::NodeHost { .. } | Measurement::TcpHost { .. } | Measurement::StopHost(_)
    ) {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(async { tokio::spawn(run(what)).await? })
}

async fn run(what: Measurement) -> anyhow::Result<()> {
    match what {
        Measurement::Fanout {
            nodes,
            runs,
            processes,
            engine: false,
        } => fanout::links(&nodes, runs, processes).await,
        Measurement::Fanout {
            nodes,
            runs,
            processes,
            engine: true,
        } => fanout::engine(&nodes, runs, processes).await,
        Measurement::Pipelined {
            nodes,
            runs,
            processes,
            commands,
        } => fanout::pipelined(nodes, runs, processes, commands).await,
        Measurement::Reconnect {
            nodes,
            runs,
            processes,
        } => reconnect::run(nodes, runs, processes).await,
        Measurement::Silence { runs } => silence::run(runs).await,
        Measurement::Idle { runs } => idle::node(runs).await,
        Measurement::Links {
            nodes,
            runs,
            processes,
        } => idle::links(nodes, runs, processes).await,
        Measurement::File { size, runs, from, to } => file::run(size, runs, &from, &to).await,
        Measurement::Gateways(options) => gateways::run(&options).await,
        Measurement::Durable(options) => durable::run(&options).await,
        Measurement::Recovery {
            node: true,
            runs,
            dir,
            ..
        } => recovery::node(runs, &dir).await,
        Measurement::Recovery {
            node: false,
            deliveries,
            runs,
            dir,
        } => recovery::station(deliveries, runs, &dir).await,
        Measurement::Saturated {
            rate,
            queue,
            direction,
            seconds,
            stops,
            size,
        } => saturated::run(&rate, &queue, direction, seconds, stops, size).await,
        Measurement::Stop(options) => stop::run(&options).await,
        Measurement::StopHost(options) => stop_host::run(&options).await,
        Measurement::NodeHost {
            seed,
            first,
            count,
            station,
        } => node_host::run_nodes(SeededFleet::parse(&seed)?, first, count, station).await,
        Measurement::TcpHost { count, station, .. } => bare_tcp::run_nodes(count, station).await,
        Measurement::StationHost { seed, listen } => {
            node_host::run_station(SeededFleet::parse(&seed)?, listen).await
        }
    }
}
