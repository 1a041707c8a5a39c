//! Announces the station to drones by UDP broadcast: on each interface that the gateway listens on, a datagram with that
//! interface's address.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use swarm_shared::net::discovery::interfaces::{self, InterfaceAddr};
use swarm_shared::net::discovery::pings::Broadcaster;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::foreign::clever_show::Announcement;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// The interval of clever-show's own server.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(3);

/// Announces the gateway at `listens` to UDP port `port`, until shutdown.
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
                tracing::debug!(%error, "Station not announced: interfaces cannot be listed");
                continue;
            }
            Err(_shutting_down) => return,
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
                    tracing::warn!(%error, "Station not announced: datagram cannot be encoded");
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

/// Whether a gateway at the address `listens` accepts connections to `ip`.
fn reaches(listens: IpAddr, ip: IpAddr) -> bool {
    listens == ip || listens.is_unspecified()
}
