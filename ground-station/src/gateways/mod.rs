//! Doors: how programs that were written for other systems reach a fleet of ours. Each door speaks one foreign
//! protocol, turns what it hears into the same requests that the command line makes, and knows nothing of the others.
//!
//! | module | what it does |
//! |---|---|
//! | [`clever_show`] | clever-show's drone clients, as guests of the fleet |
//! | [`guard`] | what may pass, in whose name; every use is in the audit |
//! | [`hall`] | listening: who may connect, how many, how fast |
//! | [`knut`] | the door for Knut's clients |
//! | [`platypush`] | what requests of Platypush's form mean here |
//! | [`platypush_http`] | the door that takes them over HTTP, and hooks, files and readers of events |
//! | [`platypush_tcp`] | the door that takes such requests over TCP |
//! | [`socktools`] | the door for peers of socktools, which also dials |
//! | [`stream`] | messages over a plain TCP stream, and how long each may take |
//! | `threads` | what the doors run on that programs ask at, behind the fleet |
//!
//! Invariants: a door is closed unless the configuration opens it; what passes is permitted by the door's list *and*
//! by the gate of [`swarm_shared::proto::trust::gate`] for the door's role; whoever asks gets an answer in the door's
//! own language; nobody who behaves badly at a door is felt at another, or by the fleet.

pub mod access;
pub mod clever_show;
pub mod framing;
pub mod knut;
pub mod listener;
pub mod platypush_handler;
pub mod platypush_http;
pub mod platypush_tcp;
mod runtime;
pub mod socktools;
mod validate;

use std::net::SocketAddr;

use swarm_shared::net::discovery::mdns::Service;
use swarm_shared::net::discovery::presence::Services;
use swarm_shared::proto::id::NodeName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::gateways::Doors;
use crate::fleet::Fleet;
use crate::fleet::gateway_peers::Posts;
use crate::fleet::guests::Guests;
use crate::store::Store;
use runtime::Threads;

/// As the station shows itself to other programs.
#[derive(Clone, Debug)]
pub struct Face {
    /// Its name.
    pub name: NodeName,
    /// To be found by.
    pub services: Services,
    /// Where a door seats its peers.
    pub posts: Posts,
}

/// What all doors stand in.
#[derive(Clone, Debug)]
pub struct House {
    /// What is seen of it from outside.
    pub face: Face,
    /// To ask.
    pub fleet: Fleet,
    /// For drones that come as guests.
    pub guests: Guests,
    /// For the audit.
    pub store: Store,
    /// When to close.
    pub stop: CancellationToken,
    /// Everything that runs here.
    pub tasks: TaskTracker,
}

impl House {
    /// Publishes a door by mDNS under the station's name, as programs of its system look for it. One that only this
    /// machine reaches is not.
    pub async fn publish(&self, kind: &'static str, listen: SocketAddr) {
        if listen.ip().is_loopback() {
            return;
        }
        let name = self.face.name.as_str();
        let service = Service {
            kind,
            instance: name.to_owned(),
            listen,
            txt: vec![
                ("name", name.to_owned()),
                ("vendor", env!("CARGO_PKG_NAME").to_owned()),
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ],
        };
        if !self.face.services.offer(service).await {
            tracing::debug!(kind, "not published: mDNS is off");
        }
    }
}

/// Why a door does not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address.
    #[error("[doors.{door}]: cannot listen on {listen}: {reason}; {advice}")]
    Listen {
        /// Which.
        door: &'static str,
        /// Where.
        listen: SocketAddr,
        /// Why.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// A door's two ports are one.
    #[error("[doors.{door}]: `listen` and `websocket_port` both name port {port}: give one of them another")]
    Itself {
        /// Which.
        door: &'static str,
        /// Where.
        port: u16,
    },
    /// Two are to listen at one place.
    #[error(
        "[doors.{first}] and [doors.{second}] are both to listen on port {port}: give one of them another in `listen`"
    )]
    Twice {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// Where.
        port: u16,
    },
    /// There is nothing to run them on.
    #[error(
        "the doors do not open: {0}; raise the limit of threads (`ulimit -u`, or TasksMax of the unit) or of open files \
         (`ulimit -n`, or LimitNOFILE)"
    )]
    Threads(String),
    /// Opening one has failed in itself.
    #[error("the doors do not open: {0}; this is a fault of this program, please report it")]
    Broken(String),
    /// What it is to do does not go together.
    #[error("[doors.{door}]: {reason}")]
    Configuration {
        /// Which.
        door: &'static str,
        /// What, and what to change.
        reason: String,
    },
}

/// Finds what keeps the doors from opening, before anything else is done: what does not go together, and places that
/// are taken. Warns of what only keeps them from being of use.
///
/// # Errors
/// [`DoorError`].
pub fn check(doors: &Doors) -> Result<(), DoorError> {
    validate::check(doors)?;
    validate::places(doors)
        .into_iter()
        .try_for_each(|(door, listen)| listener::try_place(door, listen))
}

/// The open doors.
#[derive(Debug)]
pub struct Open {
    house: House,
    /// None if nothing is open that programs ask at.
    threads: Option<Threads>,
}

impl Open {
    /// Opens what the configuration says, which has passed [`check`].
    ///
    /// # Errors
    /// [`DoorError`]: then none is open.
    pub async fn all(
        doors: &Doors,
        face: Face,
        fleet: Fleet,
        guests: Guests,
        store: Store,
    ) -> Result<Self, DoorError> {
        let house = House {
            face,
            fleet,
            guests,
            store,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let threads = if doors.are_asked_at() {
            Some(Threads::start().map_err(|error| DoorError::Threads(error.to_string()))?)
        } else {
            None
        };
        let open = Self { house, threads };
        match open.each(doors).await {
            Ok(()) => Ok(open),
            Err(error) => {
                open.close().await;
                Err(error)
            }
        }
    }

    async fn each(&self, doors: &Doors) -> Result<(), DoorError> {
        if let Some(config) = &doors.clever_show {
            // Its drones fly, and their stops wait behind nothing: it runs where the fleet does.
            clever_show::open(config, &self.house)?;
        }
        let Some(threads) = &self.threads else {
            return Ok(());
        };
        let opened = threads.spawn(others(doors.clone(), self.house.clone())).await;
        opened
            .map_err(|error| DoorError::Broken(error.to_string()))
            .flatten()
    }

    /// Closes them, and waits for what runs there.
    pub async fn close(self) {
        self.house.stop.cancel();
        self.house.tasks.close();
        let grace = swarm_shared::net::endpoint::SHUTDOWN_GRACE;
        if tokio::time::timeout(grace, self.house.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                left = self.house.tasks.len(),
                ?grace,
                "visitors outlived shutdown"
            );
        }
    }
}

/// Opens what programs ask at, on the threads that run this.
async fn others(doors: Doors, house: House) -> Result<(), DoorError> {
    if let Some(door) = &doors.platypush_tcp {
        platypush_tcp::open(door, &house).await?;
    }
    if let Some(door) = &doors.platypush_http {
        platypush_http::open(door, &house).await?;
    }
    if let Some(door) = &doors.socktools {
        socktools::open(door, &house)?;
    }
    if let Some(door) = &doors.knut {
        knut::open(door, &house).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
