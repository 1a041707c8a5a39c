//! The connected peers of gateways, as far as requests need them. A gateway with peers registers them here.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use swarm_shared::api::{Failure, PeerView};
use swarm_shared::net::sync::Mutex;

/// Why no message was sent, with a text for the user.
pub type SendError = (Failure, String);

/// The outcome of a message per peer, when it is written or cannot be.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<Vec<PeerView>, SendError>> + Send + 'a>>;

/// The connected peers of one gateway.
pub trait ConnectedPeers: Debug + Send + Sync {
    /// All peers.
    fn list(&self) -> Vec<PeerView>;

    /// Sends a message to one peer (`ADDR:PORT`), to all of one address (`ADDR`), or to all.
    fn send<'a>(&'a self, to: Option<&'a str>, message: Bytes) -> Sending<'a>;
}

/// The gateways that have peers, by name; clones share them.
#[derive(Clone, Debug, Default)]
pub struct GatewayPeers(Arc<Mutex<BTreeMap<&'static str, Arc<dyn ConnectedPeers>>>>);

impl GatewayPeers {
    /// Registers the peers of an open gateway.
    pub fn register_gateway(&self, gateway: &'static str, peers: Arc<dyn ConnectedPeers>) {
        self.0.lock().insert(gateway, peers);
    }

    /// The peers of a gateway.
    ///
    /// # Errors
    /// [`Failure::Usage`]: the gateway is not open or has no peers.
    pub fn get(&self, gateway: &str) -> Result<Arc<dyn ConnectedPeers>, SendError> {
        let peers = self.0.lock().get(gateway).cloned();
        peers.ok_or_else(|| {
            let text = format!(
                "no gateway {gateway:?} with peers is open here; [gateways.socktools] in the station's configuration opens one"
            );
            (Failure::Usage, text)
        })
    }
}
