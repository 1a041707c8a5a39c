//! How a verb comes by a fleet: a running `serve` if there is one, else its own links for as long as it takes.
//!
//! | state directory | what happens |
//! |---|---|
//! | its socket answers | requests go over the socket |
//! | free | this process takes the lock and brings up the links |
//! | locked, and no socket answers | another verb is at work, or `serve` is starting: wait, up to `--timeout` |

use std::path::PathBuf;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Common;
use super::screen::{CliError, Screen};
use crate::config::Config;
use crate::config::gateways::Doors;
use crate::control::lock::{LockError, StateLock};
use crate::control::server::ControlServer;
use crate::control::{CONTROL_SOCKET, client};
use crate::fleet::engine::{self, Engine, EngineError, Purpose, Settings};
use crate::fleet::guests::{self, Desk, Guests};
use crate::fleet::{Fleet, offline_history};
use crate::gateways::{self, Face, Open};

/// How often a taken state directory is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// How long a verb waits before it says that it waits.
const SAY_AFTER: Duration = Duration::from_millis(300);

/// A fleet to ask, and what has to end with it.
#[derive(Debug)]
pub(super) struct Connection {
    /// To ask.
    pub(super) fleet: Fleet,
    own: Option<Own>,
}

/// What this process runs itself.
#[derive(Debug)]
struct Own {
    engine: Engine,
    control: Option<(CancellationToken, JoinHandle<()>)>,
    /// Before the engine, where a door may let guests in: other verbs stop and release them too.
    guests: Option<(Guests, Desk)>,
    doors: Option<Open>,
    _lock: StateLock,
}

impl Connection {
    /// For a verb that ends by itself.
    pub(super) async fn open(common: &Common, verb: &str, screen: &mut Screen) -> Result<Self, CliError> {
        Self::open_for(common, verb, &Purpose::Once, screen).await
    }

    /// For an emergency stop: if it brings up the links itself, nothing that waits for those nodes goes before it.
    pub(super) async fn open_to_stop(
        common: &Common,
        selector: &Selector,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        Self::open_for(common, "stop", &Purpose::Stop(selector.clone()), screen).await
    }

    async fn open_for(
        common: &Common,
        verb: &str,
        purpose: &Purpose,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        match find(common, verb, screen).await? {
            Found::Running(socket) => Ok(Self {
                fleet: remote(common, socket, screen),
                own: None,
            }),
            Found::Free(lock) => Self::own(common, lock, |_config| Ok(()), purpose.clone()).await,
        }
    }

    /// The same in one try, without waiting for whoever has the state directory.
    pub(super) async fn attempt_to_stop(common: &Common, selector: &Selector) -> Result<Self, NotOpen> {
        let state_dir = state_dir(common).map_err(NotOpen::Fault)?;
        let socket = state_dir.join(CONTROL_SOCKET);
        if client::answers(&socket).await {
            return Ok(Self {
                fleet: Fleet::remote(socket),
                own: None,
            });
        }
        let lock = StateLock::try_take(&state_dir, "ground-station stop");
        let lock = lock.map_err(|error| match &error {
            LockError::Held { holder, .. } => NotOpen::Held {
                holder: holder.clone(),
                fault: error.into(),
            },
            LockError::Io { .. } => NotOpen::Fault(error.into()),
        })?;
        Self::own(common, lock, |_config| Ok(()), Purpose::Stop(selector.clone()))
            .await
            .map_err(NotOpen::Fault)
    }

    /// For a verb that means nothing without a running `serve`; `None` if there is none.
    pub(super) async fn open_running(common: &Common) -> Result<Option<Self>, CliError> {
        let socket = state_dir(common)?.join(CONTROL_SOCKET);
        let running = client::answers(&socket).await;
        Ok(running.then(|| Self {
            fleet: Fleet::remote(socket),
            own: None,
        }))
    }

    /// For a verb that takes back what waits: a running `serve`, or the store alone. No link comes up, so that nothing
    /// is sent in the meantime.
    pub(super) async fn open_book(
        common: &Common,
        verb: &str,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        let fleet = match find(common, verb, screen).await? {
            Found::Running(socket) => remote(common, socket, screen),
            Found::Free(lock) => engine::without_links(lock),
        };
        Ok(Self { fleet, own: None })
    }

    /// For a verb that only looks back: asks a running `serve`, or else reads the store, whoever holds it.
    pub(super) async fn open_past(common: &Common) -> Result<Self, CliError> {
        let state_dir = state_dir(common)?;
        let socket = state_dir.join(CONTROL_SOCKET);
        let fleet = if client::answers(&socket).await {
            Fleet::remote(socket)
        } else {
            offline_history::open(state_dir)
        };
        Ok(Self { fleet, own: None })
    }

    /// For a verb that stays: if it brings up the links itself, it shares them with other verbs.
    pub(super) async fn open_to_stay(
        common: &Common,
        verb: &str,
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        match find(common, verb, screen).await? {
            Found::Running(socket) => Ok(Self {
                fleet: remote(common, socket, screen),
                own: None,
            }),
            Found::Free(lock) => Self::own(common, lock, |_config| Ok(()), Purpose::Stay).await,
        }
    }

    /// For `serve`: the links are its own or it fails.
    pub(super) async fn serve(
        common: &Common,
        adjust: impl FnOnce(&mut Config),
        screen: &mut Screen,
    ) -> Result<Self, CliError> {
        match find(common, "serve", screen).await? {
            Found::Running(socket) => Err(CliError::usage(format!(
                "a station already serves {}; stop it first, or use another --state-dir",
                socket.parent().unwrap_or(&socket).display()
            ))),
            Found::Free(lock) => {
                let mut doors = Doors::default();
                let adjust = |config: &mut Config| {
                    adjust(config);
                    doors = config.doors.clone();
                    // Before any link is up: nodes are not to see a station come and go.
                    gateways::check(&doors).map_err(|error| CliError::usage(error.to_string()))
                };
                let mut connection = Self::own(common, lock, adjust, Purpose::Stay).await?;
                if let Err(error) = connection.open_doors(&doors).await {
                    connection.close().await;
                    return Err(error);
                }
                Ok(connection)
            }
        }
    }

    /// Only `serve` stays long enough for other programs.
    async fn open_doors(&mut self, doors: &Doors) -> Result<(), CliError> {
        let Some(own) = &mut self.own else { return Ok(()) };
        if *doors == Doors::default() {
            return Ok(());
        }
        let face = Face {
            name: own.engine.name(),
            services: own.engine.services(),
            posts: own.engine.posts(),
        };
        let guests = own.guests.as_ref().map(|(guests, _)| guests.clone());
        let (guests, store) = (guests.unwrap_or_default(), own.engine.store());
        let opened = Open::all(doors, face, self.fleet.clone(), guests, store).await;
        own.doors = Some(opened.map_err(|error| CliError::usage(error.to_string()))?);
        Ok(())
    }

    async fn own(
        common: &Common,
        lock: StateLock,
        adjust: impl FnOnce(&mut Config) -> Result<(), CliError>,
        purpose: Purpose,
    ) -> Result<Self, CliError> {
        let state_dir = lock.state_dir().to_owned();
        let file = common.config.as_deref();
        // Who comes through a door that could not be read is stopped, too.
        let mut may_have_guests = false;
        let mut config = if matches!(purpose, Purpose::Stop(_)) {
            let (config, fault) = Config::load_regardless(file, &state_dir);
            may_have_guests = fault.is_some();
            if let Some(error) = fault {
                tracing::warn!(%error, "the stop goes out all the same, as if the configuration ended there");
            }
            config
        } else {
            Config::load(file, &state_dir)?
        };
        adjust(&mut config)?;
        let has_guests = may_have_guests || config.doors.clever_show.is_some();
        let stops = matches!(purpose, Purpose::Stop(_));
        // Bound first: a path that is too long is found before any link is up.
        let server = if purpose == Purpose::Stay {
            Some(ControlServer::bind(&lock)?)
        } else {
            None
        };
        let engine = Engine::start(Settings {
            config,
            state_dir,
            purpose,
        })
        .await?;
        let front = if has_guests {
            guests::front(engine.fleet(), engine.store()).await.map(Some)
        } else {
            Ok(None)
        };
        let (fleet, guests) = match front {
            Ok(None) => (engine.fleet(), None),
            Ok(Some((fleet, guests, desk))) => (fleet, Some((guests, desk))),
            Err(error) if stops => {
                tracing::warn!(%error, "the stop goes out all the same; drones that come later are not stopped by it");
                (engine.fleet(), None)
            }
            Err(error) => {
                engine.stop().await;
                return Err(EngineError::from(error).into());
            }
        };
        let control = server.map(|server| {
            let stop = CancellationToken::new();
            (stop.clone(), tokio::spawn(server.serve(fleet.clone(), stop)))
        });
        Ok(Self {
            fleet,
            own: Some(Own {
                engine,
                control,
                guests,
                doors: None,
                _lock: lock,
            }),
        })
    }

    /// Ends what this process runs itself, within the graces that its parts name.
    pub(super) async fn close(self) {
        let Some(own) = self.own else { return };
        if let Some(doors) = own.doors {
            doors.close().await;
        }
        if let Some((stop, serving)) = own.control {
            stop.cancel();
            if let Err(error) = serving.await {
                tracing::warn!(%error, "control socket");
            }
        }
        if let Some((_, desk)) = own.guests {
            desk.close().await;
        }
        own.engine.stop().await;
    }
}

/// Why there is no fleet to ask yet.
#[derive(Debug)]
pub(super) enum NotOpen {
    /// Another verb has the state directory, or `serve` is starting.
    Held {
        /// Who, for people.
        holder: String,
        /// The same, for whoever does not wait.
        fault: CliError,
    },
    /// The station does not start.
    Fault(CliError),
}

/// A running `serve`, which has read its configuration already.
fn remote(common: &Common, socket: PathBuf, screen: &mut Screen) -> Fleet {
    if common.config_given {
        screen.note("--config is ignored: `ground-station serve` is running, with its own configuration");
    }
    Fleet::remote(socket)
}

enum Found {
    Running(PathBuf),
    Free(StateLock),
}

async fn find(common: &Common, verb: &str, screen: &mut Screen) -> Result<Found, CliError> {
    let state_dir = state_dir(common)?;
    let socket = state_dir.join(CONTROL_SOCKET);
    let started = clock::now();
    let mut said = false;
    loop {
        if client::answers(&socket).await {
            return Ok(Found::Running(socket));
        }
        match StateLock::try_take(&state_dir, &format!("ground-station {verb}")) {
            Ok(lock) => return Ok(Found::Free(lock)),
            Err(LockError::Held { holder, .. }) if clock::since(started) < common.timeout => {
                if !said && clock::since(started) >= SAY_AFTER {
                    said = true;
                    screen.note(&format!(
                        "waiting for {holder}, which uses {}",
                        state_dir.display()
                    ));
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// `--state-dir`, or `ground-station` below `$XDG_STATE_HOME`, or below `~/.local/state`; always absolute.
pub(super) fn state_dir(common: &Common) -> Result<PathBuf, CliError> {
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
