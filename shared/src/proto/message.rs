//! What the frames of our own links carry as content, one type for each [`Kind`](super::wire::Kind) that has JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::{Instance, NodeName, PeerId, PeerKind, PublicKey};
use super::trust::{FleetState, Grant, Signed};

/// The version of the link protocol that this build speaks, and the oldest that it still understands.
pub const PROTOCOL_VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest that is understood.
    pub min: u32,
    /// The newest that is spoken.
    pub max: u32,
}

impl VersionRange {
    /// The newest version that both sides speak; `None` if there is none.
    pub fn newest_common(self, other: Self) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Commands, replies, heartbeats: every lane but bulk.
    Control,
    /// Files.
    Bulk,
    /// Handing in an invitation code, or waiting to be accepted by hand.
    Join,
}

/// The first frame each way: who I am.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol versions I speak.
    pub versions: VersionRange,
    /// What this connection is for.
    pub channel: Channel,
    /// What I run.
    pub kind: PeerKind,
    /// My name.
    pub name: NodeName,
    /// This run of my process.
    pub instance: Instance,
    /// The port I listen on; the address is the one you see.
    pub port: u16,
    /// My tags, for selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The program's version, for people.
    pub software: String,
    /// The fleet root's word for me; absent while I belong to no fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Signed<Grant>>,
    /// The newest fleet state that I hold.
    #[serde(default)]
    pub fleet_state: u64,
}

/// You may go on; and where our session stands. The first frame each way once both hellos are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// My run.
    pub instance: Instance,
    /// Your run as I remember it: [`Welcome::received`] counts for that one only. Any other if I have forgotten it.
    pub peer_instance: Instance,
    /// The last number that I have read from you in this session; 0 if none.
    pub received: u64,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// No protocol version in common.
    Version,
    /// The peer has no grant, and may not be taken in without one.
    NoGrant,
    /// The grant is of another fleet.
    WrongFleet,
    /// The grant is not signed by the fleet root, or is for another key.
    BadGrant,
    /// The key has been revoked.
    Revoked,
    /// The role does not allow it.
    NotAllowed,
    /// Another link between the two stays.
    Duplicate,
    /// Another process with the same key is linked.
    ClonedKey,
    /// The invitation code is wrong, used up or expired.
    BadCode,
    /// Waiting to be accepted by the operator.
    Pending,
    /// The first frames were not what they have to be.
    Protocol,
    /// Too much at once; try again.
    Busy,
    /// The peer is shutting down.
    ShuttingDown,
    /// From a later version.
    #[serde(other)]
    Other,
}

/// The last frame of a connection: why it closes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what was wrong and what to do.
    pub reason: String,
}

impl Refused {
    /// A refusal with its reason.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

/// The arguments of a command: the same content as clever-show's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arguments {
    /// By position. `null` counts as none, as clever-show's peers write after a reconnect.
    #[serde(default, deserialize_with = "null_is_default")]
    pub args: Vec<Value>,
    /// By name.
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

/// Most peers that one roster may name.
pub const ROSTER_PEERS_MAX: usize = 2_000;

/// Whom I know: a hint where to dial, never a reason to trust.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roster {
    /// Peers that I was linked with not long ago; at most [`ROSTER_PEERS_MAX`] are read.
    pub peers: Vec<RosterPeer>,
}

/// One peer of a [`Roster`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterPeer {
    /// Its id.
    pub id: PeerId,
    /// What it runs.
    pub kind: PeerKind,
    /// Its name, for people.
    pub name: NodeName,
    /// Where it can be dialled, as I saw it.
    pub addr: SocketAddr,
}

/// Content of a `fleet-state` frame.
pub type FleetStateMessage = Signed<FleetState>;

/// Content of a `join` frame: the proof of an invitation code, bound to this very TLS connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Join {
    /// Which code, without its secret; absent when the peer asks to be taken in by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<JoinProof>,
}

/// Proof of knowing an invitation's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinProof {
    /// The first bytes of the SHA-256 of the secret: names the code and gives nothing away.
    #[serde(with = "super::hex")]
    pub code: [u8; 8],
    /// HMAC-SHA-256 with the secret over a label for the direction and the TLS exporter.
    #[serde(with = "super::hex")]
    pub mac: [u8; 32],
}

/// Content of a `joined` frame: you are in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The fleet root's public key: its SHA-256 is the fleet's fingerprint.
    pub root: PublicKey,
    /// The grant for the peer that joined.
    pub grant: Signed<Grant>,
    /// Who is revoked.
    pub fleet_state: Signed<FleetState>,
    /// The issuer's own proof of the same secret; absent when the peer was accepted by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<JoinProof>,
}

/// Content of a `chunk-end` frame: what the file was, for whoever received it to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEnd {
    /// Of the whole content.
    #[serde(with = "super::hex")]
    pub sha256: [u8; 32],
    /// In bytes.
    pub size: u64,
    /// Permission bits; absent where the command has said them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// What became of the command that a node's owner named for the emergency stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopCommandState {
    /// There is none.
    None,
    /// It is at work.
    Running,
    /// It ended well.
    Done,
    /// It did not: [`Stopped::error`] says why.
    Failed,
}

/// The point of a self-check that tells what a node did the last time it had lost all its links.
pub const LOST_LINK_CHECK: &str = "lost link";

/// Content of a `stopped` frame: how a node's emergency stop stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopStatus {
    /// Whether the node is stopped.
    pub stopped: bool,
    /// Who gave the order in force; if there is none, the one that this answers.
    pub issuer: PeerId,
    /// That order's number: what a release has to name.
    pub number: u64,
    /// Whether it is in the node's journal, so that the node is still stopped after a restart.
    pub latched: bool,
    /// What became of the node's own command.
    pub command: StopCommandState,
    /// Why it is not latched, what went wrong with the command, or why the order is not for this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Milliseconds since the order was heard.
    pub since_ms: u64,
    /// The highest number that the node has heard of the receiver's own orders; 0 if none.
    #[serde(default)]
    pub seen: u64,
    /// Whether the order was heard, and does not mean this node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[serde(rename = "not_meant")]
    pub not_selected: bool,
}

/// Content of an `offer` frame: what this node can do, told to each station when a link comes up and when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionCatalog {
    /// Its actions that act, by name.
    #[serde(default)]
    pub actions: BTreeMap<String, ActionInfo>,
}

/// One action of an [`Offer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionInfo {
    /// How strictly its time to live is taken.
    #[serde(default)]
    pub class: TtlClass,
    /// Whether it may run again when nobody knows whether it has run.
    #[serde(default)]
    pub idempotent: bool,
    /// Whether it runs while the node is stopped.
    #[serde(default)]
    pub while_stopped: bool,
}

/// How strictly an action's time to live is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TtlClass {
    /// At most [`FLIGHT_TTL_MS_MAX`](super::delivery::FLIGHT_TTL_MS_MAX), and it never waits for an absent node.
    Flight,
    /// As long as its issuer says.
    #[default]
    #[serde(other)]
    Ordinary,
}
