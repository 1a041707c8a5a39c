//! The discovery modules alone, for tests in network namespaces: prints what is discovered as lines of JSON.

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::Context as _;
use clap::Parser;
use serde_json::{Value, json};
use swarm_shared::net::discovery::mdns::{Announcement, DiscoveryEvent, Mdns as _, MdnsSd, Prefix};
use swarm_shared::net::discovery::{interfaces, pings};
use swarm_shared::proto::id::{NodeName, PeerKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Announces itself, and prints the peers that it discovers.
#[derive(Parser)]
struct Args {
    /// Sends pings and looks for nodes, instead of receiving pings and looking for stations.
    #[arg(long)]
    station: bool,
    #[arg(long)]
    name: NodeName,
    /// 16 hexadecimal digits.
    #[arg(long)]
    id: String,
    #[arg(long, default_value = "0.0.0.0:7420")]
    listen: SocketAddr,
    #[arg(long)]
    no_mdns: bool,
    #[arg(long)]
    no_pings: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let shutdown = CancellationToken::new();
    let (own, other) = if args.station {
        (PeerKind::Station, PeerKind::Node)
    } else {
        (PeerKind::Node, PeerKind::Station)
    };
    let (datagram_sender, mut datagrams) = mpsc::channel(16);
    let (sighting_sender, mut sightings) = mpsc::channel(16);
    if !args.no_pings {
        if args.station {
            let interfaces = interfaces::watch(shutdown.clone());
            let name = args.name.to_string();
            let ping = move || name.clone().into_bytes();
            tokio::spawn(pings::send(pings::PING_PORT, interfaces, ping, shutdown.clone()));
        } else {
            tokio::spawn(pings::receive(
                pings::listen(pings::PING_PORT)?,
                datagram_sender.clone(),
                None,
                shutdown.clone(),
            ));
        }
    }
    let mut mdns = None;
    if !args.no_mdns {
        let mut started = MdnsSd::start()?;
        started.publish(Announcement {
            kind: own,
            id: Prefix::parse(&args.id).context("--id takes 16 hexadecimal digits")?,
            name: args.name,
            fleet: None,
            listen: args.listen,
        })?;
        started.browse(other, sighting_sender.clone())?;
        mdns = Some(started);
    }
    let mut terminate = signal(SignalKind::terminate())?;
    print(&json!({"event": "started"}))?;
    loop {
        tokio::select! {
            _asked = terminate.recv() => break,
            Some(datagram) = datagrams.recv() => print(&json!({
                "event": "ping",
                "from": datagram.from.ip(),
                "text": String::from_utf8_lossy(&datagram.bytes),
            }))?,
            Some(sighting) = sightings.recv() => print(&describe(&sighting))?,
        }
    }
    shutdown.cancel();
    if let Some(mut mdns) = mdns {
        mdns.shutdown().await;
    }
    print(&json!({"event": "stopped"}))
}

fn describe(sighting: &DiscoveryEvent) -> Value {
    match sighting {
        DiscoveryEvent::Discovered(found) => json!({
            "event": "found",
            "id": found.id.to_string(),
            "name": found.name,
            "instance": found.instance,
            "addrs": found.addrs,
        }),
        DiscoveryEvent::Lost { id, instance, .. } => json!({
            "event": "lost",
            "id": id.to_string(),
            "instance": instance,
        }),
    }
}

fn print(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
