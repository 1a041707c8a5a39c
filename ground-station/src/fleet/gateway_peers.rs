//! The peers that are connected at a gateway, so that an operator can send them something: the gateway seats them, the engine
//! reaches them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use swarm_shared::api::PeerView;
use swarm_shared::net::sync::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::Failure;

/// Most messages that wait for one peer.
pub const OUTGOING_MESSAGES_MAX: usize = 64;
/// Most peers that an error names.
const LISTED_PEERS_MAX: usize = 8;

/// A message on its way to a peer.
#[derive(Debug)]
pub struct OutgoingMessage {
    /// As the peer is to get it.
    pub message: Bytes,
    /// For when it is written.
    pub written: oneshot::Sender<()>,
}

/// The gateways that have peers, by the name of the gateway; clones share them.
#[derive(Clone, Debug, Default)]
pub struct GatewayPeers(Arc<Mutex<BTreeMap<&'static str, PeerRegistry>>>);

/// The peers of one gateway; clones share them.
#[derive(Clone, Debug)]
pub struct PeerRegistry {
    gateway: &'static str,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next_id: u64,
    peers: BTreeMap<u64, ConnectedPeer>,
}

#[derive(Clone, Debug)]
struct ConnectedPeer {
    addr: SocketAddr,
    dialled: bool,
    outgoing: mpsc::Sender<OutgoingMessage>,
}

/// A peer's place; it is free again when this is dropped.
#[derive(Debug)]
pub struct PeerGuard {
    id: u64,
    table: Arc<Mutex<Table>>,
    outgoing: mpsc::Sender<OutgoingMessage>,
}

/// Why nothing was sent.
type SendError = (Failure, String);

impl GatewayPeers {
    /// A gateway that has peers opens.
    pub fn register_gateway(&self, gateway: &'static str) -> PeerRegistry {
        let peers = PeerRegistry {
            gateway,
            table: Arc::default(),
        };
        self.0.lock().insert(gateway, peers.clone());
        peers
    }

    /// The peers of a gateway.
    ///
    /// # Errors
    /// There is no such gateway.
    pub fn get(&self, gateway: &str) -> Result<PeerRegistry, SendError> {
        let peers = self.0.lock().get(gateway).cloned();
        peers.ok_or_else(|| {
            let text = format!(
                "no gateway {gateway:?} with peers is open here; [gateways.socktools] in the station's configuration opens one"
            );
            (Failure::Usage, text)
        })
    }
}

impl PeerRegistry {
    /// A peer has connected: its place, and what it is to be sent.
    pub fn register(&self, addr: SocketAddr, dialled: bool) -> (PeerGuard, mpsc::Receiver<OutgoingMessage>) {
        let (parcels, receiver) = mpsc::channel(OUTGOING_MESSAGES_MAX);
        let mut table = self.table.lock();
        let number = table.next_id;
        table.next_id += 1;
        let seated = ConnectedPeer {
            addr,
            dialled,
            outgoing: parcels.clone(),
        };
        table.peers.insert(number, seated);
        drop(table);
        let seat = PeerGuard {
            id: number,
            table: Arc::clone(&self.table),
            outgoing: parcels,
        };
        (seat, receiver)
    }

    /// Who is connected.
    pub fn list(&self) -> Vec<PeerView> {
        let table = self.table.lock();
        table.peers.values().map(|seated| self.view(seated)).collect()
    }

    fn view(&self, seated: &ConnectedPeer) -> PeerView {
        PeerView {
            gateway: self.gateway.to_owned(),
            peer: seated.addr,
            dialled: seated.dialled,
            error: None,
        }
    }

    /// Sends a message to one peer (`ADDR:PORT`), to all of one address (`ADDR`), or to all, and waits until it is
    /// written or cannot be.
    ///
    /// # Errors
    /// Nobody is meant.
    pub async fn send(&self, to: Option<&str>, message: Bytes) -> Result<Vec<PeerView>, SendError> {
        let meant = self.select(to)?;
        let mut sending = Vec::with_capacity(meant.len());
        for seated in meant {
            let (written, ack) = oneshot::channel();
            let parcel = OutgoingMessage {
                message: message.clone(),
                written,
            };
            // Whoever does not read holds up nobody else.
            let queued = seated.outgoing.try_send(parcel).map(|()| ack);
            sending.push((self.view(&seated), queued));
        }
        let mut views = Vec::with_capacity(sending.len());
        for (mut view, queued) in sending {
            view.error = match queued {
                Ok(ack) => ack.await.err().map(|_gone| "its connection has ended".to_owned()),
                Err(mpsc::error::TrySendError::Full(_)) => Some(format!(
                    "it does not read: {OUTGOING_MESSAGES_MAX} messages wait for it already"
                )),
                Err(mpsc::error::TrySendError::Closed(_)) => Some("its connection has ended".to_owned()),
            };
            views.push(view);
        }
        Ok(views)
    }

    fn select(&self, to: Option<&str>) -> Result<Vec<ConnectedPeer>, SendError> {
        let all: Vec<ConnectedPeer> = self.table.lock().peers.values().cloned().collect();
        let Some(to) = to else {
            if all.is_empty() {
                let text = format!("no peer is connected at the gateway {}", self.gateway);
                return Err((Failure::NoMatch, text));
            }
            return Ok(all);
        };
        let (one, address) = (to.parse::<SocketAddr>().ok(), to.parse::<IpAddr>().ok());
        if one.is_none() && address.is_none() {
            let text = format!("{to:?} is no peer: write ADDR:PORT, or ADDR for all of that address");
            return Err((Failure::Usage, text));
        }
        let same = |a: IpAddr, b: IpAddr| a.to_canonical() == b.to_canonical();
        let is_meant = |seated: &&ConnectedPeer| {
            let ip = seated.addr.ip();
            one.is_some_and(|one| one.port() == seated.addr.port() && same(one.ip(), ip))
                || address.is_some_and(|address| same(address, ip))
        };
        let meant: Vec<ConnectedPeer> = all.iter().filter(is_meant).cloned().collect();
        if meant.is_empty() {
            let shown = all
                .iter()
                .take(LISTED_PEERS_MAX)
                .map(|seated| seated.addr.to_string());
            let shown = match all.len() {
                0 => "nobody is".to_owned(),
                1..=LISTED_PEERS_MAX => shown.collect::<Vec<_>>().join(", "),
                count => format!(
                    "{} and others, {count} in all",
                    shown.collect::<Vec<_>>().join(", ")
                ),
            };
            let text = format!("no peer {to} is connected; connected: {shown}");
            return Err((Failure::NoMatch, text));
        }
        Ok(meant)
    }
}

impl PeerGuard {
    /// Sends this peer something, in turn with what others send it; `false` if its connection has ended.
    pub async fn send(&self, message: Bytes) -> bool {
        let (written, ack) = oneshot::channel();
        let parcel = OutgoingMessage { message, written };
        self.outgoing.send(parcel).await.is_ok() && ack.await.is_ok()
    }
}

impl Drop for PeerGuard {
    fn drop(&mut self) {
        self.table.lock().peers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn message_goes_to_one_peer_one_address_or_all() {
        let posts = GatewayPeers::default();
        assert!(matches!(posts.get("socktools"), Err((Failure::Usage, _))));
        let peers = posts.register_gateway("socktools");
        let nobody = peers.send(None, Bytes::new()).await.expect_err("nobody");
        assert_eq!(nobody.0, Failure::NoMatch);
        let (first, mut of_first) = peers.register(addr("10.0.0.1:1"), true);
        let (_second, mut of_second) = peers.register(addr("[::ffff:10.0.0.1]:2"), false);
        let (_third, of_third) = peers.register(addr("10.0.0.2:1"), false);
        drop(of_third);
        tokio::spawn(async move {
            while let Some(parcel) = of_first.recv().await {
                parcel.written.send(()).expect("waited for");
            }
        });
        tokio::spawn(async move {
            while let Some(parcel) = of_second.recv().await {
                parcel.written.send(()).expect("waited for");
            }
        });
        let said = |views: Vec<PeerView>| -> Vec<(u16, bool)> {
            views
                .iter()
                .map(|view| (view.peer.port(), view.error.is_none()))
                .collect()
        };
        let sent = posts.get("socktools").expect("open");
        let all = sent.send(None, Bytes::new()).await.expect("all");
        assert_eq!(said(all), [(1, true), (2, true), (1, false)]);
        let one = sent.send(Some("10.0.0.1:2"), Bytes::new()).await.expect("one");
        assert_eq!(said(one), [(2, true)]);
        let address = sent.send(Some("10.0.0.1"), Bytes::new()).await.expect("two");
        assert_eq!(said(address), [(1, true), (2, true)]);
        let (failure, text) = sent
            .send(Some("10.0.0.9"), Bytes::new())
            .await
            .expect_err("nobody");
        assert_eq!(failure, Failure::NoMatch);
        assert!(text.contains("10.0.0.2:1"), "{text}");
        let usage = sent.send(Some("n1"), Bytes::new()).await.expect_err("no peer");
        assert_eq!(usage.0, Failure::Usage);
        assert!(first.send(Bytes::new()).await);
        drop(first);
        assert_eq!(peers.list().len(), 2);
    }

    #[tokio::test]
    async fn stalled_peer_delays_no_other_peer() {
        let peers = GatewayPeers::default().register_gateway("socktools");
        let (_seat, mut parcels) = peers.register(addr("10.0.0.1:1"), true);
        let mut sends = Vec::new();
        for _ in 0..OUTGOING_MESSAGES_MAX {
            let peers = peers.clone();
            sends.push(tokio::spawn(async move { peers.send(None, Bytes::new()).await }));
        }
        while parcels.len() < OUTGOING_MESSAGES_MAX {
            tokio::task::yield_now().await;
        }
        let views = peers.send(None, Bytes::new()).await.expect("told");
        let error = views[0].error.as_deref().expect("full");
        assert!(error.contains("does not read"), "{error}");
        parcels.close();
        while parcels.recv().await.is_some() {}
        for send in sends {
            let views = send.await.expect("ended").expect("told");
            assert_eq!(views[0].error.as_deref(), Some("its connection has ended"));
        }
    }
}
