//! The connected peers, and the messages on their way to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use swarm_shared::api::{Failure, PeerView};
use swarm_shared::net::sync::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::engine::transport::gateway_peers::{ConnectedPeers, SendError, Sending};

/// Most messages that wait for one peer.
pub(super) const OUTGOING_MESSAGES_MAX: usize = 64;
/// Most peers that an error lists.
const LISTED_PEERS_MAX: usize = 8;

/// A message on its way to a peer.
#[derive(Debug)]
pub(super) struct OutgoingMessage {
    /// The encoded message.
    pub(super) message: Bytes,
    /// Told when the message is written; dropped if it cannot be.
    pub(super) written: oneshot::Sender<()>,
}

/// The peers of one gateway; clones share them.
#[derive(Clone, Debug)]
pub(super) struct PeerRegistry {
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

/// Keeps a peer registered until it is dropped.
#[derive(Debug)]
pub(super) struct PeerGuard {
    id: u64,
    table: Arc<Mutex<Table>>,
    outgoing: mpsc::Sender<OutgoingMessage>,
}

impl PeerRegistry {
    /// An empty registry for the gateway with this name.
    pub(super) fn new(gateway: &'static str) -> Self {
        Self {
            gateway,
            table: Arc::default(),
        }
    }

    /// Registers a connected peer. Returns its registration and the messages to write to it.
    pub(super) fn register(
        &self,
        addr: SocketAddr,
        dialled: bool,
    ) -> (PeerGuard, mpsc::Receiver<OutgoingMessage>) {
        let (outgoing, receiver) = mpsc::channel(OUTGOING_MESSAGES_MAX);
        let mut table = self.table.lock();
        let id = table.next_id;
        table.next_id += 1;
        let peer = ConnectedPeer {
            addr,
            dialled,
            outgoing: outgoing.clone(),
        };
        table.peers.insert(id, peer);
        drop(table);
        let guard = PeerGuard {
            id,
            table: Arc::clone(&self.table),
            outgoing,
        };
        (guard, receiver)
    }

    fn view(&self, peer: &ConnectedPeer) -> PeerView {
        PeerView {
            gateway: self.gateway.to_owned(),
            peer: peer.addr,
            dialled: peer.dialled,
            error: None,
        }
    }

    /// The peers that `to` names; all without it.
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
        let matches = |peer: &&ConnectedPeer| {
            let ip = peer.addr.ip();
            one.is_some_and(|one| one.port() == peer.addr.port() && same(one.ip(), ip))
                || address.is_some_and(|address| same(address, ip))
        };
        let selected: Vec<ConnectedPeer> = all.iter().filter(matches).cloned().collect();
        if selected.is_empty() {
            let shown = all
                .iter()
                .take(LISTED_PEERS_MAX)
                .map(|peer| peer.addr.to_string());
            let shown = match all.len() {
                0 => "none".to_owned(),
                1..=LISTED_PEERS_MAX => shown.collect::<Vec<_>>().join(", "),
                count => format!(
                    "{} and others, {count} in all",
                    shown.collect::<Vec<_>>().join(", ")
                ),
            };
            let text = format!("no peer {to} is connected; connected: {shown}");
            return Err((Failure::NoMatch, text));
        }
        Ok(selected)
    }
}

impl ConnectedPeers for PeerRegistry {
    fn list(&self) -> Vec<PeerView> {
        let table = self.table.lock();
        table.peers.values().map(|peer| self.view(peer)).collect()
    }

    fn send<'a>(&'a self, to: Option<&'a str>, message: Bytes) -> Sending<'a> {
        Box::pin(async move {
            let selected = self.select(to)?;
            let mut sending = Vec::with_capacity(selected.len());
            for peer in selected {
                let (written, ack) = oneshot::channel();
                let message = message.clone();
                // Does not wait: a peer that does not read must not delay the others.
                let queued = peer.outgoing.try_send(OutgoingMessage { message, written });
                sending.push((self.view(&peer), queued.map(|()| ack)));
            }
            let mut views = Vec::with_capacity(sending.len());
            for (mut view, queued) in sending {
                view.error = match queued {
                    Ok(ack) => ack
                        .await
                        .err()
                        .map(|_dropped| "its connection has ended".to_owned()),
                    Err(mpsc::error::TrySendError::Full(_)) => Some(format!(
                        "it does not read: {OUTGOING_MESSAGES_MAX} messages wait for it already"
                    )),
                    Err(mpsc::error::TrySendError::Closed(_)) => Some("its connection has ended".to_owned()),
                };
                views.push(view);
            }
            Ok(views)
        })
    }
}

impl PeerGuard {
    /// Sends this peer a message, after those that wait for it; `false` if its connection has ended.
    pub(super) async fn send(&self, message: Bytes) -> bool {
        let (written, ack) = oneshot::channel();
        let message = OutgoingMessage { message, written };
        self.outgoing.send(message).await.is_ok() && ack.await.is_ok()
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
    use crate::engine::transport::gateway_peers::GatewayPeers;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn message_goes_to_one_peer_one_address_or_all() {
        let gateways = GatewayPeers::default();
        assert!(matches!(gateways.get("socktools"), Err((Failure::Usage, _))));
        let peers = PeerRegistry::new("socktools");
        gateways.register_gateway("socktools", Arc::new(peers.clone()));
        let no_peer = peers.send(None, Bytes::new()).await.expect_err("no peer");
        assert_eq!(no_peer.0, Failure::NoMatch);
        let (first, mut of_first) = peers.register(addr("10.0.0.1:1"), true);
        let (_second, mut of_second) = peers.register(addr("[::ffff:10.0.0.1]:2"), false);
        let (_third, of_third) = peers.register(addr("10.0.0.2:1"), false);
        drop(of_third);
        tokio::spawn(async move {
            while let Some(message) = of_first.recv().await {
                message.written.send(()).expect("waited for");
            }
        });
        tokio::spawn(async move {
            while let Some(message) = of_second.recv().await {
                message.written.send(()).expect("waited for");
            }
        });
        let said = |views: Vec<PeerView>| -> Vec<(u16, bool)> {
            views
                .iter()
                .map(|view| (view.peer.port(), view.error.is_none()))
                .collect()
        };
        let sent = gateways.get("socktools").expect("open");
        let all = sent.send(None, Bytes::new()).await.expect("all");
        assert_eq!(said(all), [(1, true), (2, true), (1, false)]);
        let one = sent.send(Some("10.0.0.1:2"), Bytes::new()).await.expect("one");
        assert_eq!(said(one), [(2, true)]);
        let address = sent.send(Some("10.0.0.1"), Bytes::new()).await.expect("two");
        assert_eq!(said(address), [(1, true), (2, true)]);
        let (failure, text) = sent
            .send(Some("10.0.0.9"), Bytes::new())
            .await
            .expect_err("no such peer");
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
        let peers = PeerRegistry::new("socktools");
        let (_guard, mut outgoing) = peers.register(addr("10.0.0.1:1"), true);
        let mut sends = Vec::new();
        for _ in 0..OUTGOING_MESSAGES_MAX {
            let peers = peers.clone();
            sends.push(tokio::spawn(async move { peers.send(None, Bytes::new()).await }));
        }
        while outgoing.len() < OUTGOING_MESSAGES_MAX {
            tokio::task::yield_now().await;
        }
        let views = peers.send(None, Bytes::new()).await.expect("told");
        let error = views[0].error.as_deref().expect("full");
        assert!(error.contains("does not read"), "{error}");
        outgoing.close();
        while outgoing.recv().await.is_some() {}
        for send in sends {
            let views = send.await.expect("ended").expect("told");
            assert_eq!(views[0].error.as_deref(), Some("its connection has ended"));
        }
    }
}
