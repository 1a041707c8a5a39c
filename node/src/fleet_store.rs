//! What the node remembers of its fleet: `fleet.json` (root, grant, fleet state), `stations.json` (where stations
//! were seen last), and `lost-link.json` (whether one was linked on this boot, for the dead-man). A disk that fails is
//! told in the log; the node goes on with what it knows. Writing is for a thread of its own: a memory card may take
//! seconds, and the heartbeats of all links share one thread.

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

/// How the dead-man of [`crate::lost_link`] stood when the process before this one, on the same boot, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossState {
    /// A commanding station had been linked, and no loss since has been seen to its end.
    Linked,
    #[serde(rename = "over")]
    /// The link was lost, its command had ended, and no station had been heard again.
    CommandEnded,
}

/// What `lost-link.json` says: good for one boot.
#[derive(Debug, Serialize, Deserialize)]
struct StoredLossState {
    boot: String,
    state: LossState,
}

impl StoredLossState {
    /// What holds on this boot. Nothing of another one does: the machine may have been carried home in between.
    fn for_boot(self, boot: &str) -> Option<LossState> {
        (self.boot == boot && !boot.is_empty()).then_some(self.state)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct FleetStore {
    dir: PathBuf,
}

impl FleetStore {
    /// What lies in this state directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The fleet that this node belongs to, if it does and the file is sound.
    pub fn load_fleet(&self, own: &PublicKey) -> Option<Membership> {
        let path = self.dir.join(FLEET_FILE);
        let bytes = state_file::read(&path)
            .inspect_err(|error| tracing::warn!(%error, "the fleet cannot be read: as if there were none"))
            .ok()??;
        let sound = |text: &[u8]| -> anyhow::Result<Membership> {
            let membership: Membership = serde_json::from_slice(text)?;
            membership.check_own(own)?;
            Ok(membership)
        };
        sound(&bytes)
            .inspect_err(|error| {
                tracing::error!(path = %path.display(), %error, "not a fleet of this node: delete it and join anew");
            })
            .ok()
    }

    /// Remembers the fleet.
    pub async fn save_fleet(&self, membership: &Membership) {
        let (this, membership) = (self.clone(), membership.clone());
        run_blocking(move || this.write(FLEET_FILE, &membership, MODE_SECRET)).await;
    }

    /// Remembers the fleet, whenever it changes, until `stop`: the newest state of it, if the disk is slower.
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

    /// Where stations were seen last, newest first.
    pub fn load_stations(&self) -> Vec<SocketAddr> {
        let read = state_file::read(&self.dir.join(STATIONS_FILE)).ok().flatten();
        let mut stations: Vec<SocketAddr> = read
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        stations.retain(is_dialable);
        stations.truncate(STATIONS_MAX);
        stations
    }

    /// Remembers where a station is.
    pub async fn save_station(&self, addr: SocketAddr) {
        let this = self.clone();
        run_blocking(move || this.insert_station(addr)).await;
    }

    fn insert_station(&self, addr: SocketAddr) {
        let mut stations = self.load_stations();
        if stations.first() == Some(&addr) {
            // Nothing new: an SD card is not written for it.
            return;
        }
        stations.retain(|known| *known != addr);
        stations.insert(0, addr);
        stations.truncate(STATIONS_MAX);
        self.write(STATIONS_FILE, &stations, MODE_PLAIN);
    }

    /// How the dead-man stood when the process before this one, on the same boot, ended; `None` if it was unarmed or
    /// the file cannot be read.
    pub fn load_loss_state(&self, boot: &str) -> Option<LossState> {
        let bytes = state_file::read(&self.dir.join(LOST_LINK_FILE))
            .inspect_err(|error| tracing::warn!(%error, "lost link: as if no station had been linked"))
            .ok()??;
        let kept: Result<StoredLossState, _> = serde_json::from_slice(&bytes);
        kept.inspect_err(|error| tracing::warn!(%error, "lost link: as if no station had been linked"))
            .ok()?
            .for_boot(boot)
    }

    /// Remembers how the dead-man stands.
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
