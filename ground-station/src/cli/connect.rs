//! Connects a verb to a fleet: to a running `serve`, or else by links of its own for as long as the verb runs.
//!
//! | state directory | what happens |
//! |---|---|
//! | its socket accepts connections | requests go over the socket |
//! | free | this process takes the lock and brings up the links |
//! | locked, without such a socket | another verb runs, or `serve` is starting: wait, up to `--timeout` |

use std::path::PathBuf;
use std::time::Duration;

use swarm_shared::client::control::{CONTROL_SOCKET, is_listening};
use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::CommonOptions;
use super::screen::{CliError, Screen};
use crate::config::Config;
use crate::config::gateways::GatewaysConfig;
use crate::control::server::ControlServer;
use crate::engine::observe::offline_history;
use crate::engine::{self, Engine, Mode, Settings};
use crate::gateways::{self, Advertisement, Gateways};
use crate::store::lock::{LockError, StateLock};
use swarm_shared::client::Fleet;

/// Interval between two attempts to lock a taken state directory.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long a verb waits before it prints that it waits.
const WAIT_NOTICE_DELAY: Duration = Duration::from_millis(300);

/// A fleet, and the station of this process if there is one.
#[derive(Debug)]
pub(super) struct Connection {
    /// Takes the verb's requests.
    pub(super) fleet: Fleet,
    own_station: Option<OwnStation>,
}

/// The station that this process runs.
#[derive(Debug)]
struct OwnStation {
    engine: Engine,
    control: Option<(CancellationToken, JoinHandle<()>)>,
    gateways: Option<Gateways>,
    _lock: StateLock,
}

impl Connection {
    /// For a verb that ends without being interrupted.
    pub(super) async fn open(
        common: &CommonOptions,
        verb: &str,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        Self::open_with_purpose(common, verb, &Mode::OneShot, screen).await
    }

    /// For an emergency stop: if this process brings up the links, queued commands for those nodes wait until it is sent.
    pub(super) async fn open_for_stop(
        common: &CommonOptions,
        selector: &Selector,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        Self::open_with_purpose(common, "stop", &Mode::Stop(selector.clone()), screen).await
    }

    async fn open_with_purpose(
        common: &CommonOptions,
        verb: &str,
        purpose: &Mode,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        match find_station(common, verb, screen).await? {
            StationState::Running(socket) => {
                Ok(Self::without_station(running_station(common, socket, screen)))
            }
            StationState::NotRunning(lock) => {
                Self::start_own_station(common, lock, |_config| Ok(()), purpose.clone()).await
            }
        }
    }

    /// A fleet whose links are in another process, or nowhere.
    fn without_station(fleet: Fleet) -> Self {
        Self {
            fleet,
            own_station: None,
        }
    }

    /// The same in one attempt, without waiting for the state directory.
    pub(super) async fn try_open_for_stop(
        common: &CommonOptions,
        selector: &Selector,
    ) -> Result<Self, OpenError> {
        let state_dir = state_dir(common).map_err(OpenError::Fault)?;
        let socket = state_dir.join(CONTROL_SOCKET);
        if is_listening(&socket).await {
            return Ok(Self::without_station(Fleet::remote(socket)));
        }
        let lock = StateLock::try_acquire(&state_dir, "ground-station stop");
        let lock = lock.map_err(|error| match &error {
            LockError::Held { holder, .. } => OpenError::Held {
                holder: holder.clone(),
                fault: error.into(),
            },
            LockError::Io { .. } => OpenError::Fault(error.into()),
        })?;
        Self::start_own_station(common, lock, |_config| Ok(()), Mode::Stop(selector.clone()))
            .await
            .map_err(OpenError::Fault)
    }

    /// For a verb that needs a running `serve`; `None` if there is none.
    pub(super) async fn open_running(common: &CommonOptions) -> Result<Option<Self>, CliError> {
        let socket = state_dir(common)?.join(CONTROL_SOCKET);
        let running = is_listening(&socket).await;
        Ok(running.then(|| Self::without_station(Fleet::remote(socket))))
    }

    /// For a verb that cancels queued commands: a running `serve`, or the store alone. No link comes up, so that nothing
    /// is sent in the meantime.
    pub(super) async fn open_store(
        common: &CommonOptions,
        verb: &str,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        let fleet = match find_station(common, verb, screen).await? {
            StationState::Running(socket) => running_station(common, socket, screen),
            StationState::NotRunning(lock) => engine::cancel_only_fleet(lock),
        };
        Ok(Self::without_station(fleet))
    }

    /// For a verb that reads the history: asks a running `serve`, or else reads the store even while it is locked.
    pub(super) async fn open_history(common: &CommonOptions) -> Result<Self, CliError> {
        let state_dir = state_dir(common)?;
        let socket = state_dir.join(CONTROL_SOCKET);
        let fleet = if is_listening(&socket).await {
            Fleet::remote(socket)
        } else {
            offline_history::open(state_dir)
        };
        Ok(Self::without_station(fleet))
    }

    /// For a verb that runs until it is interrupted: if it brings up the links itself, other verbs can use them.
    pub(super) async fn open_long_running(
        common: &CommonOptions,
        verb: &str,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        Self::open_with_purpose(common, verb, &Mode::Daemon, screen).await
    }

    /// For `serve`: fails if another process has the state directory.
    pub(super) async fn serve(
        common: &CommonOptions,
        adjust: impl FnOnce(&mut Config),
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        match find_station(common, "serve", screen).await? {
            StationState::Running(socket) => Err(CliError::usage(format!(
                "a station already serves {}; stop it first, or use another --state-dir",
                socket.parent().unwrap_or(&socket).display()
            ))),
            StationState::NotRunning(lock) => {
                let mut gateways = GatewaysConfig::default();
                let adjust = |config: &mut Config| {
                    adjust(config);
                    gateways = config.gateways.clone();
                    // Before any link is up, so that nodes do not see a station come and go.
                    gateways::check(&gateways).map_err(|error| CliError::usage(error.to_string()))
                };
                let mut connection = Self::start_own_station(common, lock, adjust, Mode::Daemon).await?;
                if let Err(error) = connection.open_gateways(&gateways).await {
                    connection.close().await;
                    return Err(error);
                }
                Ok(connection)
            }
        }
    }

    /// Opens the gateways; only `serve` runs long enough for them.
    async fn open_gateways(&mut self, gateways: &GatewaysConfig) -> Result<(), CliError> {
        let Some(own) = &mut self.own_station else {
            return Ok(());
        };
        if *gateways == GatewaysConfig::default() {
            return Ok(());
        }
        let advertisement = Advertisement {
            name: own.engine.name(),
            services: own.engine.services(),
            gateway_peers: own.engine.gateway_peers(),
        };
        let (devices, store) = (own.engine.bridged_devices(), own.engine.store());
        let opened = Gateways::open(gateways, advertisement, self.fleet.clone(), devices, store).await;
        own.gateways = Some(opened.map_err(|error| CliError::usage(error.to_string()))?);
        Ok(())
    }

    async fn start_own_station(
        common: &CommonOptions,
        lock: StateLock,
        adjust: impl FnOnce(&mut Config) -> Result<(), CliError>,
        purpose: Mode,
    ) -> Result<Self, CliError> {
        let state_dir = lock.state_dir().to_owned();
        let file = common.config.as_deref();
        // Devices are stopped even if the configuration of their gateway is wrong.
        let mut may_bridge = false;
        let mut config = if matches!(purpose, Mode::Stop(_)) {
            let (config, fault) = Config::load_best_effort(file, &state_dir);
            may_bridge = fault.is_some();
            if let Some(error) = fault {
                tracing::warn!(%error, "Configuration is invalid; the stop is sent with the valid part of it");
            }
            config
        } else {
            Config::load(file, &state_dir)?
        };
        adjust(&mut config)?;
        let bridges_devices = may_bridge || config.gateways.clever_show.is_some();
        // Bound first, so that a path that is too long is found before any link is up.
        let server = if purpose == Mode::Daemon {
            Some(ControlServer::bind(&lock)?)
        } else {
            None
        };
        let engine = Engine::start(Settings {
            config,
            state_dir,
            mode: purpose,
            bridges_devices,
        })
        .await?;
        let fleet = engine.fleet();
        let control = server.map(|server| {
            let shutdown = CancellationToken::new();
            (
                shutdown.clone(),
                tokio::spawn(server.serve(fleet.clone(), shutdown)),
            )
        });
        Ok(Self {
            fleet,
            own_station: Some(OwnStation {
                engine,
                control,
                gateways: None,
                _lock: lock,
            }),
        })
    }

    /// Shuts down the station of this process, within the grace periods of its parts.
    pub(super) async fn close(self) {
        let Some(own) = self.own_station else { return };
        if let Some(gateways) = own.gateways {
            gateways.close().await;
        }
        if let Some((shutdown, serving)) = own.control {
            shutdown.cancel();
            if let Err(error) = serving.await {
                tracing::warn!(%error, "control socket");
            }
        }
        own.engine.shut_down().await;
    }
}

/// Why no fleet could be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// Another verb has locked the state directory, or `serve` is starting.
    Held {
        /// The program and its process id, for people.
        holder: String,
        /// The error for callers that do not wait.
        fault: CliError,
    },
    /// The station cannot be started.
    Fault(CliError),
}

/// The fleet of a running `serve`, which has read its configuration already.
fn running_station(common: &CommonOptions, socket: PathBuf, screen: &mut Screen) -> Fleet {
    if common.config_given {
        screen
            .print_note("--config is ignored: `ground-station serve` is running, with its own configuration");
    }
    Fleet::remote(socket)
}

enum StationState {
    Running(PathBuf),
    NotRunning(StateLock),
}

async fn find_station(
    common: &CommonOptions,
    verb: &str,
    screen: &mut Screen,
) -> Result<StationState, CliError> {
    let state_dir = state_dir(common)?;
    let socket = state_dir.join(CONTROL_SOCKET);
    let started = clock::now();
    let mut is_notified = false;
    loop {
        if is_listening(&socket).await {
            return Ok(StationState::Running(socket));
        }
        match StateLock::try_acquire(&state_dir, &format!("ground-station {verb}")) {
            Ok(lock) => return Ok(StationState::NotRunning(lock)),
            Err(LockError::Held { holder, .. }) if clock::since(started) < common.timeout => {
                if !is_notified && clock::since(started) >= WAIT_NOTICE_DELAY {
                    is_notified = true;
                    screen.print_note(&format!(
                        "waiting for {holder}, which uses {}",
                        state_dir.display()
                    ));
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
    }
}

/// `--state-dir`, or `ground-station` below `$XDG_STATE_HOME`, or below `~/.local/state`; always absolute.
pub(super) fn state_dir(common: &CommonOptions) -> Result<PathBuf, CliError> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let default = || {
        // A relative path there has to be ignored (XDG Base Directory Specification).
        let state_home = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
        let state_home = state_home.or_else(|| Some(variable("HOME")?.join(".local/state")))?;
        Some(state_home.join("ground-station"))
    };
    let chosen = common.state_dir.clone().or_else(default);
    let chosen = chosen
        .ok_or_else(|| CliError::usage("neither XDG_STATE_HOME nor HOME is set; use --state-dir DIR"))?;
    std::path::absolute(&chosen).map_err(|error| CliError::usage(format!("--state-dir {chosen:?}: {error}")))
}
