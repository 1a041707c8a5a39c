//! The small tables of the configuration. Gateways and actions have files of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use swarm_shared::config::value;

use super::values::{Argv, Identifier, UnitName};

/// `[files]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// Directories by the name that paths begin with.
    pub roots: BTreeMap<Identifier, RootDir>,
}

/// A root's directory, absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDir(pub PathBuf);

impl<'de> Deserialize<'de> for RootDir {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let path = PathBuf::deserialize(from)?;
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            let shown = path.display();
            Err(D::Error::custom(format!(
                "{shown} is not an absolute path: begin it with /"
            )))
        }
    }
}

/// `[heartbeat]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heartbeat {
    /// Between two heartbeats; a peer silent for three is offline.
    #[serde(deserialize_with = "value::duration")]
    pub interval: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
        }
    }
}

/// `[execute]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Execute {
    /// Whether an admin may run any program.
    pub allowed: bool,
    /// When its process group is killed.
    #[serde(deserialize_with = "value::duration")]
    pub timeout: Duration,
}

impl Default for Execute {
    fn default() -> Self {
        Self {
            allowed: false,
            timeout: Duration::from_secs(60),
        }
    }
}

/// `[services]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Services {
    /// Units that `service_restart` may restart.
    pub allow: Vec<UnitName>,
}

/// `[reboot]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reboot {
    /// Whether an operator may restart the device.
    pub allowed: bool,
    /// What restarts it.
    pub command: Argv,
}

impl Default for Reboot {
    fn default() -> Self {
        let command = ["systemctl", "reboot"].map(str::to_owned).to_vec();
        Self {
            allowed: false,
            command: Argv::new(command).unwrap_or_else(|e| unreachable!("a constant: {e}")),
        }
    }
}

/// `[notify]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notify {
    /// The program that shows the text, which is appended as its last argument.
    pub command: Option<Argv>,
    /// When its process group is killed.
    #[serde(deserialize_with = "value::duration")]
    pub timeout: Duration,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            command: None,
            timeout: Duration::from_secs(10),
        }
    }
}

/// `[telemetry]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Between samples.
    #[serde(deserialize_with = "value::duration")]
    pub interval: Duration,
    /// Prints a JSON object whose fields are added to the sample.
    pub command: Option<Argv>,
    /// When its process group is killed.
    #[serde(deserialize_with = "value::duration")]
    pub timeout: Duration,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            command: None,
            timeout: Duration::from_secs(5),
        }
    }
}

/// `[plugins]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plugins {
    /// Whether programs may register at `plugin.sock` in the state directory.
    pub enabled: bool,
}

impl Default for Plugins {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// `[emergency_stop]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmergencyStop {
    /// What it runs.
    pub command: Argv,
    /// When its process group is killed.
    #[serde(default = "safety_timeout", deserialize_with = "value::duration")]
    pub timeout: Duration,
}

/// `[lost_link]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostLink {
    /// Time without any station after which the command runs.
    #[serde(deserialize_with = "value::duration")]
    pub after: Duration,
    /// What it runs.
    pub command: Argv,
    /// When its process group is killed.
    #[serde(default = "safety_timeout", deserialize_with = "value::duration")]
    pub timeout: Duration,
    /// Whether it also runs while an emergency stop is latched.
    #[serde(default)]
    pub while_stopped: bool,
}

fn safety_timeout() -> Duration {
    Duration::from_secs(60)
}
