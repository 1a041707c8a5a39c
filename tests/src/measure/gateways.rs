//! What the fleet feels of a crowd at its doors: `ping all` timed while nobody is there, while each door has its crowd,
//! and while all have.
//!
//! The station is a real `serve` process. Half of a crowd behaves: each asks once a second and reads its answers. The
//! other half does not; see `crowd`. Each client has an address of its own, so that the bounds for one address count
//! as they would on a network. A crowd that is closed out comes again.

mod client_load;

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use ground_station::fleet::Request;
use swarm_shared::net::clock;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::proto::selector::Selector;
use tokio::time::{sleep, timeout};

use super::fanout::{end_of, online, ping};
use super::node_host::Hosts;
use super::real_station::{PATIENCE, RealStation};
use super::{Members, Samples, Table};
use client_load::{Crowd, Door};

/// Quiet time after linking, so that self-checks are over.
const SETTLE: Duration = Duration::from_secs(3);
/// How long a crowd is at work before anything is timed.
const GATHER: Duration = Duration::from_secs(3);
/// Pause between two commands.
const PAUSE: Duration = Duration::from_millis(40);

/// What is measured.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Which doors, separated by commas.
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "clever-show,platypush-tcp,platypush-http,socktools,knut"
    )]
    doors: Vec<Door>,
    /// Connections at each door, half of which misbehave.
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
    let mut doors = Vec::new();
    let mut config = String::new();
    for door in &options.doors {
        // Free now; nothing else on this machine takes ports at random while it is measured.
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let places = options.connections.saturating_add(100);
        config += &format!(
            "[doors.{}]\nlisten = \"{addr}\"\nconnections = {places}\n",
            door.table()
        );
        doors.push((*door, addr));
    }
    let station = RealStation::start_with(&config).await?;
    let root = identity::load(&station.state_dir(), KeyFile::FleetRoot)?.context("no root key")?;
    let members = Members::of(*root.seed())?;
    let _hosts = Hosts::start(&members, options.nodes, 1, station.addr)?;
    let all_linked = async {
        while online(&station.fleet).await? < options.nodes as usize {}
        anyhow::Ok(())
    };
    timeout(PATIENCE, all_linked)
        .await
        .context("not all nodes link")??;
    sleep(SETTLE).await;
    let quiet = time_pings(&station, options).await?;
    let mut table = Table::new();
    table.row(
        format!("ping of {} nodes, nobody at the doors", options.nodes),
        "ms",
        &quiet,
    );
    table.print()?;
    let each = doors.iter().map(std::slice::from_ref);
    let all = (doors.len() > 1).then_some(&doors[..]);
    for at in each.chain(all) {
        let name = match at {
            [(door, _)] => door.table(),
            _ => "every door",
        };
        // Each as soon as it is known: a crowd takes its time.
        let mut table = Table::new();
        let crowd = Crowd::gather(at, options.connections);
        sleep(GATHER).await;
        crowd.forget();
        let started = clock::now();
        let loud = time_pings(&station, options).await?;
        let seconds = clock::since(started).as_secs_f64();
        let served = crowd.leave().await;
        let (clients, count) = (options.connections, served.answers.count());
        // clever-show's drones ask for nothing: they are asked, and here nobody asks them.
        let asks = at.iter().any(|(door, _)| *door != Door::CleverShow);
        ensure!(count > 0 || !asks, "nobody who behaves was served at {name}");
        table.row(format!("the same, {clients} connections at {name}"), "ms", &loud);
        let mut ratio = Samples::default();
        ratio.add(loud.median() / quiet.median());
        table.row("  median, in medians of quiet time", "times", &ratio);
        if asks {
            let text = format!(
                "  answers to those who behave, {:.0} a second",
                count as f64 / seconds
            );
            table.row(text, "ms", &served.answers);
        }
        let mut closed = Samples::default();
        closed.add(served.closed as f64 / seconds);
        table.row("  connections of the others that the door closed", "1/s", &closed);
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
        let done = end_of(&station.fleet, ping_own()?).await?;
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
fn ping_own() -> anyhow::Result<Request> {
    let mut request = ping();
    if let Request::Command { selector, .. } = &mut request {
        *selector = Selector::parse("all,!tag:system=clever-show")?;
    }
    Ok(request)
}
