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

const FLEET: &str = "fleet.json";
const STATIONS: &str = "stations.json";
const LOST_LINK: &str = "lost-link.json";
/// Most stations that are remembered, newest first.
const STATIONS_MAX: usize = 8;

/// How the dead-man of [`crate::lost_link`] stood when the process before this one, on the same boot, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Past {
    /// A commanding station had been linked, and no loss since has been seen to its end.
    Linked,
    /// The link was lost, its command had ended, and no station had been heard again.
    Over,
}

/// What `lost-link.json` says: good for one boot.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    boot: String,
    state: Past,
}

impl Kept {
    /// What holds on this boot. Nothing of another one does: the machine may have been carried home in between.
    fn on(self, boot: &str) -> Option<Past> {
        (self.boot == boot && !boot.is_empty()).then_some(self.state)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Memory {
    dir: PathBuf,
}

impl Memory {
    /// What lies in this state directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The fleet that this node belongs to, if it does and the file is sound.
    pub fn fleet(&self, own: &PublicKey) -> Option<Membership> {
        let path = self.dir.join(FLEET);
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
    pub async fn keep_fleet(&self, membership: &Membership) {
        let (this, membership) = (self.clone(), membership.clone());
        aside(move || this.write(FLEET, &membership, MODE_SECRET)).await;
    }

    /// Remembers the fleet, whenever it changes, until `stop`: the newest state of it, if the disk is slower.
    pub async fn keep_fleets(
        &self,
        mut fleets: watch::Receiver<Option<Arc<Membership>>>,
        stop: CancellationToken,
    ) {
        while let Some(Ok(())) = stop.run_until_cancelled(fleets.changed()).await {
            let now = fleets.borrow_and_update().clone();
            if let Some(membership) = now {
                self.keep_fleet(&membership).await;
            }
        }
    }

    /// Where stations were seen last, newest first.
    pub fn stations(&self) -> Vec<SocketAddr> {
        let read = state_file::read(&self.dir.join(STATIONS)).ok().flatten();
        let mut stations: Vec<SocketAddr> = read
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        stations.retain(dialable);
        stations.truncate(STATIONS_MAX);
        stations
    }

    /// Remembers where a station is.
    pub async fn keep_station(&self, addr: SocketAddr) {
        let this = self.clone();
        aside(move || this.put_station(addr)).await;
    }

    fn put_station(&self, addr: SocketAddr) {
        let mut stations = self.stations();
        if stations.first() == Some(&addr) {
            // Nothing new: an SD card is not written for it.
            return;
        }
        stations.retain(|known| *known != addr);
        stations.insert(0, addr);
        stations.truncate(STATIONS_MAX);
        self.write(STATIONS, &stations, MODE_PLAIN);
    }

    /// How the dead-man stood when the process before this one, on the same boot, ended; `None` if it was unarmed or
    /// the file cannot be read.
    pub fn past(&self, boot: &str) -> Option<Past> {
        let bytes = state_file::read(&self.dir.join(LOST_LINK))
            .inspect_err(|error| tracing::warn!(%error, "lost link: as if no station had been linked"))
            .ok()??;
        let kept: Result<Kept, _> = serde_json::from_slice(&bytes);
        kept.inspect_err(|error| tracing::warn!(%error, "lost link: as if no station had been linked"))
            .ok()?
            .on(boot)
    }

    /// Remembers how the dead-man stands.
    pub(crate) async fn keep_past(&self, boot: String, state: Past) {
        let (this, kept) = (self.clone(), Kept { boot, state });
        aside(move || this.write(LOST_LINK, &kept, MODE_PLAIN)).await;
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

async fn aside(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::warn!(%error, "not remembered");
    }
}

/// Addresses worth remembering are those that can be dialled.
fn dialable(addr: &SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use swarm_shared::proto::trust::{FleetRoot, Role, SigningKey};

    use super::*;

    #[tokio::test]
    async fn the_newest_state_of_the_fleet_is_kept_by_a_task_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let memory = Memory::new(dir.path());
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
        let stop = CancellationToken::new();
        let keeper = {
            let (memory, stop) = (memory.clone(), stop.clone());
            tokio::spawn(async move { memory.keep_fleets(fleets, stop).await })
        };
        for number in 0..3 {
            let newest = member(number);
            tell.send_replace(Some(newest.clone()));
            let kept = async {
                while memory.fleet(&own.public()).as_ref() != Some(&*newest) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(20), kept).await;
            in_time.expect("it is kept");
        }
        stop.cancel();
        keeper.await.expect("it ends");
    }
}
