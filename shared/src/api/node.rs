//! Nodes as a station knows them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Warning;
use crate::proto::id::{NodeName, PeerId, PeerKind};

/// A node, as a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeRef {
    /// Its name, which need not be unique.
    pub node: NodeName,
    /// Its id, which is unique.
    pub id: PeerId,
}

/// Whether a station hears a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Linked, and the last heartbeat came in time.
    Online,
    /// Linked, and one heartbeat or more is missing.
    Silent,
    /// Not linked.
    Offline,
}

impl NodeState {
    /// The word used in JSON and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Silent => "silent",
            Self::Offline => "offline",
        }
    }
}

/// A node as a station knows it. `nodes --json` prints this object on one line, with each warning as its sentence.
///
/// `W` is the form of a warning: a code, or after [`NodeView::with_texts`] a sentence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView<W = Warning> {
    /// Its name.
    pub node: NodeName,
    /// Its id.
    pub id: PeerId,
    /// Whether the station hears it.
    pub state: NodeState,
    /// Node or station.
    pub kind: PeerKind,
    /// Its last known address.
    pub address: Option<SocketAddr>,
    /// Milliseconds since the station heard it; absent if it never did.
    pub last_heard_ms: Option<u64>,
    /// Tags from its configuration.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The version of its program; absent until it has linked.
    pub software: Option<String>,
    /// What the operator should look into.
    #[serde(default = "Vec::new")]
    pub warnings: Vec<W>,
    /// The emergency stop in force; absent if it has reported none.
    #[serde(default)]
    pub stopped: Option<StopView>,
    /// The number of an emergency stop that it has not confirmed: it may be moving, and gets no command that acts.
    /// Always 1 for a bridged device while a stop is in force for it, since it cannot confirm one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_unconfirmed: Option<u64>,
    /// The results of its last self-check.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// Its latest readings, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub telemetry: BTreeMap<String, Value>,
}

impl NodeView {
    /// Whether this is the last view of the node: it is revoked, or a bridged device that has left.
    pub fn has_left(&self) -> bool {
        self.warnings.iter().any(Warning::is_last)
    }

    /// Whether the station has forgotten it: a bridged device that has left. Revoked nodes stay known.
    pub fn is_forgotten(&self) -> bool {
        self.warnings.contains(&Warning::DeviceLeft)
    }

    /// The same view with warnings as sentences.
    pub fn with_texts(self) -> NodeView<String> {
        NodeView {
            node: self.node,
            id: self.id,
            state: self.state,
            kind: self.kind,
            address: self.address,
            last_heard_ms: self.last_heard_ms,
            tags: self.tags,
            software: self.software,
            warnings: self.warnings.iter().map(Warning::to_string).collect(),
            stopped: self.stopped,
            stop_unconfirmed: self.stop_unconfirmed,
            checks: self.checks,
            telemetry: self.telemetry,
        }
    }
}

/// An emergency stop in force at a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopView {
    /// The station that gave it.
    pub issuer: PeerId,
    /// Its number, which a release names.
    pub number: u64,
    /// Whether it is on the node's disk, so that it survives a restart.
    pub latched: bool,
    /// Whether the node is held instead: it does not know whether it is stopped, and `issuer` is the node itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// What failed when the node carried it out.
    pub error: Option<String>,
}

/// One point of a node's self-check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it passed.
    pub ok: bool,
    /// Details of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}
