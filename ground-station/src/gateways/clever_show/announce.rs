//! Tells drones where this station is: one datagram for each interface that reaches the gateway, with that interface's
//! own address, to its broadcast addresses.
//!
//! A gateway on loopback is announced on loopback only, and one on a certain address on that one's interface.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use swarm_shared::net::discovery::interfaces::{self, InterfaceAddr};
use swarm_shared::net::discovery::pings::Broadcaster;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::foreign::clever_show::Announcement;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// As the real server does.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(3);

/// Announces until `stop`.
pub(super) async fn run(listens: SocketAddr, port: u16, shutdown: CancellationToken) {
    let id = random::jitter() % 10_000;
    let (id, start) = (format!("{id:04}"), clock::unix_time_ms());
    let start_time = format!("{}.{:03}", start / 1_000, start % 1_000);
    let mut broadcasters: BTreeMap<IpAddr, Broadcaster> = BTreeMap::new();
    let mut tick = tokio::time::interval(ANNOUNCE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
        let present = match tokio::task::spawn_blocking(interfaces::list).await {
            Ok(Ok(present)) => present,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the interfaces are not known: nothing is announced");
                continue;
            }
            Err(_stopping) => return,
        };
        let reached: Vec<InterfaceAddr> = present
            .into_iter()
            .filter(|interface| interface.broadcast.is_some() && reaches(listens.ip(), interface.ip))
            .collect();
        broadcasters.retain(|ip, _| reached.iter().any(|interface| interface.ip == *ip));
        for interface in reached {
            let announcement = Announcement {
                host: interface.ip.to_string(),
                port: listens.port(),
                id: id.clone(),
                start_time: start_time.clone(),
            };
            let datagram = match announcement.to_datagram() {
                Ok(datagram) => datagram,
                Err(error) => {
                    tracing::warn!(%error, "nothing is announced");
                    continue;
                }
            };
            let broadcaster = broadcasters.entry(interface.ip).or_default();
            let broadcast = broadcaster.broadcast(std::slice::from_ref(&interface), port, &datagram, &[]);
            if shutdown.run_until_cancelled(broadcast).await.is_none() {
                return;
            }
        }
    }
}

/// Whether a gateway that listens there is reached by this address of the machine.
fn reaches(listens: IpAddr, ip: IpAddr) -> bool {
    listens == ip || listens.is_unspecified()
}
