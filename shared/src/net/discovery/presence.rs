//! Discovery put to use: announces this program, and tells its endpoint whom to dial.
//!
//! Members of the own fleet only: what belongs to other fleets is passed over in silence. A program that has no
//! fleet yet hears every station, for it may be waiting to be taken in.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::interfaces::{self, Interfaces};
use super::mdns::{Announcement, Found, Mdns, MdnsSd, Prefix, Service, Sighting};
use super::pings::{self, Datagram, PingError, Stops};
use crate::net::clock;
use crate::net::endpoint::Endpoint;
use crate::proto::address_book::{Hint, Source};
use crate::proto::id::PeerKind;
use crate::proto::ping::{PingGuard, PingSender};
use crate::proto::trust::Fingerprint;

/// Pings, sightings and strangers that wait to be looked at.
const QUEUE_MAX: usize = 64;

/// Most announced instances whose addresses are remembered.
const INSTANCES_MAX: usize = 4096;
/// Most addresses of one instance that are remembered, and dialled.
const ADDRESSES_MAX: usize = 16;

/// Most services of other systems that wait to be published.
const SERVICES_MAX: usize = 16;

/// Which means of discovery to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    /// Announce and browse by mDNS.
    pub mdns: bool,
    /// Send (a station) or hear (a node) notifier pings on this UDP port.
    pub pings: Option<u16>,
}

/// Discovery at work; see [`start`].
#[derive(Debug)]
pub struct Presence {
    /// Stations seen while this program has no fleet: whom to ask to be taken in.
    pub strangers: mpsc::Receiver<SocketAddr>,
    /// The interfaces of this machine, and news of them.
    pub interfaces: watch::Receiver<Interfaces>,
    services: Services,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Publishes services of other systems, for as long as discovery is at work; clones share it.
#[derive(Clone, Debug)]
pub struct Services(mpsc::Sender<Service>);

impl Default for Services {
    /// Without discovery: nothing is published.
    fn default() -> Self {
        let (to_nobody, _) = mpsc::channel(1);
        Self(to_nobody)
    }
}

impl Services {
    /// Publishes one; `false` without mDNS.
    pub async fn offer(&self, service: Service) -> bool {
        self.0.send(service).await.is_ok()
    }
}

impl Presence {
    /// To publish services of other systems.
    pub fn services(&self) -> Services {
        self.services.clone()
    }

    /// Says goodbye and ends.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        // Each task ends by itself: mDNS within its own bound, the others at once.
        self.tasks.wait().await;
    }
}

/// Starts discovery for an endpoint.
///
/// # Errors
/// [`PingError`] if the port for pings cannot be had. Where mDNS does not work, a warning says so and the other
/// means go on.
pub fn start(endpoint: &Endpoint, means: Means) -> Result<Presence, PingError> {
    start_hearing(endpoint, means, None)
}

/// As [`start`]; a node passes on to `stops` what may be an emergency stop, for it comes to the port for pings.
///
/// # Errors
/// As [`start`].
pub fn start_hearing(
    endpoint: &Endpoint,
    means: Means,
    stops: Option<mpsc::Sender<Datagram>>,
) -> Result<Presence, PingError> {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (strangers, strangers_seen) = mpsc::channel(QUEUE_MAX);
    let (services, offered) = mpsc::channel(SERVICES_MAX);
    let interfaces = interfaces::watch(stop.clone());
    tasks.spawn(nudge(endpoint.clone(), interfaces.clone(), stop.clone()));
    if let Some(port) = means.pings {
        match endpoint.local().kind {
            PeerKind::Station => {
                tasks.spawn(send_pings(
                    endpoint.clone(),
                    port,
                    interfaces.clone(),
                    stop.clone(),
                ));
            }
            PeerKind::Node => {
                let (datagrams, heard) = mpsc::channel(QUEUE_MAX);
                let stops = stops.map(|to| Stops {
                    to,
                    membership: endpoint.membership(),
                    profile: endpoint.profile(),
                });
                tasks.spawn(pings::receive(
                    pings::listen(port)?,
                    datagrams,
                    stops,
                    stop.clone(),
                ));
                tasks.spawn(hear_pings(endpoint.clone(), heard, strangers.clone()));
            }
        }
    }
    if means.mdns {
        match MdnsSd::start() {
            Ok(mdns) => {
                tasks.spawn(run_mdns(endpoint.clone(), mdns, strangers, offered, stop.clone()));
            }
            Err(error) => tracing::warn!(%error, "no mDNS"),
        }
    }
    Ok(Presence {
        strangers: strangers_seen,
        interfaces,
        services: Services(services),
        stop,
        tasks,
    })
}

async fn nudge(endpoint: Endpoint, mut interfaces: watch::Receiver<Interfaces>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = interfaces.changed() => match changed {
                Ok(()) => endpoint.nudge().await,
                Err(_ended) => return,
            },
        }
    }
}

async fn send_pings(
    endpoint: Endpoint,
    port: u16,
    interfaces: watch::Receiver<Interfaces>,
    stop: CancellationToken,
) {
    let mut membership = endpoint.membership();
    let fleet = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        fleet = membership.wait_for(Option::is_some) => match fleet {
            Ok(fleet) => fleet.as_ref().map(|membership| membership.fingerprint()),
            Err(_ended) => return,
        },
    };
    let Some(fleet) = fleet else { return };
    let key = endpoint.local().identity.key.clone();
    let mut sender = PingSender::new(key, &fleet, endpoint.listens().port(), 0);
    pings::send(
        port,
        interfaces,
        move || sender.next(clock::unix_time_ms()).to_vec(),
        stop,
    )
    .await;
}

fn own_fleet(endpoint: &Endpoint) -> Option<Fingerprint> {
    endpoint
        .membership()
        .borrow()
        .as_ref()
        .map(|membership| membership.fingerprint())
}

async fn hear_pings(
    endpoint: Endpoint,
    mut datagrams: mpsc::Receiver<Datagram>,
    strangers: mpsc::Sender<SocketAddr>,
) {
    let mut guard = PingGuard::default();
    while let Some(Datagram { bytes, from }) = datagrams.recv().await {
        let fleet = own_fleet(&endpoint);
        match guard.accept(&bytes, fleet.as_ref()) {
            Ok(ping) => {
                let addr = SocketAddr::new(from.ip(), ping.port);
                if fleet.is_some() {
                    endpoint
                        .heard(addr, Source::Ping, Hint::Id(ping.station.id()))
                        .await;
                } else {
                    // A full queue drops the newest: another ping comes in seconds.
                    let _later = strangers.try_send(addr);
                }
            }
            // Every copy of a round but the first is a replay.
            Err(why) => tracing::trace!(%from, %why, "ping not heeded"),
        }
    }
}

async fn run_mdns(
    endpoint: Endpoint,
    mut mdns: MdnsSd,
    strangers: mpsc::Sender<SocketAddr>,
    mut offered: mpsc::Receiver<Service>,
    stop: CancellationToken,
) {
    let (sightings, mut seen) = mpsc::channel(QUEUE_MAX);
    let browsed: &[PeerKind] = match endpoint.local().kind {
        PeerKind::Station => &[PeerKind::Node, PeerKind::Station],
        PeerKind::Node => &[PeerKind::Station],
    };
    let (mut membership, mut profile) = (endpoint.membership(), endpoint.profile());
    let publish = |mdns: &mut MdnsSd| {
        if let Err(error) = mdns.publish(announcement(&endpoint)) {
            tracing::warn!(%error, "not announced by mDNS");
        }
    };
    publish(&mut mdns);
    for kind in browsed {
        if let Err(error) = mdns.browse(*kind, sightings.clone()) {
            tracing::warn!(%error, "not browsing by mDNS");
        }
    }
    let mut addresses: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Ok(()) = membership.changed() => publish(&mut mdns),
            Ok(()) = profile.changed() => publish(&mut mdns),
            Some(service) = offered.recv() => {
                if let Err(error) = mdns.offer(Prefix::of(&endpoint.id().0), &service) {
                    tracing::warn!(kind = service.kind, %error, "a service is not announced by mDNS");
                }
            }
            Some(sighting) = seen.recv() => take_sighting(&endpoint, sighting, &mut addresses, &strangers).await,
        }
    }
    mdns.shutdown().await;
}

fn announcement(endpoint: &Endpoint) -> Announcement {
    Announcement {
        kind: endpoint.local().kind,
        id: Prefix::of(&endpoint.id().0),
        name: endpoint.profile().borrow().name.clone(),
        fleet: own_fleet(endpoint).map(|fleet| Prefix(fleet.prefix())),
        listen: endpoint.listens(),
    }
}

/// Notes the addresses of an announced instance, so that their withdrawal is understood. Anybody can announce any
/// number: beyond [`INSTANCES_MAX`] a withdrawal is not noticed, and dialling finds out.
fn remember(addresses: &mut BTreeMap<String, Vec<SocketAddr>>, instance: String, mut addrs: Vec<SocketAddr>) {
    if addresses.len() < INSTANCES_MAX {
        addrs.truncate(ADDRESSES_MAX);
        addresses.insert(instance, addrs);
    }
}

async fn take_sighting(
    endpoint: &Endpoint,
    sighting: Sighting,
    addresses: &mut BTreeMap<String, Vec<SocketAddr>>,
    strangers: &mpsc::Sender<SocketAddr>,
) {
    let gone = match sighting {
        Sighting::Lost { instance, .. } => addresses.remove(&instance).unwrap_or_default(),
        Sighting::Found(Found {
            id,
            instance,
            fleet,
            addrs,
            kind,
            ..
        }) => {
            let ours = own_fleet(endpoint).map(|own| Prefix(own.prefix()));
            let old = addresses.remove(&instance).unwrap_or_default();
            if ours.is_none() && kind == PeerKind::Station {
                if let Some(addr) = addrs.first() {
                    // A full queue drops it: pings and the next announcement bring it again.
                    let _later = strangers.try_send(*addr);
                }
                old
            } else if ours.is_some() && ours == fleet {
                for addr in addrs.iter().take(ADDRESSES_MAX) {
                    endpoint.heard(*addr, Source::Mdns, Hint::Prefix(id.0)).await;
                }
                let gone = old.into_iter().filter(|addr| !addrs.contains(addr)).collect();
                remember(addresses, instance, addrs);
                gone
            } else {
                old
            }
        }
    };
    for addr in gone {
        endpoint.withdrawn(addr).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_announce_does_not_fill_the_memory() {
        let addr = SocketAddr::from(([10, 0, 0, 1], 7420));
        let mut addresses = BTreeMap::new();
        for number in 0..=INSTANCES_MAX {
            remember(&mut addresses, number.to_string(), vec![addr; ADDRESSES_MAX + 1]);
        }
        assert_eq!(addresses.len(), INSTANCES_MAX);
        assert_eq!(addresses["0"].len(), ADDRESSES_MAX);
    }
}
