//! The answer to `{"verb":"status"}`.

use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use swarm_shared::net::clock;

use crate::journal::Health;

/// The status of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The node's name.
    pub name: String,
    /// The node's whole id; empty until it is known.
    pub id: String,
    /// Version of the program.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Fingerprint of the fleet; absent if the node belongs to none.
    #[serde(default)]
    pub fleet: Option<String>,
    /// The address that is listened on; absent until then.
    #[serde(default)]
    pub listen: Option<String>,
    /// The emergency stop in force, or why the node is held; absent if there is neither.
    #[serde(default)]
    pub stopped: Option<String>,
    /// Whether the node is held: it does not know whether it is stopped, and starts no actions until a release.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// What is wrong with the record of stops on the disk, for the self-check.
    #[serde(skip)]
    pub stop_record_problem: Option<String>,
    /// What could not be read of the journal at the start, for the self-check.
    #[serde(skip)]
    pub journal_damage: Option<String>,
    /// The last event of the lost-link detector; absent before the first.
    #[serde(default)]
    pub lost_link: Option<String>,
    /// The newest loss of all links, for the self-check.
    #[serde(skip)]
    pub last_loss: Option<LinkLoss>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// The open links.
    pub links: Vec<LinkView>,
    /// The connected plug-ins.
    #[serde(default)]
    pub plugins: Vec<PluginView>,
    /// The connection to the clever-show server; absent without that gateway.
    #[serde(default)]
    pub clever_show: Option<ServerView>,
    /// Path of the configuration file, whether it exists or not.
    pub config: String,
    /// Path of the state directory.
    pub state_dir: String,
    /// Why the state directory is not writable; absent if it is.
    #[serde(default)]
    pub state_problem: Option<String>,
    /// State of the journal; absent until it is open.
    #[serde(default)]
    pub journal: Option<JournalView>,
    /// The last refusal of a peer, or of this node by a peer.
    #[serde(default)]
    pub last_refusal: Option<String>,
    /// The newest warnings of the log, oldest first.
    pub warnings: Vec<String>,
}

/// State of the journal, and its disk writes since the start of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalView {
    /// Why it cannot be written, so that commands that act are refused; absent if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Bytes written, including snapshots.
    pub bytes_written: u64,
    /// Number of fsync calls.
    pub syncs: u64,
    /// Records that are on the disk.
    pub records: u64,
    /// Number of snapshots: rewrites with the records that still matter.
    pub snapshots: u64,
}

impl From<&Health> for JournalView {
    fn from(health: &Health) -> Self {
        Self {
            fault: health.fault.as_ref().map(ToString::to_string),
            bytes_written: health.stats.bytes_written,
            syncs: health.stats.syncs,
            records: health.stats.records,
            snapshots: health.stats.snapshots,
        }
    }
}

/// An open link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// The peer's name.
    pub name: String,
    /// The peer's id, in short form.
    pub id: String,
    /// `node` or `station`.
    pub kind: String,
    /// Address of the peer.
    pub addr: String,
    /// Seconds since the link came up.
    pub up_s: u64,
    /// Time at which it opened; [`super::Status::view`] computes `up_s`.
    #[serde(skip)]
    pub since: Option<Instant>,
}

/// A connected plug-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginView {
    /// Its name.
    pub name: String,
    /// Its process id, if the system gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The names of its actions.
    pub actions: Vec<String>,
    /// The names of its requests.
    pub requests: Vec<String>,
    /// The names of its telemetry fields.
    pub telemetry: Vec<String>,
    /// Seconds since it registered.
    pub up_s: u64,
    /// Time of its registration; [`super::Status::view`] computes `up_s`.
    #[serde(skip)]
    pub since: Option<Instant>,
}

/// The connection to the server of another program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Whether it is connected.
    pub state: ServerState,
    /// Address of the server, current or last; absent until a server has announced itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<SocketAddr>,
    /// Why the last attempt to connect failed; absent while connected, and before the first failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Seconds since the last change of `state`.
    pub since_s: u64,
    /// Time of that change; [`super::Status::view`] computes `since_s`.
    #[serde(skip)]
    pub since: Option<Instant>,
}

/// State of a [`ServerView`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// No server has been connected yet.
    Looking,
    /// A server is connected.
    Joined,
    /// The connection was lost, and the server is looked for.
    Lost,
}

impl ServerView {
    /// A view that begins now.
    pub fn new(state: ServerState, addr: Option<SocketAddr>) -> Self {
        Self {
            state,
            addr,
            problem: None,
            since_s: 0,
            since: Some(clock::now()),
        }
    }
}

/// One loss of all links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkLoss {
    /// Number of the loss, from 1 since the start of the daemon.
    pub number: u32,
    /// Result of the lost-link command; absent while it runs.
    pub command: Option<Result<(), String>>,
}
