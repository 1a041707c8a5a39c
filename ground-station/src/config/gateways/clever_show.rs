//! `[gateways.clever_show]`: clever-show's drone clients connect to the station as to their own server.
//!
//! ```toml
//! [gateways.clever_show]
//! listen = "0.0.0.0:25000"
//! allow = ["led_*", "start", "filetransfer"]   # what these drones may be sent; queries always may
//! announce = true              # announce the station to drones by UDP broadcast
//! announce_port = 8181         # the port that they listen on
//! resume_queue = false         # after a reconnection, send what was queued before
//! resend_requests = true       # after a reconnection, repeat requests that have no response
//! requests = ["battery_temp"]  # further queries, beside those that clever-show documents
//! flight = ["dance_*"]         # further actions that are never queued and live 2 s at most
//! stop_action = "emergency_land"   # what an emergency stop sends; "" for nothing
//! file_bytes = 16777216        # longest file, either way
//!
//! [gateways.clever_show.roots]    # the directory of ROOT in ROOT/PATH on these drones; `clover` is known from each drone
//! shows = "/home/pi/shows"
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer};
use swarm_shared::config::{KeyError, Keys, value};
use swarm_shared::proto::foreign::clever_show::{ANNOUNCEMENT_PORT, SERVER_PORT};
use swarm_shared::proto::selector::Glob;

use super::{CommonOptions, key_error};

/// Longest file unless configured, in bytes.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Most bytes of a file that may be configured: each file is held in memory.
const FILE_BYTES_MAX: i64 = 256 * 1024 * 1024;

gateway_config! {
    /// The keys of `[gateways.clever_show]`.
    CleverShowConfig "clever_show", common CommonOptions::at(SERVER_PORT);
    /// Whether the station is announced to drones.
    announce: bool = true,
    /// UDP port of announcements.
    #[serde(deserialize_with = "value::ranged::<_, _, 1, 65535>")]
    announce_port: u16 = ANNOUNCEMENT_PORT,
    /// Whether what was queued before a reconnection is sent after it.
    resume_queue: bool = false,
    /// Whether requests without a response are repeated after a reconnection.
    resend_requests: bool = true,
    /// Queries beside those that clever-show documents.
    requests: BTreeSet<String> = BTreeSet::new(),
    /// Actions of flight beside those that clever-show documents.
    #[serde(deserialize_with = "value::globs")]
    flight: Vec<Glob> = Vec::new(),
    /// The action that an emergency stop sends; none if `""` is configured.
    #[serde(deserialize_with = "stop_action")]
    stop_action: Option<String> = Some("emergency_land".to_owned()),
    /// Longest file, in bytes.
    #[serde(deserialize_with = "value::ranged::<_, _, 0, FILE_BYTES_MAX>")]
    file_bytes: u64 = FILE_BYTES,
    /// Directories on the drones, by the name of the root.
    #[serde(deserialize_with = "roots")]
    roots: BTreeMap<String, String> = BTreeMap::new(),
}

/// Refuses the common keys that have no meaning for drones.
pub(super) fn check(keys: &Keys<'_>) -> Result<(), KeyError> {
    let is_set = |key: &&str| keys.has(&["gateways", CleverShowConfig::NAME, key]);
    if is_set(&"token") {
        let message = "drones show no token; leave it out, and bind the gateway to the drones' own network";
        return Err(key_error(CleverShowConfig::NAME, &["token"], message));
    }
    match ["target", "ttl", "timeout"].into_iter().find(is_set) {
        Some(key) => Err(key_error(
            CleverShowConfig::NAME,
            &[key],
            "has no effect on this gateway: drones send no commands; leave it out",
        )),
        None => Ok(()),
    }
}

fn stop_action<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    value::text(from, |name| {
        // A drone ignores an unknown action without an error.
        if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!(
                "{name:?} is not the name of an action: write one word, or \"\" for nothing"
            ));
        }
        Ok(Some(name.to_owned()).filter(|name| !name.is_empty()))
    })
}

fn roots<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let roots: BTreeMap<String, String> = BTreeMap::deserialize(from)?;
    for (name, path) in &roots {
        if name.is_empty() || name.contains('/') {
            let message = format!("{name:?} is not the name of a root: it is empty or has a /");
            return Err(serde::de::Error::custom(message));
        }
        if path.is_empty() {
            return Err(serde::de::Error::custom(format!("the path of {name} is empty")));
        }
    }
    Ok(roots)
}
