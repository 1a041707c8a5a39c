//! Doors: how programs that were written for other systems reach a fleet of ours. Each door speaks one foreign
//! protocol, turns what it hears into the same requests that the command line makes, and knows nothing of the others.
//!
//! | module | what it does |
//! |---|---|
//! | [`guard`] | what may pass, in whose name; every use is in the audit |
//! | [`hall`] | listening: who may connect, how many, how fast |
//! | [`platypush`] | what requests of Platypush's form mean here |
//! | [`platypush_http`] | Platypush over HTTP |
//!
//! Invariants: a door is closed unless the configuration opens it; what passes is permitted by the door's list *and*
//! by the gate of [`swarm_shared::proto::trust::gate`] for the door's role; whoever asks gets an answer in the door's
//! own language; nobody who behaves badly at a door is felt at another, or by the fleet.

pub mod guard;
pub mod hall;
pub mod platypush;
pub mod platypush_http;

use swarm_shared::proto::id::NodeName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::doors::Doors;
use crate::fleet::Fleet;
use crate::store::Store;

/// What all doors stand in.
#[derive(Clone, Debug)]
pub struct House {
    /// As this station calls itself.
    pub name: NodeName,
    /// To ask.
    pub fleet: Fleet,
    /// For the audit.
    pub store: Store,
    /// When to close.
    pub stop: CancellationToken,
    /// Everything that runs here.
    pub tasks: TaskTracker,
}

/// Why a door does not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address.
    #[error(
        "[doors.{door}]: cannot listen on {listen}: {reason}; change `listen`, or end what uses that port"
    )]
    Listen {
        /// Which.
        door: &'static str,
        /// Where.
        listen: std::net::SocketAddr,
        /// Why.
        reason: String,
    },
    /// What it is to do does not go together.
    #[error("[doors.{door}]: {reason}")]
    Configuration {
        /// Which.
        door: &'static str,
        /// What, and what to change.
        reason: String,
    },
}

/// The open doors.
#[derive(Debug)]
pub struct Open {
    house: House,
}

impl Open {
    /// Opens what the configuration says.
    ///
    /// # Errors
    /// [`DoorError`]: then none is open.
    pub async fn all(doors: &Doors, name: NodeName, fleet: Fleet, store: Store) -> Result<Self, DoorError> {
        let house = House {
            name,
            fleet,
            store,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let opened = Self::each(doors, &house).await;
        let open = Self { house };
        match opened {
            Ok(()) => Ok(open),
            Err(error) => {
                open.close().await;
                Err(error)
            }
        }
    }

    async fn each(doors: &Doors, house: &House) -> Result<(), DoorError> {
        if let Some(config) = &doors.platypush_http {
            platypush_http::open(config, house).await?;
        }
        Ok(())
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
