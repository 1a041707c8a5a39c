//! Many nodes in one process that handle an emergency stop by the code of `swarm-node`: receive the order over the link
//! and by datagram, verify it, report, journal it, report again; each with a journal of its own, on disk.
//!
//! Differences from as many devices:
//! * each node has an address of its own on the loopback interface, and datagrams to it come to it alone. A broadcast
//!   comes to one socket of the process, which hands it to all its nodes: a thousand sockets on one port would take the
//!   machine longer to serve than a network full of devices;
//! * nodes do not relay orders, for the same reason: one stop would cause a million datagrams;
//! * of every round of datagrams one broadcast and one to the node itself count, those over the loopback interface;
//! * datagrams are lost at the receiver, for each node apart, by a sequence that follows from its number.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use swarm_node::journal::Journal;
use swarm_node::logging::LogRing;
use swarm_node::status::{Status, StatusView};
use swarm_node::stop::{DATAGRAMS_MAX, Restored, Setup, StopHandle};
use swarm_shared::net::discovery::pings::{Datagram, listen, listen_on};
use swarm_shared::net::peer::{PeerEvent, PeerLink};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::stop::{STOP_BYTES_MAX, is_stop_datagram};
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::node_host::end_with_parent;
use super::{RunningMember, SeededFleet};

/// The nodes of one process.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    seed: String,
    #[arg(long)]
    first: u32,
    #[arg(long)]
    count: u32,
    /// Every node listens on this port of its own address.
    #[arg(long)]
    port: u16,
    #[arg(long)]
    ping_port: u16,
    /// How many of a hundred datagrams are lost.
    #[arg(long)]
    drop: u8,
    /// Ignore orders over links.
    #[arg(long)]
    datagrams_only: bool,
    /// The directory of their journals.
    #[arg(long)]
    dir: PathBuf,
}

/// The address of node `number`.
pub fn node_ip(number: u32) -> Ipv4Addr {
    // 127.64.0.1 and on, up to 127.127.255.255.
    Ipv4Addr::from(0x7f40_0001 + (number & 0x3f_ffff))
}

/// Runs them until the parent process ends.
///
/// # Errors
/// If one does not start.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    end_with_parent()?;
    let mut members = SeededFleet::parse(&options.seed)?;
    let (mut tasks, mut ears) = (Vec::new(), Vec::new());
    let broadcasts = listen(options.ping_port)?;
    for number in options.first..options.first + options.count {
        let ip = node_ip(number);
        let mut program = members.node_at(number, (ip, options.port).into())?;
        let (datagrams, heard) = mpsc::channel(DATAGRAMS_MAX);
        let ear = NodeDatagrams {
            datagrams,
            loss_percent: options.drop,
            rng: SplitMix64::from_number(number),
        };
        ears.push(ear.clone());
        // Its own sequence: the first draws of both would be alike.
        let rng = SplitMix64::from_number(!number);
        let own = listen_on(ip, options.ping_port)?;
        tasks.push(tokio::spawn(dispatch_datagrams(
            own,
            vec![NodeDatagrams { rng, ..ear }],
        )));
        let stopping = start_emergency_stop(number, &mut program, heard, options)?;
        tasks.push(tokio::spawn(serve(program, stopping)));
    }
    tasks.push(tokio::spawn(dispatch_datagrams(broadcasts, ears)));
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// The emergency stop of one node, as the daemon starts it.
fn start_emergency_stop(
    number: u32,
    program: &mut RunningMember,
    datagrams: mpsc::Receiver<Datagram>,
    options: &Options,
) -> anyhow::Result<StopHandle> {
    let dir = options.dir.join(format!("node-{number}"));
    std::fs::create_dir_all(&dir)?;
    let (journal, opened) = Journal::open(&dir).context("no thread for the journal")?;
    let restored = Restored::new(&opened, program.endpoint.id());
    if let Some(fault) = opened.recovery.fault {
        return Err(fault.into());
    }
    let (_none, nothing) = mpsc::channel(1);
    let mut links = std::mem::replace(&mut program.events.stops, nothing);
    if options.datagrams_only {
        // Later orders over links find the channel closed.
        links.close();
    }
    Ok(StopHandle::start(Setup {
        endpoint: program.endpoint.clone(),
        config: None,
        journal,
        restored,
        relay: None,
        links,
        datagrams,
        status: Status::new(StatusView::default(), LogRing::new()),
        shutdown: CancellationToken::new(),
        tasks: TaskTracker::new(),
    }))
}

/// The receiver of one node's datagrams.
#[derive(Clone)]
struct NodeDatagrams {
    datagrams: mpsc::Sender<Datagram>,
    loss_percent: u8,
    rng: SplitMix64,
}

/// Forwards the datagrams of the loopback interface to nodes, except those that are lost.
async fn dispatch_datagrams(socket: UdpSocket, mut ears: Vec<NodeDatagrams>) -> anyhow::Result<()> {
    let mut buffer = [0; STOP_BYTES_MAX + 1];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let bytes = &buffer[..length];
        if !is_stop_datagram(bytes) || length > STOP_BYTES_MAX || from.ip() != IpAddr::V4(Ipv4Addr::LOCALHOST)
        {
            continue;
        }
        for ear in &mut ears {
            if ear.rng.next_percent() < ear.loss_percent {
                continue;
            }
            let bytes = bytes.to_vec();
            // A full channel, as at a slow node: the datagram is repeated.
            let _full = ear.datagrams.try_send(Datagram { bytes, from });
        }
    }
}

/// Numbers that look random and are the same in every run: SplitMix64.
#[derive(Clone)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn from_number(number: u32) -> Self {
        Self(u64::from(number) << 32)
    }

    fn next_percent(&mut self) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [percent, ..] = ((mixed ^ (mixed >> 31)) % 100).to_le_bytes();
        percent
    }
}

async fn serve(program: RunningMember, stopping: StopHandle) -> anyhow::Result<()> {
    let RunningMember { endpoint, mut events } = program;
    let mut links: BTreeMap<PeerId, PeerLink> = BTreeMap::new();
    while let Some(event) = events.peers.recv().await {
        match event {
            PeerEvent::Connected { peer, .. } => {
                let link = endpoint.open_session(peer.id).await?;
                stopping.add_station(link.clone()).await;
                links.insert(peer.id, link);
            }
            PeerEvent::Disconnected { id, .. } => stopping.remove_station(id).await,
            PeerEvent::Frame { peer, frame, .. } if frame.header.kind == Some(Kind::Command) => {
                if let Some(link) = links.get(&peer.id) {
                    tokio::spawn(reply_to(link.clone(), frame, stopping.clone()));
                }
            }
            PeerEvent::Frame { .. }
            | PeerEvent::Silent(_)
            | PeerEvent::Responsive(_)
            | PeerEvent::BulkOpened { .. } => {}
        }
    }
    Ok(())
}

/// Performs releases; replies `done` to every other command.
async fn reply_to(link: PeerLink, command: Box<Frame>, stopping: StopHandle) {
    let reply = if command.header.action.as_deref() == Some("release") {
        match command.parse_content::<Arguments>() {
            Ok(arguments) => stopping.release(arguments).await,
            Err(error) => Reply::refused(error.to_string()),
        }
    } else {
        Reply::done(serde_json::Value::Null)
    };
    // A command without its answer shows in the station's count.
    if let Ok(parcel) = EncodedFrame::new(&reply.to_frame(&command.header)) {
        let _full = link.try_send(Outgoing {
            frame: parcel,
            lane: Lane::Emergency,
            deadline: None,
        });
    }
}
