//! Connects discovery to an endpoint: announces this program, and reports the addresses of peers to dial.
//!
//! Peers of other fleets are ignored. A program without a fleet reports every station, because it may be waiting to
//! join one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::interfaces::{self, Interfaces};
use super::mdns::{Announcement, DiscoveredPeer, DiscoveryEvent, Mdns, MdnsSd, Prefix, Service};
use super::pings::{self, Datagram, PingError, StopForwarder};
use crate::net::clock;
use crate::net::endpoint::Endpoint;
use crate::net::socket;
use crate::proto::discovery::address_book::{Hint, Source};
use crate::proto::discovery::ping::{PingFilter, PingSender};
use crate::proto::id::PeerKind;
use crate::proto::trust::Fingerprint;

/// Pings, announcements and candidates that wait for the task.
const QUEUE_MAX: usize = 64;

/// Most announced instances whose addresses are remembered.
const INSTANCES_MAX: usize = 4096;
/// Most addresses of one instance that are remembered, and dialled.
const ADDRESSES_MAX: usize = 16;

/// Most services of other systems that wait to be published.
const SERVICES_MAX: usize = 16;

/// The methods of discovery to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Methods {
    /// Announce and browse by mDNS.
    pub mdns: bool,
    /// UDP port of notifier pings, which a station sends and a node receives; `None` for none.
    pub pings: Option<u16>,
}

/// Running discovery; see [`start`].
#[derive(Debug)]
pub struct Presence {
    /// Stations that were found while this program has no fleet, as candidates to join.
    pub station_candidates: mpsc::Receiver<SocketAddr>,
    /// The interfaces of this machine, and news of them.
    pub interfaces: watch::Receiver<Interfaces>,
    services: ServicePublisher,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// Publishes services of other systems while discovery runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServicePublisher(mpsc::Sender<Service>);

impl Default for ServicePublisher {
    /// Without discovery: nothing is published.
    fn default() -> Self {
        let (closed, _) = mpsc::channel(1);
        Self(closed)
    }
}

impl ServicePublisher {
    /// Publishes one; `false` without mDNS.
    pub async fn publish(&self, service: Service) -> bool {
        self.0.send(service).await.is_ok()
    }
}

impl Presence {
    /// To publish services of other systems.
    pub fn services(&self) -> ServicePublisher {
        self.services.clone()
    }

    /// Withdraws the announcements and ends all tasks.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        self.tasks.close();
        // Each task ends by itself: mDNS within its own bound, the others at once.
        self.tasks.wait().await;
    }
}

/// Starts discovery for an endpoint.
///
/// # Errors
/// [`PingError`] if the port for pings cannot be opened. If mDNS does not work, a warning is logged and the other
/// methods are used.
pub fn start(endpoint: &Endpoint, methods: Methods) -> Result<Presence, PingError> {
    start_with_stops(endpoint, methods, None)
}

/// As [`start`]; a node also forwards datagrams with emergency stops, which use the port of pings, to `stops`.
///
/// # Errors
/// As [`start`].
pub fn start_with_stops(
    endpoint: &Endpoint,
    methods: Methods,
    stops: Option<mpsc::Sender<Datagram>>,
) -> Result<Presence, PingError> {
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (station_candidates, station_candidates_receiver) = mpsc::channel(QUEUE_MAX);
    let (services, services_receiver) = mpsc::channel(SERVICES_MAX);
    let interfaces = interfaces::watch(shutdown.clone());
    tasks.spawn(retry_on_interface_change(
        endpoint.clone(),
        interfaces.clone(),
        shutdown.clone(),
    ));
    if let Some(port) = methods.pings {
        match endpoint.local().kind {
            PeerKind::Station => {
                tasks.spawn(send_pings(
                    endpoint.clone(),
                    port,
                    interfaces.clone(),
                    shutdown.clone(),
                ));
            }
            PeerKind::Node => {
                let (datagrams, datagrams_receiver) = mpsc::channel(QUEUE_MAX);
                let stops = stops.map(|to| StopForwarder {
                    sender: to,
                    membership: endpoint.membership(),
                    profile: endpoint.profile(),
                });
                tasks.spawn(pings::receive(
                    pings::listen(port)?,
                    datagrams,
                    stops,
                    shutdown.clone(),
                ));
                tasks.spawn(receive_pings(
                    endpoint.clone(),
                    datagrams_receiver,
                    station_candidates.clone(),
                ));
            }
        }
    }
    if methods.mdns {
        match MdnsSd::start() {
            Ok(mdns) => {
                tasks.spawn(run_mdns(
                    endpoint.clone(),
                    mdns,
                    station_candidates,
                    services_receiver,
                    shutdown.clone(),
                ));
            }
            Err(error) => tracing::warn!(%error, "mDNS not started"),
        }
    }
    Ok(Presence {
        station_candidates: station_candidates_receiver,
        interfaces,
        services: ServicePublisher(services),
        shutdown,
        tasks,
    })
}

async fn retry_on_interface_change(
    endpoint: Endpoint,
    mut interfaces: watch::Receiver<Interfaces>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = interfaces.changed() => match changed {
                Ok(()) => endpoint.retry_now().await,
                Err(_ended) => return,
            },
        }
    }
}

async fn send_pings(
    endpoint: Endpoint,
    port: u16,
    interfaces: watch::Receiver<Interfaces>,
    shutdown: CancellationToken,
) {
    let mut membership = endpoint.membership();
    let fleet = tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        fleet = membership.wait_for(Option::is_some) => match fleet {
            Ok(fleet) => fleet.as_ref().map(|membership| membership.fingerprint()),
            Err(_ended) => return,
        },
    };
    let Some(fleet) = fleet else { return };
    let key = endpoint.local().identity.key.clone();
    let mut sender = PingSender::new(key, &fleet, endpoint.listen_addr().port(), 0);
    pings::send(
        port,
        interfaces,
        move || sender.next_datagram(clock::unix_time_ms()).to_vec(),
        shutdown,
    )
    .await;
}

fn fleet_fingerprint(endpoint: &Endpoint) -> Option<Fingerprint> {
    endpoint
        .membership()
        .borrow()
        .as_ref()
        .map(|membership| membership.fingerprint())
}

async fn receive_pings(
    endpoint: Endpoint,
    mut datagrams: mpsc::Receiver<Datagram>,
    station_candidates: mpsc::Sender<SocketAddr>,
) {
    let mut guard = PingFilter::default();
    while let Some(Datagram { bytes, from }) = datagrams.recv().await {
        let fleet = fleet_fingerprint(&endpoint);
        match guard.accept(&bytes, fleet.as_ref(), clock::now()) {
            Ok(ping) => {
                let addr = socket::with_port(from, ping.port);
                if fleet.is_some() {
                    endpoint
                        .address_discovered(addr, Source::Ping, Hint::Id(ping.station.id()))
                        .await;
                } else {
                    // A full queue drops the newest: another ping comes in seconds.
                    station_candidates.try_send(addr).ok();
                }
            }
            // Every copy of a round but the first is a replay.
            Err(why) => tracing::trace!(%from, %why, "Ping ignored"),
        }
    }
}

async fn run_mdns(
    endpoint: Endpoint,
    mut mdns: MdnsSd,
    station_candidates: mpsc::Sender<SocketAddr>,
    mut services: mpsc::Receiver<Service>,
    shutdown: CancellationToken,
) {
    let (events, mut events_receiver) = mpsc::channel(QUEUE_MAX);
    let browsed: &[PeerKind] = match endpoint.local().kind {
        PeerKind::Station => &[PeerKind::Node, PeerKind::Station],
        PeerKind::Node => &[PeerKind::Station],
    };
    let (mut membership, mut profile) = (endpoint.membership(), endpoint.profile());
    let publish = |mdns: &mut MdnsSd| {
        if let Err(error) = mdns.publish(own_announcement(&endpoint)) {
            tracing::warn!(%error, "mDNS announcement not published");
        }
    };
    publish(&mut mdns);
    for kind in browsed {
        if let Err(error) = mdns.browse(*kind, events.clone()) {
            tracing::warn!(%error, "mDNS browse not started");
        }
    }
    let mut addresses: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Ok(()) = membership.changed() => publish(&mut mdns),
            Ok(()) = profile.changed() => publish(&mut mdns),
            Some(service) = services.recv() => {
                if let Err(error) = mdns.publish_service(Prefix::of(&endpoint.id().0), &service) {
                    tracing::warn!(kind = service.kind, %error, "mDNS service not published");
                }
            }
            Some(event) = events_receiver.recv() => on_discovery_event(&endpoint, event, &mut addresses, &station_candidates).await,
        }
    }
    mdns.shutdown().await;
}

fn own_announcement(endpoint: &Endpoint) -> Announcement {
    Announcement {
        kind: endpoint.local().kind,
        id: Prefix::of(&endpoint.id().0),
        name: endpoint.profile().borrow().name.clone(),
        fleet: fleet_fingerprint(endpoint).map(|fleet| Prefix(fleet.prefix())),
        listen: endpoint.listen_addr(),
    }
}

/// Records the addresses of an announced instance, to be withdrawn with it. Any host can announce any number of
/// instances: beyond [`INSTANCES_MAX`] their withdrawal has no effect, and dialling fails instead.
fn remember_addresses(
    addresses: &mut BTreeMap<String, Vec<SocketAddr>>,
    instance: String,
    mut addrs: Vec<SocketAddr>,
) {
    if addresses.len() < INSTANCES_MAX {
        addrs.truncate(ADDRESSES_MAX);
        addresses.insert(instance, addrs);
    }
}

async fn on_discovery_event(
    endpoint: &Endpoint,
    event: DiscoveryEvent,
    known_addresses: &mut BTreeMap<String, Vec<SocketAddr>>,
    station_candidates: &mpsc::Sender<SocketAddr>,
) {
    let withdrawn = match event {
        DiscoveryEvent::Lost { instance, .. } => known_addresses.remove(&instance).unwrap_or_default(),
        DiscoveryEvent::Discovered(DiscoveredPeer {
            id,
            instance,
            fleet,
            addrs,
            kind,
            ..
        }) => {
            let own_fleet_prefix = fleet_fingerprint(endpoint).map(|own| Prefix(own.prefix()));
            let old = known_addresses.remove(&instance).unwrap_or_default();
            if own_fleet_prefix.is_none() && kind == PeerKind::Station {
                if let Some(addr) = addrs.first() {
                    // A full queue drops it: pings and the next announcement repeat it.
                    station_candidates.try_send(*addr).ok();
                }
                old
            } else if own_fleet_prefix.is_some() && own_fleet_prefix == fleet {
                for addr in addrs.iter().take(ADDRESSES_MAX) {
                    endpoint
                        .address_discovered(*addr, Source::Mdns, Hint::IdPrefix(id.0))
                        .await;
                }
                let gone = old.into_iter().filter(|addr| !addrs.contains(addr)).collect();
                remember_addresses(known_addresses, instance, addrs);
                gone
            } else {
                old
            }
        }
    };
    // A peer that was renamed has two instances for a moment.
    let announced_elsewhere = |addr: &SocketAddr| known_addresses.values().any(|addrs| addrs.contains(addr));
    for addr in withdrawn.into_iter().filter(|addr| !announced_elsewhere(addr)) {
        endpoint.address_withdrawn(addr).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_announcements_are_bounded() {
        let addr = SocketAddr::from(([10, 0, 0, 1], 7420));
        let mut addresses = BTreeMap::new();
        for number in 0..=INSTANCES_MAX {
            remember_addresses(&mut addresses, number.to_string(), vec![addr; ADDRESSES_MAX + 1]);
        }
        assert_eq!(addresses.len(), INSTANCES_MAX);
        assert_eq!(addresses["0"].len(), ADDRESSES_MAX);
    }
}
