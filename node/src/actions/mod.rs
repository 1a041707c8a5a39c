//! What a command can ask of this node: the built-in actions, the owner's, and those of plug-ins, in this order.
//!
//! The gate has judged whether the issuer's role may ask for that class of action at all. Stricter rules are here,
//! beside what they guard: `execute`, and writing the configuration, which could allow anything else, take an admin.
//! Every command ends in exactly one [`Reply`]. A command that is late does not begin.

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

/// One instruction for this node.
#[derive(Clone, Debug)]
pub struct Command {
    /// Which one it is, and who issued it.
    pub id: CommandId,
    /// What its issuer is in the fleet.
    pub role: Role,
    /// What to do.
    pub action: String,
    /// With what.
    pub arguments: Arguments,
    /// When it must not begin any more.
    pub deadline: Option<Instant>,
    /// Cancelled to end it early, and when the daemon shuts down.
    pub cancel: CancellationToken,
}

/// What the actions work with.
#[derive(Debug)]
pub struct Setup {
    /// This node.
    pub id: PeerId,
    /// As it is in force.
    pub config: Config,
    /// Where it came from, and where changes go.
    pub config_path: PathBuf,
    /// What is remembered.
    pub state: Arc<StateDir>,
    /// The roots for files.
    pub roots: Roots,
    /// The readings.
    pub telemetry: Telemetry,
    /// The plug-ins.
    pub plugins: Plugins,
    /// The newest lines of the log.
    pub log: LogRing,
    /// What is shown on this device: the stop in force, the last lost link.
    pub status: Status,
    /// The name in use; whoever announces it subscribes.
    pub name: watch::Sender<NodeName>,
    /// Where a name comes from that a rename does not outlive: `--name` or `SWARM_NODE_NAME`.
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
    /// All actions, ready.
    pub fn new(setup: Setup) -> Self {
        Self {
            inner: Arc::new(Inner {
                setup,
                config_lock: Mutex::new(()),
            }),
        }
    }

    /// Carries a command out. Dropping the future kills what it runs.
    pub async fn run(&self, command: Command) -> Reply {
        let (action, id, peer) = (command.action.as_str(), command.id, command.id.issuer.short());
        // What came through a door is told there, no more often than a log can bear.
        let through_a_gateway = command.id.issuer == self.inner.setup.id;
        if through_a_gateway {
            tracing::debug!(action, %id, role = %command.role, "command through a door");
        } else {
            tracing::info!(action, %id, peer, role = %command.role, "command");
        }
        let reply = self.inner.dispatch(&command).await;
        if let Some(error) = reply.error.as_ref().filter(|_| !through_a_gateway) {
            tracing::info!(action, %id, peer, state = %reply.state, error, "command ended");
        }
        reply
    }
}

impl Actions {
    /// Whether the owner's configuration defines an action of this name.
    pub(crate) fn is_configured(&self, name: &str) -> bool {
        self.inner.setup.config.actions.contains_key(name)
    }

    /// A fresh reading of everything, without a command.
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

    /// Runs a program for a command.
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
            (EndReason::Cancelled, _) => Some("it was killed before its end".to_owned()),
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

/// Has a plug-in do it, until it is to end: nobody can kill what runs in another program.
async fn run_plugin_action(action: PluginAction, command: &Command) -> Reply {
    let told = format!(
        "ended early; the plug-in {} was told, and may go on all the same",
        action.plugin
    );
    tokio::select! {
        biased;
        reply = action.call(command.arguments.clone(), command.deadline) => reply,
        () = command.cancel.cancelled() => Reply::failed(told),
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
