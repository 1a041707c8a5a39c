//! `[gateways]`: servers of other systems that this node connects to; none by default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use swarm_shared::config::value;
use swarm_shared::proto::foreign::clever_show::{ANNOUNCEMENT_PORT, FILE_TRANSFER};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Glob;
use swarm_shared::proto::trust::Role;
use swarm_shared::proto::trust::gate::{self, ActionClass, Permission};

use super::{Action, ActionName, Execute, Files, values};

/// Shortest time between two readings.
const TELEMETRY_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Longest file, in bytes, that may be configured: it is held in memory.
const FILE_BYTES_MAX: i64 = 256 * 1024 * 1024;

/// `[gateways]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateways {
    /// A clever-show server.
    pub clever_show: Option<CleverShow>,
}

impl Gateways {
    /// Checks keys that depend on one another. An error is a key of `[gateways.clever_show]` and what is wrong.
    pub(super) fn check(
        &self,
        files: &Files,
        execute: &Execute,
        actions: &BTreeMap<ActionName, Action>,
    ) -> Result<(), (&'static str, String)> {
        let Some(gateway) = &self.clever_show else {
            return Ok(());
        };
        for name in gateway.allow.iter().filter_map(Glob::literal) {
            gateway
                .validate_role(&name)
                .and_then(|()| validate_action(&name, files, execute, actions))
                .map_err(|wrong| ("allow", wrong))?;
        }
        gateway
            .validate_clover_dir(files)
            .map_err(|wrong| ("clover_dir", wrong))?;
        if gateway.server == Server::Auto && gateway.announce_port == 0 {
            let wrong =
                "no station announces itself on port 0: write 1 to 65535, or leave `announce_port` out";
            return Err(("announce_port", wrong.to_owned()));
        }
        Ok(())
    }
}

/// Checks that an action in `allow` can run on this node.
fn validate_action(
    name: &str,
    files: &Files,
    execute: &Execute,
    actions: &BTreeMap<ActionName, Action>,
) -> Result<(), String> {
    match name {
        "execute" if !execute.allowed => Err(format!(
            "`allow` names {name:?}, but it is off on this node: set [execute] allowed = true, or take {name:?} out of \
             `allow`"
        )),
        FILE_TRANSFER if files.roots.is_empty() => Err(format!(
            "`allow` names {name:?}, but there is no root: add [files.roots] with a NAME = \"/DIRECTORY\", or take {name:?} \
             out of `allow`"
        )),
        "reboot_all" if !actions.contains_key(name) => Err(format!(
            "`allow` names {name:?}, but that is \"reboot\" here: write \"reboot\", or configure an action {name:?}"
        )),
        _ => Ok(()),
    }
}

impl CleverShow {
    /// Checks that `role` permits an action in `allow`.
    fn validate_role(&self, name: &str) -> Result<(), String> {
        let missing = match name {
            // Without arguments these only read, which `allow` need not name.
            "config" => (self.role != Role::Admin).then(|| {
                let role = self.role;
                format!("the configuration may not be changed by role {role}: it takes role admin")
            }),
            "id" => gate::missing_role(self.role, &Permission::Command(ActionClass::Modify)),
            _ => {
                let class = gate::classify(name, &Arguments::default());
                gate::missing_role(self.role, &Permission::Command(class))
            }
        };
        missing.map_or(Ok(()), |missing| {
            Err(format!(
                "`allow` names {name:?}, but {missing}; set `role` in [gateways.clever_show], or take {name:?} out of `allow`"
            ))
        })
    }

    /// Checks that `clover_dir` begins with the name of a root: files are pushed below it.
    fn validate_clover_dir(&self, files: &Files) -> Result<(), String> {
        let Some(dir) = &self.clover_dir else {
            return Ok(());
        };
        let root = dir.split('/').next().unwrap_or_default();
        let roots: Vec<&str> = files.roots.keys().map(values::Identifier::as_str).collect();
        if roots.contains(&root) {
            return Ok(());
        }
        let rule = "`clover_dir` begins with the name of a root";
        Err(if roots.is_empty() {
            format!("{rule}, and there is none: add [files.roots] with a NAME = \"/DIRECTORY\"")
        } else {
            let roots = roots.join(", ");
            format!("{dir:?} is in no root: {rule} of [files.roots], such as {roots}, or add one")
        })
    }
}

/// `[gateways.clever_show]`: the node is a drone of a clever-show server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleverShow {
    /// The server to connect to.
    pub server: Server,
    /// UDP port of announcements.
    #[serde(default = "default_announce_port")]
    pub announce_port: u16,
    /// Actions that the server may run besides those that only read, by name or glob.
    #[serde(default, deserialize_with = "value::globs")]
    pub allow: Vec<Glob>,
    /// The server's role: the upper limit of its permissions.
    #[serde(default = "default_role", deserialize_with = "value::gateway_role")]
    pub role: Role,
    /// Whether readings are sent.
    #[serde(default = "default_telemetry")]
    pub telemetry: bool,
    /// Interval of readings.
    #[serde(default = "default_telemetry_every", deserialize_with = "telemetry_every")]
    pub telemetry_every: Duration,
    /// The response to a request for `clover_dir`: a path below a root. The first root if absent.
    pub clover_dir: Option<String>,
    /// Messages that are received in a second; further ones wait.
    #[serde(
        default = "default_rate",
        deserialize_with = "value::ranged::<_, _, 1, 1_000_000>"
    )]
    pub rate: u32,
    /// Longest file, either way, in bytes.
    #[serde(
        default = "default_file_bytes",
        deserialize_with = "value::ranged::<_, _, 1, FILE_BYTES_MAX>"
    )]
    pub file_bytes: usize,
}

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// At this address.
    At(SocketAddr),
    /// At the address of the newest announcement, which is not authenticated.
    Auto,
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match value::parse_address(&text) {
            Ok(addr) if addr.port() != 0 => Ok(Self::At(addr)),
            Ok(_) | Err(_) => Err(D::Error::custom(format!(
                "{text:?} is no server: write ADDR:PORT, such as \"192.168.1.10:25000\", or \"auto\""
            ))),
        }
    }
}

fn default_announce_port() -> u16 {
    ANNOUNCEMENT_PORT
}

fn default_role() -> Role {
    Role::Operator
}

fn default_telemetry() -> bool {
    true
}

fn default_telemetry_every() -> Duration {
    Duration::from_secs(1)
}

fn default_rate() -> u32 {
    50
}

fn default_file_bytes() -> usize {
    8 * 1024 * 1024
}

fn telemetry_every<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let every = value::duration(from)?;
    if every < TELEMETRY_INTERVAL_MIN {
        return Err(D::Error::custom(format!(
            "the least is {TELEMETRY_INTERVAL_MIN:?}"
        )));
    }
    Ok(every)
}
