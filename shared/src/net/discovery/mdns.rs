//! mDNS, behind a small trait so that a simulator can take its place.
//!
//! A peer publishes `_swarm-node._tcp.local.` or `_ground-station._tcp.local.` with a TXT record of
//!
//! | key | value |
//! |---|---|
//! | `v` | [`VERSION`] |
//! | `id` | the first 8 bytes of its id, as 16 hexadecimal digits |
//! | `name` | its name |
//! | `fleet` | the first 8 bytes of its fleet's fingerprint, likewise; absent without a fleet |
//!
//! Nothing of it is secret and nothing of it is trusted. The instance is called `NAME-ID` and the host
//! `swarm-ID.local.`, so that equal names coexist; of two peers with one cloned key mDNS itself renames one
//! (`… (2)`), and both stay visible.
//!
//! mdns-sd follows interfaces that come and go and joins the group on each one by itself, so neither a default
//! route nor DNS is needed. An IPv6 link-local address carries the scope of the interface on which it was received.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::time::Duration;

use mdns_sd::{IfKind, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::proto::hex;
use crate::proto::id::{NAME_BYTES_MAX, NodeName, PeerId, PeerKind};

/// The TXT record's `v`. Announcements of other versions are ignored.
pub const VERSION: &str = "1";

/// Most instances of one kind that are remembered; further ones are not reported until others leave. Bounds the memory
/// that hosts of the network can make this program use.
pub const INSTANCES_MAX: usize = 4096;

/// Most addresses that are reported of one peer.
pub const PEER_ADDRESSES_MAX: usize = 8;

/// Longest wait for the withdrawal of all records.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before a browse that ended begins again.
const BROWSE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How often mdns-sd looks for changed interfaces, in seconds.
const IP_CHECK_INTERVAL_S: u32 = 1;

/// Pause between attempts to hand mdns-sd a command while its queue is full.
const COMMAND_RETRY_DELAY: Duration = Duration::from_millis(50);

/// The first 8 bytes of an id or a fingerprint: enough to recognise one, too little to trust one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(pub [u8; 8]);

impl Prefix {
    /// The first 8 bytes of an id or a fingerprint.
    pub fn of(whole: &[u8; 32]) -> Self {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&whole[..8]);
        Self(prefix)
    }

    /// Reads 16 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        hex::decode(text).map(Self)
    }
}

impl From<&PeerId> for Prefix {
    fn from(id: &PeerId) -> Self {
        Self::of(&id.0)
    }
}

/// 16 hexadecimal digits.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({self})")
    }
}

/// The announcement that this program publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Node or station; determines the service type.
    pub kind: PeerKind,
    /// The first 8 bytes of its id.
    pub id: Prefix,
    /// The name, in full also where the instance's name is cut.
    pub name: NodeName,
    /// The first 8 bytes of its fleet's fingerprint; `None` without a fleet.
    pub fleet: Option<Prefix>,
    /// Where it listens. `0.0.0.0` announces every IPv4 address, `[::]` every address, another just itself.
    pub listen: SocketAddr,
}

/// A service of another system that a gateway of this program offers, so that programs of that system find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// As `_platypush-tcp._tcp.local.`
    pub kind: &'static str,
    /// The instance's name.
    pub instance: String,
    /// Where it listens; as in [`Announcement::listen`].
    pub listen: SocketAddr,
    /// Its TXT record.
    pub txt: Vec<(&'static str, String)>,
}

/// A change of the peers that announce themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoveryEvent {
    /// A peer is present; reported again when its name, fleet or addresses change.
    Discovered(DiscoveredPeer),
    /// A peer withdrew its record, or the record expired, up to two minutes after the peer left. It does not affect links.
    Lost {
        /// Node or station.
        kind: PeerKind,
        /// The first 8 bytes of its id.
        id: Prefix,
        /// The same as in [`DiscoveredPeer::instance`].
        instance: String,
    },
}

/// A peer as its record describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredPeer {
    /// Node or station.
    pub kind: PeerKind,
    /// The first 8 bytes of its id. Two peers with a cloned key have one id and two instances.
    pub id: Prefix,
    /// Its full name in mDNS, which is unique.
    pub instance: String,
    /// Its name.
    pub name: NodeName,
    /// The beginning of its fleet's fingerprint.
    pub fleet: Option<Prefix>,
    /// Where to dial, most promising first; never empty.
    pub addrs: Vec<SocketAddr>,
}

/// mDNS is not available. Pings and static addresses still work.
#[derive(Debug, thiserror::Error)]
#[error("mDNS does not work here: {0}; peers are still found by pings and by address")]
pub struct MdnsError(#[from] mdns_sd::Error);

/// The mDNS service that discovery uses.
pub trait Mdns: Send {
    /// Replaces the published announcement, if this one differs.
    ///
    /// # Errors
    /// [`MdnsError`]; trying again later may work.
    fn publish(&mut self, announcement: Announcement) -> Result<(), MdnsError>;

    /// Publishes a service of another system until shutdown, at the host that announcements of this id name.
    ///
    /// # Errors
    /// [`MdnsError`]; trying again later may work.
    fn publish_service(&mut self, id: Prefix, service: &Service) -> Result<(), MdnsError>;

    /// Reports peers of a kind, until shutdown or until the channel closes. This program's own announcement is left out,
    /// unless mDNS renamed it because of a clone.
    ///
    /// # Errors
    /// [`MdnsError`]; trying again later may work.
    fn browse(&mut self, kind: PeerKind, events: mpsc::Sender<DiscoveryEvent>) -> Result<(), MdnsError>;

    /// Withdraws all records and ends, within [`SHUTDOWN_TIMEOUT`].
    fn shutdown(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The type of service that peers of a kind publish.
pub fn service_type(kind: PeerKind) -> &'static str {
    match kind {
        PeerKind::Node => "_swarm-node._tcp.local.",
        PeerKind::Station => "_ground-station._tcp.local.",
    }
}

/// mDNS on this machine's real interfaces.
pub struct MdnsSd {
    daemon: ServiceDaemon,
    published: Option<Announcement>,
    /// The full name of the published record, which browsers leave out.
    published_fullname: watch::Sender<Option<String>>,
    shutdown: CancellationToken,
}

impl fmt::Debug for MdnsSd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MdnsSd")
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

impl MdnsSd {
    /// Starts mDNS. A network need not be there yet.
    ///
    /// # Errors
    /// [`MdnsError`] if the machine is out of threads or descriptors.
    pub fn start() -> Result<Self, MdnsError> {
        let daemon = ServiceDaemon::new()?;
        daemon.set_ip_check_interval(IP_CHECK_INTERVAL_S)?;
        let shutdown = CancellationToken::new();
        if let Ok(events) = daemon.monitor() {
            tokio::spawn(log_errors(events, shutdown.clone()));
        }
        Ok(Self {
            daemon,
            published: None,
            published_fullname: watch::Sender::new(None),
            shutdown,
        })
    }
}

impl Mdns for MdnsSd {
    fn publish(&mut self, announcement: Announcement) -> Result<(), MdnsError> {
        if self.published.as_ref() == Some(&announcement) {
            return Ok(());
        }
        let info = service_info(&announcement)?;
        let new = info.get_fullname().to_owned();
        // Until all is done it counts as not published, so that a failure is tried again.
        self.published = None;
        let old = self.published_fullname.borrow().clone().filter(|old| *old != new);
        if let Some(old) = old {
            // The result, whether the goodbye was sent, has no effect here.
            drop(self.daemon.unregister(&old)?);
        }
        self.published_fullname.send_replace(Some(new));
        self.daemon.register(info)?;
        self.published = Some(announcement);
        Ok(())
    }

    fn publish_service(&mut self, id: Prefix, service: &Service) -> Result<(), MdnsError> {
        let Service {
            kind,
            instance,
            listen,
            txt,
        } = service;
        self.daemon
            .register(build_service_info(kind, instance, id, *listen, txt)?)?;
        Ok(())
    }

    fn browse(&mut self, kind: PeerKind, discovered: mpsc::Sender<DiscoveryEvent>) -> Result<(), MdnsError> {
        let events = self.daemon.browse(service_type(kind))?;
        let browser = Browser {
            kind,
            own_fullname: self.published_fullname.subscribe(),
            known: BTreeMap::new(),
            discovered,
        };
        tokio::spawn(browser.run(self.daemon.clone(), events, self.shutdown.clone()));
        Ok(())
    }

    fn shutdown(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.shutdown.cancel();
            let goodbye = async {
                loop {
                    match self.daemon.shutdown() {
                        // mdns-sd answers once the goodbyes are sent and its thread is about to end.
                        Ok(done) => return drop(done.recv_async().await),
                        Err(mdns_sd::Error::Again) => tokio::time::sleep(COMMAND_RETRY_DELAY).await,
                        Err(_already_ended) => return,
                    }
                }
            };
            if tokio::time::timeout(SHUTDOWN_TIMEOUT, goodbye).await.is_err() {
                tracing::warn!(wait = ?SHUTDOWN_TIMEOUT, "mDNS outlived shutdown");
            }
        })
    }
}

impl Drop for MdnsSd {
    fn drop(&mut self) {
        // Ends the thread if `shutdown` was not called.
        self.shutdown.cancel();
        drop(self.daemon.shutdown());
    }
}

fn service_info(of: &Announcement) -> Result<ServiceInfo, mdns_sd::Error> {
    let id = of.id.to_string();
    // One DNS label has 63 bytes: a long name gives way to the id, and is whole in the TXT record.
    let room = NAME_BYTES_MAX - 1 - id.len();
    let name = of.name.as_str();
    let instance = format!("{}-{id}", &name[..name.len().min(room)]);
    let mut txt = vec![
        ("v", VERSION.to_owned()),
        ("id", id.clone()),
        ("name", name.to_owned()),
    ];
    if let Some(fleet) = of.fleet {
        txt.push(("fleet", fleet.to_string()));
    }
    build_service_info(service_type(of.kind), &instance, of.id, of.listen, &txt)
}

fn build_service_info(
    kind: &str,
    instance: &str,
    id: Prefix,
    listen: SocketAddr,
    txt: &[(&'static str, String)],
) -> Result<ServiceInfo, mdns_sd::Error> {
    let host = format!("swarm-{id}.local.");
    let (ip, port) = (listen.ip(), listen.port());
    if !ip.is_unspecified() {
        return ServiceInfo::new(kind, instance, &host, ip, port, txt);
    }
    let mut info = ServiceInfo::new(kind, instance, &host, "", port, txt)?.enable_addr_auto();
    if ip.is_ipv4() {
        info.set_interfaces(vec![IfKind::IPv4]);
    }
    Ok(info)
}

/// Turns one subscription of mdns-sd into changes of peers. Bounded in the number of instances. A full channel ends the
/// subscription at worst; the next one repeats all that is known.
struct Browser {
    kind: PeerKind,
    own_fullname: watch::Receiver<Option<String>>,
    known: BTreeMap<String, DiscoveredPeer>,
    discovered: mpsc::Sender<DiscoveryEvent>,
}

impl Browser {
    async fn run(
        mut self,
        daemon: ServiceDaemon,
        mut events: mdns_sd::Receiver<ServiceEvent>,
        shutdown: CancellationToken,
    ) {
        loop {
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.discovered.closed() => return,
                event = events.recv_async() => event,
            };
            let Ok(event) = event else {
                tokio::time::sleep(BROWSE_RETRY_DELAY).await;
                match daemon.browse(service_type(self.kind)) {
                    Ok(again) => events = again,
                    Err(mdns_sd::Error::Again) => {}
                    Err(_ended) => return,
                }
                continue;
            };
            let Some(discovered) = self.on_service_event(event) else {
                continue;
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                sent = self.discovered.send(discovered) => if sent.is_err() { return },
            }
        }
    }

    fn on_service_event(&mut self, event: ServiceEvent) -> Option<DiscoveryEvent> {
        match event {
            ServiceEvent::ServiceResolved(service) => {
                if self.own_fullname.borrow().as_deref() == Some(service.get_fullname()) {
                    return None;
                }
                let found = parse_announcement(self.kind, &service)?;
                let full = self.known.len() >= INSTANCES_MAX && !self.known.contains_key(&found.instance);
                if full || self.known.get(&found.instance) == Some(&found) {
                    return None;
                }
                self.known.insert(found.instance.clone(), found.clone());
                Some(DiscoveryEvent::Discovered(found))
            }
            ServiceEvent::ServiceRemoved(_, instance) => {
                let gone = self.known.remove(&instance)?;
                Some(DiscoveryEvent::Lost {
                    kind: self.kind,
                    id: gone.id,
                    instance,
                })
            }
            // The search itself, and names without an address yet.
            ServiceEvent::SearchStarted(_)
            | ServiceEvent::ServiceFound(..)
            | ServiceEvent::SearchStopped(_)
            | _ => None,
        }
    }
}

/// Parses a record; `None` if it is not of this protocol, of another version, or invalid.
fn parse_announcement(kind: PeerKind, service: &ResolvedService) -> Option<DiscoveredPeer> {
    let text = |key| service.get_property_val_str(key);
    if text("v") != Some(VERSION) {
        return None;
    }
    let fleet = match text("fleet") {
        Some(digits) => Some(Prefix::parse(digits)?),
        None => None,
    };
    let addrs = dial_addresses(service);
    if addrs.is_empty() || service.get_port() == 0 {
        return None;
    }
    Some(DiscoveredPeer {
        kind,
        id: Prefix::parse(text("id")?)?,
        instance: service.get_fullname().to_owned(),
        name: NodeName::parse(text("name")?).ok()?,
        fleet,
        addrs,
    })
}

/// This machine first, then IPv4, then IPv6, then what only works on one link.
fn dial_addresses(service: &ResolvedService) -> Vec<SocketAddr> {
    let port = service.get_port();
    let mut addrs: Vec<SocketAddr> = service
        .get_addresses()
        .iter()
        .filter_map(|ip| match ip {
            ScopedIp::V4(v4) => Some(SocketAddr::from((*v4.addr(), port))),
            ScopedIp::V6(v6) => {
                let scope = if is_link_local(v6.addr()) {
                    v6.scope_id().index
                } else {
                    0
                };
                Some(SocketAddrV6::new(*v6.addr(), port, 0, scope).into())
            }
            // A third kind of address would have no port of ours.
            _ => None,
        })
        .filter(|addr| !addr.ip().is_unspecified() && !addr.ip().is_multicast())
        .collect();
    addrs.sort_by_key(|addr| {
        let last_resort = match addr.ip() {
            IpAddr::V4(_) => false,
            IpAddr::V6(ip) => is_link_local(&ip),
        };
        (!addr.ip().is_loopback(), last_resort, *addr)
    });
    addrs.truncate(PEER_ADDRESSES_MAX);
    addrs
}

fn is_link_local(ip: &Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

/// Logs each fault that mDNS reports once; it continues by itself.
async fn log_errors(events: mdns_sd::Receiver<mdns_sd::DaemonEvent>, shutdown: CancellationToken) {
    let mut last = String::new();
    loop {
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            event = events.recv_async() => event,
        };
        match event {
            Ok(mdns_sd::DaemonEvent::Error(error)) => {
                let text = error.to_string();
                if text != last {
                    tracing::warn!(error = %text, "mDNS reports a fault; it retries by itself");
                    last = text;
                }
            }
            Ok(mdns_sd::DaemonEvent::NameChange(change)) => tracing::warn!(
                was = %change.original, is = %change.new_name,
                "Another peer announces the same name and id: two devices may hold one cloned key"
            ),
            Ok(_) => {}
            Err(_ended) => return,
        }
    }
}

#[cfg(test)]
#[path = "mdns_tests.rs"]
mod tests;
