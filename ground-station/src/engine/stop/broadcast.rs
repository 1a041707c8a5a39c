//! An emergency stop by datagrams alone, while no engine answers: another verb holds the state directory, the disk is
//! full, or `serve` hangs. It needs no lock and writes nothing: it reads the key, the membership and the members.
//!
//! Nodes do not acknowledge its datagrams, and its number is not stored. Neither is needed: the engine that gets the links
//! issues the stop again, with a number that is not lower, since numbers follow the wall clock and the stored number.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::net::discovery::interfaces;
use swarm_shared::net::discovery::pings::Broadcaster;
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::proto::id::{PeerId, PeerKind};
use swarm_shared::proto::selector::{NodeAttributes as Matched, Selector};
use swarm_shared::proto::stop::{StopOrder, StopSender, next_number, split_selector};
use swarm_shared::proto::trust::gate::{Permission, permit};
use swarm_shared::proto::trust::{Membership, SigningKey};
use swarm_shared::proto::wire::Kind;
use tokio_util::sync::CancellationToken;

use crate::store::{self, meta};
use swarm_shared::api::NodeRef;

pub(in crate::engine) const NO_FLEET: &str =
    "this station belongs to no fleet, so no node would stop: join one, or make one";

/// Signed orders and their destinations.
#[derive(Clone, Debug)]
pub struct StopBroadcast {
    targets: Vec<NodeRef>,
    orders: Vec<Bytes>,
    /// Last addresses of the targets, with the port for pings.
    last_addresses: Vec<SocketAddr>,
    port: u16,
}

impl StopBroadcast {
    /// Reads the state directory, which another process may hold, and signs the orders.
    ///
    /// # Errors
    /// Text for the user: why this station cannot stop nodes.
    pub async fn prepare(state_dir: PathBuf, selector: Selector, port: u16) -> Result<Self, String> {
        let work = tokio::task::spawn_blocking(move || Self::read(&state_dir, &selector, port));
        work.await.map_err(|error| error.to_string())?
    }

    fn read(state_dir: &Path, selector: &Selector, port: u16) -> Result<Self, String> {
        let key = identity::load(state_dir, KeyFile::Identity).map_err(|error| error.to_string())?;
        let key = key.ok_or(NO_FLEET)?;
        let stored = store::read_best_effort(state_dir, |connection| {
            let membership = meta::MEMBERSHIP.read(connection)?;
            let last_number = meta::STOP_NUMBER.read(connection)?.unwrap_or(0);
            Ok((membership, last_number, store::members(connection)?))
        });
        let stored = stored.map_err(|error| error.to_string())?;
        let (membership, last_number, members) = stored.ok_or(NO_FLEET)?;
        let membership = membership.ok_or(NO_FLEET)?;
        membership
            .check_own(&key.public())
            .map_err(|error| error.to_string())?;
        let mut targets = Vec::new();
        let mut last_addresses = Vec::new();
        for member in members {
            let id = member.key.id();
            let matched = Matched {
                name: &member.name,
                id: &id,
                tags: &member.tags,
            };
            if member.kind == PeerKind::Node && !member.revoked && selector.matches(&matched) {
                last_addresses.extend(member.address.map(|address| SocketAddr::new(address.ip(), port)));
                targets.push(NodeRef {
                    node: member.name,
                    id,
                });
            }
        }
        last_addresses.sort();
        last_addresses.dedup();
        let ids: Vec<PeerId> = targets.iter().map(|target| target.id).collect();
        let selectors = split_selector(selector, &ids).map_err(|error| error.to_string())?;
        let first = next_number(last_number, clock::unix_time_ms());
        let orders = (first..)
            .zip(selectors)
            .map(|(number, selector)| sign_order(&key, &membership, number, selector));
        Ok(Self {
            orders: orders.collect::<Result<_, _>>()?,
            targets,
            last_addresses,
            port,
        })
    }

    /// The known nodes that match the selector.
    pub fn targets(&self) -> &[NodeRef] {
        &self.targets
    }

    /// Sends five datagrams and then one each second, on every interface and to the last addresses of the targets, until
    /// shutdown. Sends only the five if there are no targets.
    pub async fn run(self, shutdown: CancellationToken) {
        let present = interfaces::watch(shutdown.clone());
        let mut broadcaster = Broadcaster::default();
        let ids = self.targets.iter().map(|target| target.id);
        let mut sender = StopSender::new(0, ids, clock::now());
        while let Some(next) = sender.poll_timeout() {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = clock::sleep_until(next) => {}
            }
            if sender.handle_timeout(clock::now()).is_none() {
                continue;
            }
            let present = present.borrow().clone();
            for order in &self.orders {
                broadcaster
                    .broadcast(&present, self.port, order, &self.last_addresses)
                    .await;
            }
        }
    }
}

/// Signs an order.
///
/// # Errors
/// Text for the user: the role does not permit a stop, or the selector is too long.
pub(in crate::engine) fn sign_order(
    key: &SigningKey,
    membership: &Membership,
    number: u64,
    selector: Selector,
) -> Result<Bytes, String> {
    permit(membership.own_role(), &Permission::Frame(Kind::Stop)).map_err(|refused| refused.to_string())?;
    let order = StopOrder::new(&membership.fingerprint(), key.public(), number, selector);
    let bytes = order.encode(key, membership.grant());
    bytes.map(Bytes::from).map_err(|error| error.to_string())
}
