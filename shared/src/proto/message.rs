//! The contents of frames on our own links: one type for each [`Kind`](super::wire::Kind) whose content is JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::{Instance, NodeName, PeerId, PeerKind, PublicKey};
use super::trust::{FleetState, Grant, Signed};

/// The protocol versions that this build supports, both ends included.
pub const PROTOCOL_VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest supported version.
    pub min: u32,
    /// Newest supported version.
    pub max: u32,
}

impl VersionRange {
    /// The newest version that both sides support; `None` if there is none.
    pub fn newest_common(self, other: Self) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Commands, replies, heartbeats: every lane except bulk.
    Control,
    /// File chunks.
    Bulk,
    /// Joining a fleet: by an invitation code, or by waiting for the operator's acceptance.
    Join,
}

/// The first frame in each direction: describes the sender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions that the sender supports.
    pub versions: VersionRange,
    /// Purpose of this connection.
    pub channel: Channel,
    /// Program that the sender runs.
    pub kind: PeerKind,
    /// The sender's name.
    pub name: NodeName,
    /// This run of the sender's process.
    pub instance: Instance,
    /// TCP port on which the sender listens; its address is the connection's.
    pub port: u16,
    /// The sender's tags, for selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Version of the sender's program, for display.
    pub software: String,
    /// The sender's grant; absent if it belongs to no fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Signed<Grant>>,
    /// Number of the newest fleet state that the sender holds.
    #[serde(default)]
    pub fleet_state: u64,
    /// In the hello of a side that was dialled: the path seems to drop large packets, and the dialler is to dial again
    /// with segments of at most 1,200 bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub small_segments: bool,
}

/// The first session frame in each direction, once both hellos are accepted: the resume point of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// This run of the sender's process.
    pub instance: Instance,
    /// The run of the receiver's process that the sender remembers: [`Welcome::received`] counts for that run only.
    /// Any other value means that the sender remembers none.
    pub peer_instance: Instance,
    /// The last sequence number that the sender has read from the receiver in this session; 0 if none.
    pub received: u64,
}

/// The reason for refusing a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The peers have no protocol version in common.
    Version,
    /// The peer has no grant, and this connection needs one.
    NoGrant,
    /// The grant is of another fleet.
    WrongFleet,
    /// The grant is not signed by the fleet root, or is for another key.
    BadGrant,
    /// The peer's key has been revoked.
    Revoked,
    /// The peer's role does not permit the request.
    NotAllowed,
    /// Two links were opened between the same peers, and the other one stays.
    Duplicate,
    /// Another process with the same key is linked.
    ClonedKey,
    /// The invitation code is wrong, used up or expired.
    BadCode,
    /// The peer waits for the operator's acceptance.
    Pending,
    /// The first frames did not follow the protocol.
    Protocol,
    /// A limit on connections is reached; the peer may retry.
    Busy,
    /// The refusing peer is shutting down.
    ShuttingDown,
    /// A code of a later version.
    #[serde(other)]
    Other,
}

/// The last frame of a refused connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// The reason as a code.
    pub code: RefusalCode,
    /// The reason and its remedy as text, for display.
    pub reason: String,
}

impl Refused {
    /// A refusal with this code and text.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

/// The arguments of a command, in clever-show's format.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arguments {
    /// Positional arguments. `null` counts as an empty list: clever-show's peers write it after a reconnect.
    #[serde(default, deserialize_with = "null_is_default")]
    pub args: Vec<Value>,
    /// Named arguments. `null` counts as an empty map.
    #[serde(default, deserialize_with = "null_is_default")]
    pub kwargs: serde_json::Map<String, Value>,
}

fn null_is_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Most peers that one roster may list.
pub const ROSTER_PEERS_MAX: usize = 2_000;

/// Peers that the sender knows: hints where to dial, which carry no trust.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roster {
    /// Peers with which the sender was linked recently; at most [`ROSTER_PEERS_MAX`] are read.
    pub peers: Vec<RosterPeer>,
}

/// One peer of a [`Roster`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterPeer {
    /// The peer's id.
    pub id: PeerId,
    /// The program that it runs.
    pub kind: PeerKind,
    /// Its name, for display.
    pub name: NodeName,
    /// Address at which the sender of the roster saw it.
    pub addr: SocketAddr,
}

/// Content of a `fleet-state` frame.
pub type FleetStateMessage = Signed<FleetState>;

/// Content of a `join` frame: the proof of an invitation code, bound to this TLS connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Join {
    /// Proof of the code's secret; absent when the peer asks for the operator's acceptance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<JoinProof>,
}

/// Proof of knowing an invitation's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinProof {
    /// The first bytes of the SHA-256 of the secret: identifies the code without revealing it.
    #[serde(with = "super::hex")]
    pub code: [u8; 8],
    /// HMAC-SHA-256 with the secret over a label for the direction and the TLS exporter.
    #[serde(with = "super::hex")]
    pub mac: [u8; 32],
}

/// Content of a `joined` frame: the receiver is now a member of the fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The fleet root's public key: its SHA-256 is the fleet's fingerprint.
    pub root: PublicKey,
    /// The grant for the peer that joined.
    pub grant: Signed<Grant>,
    /// The newest fleet state, which lists the revoked keys.
    pub fleet_state: Signed<FleetState>,
    /// The inviter's own proof of the same secret; absent when the operator accepted the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<JoinProof>,
}

/// Content of a `chunk-end` frame: the receiver checks the file against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEnd {
    /// SHA-256 of the whole file.
    #[serde(with = "super::hex")]
    pub sha256: [u8; 32],
    /// Size of the file, in bytes.
    pub size: u64,
    /// Permission bits; absent where the command has named them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// State of the command that a node's configuration names for the emergency stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopCommandState {
    /// The configuration names none.
    None,
    /// It is running.
    Running,
    /// It ended successfully.
    Done,
    /// It failed: [`StopStatus::error`] holds the reason.
    Failed,
}

/// Name of the self-check item that reports what a node did when it last lost all its links.
pub const LOST_LINK_CHECK: &str = "lost link";

/// Content of a `stopped` frame: the state of a node's emergency stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopStatus {
    /// Whether the node is stopped.
    pub stopped: bool,
    /// Station that issued the stop in force; without one, the issuer of the order that this frame answers.
    pub issuer: PeerId,
    /// Number of that order: a release has to name it.
    pub number: u64,
    /// Whether the stop is on the node's disk, so that it survives a restart.
    pub latched: bool,
    /// State of the node's own stop command.
    pub command: StopCommandState,
    /// Why the node is held, why the stop is not latched, why the command failed, or why the order does not apply to
    /// this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Milliseconds since the order was received.
    pub since_ms: u64,
    /// The highest number that the node has received of the receiver's own orders; 0 if none.
    #[serde(default)]
    pub seen: u64,
    /// The highest number of the receiver's own orders that was released at the node; 0 if none was. Nodes before this
    /// field send `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<u64>,
    /// Whether the node is held: it does not know whether it is stopped, and `issuer` is the node itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// Whether the order was received and its selector does not match this node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[serde(rename = "not_meant")]
    pub not_selected: bool,
}

impl StopStatus {
    /// Whether a node that is not stopped has shown that order `number` of the receiver was released there. A node that
    /// has lost its record of stops cannot show it.
    pub fn proves_release(&self, number: u64) -> bool {
        !self.stopped && self.released.unwrap_or(self.seen) >= number
    }
}

/// Content of an `offer` frame: the node's actions, sent to each station when a link opens and when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionCatalog {
    /// Actions that have an effect, by name. Reading actions are not listed.
    #[serde(default)]
    pub actions: BTreeMap<String, ActionInfo>,
}

/// Properties of one action of an [`ActionCatalog`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionInfo {
    /// Limits on the action's time to live.
    #[serde(default)]
    pub class: TtlClass,
    /// Whether it may run again when it is unknown whether it has run.
    #[serde(default)]
    pub idempotent: bool,
    /// Whether it runs while the node is stopped.
    #[serde(default)]
    pub while_stopped: bool,
}

/// Limits on an action's time to live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TtlClass {
    /// At most [`FLIGHT_TTL_MS_MAX`](super::delivery::FLIGHT_TTL_MS_MAX), and the command never waits for an absent
    /// node.
    Flight,
    /// As long as the issuer chooses.
    #[default]
    #[serde(other)]
    Ordinary,
}
