//! The fleet files of a node: `fleet.json` (root, grant, fleet state), `stations.json` (last addresses of stations), and
//! `lost-link.json` (whether a station was linked on this boot). A failing disk is logged, and the node goes on with what
//! is in memory. Files are written on a thread for blocking calls: a memory card may take seconds, and the heartbeats of
//! all links share one thread.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use swarm_shared::net::state_file::{self, MODE_PLAIN, MODE_SECRET};
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::trust::Membership;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const FLEET_FILE: &str = "fleet.json";
const STATIONS_FILE: &str = "stations.json";
const LOST_LINK_FILE: &str = "lost-link.json";
/// Most stations that are remembered, newest first.
const STATIONS_MAX: usize = 8;

/// The state of [`crate::lost_link`] when the process before this one, on the same boot, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossState {
    /// A commanding station had been linked, and no lost-link command had ended since.
    Linked,
    #[serde(rename = "over")]
    /// The link was lost, the lost-link command had ended, and no station had linked again.
    CommandEnded,
}

/// The content of `lost-link.json`, valid for one boot.
#[derive(Debug, Serialize, Deserialize)]
struct StoredLossState {
    boot: String,
    state: LossState,
}

impl StoredLossState {
    /// The state, if it is of this boot. In between boots the device may have been moved or landed.
    fn for_boot(self, boot: &str) -> Option<LossState> {
        (self.boot == boot && !boot.is_empty()).then_some(self.state)
    }
}

/// Loads and saves the fleet files of one state directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FleetStore {
    dir: PathBuf,
}

impl FleetStore {
    /// The files in this state directory; none has to exist.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The membership of this node; `None` without a fleet, or if the file is unreadable or invalid, which is logged.
    pub fn load_fleet(&self, own: &PublicKey) -> Option<Membership> {
        let path = self.dir.join(FLEET_FILE);
        let bytes = state_file::read(&path)
            .inspect_err(
                |error| tracing::warn!(%error, "Membership unreadable: the node starts without a fleet"),
            )
            .ok()??;
        let sound = |text: &[u8]| -> anyhow::Result<Membership> {
            let membership: Membership = serde_json::from_slice(text)?;
            membership.check_own(own)?;
            Ok(membership)
        };
        sound(&bytes)
            .inspect_err(|error| {
                tracing::error!(path = %path.display(), %error, "Membership is not a fleet of this node: delete the file and join anew");
            })
            .ok()
    }

    /// Stores the membership.
    pub async fn save_fleet(&self, membership: &Membership) {
        let (this, membership) = (self.clone(), membership.clone());
        run_blocking(move || this.write(FLEET_FILE, &membership, MODE_SECRET)).await;
    }

    /// Stores every change of the membership until `shutdown`, the newest one if the disk is slower than the changes.
    pub async fn save_fleet_changes(
        &self,
        mut fleets: watch::Receiver<Option<Arc<Membership>>>,
        shutdown: CancellationToken,
    ) {
        while let Some(Ok(())) = shutdown.run_until_cancelled(fleets.changed()).await {
            let now = fleets.borrow_and_update().clone();
            if let Some(membership) = now {
                self.save_fleet(&membership).await;
            }
        }
    }

    /// The last addresses of stations, newest first.
    pub fn load_stations(&self) -> Vec<SocketAddr> {
        let read = state_file::read(&self.dir.join(STATIONS_FILE)).ok().flatten();
        let mut stations: Vec<SocketAddr> = read
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        stations.retain(is_dialable);
        stations.truncate(STATIONS_MAX);
        stations
    }

    /// Stores the address of a station.
    pub async fn save_station(&self, addr: SocketAddr) {
        let this = self.clone();
        run_blocking(move || this.insert_station(addr)).await;
    }

    fn insert_station(&self, addr: SocketAddr) {
        let mut stations = self.load_stations();
        if stations.first() == Some(&addr) {
            // Unchanged: spares the SD card a write.
            return;
        }
        stations.retain(|known| *known != addr);
        stations.insert(0, addr);
        stations.truncate(STATIONS_MAX);
        self.write(STATIONS_FILE, &stations, MODE_PLAIN);
    }

    /// The lost-link state of the process before this one on the same boot; `None` if no station had been linked, or if
    /// the file is unreadable.
    pub fn load_loss_state(&self, boot: &str) -> Option<LossState> {
        let bytes = state_file::read(&self.dir.join(LOST_LINK_FILE))
            .inspect_err(
                |error| tracing::warn!(%error, "Lost-link state unreadable: treated as never linked"),
            )
            .ok()??;
        let kept: Result<StoredLossState, _> = serde_json::from_slice(&bytes);
        kept.inspect_err(
            |error| tracing::warn!(%error, "Lost-link state unreadable: treated as never linked"),
        )
        .ok()?
        .for_boot(boot)
    }

    /// Stores the lost-link state.
    pub(crate) async fn save_loss_state(&self, boot: String, state: LossState) {
        let (this, kept) = (self.clone(), StoredLossState { boot, state });
        run_blocking(move || this.write(LOST_LINK_FILE, &kept, MODE_PLAIN)).await;
    }

    fn write(&self, file: &str, value: &impl serde::Serialize, mode: u32) {
        let path = self.dir.join(file);
        let written = serde_json::to_vec_pretty(value)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                state_file::write_atomic(&path, &bytes, mode).map_err(|error| error.to_string())
            });
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), error, "not remembered");
        }
    }
}

async fn run_blocking(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::warn!(%error, "not remembered");
    }
}

/// Addresses worth remembering are those that can be dialled.
fn is_dialable(addr: &SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use swarm_shared::proto::trust::{FleetRoot, Role, SigningKey};

    use super::*;

    #[tokio::test]
    async fn fleet_changes_are_saved_in_the_background() {
        let dir = tempfile::tempdir().expect("a directory");
        let memory = FleetStore::new(dir.path());
        let own = SigningKey::from_seed([1; 32]);
        let mut root = FleetRoot::create(SigningKey::from_seed([2; 32])).expect("a fleet");
        let grant = root.grant(own.public(), Role::Node).expect("a grant");
        let mut member = |number: u8| {
            if number > 0 {
                let other = SigningKey::from_seed([10 + number; 32]);
                root.revoke(other.public()).expect("revoked");
            }
            let state = root.state().clone();
            Arc::new(Membership::new(root.public(), &own.public(), grant.clone(), state).expect("ours"))
        };
        let (tell, fleets) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let keeper = {
            let (memory, shutdown) = (memory.clone(), shutdown.clone());
            tokio::spawn(async move { memory.save_fleet_changes(fleets, shutdown).await })
        };
        for number in 0..3 {
            let newest = member(number);
            tell.send_replace(Some(newest.clone()));
            let kept = async {
                while memory.load_fleet(&own.public()).as_ref() != Some(&*newest) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(20), kept).await;
            in_time.expect("it is kept");
        }
        shutdown.cancel();
        keeper.await.expect("it ends");
    }
}
