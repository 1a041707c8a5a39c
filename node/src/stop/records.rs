//! What is stored of emergency stops: the writes of the task, and the state that a start recovers.
//!
//! The latch file decides. The journal gets the same stops for programs that know no latch file; it is read where the
//! latch file is missing, or has missed a stop.
//!
//! | latch file | journal | the node |
//! |---|---|---|
//! | a sound copy | any | is as the copy says, or stopped by a newer stop in the journal |
//! | missing | sound | is as the journal says |
//! | missing | damaged | is held |
//! | no sound copy | any | is held |

use swarm_shared::net::clock;
use swarm_shared::net::journal::{JournalFault, LatchContent, Recovery};
use swarm_shared::proto::delivery::dedup::DedupTable;
use swarm_shared::proto::delivery::record::Record;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::stop::{IssuerNumbers, StopId, StopMemory, StoredStop};
use tokio::sync::oneshot;

use crate::journal::Opened;

/// What a start has recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The state that the stop's task continues from.
    pub memory: StopMemory,
    /// What could not be read: the latch file, or one copy of it.
    pub damage: Option<String>,
}

impl Restored {
    /// The state of node `own`.
    pub fn new(opened: &Opened, own: PeerId) -> Self {
        let journal = journal_memory(&opened.dedup);
        match &opened.latch {
            LatchContent::Sound { memory, damage } => {
                let mut memory = memory.clone();
                memory.merge_newer(&journal);
                Self {
                    memory,
                    damage: damage.clone(),
                }
            }
            LatchContent::Missing => match journal_damage(&opened.recovery) {
                None => Self {
                    memory: journal,
                    damage: None,
                },
                Some(damage) => Self::held(own, journal, damage),
            },
            LatchContent::Unreadable(damage) => Self::held(own, journal, damage.clone()),
        }
    }

    /// A node that does not know whether a stop is in force. The numbers in the journal keep recorded orders stale.
    fn held(own: PeerId, journal: StopMemory, damage: String) -> Self {
        let issuers = journal
            .issuers
            .into_iter()
            .map(|known| IssuerNumbers { released: 0, ..known });
        let hold = StoredStop {
            issuer: own,
            number: clock::unix_time_ms().max(1),
            held: true,
            command_result: None,
        };
        Self {
            memory: StopMemory {
                active: Some(hold),
                issuers: issuers.collect(),
            },
            damage: Some(damage),
        }
    }
}

/// Why the journal cannot tell whether a stop is in force.
fn journal_damage(recovery: &Recovery) -> Option<String> {
    match &recovery.fault {
        Some(fault @ JournalFault::Unreadable(_)) => Some(fault.to_string()),
        Some(_) | None => recovery.damage.clone(),
    }
}

/// The state that the journal describes. Without a stop in force, all that it has seen was released.
fn journal_memory(dedup: &DedupTable) -> StopMemory {
    let active = dedup.latch().map(|latch| StoredStop {
        issuer: latch.issuer,
        number: latch.number,
        held: false,
        command_result: latch.command_result.clone(),
    });
    let issuers = dedup.records().into_iter().filter_map(|record| match record {
        Record::StopSeen { issuer, number } => Some(IssuerNumbers {
            issuer,
            seen: number,
            released: if active.is_none() { number } else { 0 },
        }),
        Record::Started { .. }
        | Record::Ended { .. }
        | Record::Floor { .. }
        | Record::Stopped { .. }
        | Record::Released { .. }
        | Record::StopEnded { .. } => None,
    });
    StopMemory {
        issuers: issuers.collect(),
        active,
    }
}

/// A write on its way to the disk. Each writes the whole state to the latch file, and its record to the journal.
#[derive(Debug)]
pub(super) enum Write {
    /// The state that a start has recovered.
    Restored,
    /// A stop, or a hold, is in force.
    Stopped(StopId),
    /// Its command has ended, with this error.
    CommandEnded(StopId, Option<String>),
    /// An order for other nodes: it counts, so that no older one of its issuer is obeyed.
    NumberSeen(StopId),
    /// A stop ends when this is durable; then the reply goes out.
    Released(StopId, oneshot::Sender<Reply>),
    /// The stop was written once more after its release.
    ReleasedAgain(StopId),
}

impl Write {
    /// The journal's record.
    pub(super) fn record(&self) -> Option<Record> {
        Some(match self {
            Self::Restored => return None,
            Self::Stopped(StopId { issuer, number }) => Record::Stopped {
                issuer: *issuer,
                number: *number,
            },
            Self::CommandEnded(order, error) => Record::StopEnded {
                number: order.number,
                error: error.clone(),
            },
            Self::NumberSeen(StopId { issuer, number }) => Record::StopSeen {
                issuer: *issuer,
                number: *number,
            },
            Self::Released(order, _) | Self::ReleasedAgain(order) => {
                Record::Released { number: order.number }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use swarm_shared::net::journal::{JOURNAL_FILE, LATCH_FILES};
    use swarm_shared::proto::id::PublicKey;

    use super::*;
    use crate::journal::{Journal, PendingAppends};

    fn peer(n: u8) -> PeerId {
        PublicKey([n; 32]).id()
    }

    const OWN: u8 = 9;

    fn stopped(number: u64) -> StopMemory {
        StopMemory {
            active: Some(StoredStop {
                issuer: peer(1),
                number,
                held: false,
                command_result: None,
            }),
            issuers: vec![IssuerNumbers {
                issuer: peer(1),
                seen: number,
                released: 0,
            }],
        }
    }

    /// Opens the directory, and stores `write` if there is one.
    async fn restart(dir: &Path, write: Option<(StopMemory, Record)>) -> Restored {
        let (journal, opened) = Journal::open(dir).expect("a thread");
        if let Some((memory, record)) = write {
            let mut appends = PendingAppends::new(journal.clone(), 1);
            appends
                .push_with_stops(vec![record], Some(memory), ())
                .expect("room");
            assert_eq!(appends.next().await, ((), Ok(())));
        }
        journal.close().await;
        Restored::new(&opened, peer(OWN))
    }

    async fn stop(dir: &Path, number: u64) {
        let record = Record::Stopped {
            issuer: peer(1),
            number,
        };
        restart(dir, Some((stopped(number), record))).await;
    }

    fn is_held(restored: &Restored) -> bool {
        let active = restored.memory.active.as_ref().expect("held or stopped");
        assert_eq!(active.held, active.issuer == peer(OWN));
        active.held
    }

    #[tokio::test]
    async fn stop_survives_any_damage_of_the_journal() {
        let dir = tempfile::tempdir().expect("a directory");
        stop(dir.path(), 7).await;
        let path = dir.path().join(JOURNAL_FILE);
        let sound = fs::read(&path).expect("a journal");
        let damaged = (0..sound.len()).flat_map(|at| {
            let mut flipped = sound.clone();
            flipped[at] ^= 0x55;
            [flipped, sound[..at].to_vec()]
        });
        for journal in damaged {
            fs::write(&path, journal).expect("written");
            assert_eq!(restart(dir.path(), None).await.memory, stopped(7));
        }
        fs::remove_file(&path).expect("there");
        assert_eq!(restart(dir.path(), None).await.memory, stopped(7));
    }

    #[tokio::test]
    async fn node_is_held_only_if_no_record_of_stops_can_be_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let new = restart(dir.path(), None).await;
        assert_eq!(new, Restored::default(), "a new directory");
        stop(dir.path(), 7).await;
        let path = |name: &str| dir.path().join(name);
        fs::write(path(LATCH_FILES[0]), "damage").expect("written");
        let one = restart(dir.path(), None).await;
        assert_eq!((one.memory, one.damage.is_some()), (stopped(7), true));
        fs::write(path(LATCH_FILES[1]), "damage").expect("written");
        let held = restart(dir.path(), None).await;
        assert!(is_held(&held));
        assert_eq!(
            held.memory.seen(&peer(1)),
            7,
            "a recorded order stays without effect"
        );
        // Missing copies are those of an older version: its journal says.
        for name in LATCH_FILES {
            fs::remove_file(path(name)).expect("there");
        }
        assert_eq!(restart(dir.path(), None).await.memory, stopped(7));
        let mut journal = fs::read(path(JOURNAL_FILE)).expect("a journal");
        journal.pop();
        fs::write(path(JOURNAL_FILE), journal).expect("written");
        assert!(is_held(&restart(dir.path(), None).await));
    }

    #[tokio::test]
    async fn numbers_of_an_old_journal_without_a_stop_are_released() {
        let dir = tempfile::tempdir().expect("a directory");
        stop(dir.path(), 7).await;
        restart(dir.path(), Some((stopped(7), Record::Released { number: 7 }))).await;
        for name in LATCH_FILES {
            fs::remove_file(dir.path().join(name)).expect("there");
        }
        let restored = restart(dir.path(), None).await.memory;
        assert_eq!((restored.active, restored.issuers[0].released), (None, 7));
    }
}
