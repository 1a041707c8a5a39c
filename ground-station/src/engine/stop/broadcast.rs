//! An emergency stop by datagrams alone, for when nobody answers who has the links: another verb holds the state
//! directory, its disk is full, `serve` hangs. It needs no lock and writes nothing: the key, the membership and the
//! members are only read.
//!
//! Nobody acknowledges a datagram to it, and its number is not stored. Both are as well: whoever gets at the links
//! gives the stop again, and its number, by the wall clock or one more than the stored one, is never below this one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::Connection;
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

use crate::store::{self, MemberRow, StoreError};
use swarm_shared::api::NodeRef;

pub(in crate::engine) const NO_FLEET: &str =
    "this station belongs to no fleet, so nobody would stop: join one, or make one";

/// Signed orders, and where they go.
#[derive(Clone, Debug)]
pub struct StopBroadcast {
    targets: Vec<NodeRef>,
    orders: Vec<Bytes>,
    /// Where the targets were seen last, at the port for pings.
    last_addresses: Vec<SocketAddr>,
    port: u16,
}

/// What the store says, read only.
struct Stored {
    membership: String,
    number: u64,
    members: Vec<MemberRow>,
}

impl StopBroadcast {
    /// Reads what is needed from the state directory, whoever holds it, and signs the orders.
    ///
    /// # Errors
    /// Why this station can stop nobody, for people.
    pub async fn prepare(state_dir: PathBuf, selector: Selector, port: u16) -> Result<Self, String> {
        let work = tokio::task::spawn_blocking(move || Self::read(&state_dir, &selector, port));
        work.await.map_err(|error| error.to_string())?
    }

    fn read(state_dir: &Path, selector: &Selector, port: u16) -> Result<Self, String> {
        let key = identity::load(state_dir, KeyFile::Identity).map_err(|error| error.to_string())?;
        let key = key.ok_or(NO_FLEET)?;
        let stored = store::read_best_effort(state_dir, read_stored).map_err(|error| error.to_string())?;
        let stored = stored.flatten().ok_or(NO_FLEET)?;
        let membership: Membership =
            serde_json::from_str(&stored.membership).map_err(|error| error.to_string())?;
        membership
            .check_own(&key.public())
            .map_err(|error| error.to_string())?;
        let mut targets = Vec::new();
        let mut last_addresses = Vec::new();
        for member in stored.members {
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
        let first = next_number(stored.number, clock::unix_time_ms());
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

    /// The nodes that are known and meant.
    pub fn targets(&self) -> &[NodeRef] {
        &self.targets
    }

    /// Sends five datagrams and then one each second, on every interface and to where the targets were seen last,
    /// until the token is cancelled. If no target is known, five are all.
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

/// An order, signed, if its issuer may give it.
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

fn read_stored(connection: &Connection) -> Result<Option<Stored>, StoreError> {
    let Some(membership) = store::membership(connection)? else {
        return Ok(None);
    };
    Ok(Some(Stored {
        membership,
        number: store::stop_number(connection)?,
        members: store::members(connection)?,
    }))
}
