//! `[gateways.clever_show]`: clever-show's drone clients come here as to their own server.
//!
//! ```toml
//! [gateways.clever_show]
//! listen = "0.0.0.0:25000"
//! allow = ["led_*", "start", "filetransfer"]   # what these drones may be told; questions always pass
//! announce = true              # tell drones by UDP broadcast where this station is
//! announce_port = 8181         # where they listen
//! resume_queue = false         # send at the next connection what was queued when a drone was lost
//! resend_requests = true       # ask again at the next connection what was not answered
//! requests = ["battery_temp"]  # further questions, beside those that clever-show documents
//! flight = ["dance_*"]         # further actions that are never queued and live 2 s at most
//! stop_action = "emergency_land"   # what an emergency stop tells them; "" for nothing
//! file_bytes = 16777216        # longest file, either way
//!
//! [gateways.clever_show.roots]    # what ROOT/PATH is on these drones; `clover` is known from each drone
//! shows = "/home/pi/shows"
//! ```

use std::collections::{BTreeMap, BTreeSet};

use swarm_shared::proto::foreign::clever_show::{ANNOUNCEMENT_PORT, SERVER_PORT};
use swarm_shared::proto::selector::Glob;
use toml::de::DeTable;

use super::{CommonOptions, GatewayConfig, RawValue, ValueKind, in_range, parse_globs};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleverShowConfig {
    /// What every gateway has.
    pub common: CommonOptions,
    /// Whether drones are told where this station is.
    pub announce: bool,
    /// Where they listen.
    pub announce_port: u16,
    /// What was queued when a drone was lost is sent at its next connection.
    pub resume_queue: bool,
    /// What was not answered is asked again at its next connection.
    pub resend_requests: bool,
    /// Questions beside those that clever-show documents.
    pub requests: BTreeSet<String>,
    /// Actions of flight beside those that clever-show documents.
    pub flight: Vec<Glob>,
    /// What an emergency stop tells them.
    pub stop_action: Option<String>,
    /// Longest file, in bytes.
    pub file_bytes: u64,
    /// What a root is on these drones.
    pub roots: BTreeMap<String, String>,
}

/// Longest file unless configured, in bytes.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// The most that may be configured: each is held in memory.
const FILE_BYTES_MAX: i64 = 256 * 1024 * 1024;

impl GatewayConfig for CleverShowConfig {
    const NAME: &'static str = "clever_show";
    const KEYS: &'static [(&'static str, ValueKind)] = &[
        ("announce", ValueKind::Flag),
        ("announce_port", ValueKind::Number),
        ("resume_queue", ValueKind::Flag),
        ("resend_requests", ValueKind::Flag),
        ("requests", ValueKind::List),
        ("flight", ValueKind::List),
        ("stop_action", ValueKind::Text),
        ("file_bytes", ValueKind::Number),
    ];
    const TABLES: &'static [&'static str] = &["roots"];

    fn with_defaults() -> Self {
        Self {
            common: CommonOptions::at(SERVER_PORT),
            announce: true,
            announce_port: ANNOUNCEMENT_PORT,
            resume_queue: false,
            resend_requests: true,
            requests: BTreeSet::new(),
            flight: Vec::new(),
            stop_action: Some("emergency_land".to_owned()),
            file_bytes: FILE_BYTES,
            roots: BTreeMap::new(),
        }
    }

    fn common(&mut self) -> &mut CommonOptions {
        &mut self.common
    }

    fn set(&mut self, key: &str, value: &RawValue<'_>) -> Result<(), String> {
        match (key, value) {
            ("announce", RawValue::Bool(on)) => self.announce = *on,
            ("announce_port", RawValue::Number(port)) => {
                self.announce_port = in_range(key, *port, 1, 65_535)?;
            }
            ("resume_queue", RawValue::Bool(on)) => self.resume_queue = *on,
            ("resend_requests", RawValue::Bool(on)) => self.resend_requests = *on,
            ("requests", RawValue::List(names)) => {
                self.requests = names.iter().map(|name| (*name).to_owned()).collect();
            }
            ("flight", RawValue::List(list)) => self.flight = parse_globs(list)?,
            ("stop_action", RawValue::Text(name)) => {
                // A drone passes over an action that it does not know, without a word.
                if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
                    return Err(format!(
                        "stop_action {name:?} is no action's name: it has to be one word, or \"\" for nothing"
                    ));
                }
                self.stop_action = Some((*name).to_owned()).filter(|name| !name.is_empty());
            }
            ("file_bytes", RawValue::Number(bytes)) => {
                self.file_bytes = in_range(key, *bytes, 0, FILE_BYTES_MAX)?;
            }
            _ => return Err(format!("{key} has no meaning here")),
        }
        Ok(())
    }

    fn after_set(&mut self, key: &str) -> Result<(), String> {
        match key {
            "token" => Err(
                "token: drones show none; leave it out, and bind the gateway to the drones' own network"
                    .to_owned(),
            ),
            "target" | "ttl" | "timeout" => Err(format!(
                "{key} does nothing at this gateway: drones ask for nothing that others do; leave it out"
            )),
            _ => Ok(()),
        }
    }

    fn set_table(&mut self, key: &str, table: &DeTable<'_>) -> Option<Result<(), (usize, String)>> {
        (key == "roots").then(|| self.set_roots(table))
    }
}

impl CleverShowConfig {
    fn set_roots(&mut self, table: &DeTable<'_>) -> Result<(), (usize, String)> {
        for (root, path) in table {
            let name: &str = root.get_ref();
            if name.is_empty() || name.contains('/') {
                return Err((root.span().start, format!("{name:?} is no name of a root")));
            }
            let rule = || {
                (
                    path.span().start,
                    format!("roots.{name} has to be a path in quotes"),
                )
            };
            let path = path.get_ref().as_str().filter(|path| !path.is_empty());
            self.roots
                .insert(name.to_owned(), path.ok_or_else(rule)?.to_owned());
        }
        Ok(())
    }
}
