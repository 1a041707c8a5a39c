//! One command to many linked nodes until the last has answered, and many commands in flight at once.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use ground_station::config::Config;
use ground_station::engine::{Engine, Mode, Settings};
use swarm_shared::api::{ActRequest, Event, FleetRequest, NodeState, NodesRequest, Request};
use swarm_shared::client::Fleet;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::net::peer::{
    CompletedRequest, PeerEvent, PeerLink, ReplyTo, Request as LinkRequest, RequestResult,
};
use swarm_shared::net::{clock, random};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane, MessageType};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::node_host::NodeHosts;
use super::{Samples, SeededFleet, Table, bare_tcp, cpu_time};

/// How long one step may take; then the measurement fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Quiet time after linking, so that rosters and self-checks are over.
const SETTLE: Duration = Duration::from_secs(2);
/// Pause between two commands.
const PAUSE: Duration = Duration::from_millis(40);
/// Most commands in flight to each node while pipelining.
const PIPELINE_DEPTH: usize = 128;
/// Commands to each node in one burst.
const BURST: usize = 64;
/// Replies taken from the channel in one go.
const REPLY_BATCH_MAX: usize = 1_024;

/// One command at a time, over the links themselves: what the engine does, without its events.
///
/// # Errors
/// If the nodes do not link, or a command is not answered.
pub async fn links(sizes: &[u32], runs: usize, processes: u32) -> anyhow::Result<()> {
    let mut table = Table::new();
    for nodes in sizes {
        let mut station = LinkedStation::start(*nodes, processes).await?;
        let (mut latency, mut cpu, mut hosts_cpu) =
            (Samples::default(), Samples::default(), Samples::default());
        for run in 0..=runs {
            sleep(PAUSE).await;
            let (before, started) = (cpu_time()?, clock::now());
            let hosts_before = station.hosts.cpu_time()?;
            station.send_round(clock::now() + TEST_TIMEOUT)?;
            station.receive_replies(*nodes as usize).await?;
            let took = clock::since(started);
            // The first is a rehearsal.
            if run > 0 {
                latency.add(took.as_secs_f64() * 1_000.0);
                cpu.add((cpu_time()? - before).as_secs_f64() * 1_000.0);
                hosts_cpu.add((station.hosts.cpu_time()? - hosts_before).as_secs_f64() * 1_000.0);
            }
        }
        table.add_row(
            format!("one command to {nodes} nodes, last reply"),
            "ms",
            &latency,
        );
        table.add_row("  processor time of the station", "ms", &cpu);
        table.add_row("  processor time of the nodes", "ms", &hosts_cpu);
        drop(station);
        add_baseline(&mut table, &latency, *nodes, runs, processes).await?;
    }
    Ok(table.print()?)
}

/// Adds the same round trips over bare TCP, and how many times longer ours take.
async fn add_baseline(
    table: &mut Table,
    ours: &Samples,
    nodes: u32,
    runs: usize,
    processes: u32,
) -> anyhow::Result<()> {
    let bare = bare_tcp::round_trips(nodes, runs, processes, PAUSE).await?;
    let mut ratio = Samples::default();
    ratio.add(ours.median() / bare.median());
    table.add_row("  bare TCP", "ms", &bare);
    table.add_row("  ours to bare TCP, medians", "times", &ratio);
    Ok(())
}

/// Many commands in flight to each node.
///
/// # Errors
/// As [`links`].
pub async fn pipelined(nodes: u32, runs: usize, processes: u32, commands: usize) -> anyhow::Result<()> {
    let mut station = LinkedStation::start(nodes, processes).await?;
    let nodes = nodes as usize;
    let (mut rate, mut cpu, mut hosts_cpu) = (Samples::default(), Samples::default(), Samples::default());
    for run in 0..=runs {
        sleep(PAUSE).await;
        let (before, started) = (cpu_time()?, clock::now());
        let hosts_before = station.hosts.cpu_time()?;
        let (mut rounds, mut waiting) = (0, 0);
        while rounds < commands || waiting > 0 {
            while rounds < commands && waiting + BURST * nodes <= PIPELINE_DEPTH * nodes {
                for _ in 0..BURST {
                    station.send_round(clock::now() + TEST_TIMEOUT)?;
                }
                waiting += BURST * nodes;
                rounds += BURST;
            }
            waiting -= station.receive_some().await?;
        }
        let took = clock::since(started);
        if run > 0 {
            let replies = rounds as f64 * nodes as f64;
            rate.add(replies / took.as_secs_f64());
            cpu.add((cpu_time()? - before).as_secs_f64() * 1e6 / replies);
            hosts_cpu.add((station.hosts.cpu_time()? - hosts_before).as_secs_f64() * 1e6 / replies);
        }
    }
    let mut table = Table::new();
    table.add_row(
        format!("{PIPELINE_DEPTH} commands in flight to each of {nodes} nodes"),
        "replies/s",
        &rate,
    );
    table.add_row("  processor time of the station, each", "µs", &cpu);
    table.add_row("  processor time of the nodes, each", "µs", &hosts_cpu);
    Ok(table.print()?)
}

/// A station's endpoint with all its nodes linked.
struct LinkedStation {
    links: Vec<PeerLink>,
    replies: mpsc::Receiver<CompletedRequest>,
    reply_to: ReplyTo,
    next_id: u64,
    hosts: NodeHosts,
}

impl LinkedStation {
    async fn start(nodes: u32, processes: u32) -> anyhow::Result<Self> {
        let mut members = SeededFleet::from_seed(random::bytes()?)?;
        let mut station = members.station(([127, 0, 0, 1], 0).into())?;
        let hosts = NodeHosts::start(&members, nodes, processes, station.endpoint.listen_addr())?;
        let mut links = Vec::new();
        while links.len() < nodes as usize {
            let event = timeout(TEST_TIMEOUT, station.events.peers.recv()).await;
            if let PeerEvent::Connected { peer, .. } =
                event.context("not all nodes link")?.context("it has stopped")?
            {
                links.push(station.endpoint.open_session(peer.id).await?);
            }
        }
        tokio::spawn(async move { while station.events.peers.recv().await.is_some() {} });
        sleep(SETTLE).await;
        let (reply_to, replies) = mpsc::channel(links.len() * (PIPELINE_DEPTH + 1));
        Ok(Self {
            links,
            replies,
            reply_to: ReplyTo(reply_to),
            next_id: 1,
            hosts,
        })
    }

    /// One command to all nodes, encoded once.
    fn send_round(&mut self, until: std::time::Instant) -> anyhow::Result<()> {
        let mut frame = Frame::json(Kind::Command, &Arguments::default());
        frame.header.message_type = MessageType::Request;
        frame.header.action = Some("ping".to_owned());
        frame.header.lane = Some(Lane::Control);
        frame.header.id = Some(self.next_id);
        frame.header.epoch = Some(1);
        let encoded = EncodedFrame::new(&frame)?;
        for link in &self.links {
            let outgoing = Outgoing {
                frame: encoded.clone(),
                lane: Lane::Control,
                deadline: Some(until),
            };
            let request = LinkRequest {
                id: self.next_id,
                timeout_at: until,
                reply_to: self.reply_to.clone(),
            };
            link.try_request(outgoing, request)?;
        }
        self.next_id += 1;
        Ok(())
    }

    async fn receive_replies(&mut self, mut count: usize) -> anyhow::Result<()> {
        while count > 0 {
            count -= self.receive_some().await?;
        }
        Ok(())
    }

    async fn receive_some(&mut self) -> anyhow::Result<usize> {
        let mut batch = Vec::with_capacity(REPLY_BATCH_MAX);
        let taken = timeout(TEST_TIMEOUT, self.replies.recv_many(&mut batch, REPLY_BATCH_MAX)).await;
        let taken = taken.context("replies are missing")?;
        for delivery in batch {
            ensure!(
                matches!(delivery.result, RequestResult::Reply(_)),
                "not answered: {delivery:?}"
            );
        }
        Ok(taken)
    }
}

/// One command at a time, asked of a station's whole engine as the command line does.
///
/// # Errors
/// As [`links`].
pub async fn engine(sizes: &[u32], runs: usize, processes: u32) -> anyhow::Result<()> {
    let mut table = Table::new();
    for nodes in sizes {
        let dir = TempDir::with_prefix("measure-")?;
        let mut config = Config::load(None, dir.path())?;
        config.listen = ([127, 0, 0, 1], 0).into();
        config.mdns = false;
        config.pings = false;
        let settings = Settings {
            config,
            state_dir: dir.path().to_owned(),
            mode: Mode::Daemon,
            bridges_devices: false,
        };
        let engine = Engine::start(settings).await?;
        let fleet = engine.fleet();
        count_done(&fleet, FleetRequest::Init).await?;
        let root = identity::load(dir.path(), KeyFile::FleetRoot)?.context("no root key")?;
        let members = SeededFleet::from_seed(*root.seed())?;
        let hosts = NodeHosts::start(&members, *nodes, processes, engine.listen_addr())?;
        let all_linked = async {
            while count_online(&fleet).await? < *nodes as usize {}
            anyhow::Ok(())
        };
        timeout(TEST_TIMEOUT, all_linked)
            .await
            .context("not all nodes link")??;
        sleep(SETTLE).await;
        let (mut latency, mut cpu) = (Samples::default(), Samples::default());
        for run in 0..=runs {
            sleep(PAUSE).await;
            let (before, started) = (cpu_time()?, clock::now());
            let done = count_done(&fleet, ping_request()).await?;
            let took = clock::since(started);
            ensure!(done == *nodes as usize, "{done} of {nodes} nodes are done");
            if run > 0 {
                latency.add(took.as_secs_f64() * 1_000.0);
                cpu.add((cpu_time()? - before).as_secs_f64() * 1_000.0);
            }
        }
        table.add_row(
            format!("one command to {nodes} nodes through the engine"),
            "ms",
            &latency,
        );
        table.add_row("  processor time of the station", "ms", &cpu);
        engine.shut_down().await;
        drop(hosts);
        add_baseline(&mut table, &latency, *nodes, runs, processes).await?;
    }
    Ok(table.print()?)
}

/// The command whose round trip is measured.
pub(super) fn ping_request() -> ActRequest {
    ActRequest::Command {
        selector: Selector::all(),
        action: "ping".to_owned(),
        arguments: Arguments::default(),
        lane: Lane::Control,
        ttl_ms: 30_000,
        ttl_given: false,
        timeout_ms: 60_000,
        batch: None,
    }
}

/// Carries out a request; returns how many deliveries ended `done`.
pub(super) async fn count_done(fleet: &Fleet, request: impl Into<Request>) -> anyhow::Result<usize> {
    let deliveries = fleet.perform(request).await.deliveries().await?;
    let done = deliveries
        .iter()
        .filter(|delivery| delivery.state == Outcome::Done);
    Ok(done.count())
}

/// The number of nodes that are online after a short pause.
pub(super) async fn count_online(fleet: &Fleet) -> anyhow::Result<usize> {
    sleep(PAUSE).await;
    let mut events = fleet
        .perform(NodesRequest::List {
            selector: Selector::all(),
            timeout_ms: 0,
        })
        .await;
    let mut online = 0;
    while let Some(event) = events.recv().await {
        if let Event::Node(view) = event {
            online += usize::from(view.state == NodeState::Online);
        }
    }
    Ok(online)
}
