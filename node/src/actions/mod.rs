//! The actions of this node: the built-in ones, those of the configuration, and those of plug-ins, in this order.
//!
//! The gate has checked that the issuer's role may ask for that class of action. Stricter rules are here, beside the
//! actions that they protect: `execute`, and changes of the configuration, which could permit anything else, need the
//! role admin. Every command ends in exactly one [`Reply`]. A command does not start after its deadline.

mod builtin;
mod configure;
mod params;
mod properties;
mod selfcheck;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::roots::Roots;
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::Role;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::logging::LogRing;
use crate::plugins::{PluginAction, Plugins};
use crate::process::{self, EndReason, Stderr};
use crate::state::StateDir;
use crate::status::Status;
use crate::telemetry::Telemetry;

pub(crate) use builtin::host_name;
pub use properties::CATALOG_ACTIONS_MAX;
pub(crate) use properties::LANDING_ACTIONS;

/// A command to be run by this node.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its identity, which names its issuer.
    pub id: CommandId,
    /// The issuer's role in the fleet.
    pub role: Role,
    /// Name of the action.
    pub action: String,
    /// Arguments of the action.
    pub arguments: Arguments,
    /// Time from which it must not start.
    pub deadline: Option<Instant>,
    /// Cancelled to kill it, and at the shutdown of the daemon.
    pub cancel: CancellationToken,
}

/// Everything that the actions use.
#[derive(Debug)]
pub struct Setup {
    /// This node's id.
    pub id: PeerId,
    /// The configuration in force.
    pub config: Config,
    /// The configuration file, which `config` reads and changes.
    pub config_path: PathBuf,
    /// The state directory.
    pub state: Arc<StateDir>,
    /// The roots below which files are read and written.
    pub roots: Roots,
    /// The source of telemetry samples.
    pub telemetry: Telemetry,
    /// The connected plug-ins.
    pub plugins: Plugins,
    /// The newest lines of the log.
    pub log: LogRing,
    /// The facts of the status socket: the stop in force, the last lost link.
    pub status: Status,
    /// The name in use; the announcements subscribe to it.
    pub name: watch::Sender<NodeName>,
    /// What overrides a rename at the next start: `--name` or `SWARM_NODE_NAME`.
    pub name_fixed_by: Option<&'static str>,
}

/// The actions of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Actions {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    setup: Setup,
    /// Held while the configuration file is read, changed and written.
    config_lock: Mutex<()>,
}

impl Actions {
    /// The actions for this setup.
    pub fn new(setup: Setup) -> Self {
        Self {
            inner: Arc::new(Inner {
                setup,
                config_lock: Mutex::new(()),
            }),
        }
    }

    /// Runs a command. Dropping the future kills the program that it runs.
    pub async fn run(&self, command: Command) -> Reply {
        let (action, id, peer) = (command.action.as_str(), command.id, command.id.issuer.short());
        // A command of a gateway is logged there, at a limited rate.
        let through_a_gateway = command.id.issuer == self.inner.setup.id;
        if through_a_gateway {
            tracing::debug!(action, %id, role = %command.role, "Command of a gateway started");
        } else {
            tracing::info!(action, %id, peer, role = %command.role, "Command started");
        }
        let reply = self.inner.dispatch(&command).await;
        if let Some(error) = reply.error.as_ref().filter(|_| !through_a_gateway) {
            tracing::info!(action, %id, peer, state = %reply.state, error, "Command ended");
        }
        reply
    }
}

impl Actions {
    /// Whether the configuration defines an action of this name.
    pub(crate) fn is_configured(&self, name: &str) -> bool {
        self.inner.setup.config.actions.contains_key(name)
    }

    /// A fresh telemetry sample, without a command.
    pub(crate) async fn telemetry_sample(&self) -> crate::telemetry::Sample {
        self.inner.telemetry_sample().await
    }
}

impl Inner {
    async fn dispatch(&self, command: &Command) -> Reply {
        if command.is_expired() {
            return command.expired_reply();
        }
        let arguments = &command.arguments;
        let answered = match command.action.as_str() {
            "ping" => builtin::ping(arguments),
            "id" => self.identify(arguments).await,
            "time" => builtin::time(arguments),
            "config" => self.configure(command).await,
            "telemetry" => self.telemetry(arguments).await,
            "selfcheck" => self.selfcheck(arguments).await,
            "execute" => self.execute(command).await,
            "service_restart" => self.service_restart(command).await,
            "reboot" => self.reboot(command).await,
            "notify" => self.notify(command).await,
            "log" => self.log(arguments),
            "filetransfer" => {
                Err("a file needs a connection of its own: use `ground-station send` or `fetch`".to_owned())
            }
            other => self.run_custom(other, command).await,
        };
        answered.unwrap_or_else(Reply::refused)
    }

    async fn run_custom(&self, name: &str, command: &Command) -> Result<Reply, String> {
        let actions = &self.setup.config.actions;
        let Some(action) = actions.get(name) else {
            if let Some(action) = self.setup.plugins.find(name) {
                return Ok(run_plugin_action(action, command).await);
            }
            let plugins = self.setup.plugins.actions();
            let own = actions.keys().map(crate::config::ActionName::as_str);
            let own: Vec<&str> = own
                .chain(plugins.iter().map(|action| action.name.as_str()))
                .collect();
            let own = if own.is_empty() {
                "none".to_owned()
            } else {
                own.join(", ")
            };
            let shown: String = name.chars().take(80).collect();
            return Err(format!("no action is called {shown:?}; this node's own: {own}"));
        };
        let argv = action.argv(&command.arguments)?;
        Ok(self.run_program(command, &argv, action.timeout).await)
    }

    /// Runs a program for a command, and maps its end to a reply.
    async fn run_program(&self, command: &Command, argv: &[String], timeout: Duration) -> Reply {
        let ran = match process::run(argv, Stderr::Merged, timeout, &command.cancel).await {
            Ok(ran) => ran,
            Err(error) => return Reply::failed(error.to_string()),
        };
        let error = match (ran.reason, ran.exit_code) {
            (EndReason::Exited, 0) => None,
            (EndReason::Exited, exit) if exit > 128 => Some(format!("ended by signal {}", exit - 128)),
            (EndReason::Exited, exit) => Some(format!("exit status {exit}")),
            (EndReason::TimedOut, _) => Some(format!("ran longer than {timeout:?} and was killed")),
            (EndReason::Cancelled, _) => Some("it was killed before it ended".to_owned()),
        };
        Reply {
            state: if error.is_none() {
                Outcome::Done
            } else {
                Outcome::Failed
            },
            value: None,
            output: Some(ran.output),
            exit: Some(ran.exit_code),
            error,
        }
    }
}

/// Runs an action of a plug-in. A plug-in cannot be killed: an early end only tells it to stop.
async fn run_plugin_action(action: PluginAction, command: &Command) -> Reply {
    let ended = format!(
        "ended early; the plug-in {} was told, and may go on all the same",
        action.plugin
    );
    tokio::select! {
        biased;
        reply = action.call(command.arguments.clone(), command.deadline) => reply,
        () = command.cancel.cancelled() => Reply::failed(ended),
    }
}

impl Command {
    fn is_expired(&self) -> bool {
        self.deadline.is_some_and(|deadline| clock::now() >= deadline)
    }

    fn expired_reply(&self) -> Reply {
        Reply::ended(Outcome::Expired, "its time to live ran out before it could begin")
    }
}
