//! Many endpoints in one process: nodes that answer every command at once, or a station that only counts links.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use swarm_shared::net::peer::{PeerEvent, PeerLink};
use swarm_shared::proto::discovery::address_book::{Hint, Source};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tempfile::TempDir;

use super::{RunningMember, SeededFleet, cpu_time_of, raise_file_limit};
use crate::process::Process;

/// Nodes of a fleet, spread over processes that end with this value.
#[derive(Debug)]
pub struct NodeHosts {
    processes: Vec<Process>,
    _logs: TempDir,
}

impl NodeHosts {
    /// Starts `nodes` nodes in `processes` processes. Each dials the station.
    ///
    /// # Errors
    /// If this program's own path is not known.
    pub fn start(
        members: &SeededFleet,
        nodes: u32,
        processes: u32,
        station: SocketAddr,
    ) -> anyhow::Result<Self> {
        let arguments = ["--station".to_owned(), station.to_string()];
        Self::start_as("node-host", &arguments, members, nodes, processes)
    }

    /// The same with another verb of this program, and its own arguments.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_as(
        verb: &str,
        arguments: &[String],
        members: &SeededFleet,
        nodes: u32,
        processes: u32,
    ) -> anyhow::Result<Self> {
        let logs = TempDir::with_prefix("measure-")?;
        let program = std::env::current_exe()?;
        let mut started = Vec::new();
        let mut first = 0;
        for process in 0..processes {
            let count = (nodes - first) / (processes - process);
            let mut command = Command::new(&program);
            command
                .arg(verb)
                .args(["--seed", &members.seed()])
                .args(["--first", &first.to_string()])
                .args(["--count", &count.to_string()])
                .args(arguments);
            started.push(Process::spawn(command, &format!("host-{process}"), logs.path()));
            first += count;
        }
        Ok(Self {
            processes: started,
            _logs: logs,
        })
    }
}

impl NodeHosts {
    /// How long the nodes have been on a processor.
    ///
    /// # Errors
    /// If a process is gone.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let times = self
            .processes
            .iter()
            .map(|process| cpu_time_of(&process.pid().to_string()));
        times.sum()
    }
}

/// Runs nodes `first` to `first + count` until the parent process ends.
///
/// # Errors
/// If one does not start.
pub async fn run_nodes(
    mut members: SeededFleet,
    first: u32,
    count: u32,
    station: SocketAddr,
) -> anyhow::Result<()> {
    end_with_parent()?;
    let mut tasks = Vec::new();
    for number in first..first + count {
        let node = members.node(number)?;
        node.endpoint
            .address_discovered(station, Source::Static, Hint::None)
            .await;
        tasks.push(tokio::spawn(answer_commands(node)));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// Runs a station that does nothing with its links, until the parent process ends.
///
/// # Errors
/// If it does not start.
pub async fn run_station(mut members: SeededFleet, listen: SocketAddr) -> anyhow::Result<()> {
    end_with_parent()?;
    let mut station = members.station(listen)?;
    while station.events.peers.recv().await.is_some() {}
    Ok(())
}

pub(super) fn end_with_parent() -> anyhow::Result<()> {
    raise_file_limit()?;
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

async fn answer_commands(node: RunningMember) {
    let RunningMember { endpoint, mut events } = node;
    let mut links: BTreeMap<PeerId, PeerLink> = BTreeMap::new();
    while let Some(event) = events.peers.recv().await {
        match event {
            PeerEvent::Connected { peer, .. } => {
                let Ok(link) = endpoint.open_session(peer.id).await else {
                    return;
                };
                links.insert(peer.id, link);
            }
            PeerEvent::Frame { peer, frame, .. } if frame.header.kind == Some(Kind::Command) => {
                if let Some(link) = links.get(&peer.id) {
                    send_reply(link, &frame);
                }
            }
            PeerEvent::Frame { .. }
            | PeerEvent::Silent(_)
            | PeerEvent::Responsive(_)
            | PeerEvent::Disconnected { .. }
            | PeerEvent::BulkOpened { .. } => {}
        }
    }
}

fn send_reply(link: &PeerLink, command: &Frame) {
    let reply = Reply::done(serde_json::Value::Null).to_frame(&command.header);
    // A missing reply shows in the station's count.
    if let Ok(frame) = EncodedFrame::new(&reply) {
        let outgoing = Outgoing {
            frame,
            lane: Lane::Control,
            deadline: None,
        };
        link.try_send(outgoing).ok();
    }
}
