//! The flags of the daemon, over its configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use swarm_shared::proto::id::NodeName;

use crate::config::{self, Config};
use crate::logging::LogRing;
use crate::node::Settings;
use crate::state::StateDir;

/// A flag that cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct UsageError(pub(super) String);

/// Flags of `run` and `join`. Each goes before its environment variable, which goes before the file.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Configuration file [default: config.toml in the state directory, if it is there]
    #[arg(long, value_name = "FILE", env = "SWARM_NODE_CONFIG")]
    config: Option<PathBuf>,
    /// Where keys and the fleet are kept [default: /var/lib/swarm-node, else ~/.local/state/swarm-node]
    #[arg(long, value_name = "DIR", env = "SWARM_NODE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// This node's name [default: the host's]
    #[arg(long)]
    name: Option<NodeName>,
    /// Where to accept links; port 0 picks a free one [default: 0.0.0.0:7420]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// A station to dial; may be given more than once
    #[arg(long = "station", value_name = "ADDR:PORT")]
    stations: Vec<SocketAddr>,
    /// UDP port of the stations' pings [default: 7422]
    #[arg(long, value_name = "N")]
    ping_port: Option<u16>,
    /// Do not listen for pings
    #[arg(long)]
    no_pings: bool,
    /// Neither publish nor browse by mDNS
    #[arg(long)]
    no_mdns: bool,
    /// Join with this code while the node belongs to no fleet
    #[arg(long = "join", value_name = "CODE")]
    join: Option<String>,
    /// error, warn, info, debug, trace, or a filter such as info,swarm_shared=debug
    #[arg(long, value_name = "LEVEL", env = "SWARM_NODE_LOG", default_value = "info")]
    pub(super) log: String,
}

impl RunArgs {
    pub(super) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(StateDir::default_path)
    }

    /// Reads file and variables, and lays the flags over them. With a code, the daemon ends once it has joined.
    pub(super) fn into_settings(self, log: LogRing, code: Option<String>) -> anyhow::Result<Settings> {
        let state_dir = self.state_dir();
        let usual = state_dir.join("config.toml");
        // A file that was named has to be there.
        let file = self
            .config
            .clone()
            .or_else(|| usual.exists().then(|| usual.clone()));
        let mut config = Config::load(file.as_deref(), config::variables())?;
        let by_variable = std::env::var_os("SWARM_NODE_NAME").map(|_| "SWARM_NODE_NAME");
        let name_fixed_by = if self.name.is_some() {
            Some("--name")
        } else {
            by_variable
        };
        let until_joined = code.is_some();
        config.name = self.name.or(config.name);
        config.listen = self.listen.unwrap_or(config.listen);
        config.ping_port = self.ping_port.unwrap_or(config.ping_port);
        config.pings &= !self.no_pings;
        config.mdns &= !self.no_mdns;
        config.join = code.or(self.join).or(config.join);
        if !self.stations.is_empty() {
            config.stations = self.stations;
        }
        Ok(Settings {
            config,
            config_path: file.unwrap_or(usual),
            state_dir,
            name_fixed_by,
            log,
            exit_once_joined: until_joined,
        })
    }
}
