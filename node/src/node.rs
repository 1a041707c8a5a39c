//! The parts of a running node that do not depend on links, started and shut down together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use swarm_shared::net::identity::{self, IdentityError, KeyFile};
use swarm_shared::net::journal::Recovery;
use swarm_shared::net::random;
use swarm_shared::net::roots::Roots;
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::trust::SigningKey;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::actions::{Actions, Setup, host_name};
use crate::config::Config;
use crate::journal::{Journal, Opened};
use crate::logging::LogRing;
use crate::plugins::{self, Plugins};
use crate::state::StateDir;
use crate::status::{self, JOIN_REQUESTS_MAX, JoinRequest, Status};
use crate::stop::Restored;
use crate::telemetry::Telemetry;
use crate::transfers::Transfers;

/// How long tasks may take to end at shutdown.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// What [`Node::start`] needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration after file, environment and flags.
    pub config: Config,
    /// The path of the configuration file, which need not exist.
    pub config_path: PathBuf,
    /// The directory of keys, journal and sockets; created if it is missing.
    pub state_dir: PathBuf,
    /// `--name` or `SWARM_NODE_NAME`, if one of them gave the name: it overrides a stored name.
    pub name_fixed_by: Option<&'static str>,
    /// The recent log lines, for the action `log`.
    pub log: LogRing,
    /// True to end as soon as the node has joined: `swarm-node join`.
    pub exit_once_joined: bool,
}

/// The parts of a running node that do not depend on links.
#[derive(Debug)]
pub struct Node {
    /// The key that identifies this node.
    pub key: SigningKey,
    /// The configuration in force.
    pub config: Config,
    /// The open state directory.
    pub state: Arc<StateDir>,
    /// The journal of commands and stops.
    pub journal: Journal,
    /// What the journal held at the start.
    pub dedup: DedupTable,
    /// What the disk held of emergency stops at the start.
    pub restored_stop: Restored,
    /// The name; the receiver is notified of changes.
    pub name: watch::Receiver<NodeName>,
    /// The actions that commands can call.
    pub actions: Actions,
    /// The running file transfers.
    pub transfers: Transfers,
    /// Plug-ins: programs on this device that add actions and readings.
    pub plugins: Plugins,
    /// The readings of this device.
    pub telemetry: Telemetry,
    /// The facts that `swarm-node status` shows.
    pub status: Status,
    /// Invitation codes from `swarm-node join` on this device.
    join_requests: mpsc::Receiver<JoinRequest>,
    /// The sender of `join_requests`, for the status socket.
    pub(crate) join_sender: mpsc::Sender<JoinRequest>,
    /// Ends all tasks; cancelled at shutdown.
    pub shutdown: CancellationToken,
    /// Tracks all tasks; shutdown waits for them.
    pub tasks: TaskTracker,
}

impl Node {
    /// Opens state directory, journal and key, and starts the tasks that need no links.
    ///
    /// # Errors
    /// Another daemon uses the same state directory, or the key file cannot be used.
    pub fn start(settings: Settings) -> anyhow::Result<Self> {
        let Settings { config, log, .. } = settings;
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let state = Arc::new(StateDir::open(&settings.state_dir)?);
        if let Some(problem) = state.problem() {
            tracing::warn!(
                dir = %state.path().display(),
                problem,
                "NOTHING CAN BE REMEMBERED: the state directory cannot be written to"
            );
        }
        let (journal, opened) = open_journal(&state)?;
        let key = load_key(&state)?;
        let id = key.public().id();
        let restored_stop = Restored::new(&opened, id);
        let fixed = config.name.clone().filter(|_| settings.name_fixed_by.is_some());
        let name = fixed
            .or_else(|| state.name())
            .or_else(|| config.name.clone())
            .unwrap_or_else(host_name);

        let roots = Roots::new(config.root_map());
        for (name, error) in roots.create_missing() {
            tracing::warn!(name, %error, "File root cannot be used");
        }
        let to_sweep = roots.clone();
        tasks.spawn_blocking(move || match to_sweep.sweep() {
            0 => {}
            files => tracing::info!(files, "Leftovers of broken transfers removed"),
        });

        let mut disks = vec![("state".to_owned(), state.path().to_owned())];
        disks.extend(roots.iter().map(|(name, dir)| (name.to_owned(), dir.to_owned())));
        let plugins = Plugins::new(&config);
        let telemetry = Telemetry::new(config.telemetry.clone(), disks, plugins.clone());
        let status = Status::new(
            status::StatusView {
                name: name.to_string(),
                id: id.to_string(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                config: settings.config_path.display().to_string(),
                state_dir: state.path().display().to_string(),
                state_problem: state.problem().map(str::to_owned),
                journal_damage: opened.recovery.damage.as_ref().map(|damage| {
                    format!(
                        "{} bytes could not be read at the start ({damage}): commands that they held are forgotten",
                        opened.recovery.dropped_bytes
                    )
                }),
                ..status::StatusView::default()
            },
            log.clone(),
        )
        .with_journal(&journal);
        let (names, name) = watch::channel(name);
        let transfers = Transfers::new(roots.clone(), shutdown.clone());
        let actions = Actions::new(Setup {
            id,
            config: config.clone(),
            config_path: settings.config_path,
            state: state.clone(),
            roots,
            telemetry: telemetry.clone(),
            plugins: plugins.clone(),
            log,
            status: status.clone(),
            name: names,
            name_fixed_by: settings.name_fixed_by,
        });
        let (join_sender, join_requests) = mpsc::channel(JOIN_REQUESTS_MAX);
        let node = Self {
            key,
            config,
            state,
            journal,
            dedup: opened.dedup,
            restored_stop,
            name,
            actions,
            transfers,
            plugins,
            telemetry,
            status,
            join_requests,
            join_sender,
            shutdown,
            tasks,
        };
        node.spawn_tasks();
        Ok(node)
    }

    /// The receiver of join requests; empty from the second call on.
    pub(crate) fn take_join_requests(&mut self) -> mpsc::Receiver<JoinRequest> {
        let (_sender, taken) = mpsc::channel(1);
        std::mem::replace(&mut self.join_requests, taken)
    }

    fn spawn_tasks(&self) {
        let socket = StateDir::socket(self.state.path());
        match status::bind(&socket) {
            Ok(listener) => {
                let serve = status::serve(
                    listener,
                    self.status.clone(),
                    self.join_sender.clone(),
                    self.shutdown.clone(),
                );
                self.tasks.spawn(serve);
            }
            Err(error) => tracing::warn!(%error, path = %socket.display(), "Status socket not available"),
        }
        if self.config.plugins.enabled {
            self.serve_plugins();
        }
        let (telemetry, shutdown) = (self.telemetry.clone(), self.shutdown.clone());
        self.tasks.spawn(async move { telemetry.run(&shutdown).await });
        let (mut name, status, shutdown) = (self.name.clone(), self.status.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            while let Some(Ok(())) = shutdown.run_until_cancelled(name.changed()).await {
                let name = name.borrow_and_update().to_string();
                status.update(|facts| facts.name = name);
            }
        });
    }

    fn serve_plugins(&self) {
        let socket = StateDir::plugin_socket(self.state.path());
        let listener = match status::bind(&socket) {
            Ok(listener) => listener,
            Err(error) => {
                return tracing::warn!(%error, path = %socket.display(), "Plug-in socket not available");
            }
        };
        let (name, id) = (self.name.clone(), self.key.public().id());
        let welcome = move || json!({ "node": name.borrow().as_str(), "id": id });
        let (plugins, tasks, shutdown) = (self.plugins.clone(), self.tasks.clone(), self.shutdown.clone());
        self.tasks
            .spawn(plugins::serve(listener, plugins, welcome, tasks, shutdown));
        let (mut changes, shutdown) = (self.plugins.changes(), self.shutdown.clone());
        let (plugins, status) = (self.plugins.clone(), self.status.clone());
        self.tasks.spawn(async move {
            while let Some(Ok(())) = shutdown.run_until_cancelled(changes.changed()).await {
                let views = plugins.views();
                status.update(|facts| facts.plugins = views);
            }
        });
    }

    /// Ends all tasks within [`SHUTDOWN_GRACE`]: programs are killed, unfinished files removed.
    pub async fn shut_down(self) {
        self.shutdown.cancel();
        self.transfers.close();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = self.tasks.len(), grace = ?SHUTDOWN_GRACE, "Tasks outlived shutdown");
        }
        for socket in [StateDir::socket, StateDir::plugin_socket] {
            // It may never have been bound.
            std::fs::remove_file(socket(self.state.path())).ok();
        }
        tracing::info!("Node has shut down");
    }
}

/// The node's key. If the directory cannot be written, a key for this run only: a node that has to be accepted anew is
/// better than none.
fn load_key(state: &StateDir) -> anyhow::Result<SigningKey> {
    if let Some(key) = identity::load(state.path(), KeyFile::Identity)? {
        return Ok(key);
    }
    match identity::load_or_create(state.path(), KeyFile::Identity) {
        Err(IdentityError::StateFile(error)) => {
            let key = SigningKey::from_seed(random::bytes()?);
            tracing::warn!(
                %error,
                id = key.public().id().short(),
                "THE KEY IS IN MEMORY ONLY: after a restart this node is another one, and belongs to no fleet"
            );
            Ok(key)
        }
        loaded => Ok(loaded?),
    }
}

/// The journal and its content. A journal that cannot be written refuses commands that act; the node starts all the same.
fn open_journal(state: &StateDir) -> anyhow::Result<(Journal, Opened)> {
    let (journal, opened) =
        Journal::open(state.path()).context("no thread can be started for the journal")?;
    let Recovery {
        records,
        dropped_bytes,
        damage,
        damage_save_error: not_kept,
        fault,
    } = &opened.recovery;
    tracing::debug!(records, "Journal read");
    if let Some(damage) = damage {
        tracing::warn!(
            damage,
            dropped_bytes,
            not_kept = not_kept.as_deref(),
            "Journal's end cannot be read"
        );
    }
    if let Some(fault) = fault {
        tracing::warn!(%fault, "WHAT ACTS IS REFUSED: the journal cannot be written");
    }
    Ok((journal, opened))
}
