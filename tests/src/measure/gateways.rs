//! The effect of crowds at the gateways on the fleet: `ping all` without any client, with a crowd at each gateway, and with
//! crowds at all of them.
//!
//! The station is a real `serve` process. Half of a crowd behaves: each asks once a second and reads its answers. The
//! other half does not; see `client_load`. Each client has an address of its own, so that the bounds for one address count
//! as they would on a network. A crowd that is closed out comes again.

mod client_load;

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use swarm_shared::api::ActRequest;
use swarm_shared::net::clock;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::proto::selector::Selector;
use tokio::time::{sleep, timeout};

use super::fanout::{count_done, count_online, ping_request};
use super::node_host::NodeHosts;
use super::real_station::{RealStation, TEST_TIMEOUT};
use super::{Samples, SeededFleet, Table};
use client_load::{ClientLoad, Gateway};

/// Quiet time after linking, so that self-checks are over.
const SETTLE: Duration = Duration::from_secs(3);
/// How long a crowd is at work before anything is timed.
const LOAD_WARM_UP: Duration = Duration::from_secs(3);
/// Pause between two commands.
const PAUSE: Duration = Duration::from_millis(40);

/// The measurement.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Gateways, separated by commas.
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "clever-show,platypush-tcp,platypush-http,socktools,knut"
    )]
    gateways: Vec<Gateway>,
    /// Connections at each gateway, half of which misbehave.
    #[arg(long, default_value_t = 500)]
    connections: u16,
    #[arg(long, default_value_t = 50)]
    nodes: u32,
    /// Commands in each situation.
    #[arg(long, default_value_t = 200)]
    runs: usize,
}

/// Measures.
///
/// # Errors
/// If the nodes do not link, a command is not answered, or a well-behaved client is not served.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let mut gateways = Vec::new();
    let mut config = String::new();
    for gateway in &options.gateways {
        // Free now; nothing else on this machine takes ports at random while it is measured.
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let places = options.connections.saturating_add(100);
        config += &format!(
            "[gateways.{}]\nlisten = \"{addr}\"\nconnections = {places}\n",
            gateway.config_table()
        );
        gateways.push((*gateway, addr));
    }
    let station = RealStation::start_with(&config).await?;
    let root = identity::load(&station.state_dir(), KeyFile::FleetRoot)?.context("no root key")?;
    let members = SeededFleet::from_seed(*root.seed())?;
    let _hosts = NodeHosts::start(&members, options.nodes, 1, station.addr)?;
    let all_linked = async {
        while count_online(&station.fleet).await? < options.nodes as usize {}
        anyhow::Ok(())
    };
    timeout(TEST_TIMEOUT, all_linked)
        .await
        .context("not all nodes link")??;
    sleep(SETTLE).await;
    let quiet = time_pings(&station, options).await?;
    let mut table = Table::new();
    table.add_row(
        format!("ping of {} nodes, no client at the gateways", options.nodes),
        "ms",
        &quiet,
    );
    table.print()?;
    let each = gateways.iter().map(std::slice::from_ref);
    let all = (gateways.len() > 1).then_some(&gateways[..]);
    for at in each.chain(all) {
        let name = match at {
            [(gateway, _)] => gateway.config_table(),
            _ => "every gateway",
        };
        // Each as soon as it is known: a crowd takes its time.
        let mut table = Table::new();
        let crowd = ClientLoad::start(at, options.connections);
        sleep(LOAD_WARM_UP).await;
        crowd.reset();
        let started = clock::now();
        let loud = time_pings(&station, options).await?;
        let seconds = clock::since(started).as_secs_f64();
        let served = crowd.finish().await;
        let (clients, count) = (options.connections, served.reply_times.count());
        // clever-show's drones send no requests: the station asks them, which it does not do here.
        let asks = at.iter().any(|(gateway, _)| *gateway != Gateway::CleverShow);
        ensure!(count > 0 || !asks, "no well-behaved client was served at {name}");
        table.add_row(format!("the same, {clients} connections at {name}"), "ms", &loud);
        let mut ratio = Samples::default();
        ratio.add(loud.median() / quiet.median());
        table.add_row("  median, in medians of quiet time", "times", &ratio);
        if asks {
            let text = format!(
                "  answers to those who behave, {:.0} a second",
                count as f64 / seconds
            );
            table.add_row(text, "ms", &served.reply_times);
        }
        let mut closed = Samples::default();
        closed.add(served.closed as f64 / seconds);
        table.add_row(
            "  connections of other clients that the gateway closed",
            "1/s",
            &closed,
        );
        table.print()?;
        // What is left of the crowd goes, and the station with it back to rest.
        sleep(SETTLE).await;
    }
    Ok(())
}

async fn time_pings(station: &RealStation, options: &Options) -> anyhow::Result<Samples> {
    let mut times = Samples::default();
    for run in 0..=options.runs {
        sleep(PAUSE).await;
        let started = clock::now();
        let done = count_done(&station.fleet, ping_own_nodes_request()?).await?;
        let took = clock::since(started);
        ensure!(
            done == options.nodes as usize,
            "{done} of {} nodes are done",
            options.nodes
        );
        // The first is a rehearsal.
        if run > 0 {
            times.add(took.as_secs_f64() * 1_000.0);
        }
    }
    Ok(times)
}

/// To our own nodes: half of clever-show's drones here are the crowd that answers nothing.
fn ping_own_nodes_request() -> anyhow::Result<ActRequest> {
    let mut request = ping_request();
    if let ActRequest::Command { selector, .. } = &mut request {
        *selector = Selector::parse("all,!tag:system=clever-show")?;
    }
    Ok(request)
}
