//! What the status says: the answer to `{"verb":"status"}`, field by field.

use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use swarm_shared::net::clock;

use crate::journal::Health;

/// What `status` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The node's name.
    pub name: String,
    /// The node's id, whole; empty until it is known.
    pub id: String,
    /// The program's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// The fleet's fingerprint; absent while the node belongs to none.
    #[serde(default)]
    pub fleet: Option<String>,
    /// The address that is really listened on; absent until it is.
    #[serde(default)]
    pub listen: Option<String>,
    /// The emergency stop in force: who gave it; absent while there is none.
    #[serde(default)]
    pub stopped: Option<String>,
    /// How the dead-man stands, once it has acted.
    #[serde(default)]
    pub lost_link: Option<String>,
    /// The newest loss of all links, for the self-check.
    #[serde(skip)]
    pub last_loss: Option<LinkLoss>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Whom it is linked with.
    pub links: Vec<LinkView>,
    /// The plug-ins that are connected.
    #[serde(default)]
    pub plugins: Vec<PluginView>,
    /// How the node stands with its clever-show server; absent without that door.
    #[serde(default)]
    pub clever_show: Option<ServerView>,
    /// The configuration file, whether it is there or not.
    pub config: String,
    /// The state directory.
    pub state_dir: String,
    /// Why nothing can be remembered; absent if all is well.
    #[serde(default)]
    pub state_problem: Option<String>,
    /// How the journal is; absent while there is none.
    #[serde(default)]
    pub journal: Option<JournalView>,
    /// Why a peer, or this node, was refused last.
    #[serde(default)]
    pub last_refusal: Option<String>,
    /// The newest warnings of the log, oldest first.
    pub warnings: Vec<String>,
}

/// The journal, and what it has asked of the disk since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalView {
    /// Why nothing can be written, so that what acts is refused; absent if all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Bytes written, snapshots included.
    pub bytes_written: u64,
    /// Flushes.
    pub syncs: u64,
    /// Records that are on the disk.
    pub records: u64,
    /// How often it was written anew, with what still counts.
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

/// One link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// The peer's name.
    pub name: String,
    /// The peer's id, short.
    pub id: String,
    /// `node` or `station`.
    pub kind: String,
    /// Where it is.
    pub addr: String,
    /// Seconds since the link came up.
    pub up_s: u64,
    /// When that was; [`super::Status::view`] reckons the seconds.
    #[serde(skip)]
    pub since: Option<Instant>,
}

/// One plug-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginView {
    /// Its name.
    pub name: String,
    /// Its process, if the system says so.
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
    /// When that was; [`super::Status::view`] reckons the seconds.
    #[serde(skip)]
    pub since: Option<Instant>,
}

/// How the node stands with the server of another program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Whether it is there.
    pub state: ServerState,
    /// Where it is, or was; absent until one that is looked for has announced itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<SocketAddr>,
    /// Why it could not be reached the last time; absent while it is there, and before the first attempt has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Seconds since it stands so.
    pub since_s: u64,
    /// When that was; [`super::Status::view`] reckons the seconds.
    #[serde(skip)]
    pub since: Option<Instant>,
}

/// See [`ServerView`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// None has been there yet.
    Looking,
    /// It is there.
    Joined,
    /// It was there, and is looked for again.
    Lost,
}

impl ServerView {
    /// From now on.
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

/// One time at which the dead-man acted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkLoss {
    /// Counted from 1 since the daemon started.
    pub number: u32,
    /// How the owner's command ended; absent while it runs.
    pub command: Option<Result<(), String>>,
}
