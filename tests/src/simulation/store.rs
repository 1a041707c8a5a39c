//! The stations' databases: the product's SQL, in memory that outlives the simulated process.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::time::Duration;

use ground_station::store::deliveries::{self, Origin};
use ground_station::store::timestamp::Timestamp;
use ground_station::store::{IN_MEMORY_PATH, StoreError, prepare, recovery};
use rusqlite::backup::Backup;
use rusqlite::{Connection, TransactionBehavior};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::tracker::{Change, OpenCommand};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::{Outcome, Reply};

use super::world::{HostId, World};

/// The disks of the stations' machines.
#[derive(Default)]
pub(super) struct Stores {
    disks: BTreeMap<HostId, StationDisk>,
}

struct StationDisk {
    connection: Connection,
    /// The highest stop number, as stored.
    last_stop_number: u64,
}

impl Stores {
    fn disk(&mut self, host: HostId) -> Result<&mut StationDisk, StoreError> {
        match self.disks.entry(host) {
            Entry::Occupied(disk) => Ok(disk.into_mut()),
            Entry::Vacant(vacant) => Ok(vacant.insert(StationDisk {
                connection: Connection::open_in_memory()?,
                last_stop_number: 0,
            })),
        }
    }

    /// Opens a station's store: returns its epoch, the open deliveries, and the highest stop number.
    pub(super) fn open(
        &mut self,
        world: &World,
        host: HostId,
    ) -> Result<(u64, Vec<OpenCommand>, u64), StoreError> {
        let now = timestamp(world, host);
        let random = u16::try_from(world.controls[host].borrow_mut().rng.between(0, 1 << 16)).unwrap_or(0);
        let disk = self.disk(host)?;
        let epoch = prepare(
            &mut disk.connection,
            Path::new(IN_MEMORY_PATH),
            now.unix_ms,
            random,
        )?;
        let transaction = disk
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let open = recovery::recover(&transaction, world.hosts[host].id, &now)?;
        transaction.commit()?;
        Ok((epoch, open, disk.last_stop_number))
    }

    /// Writes changes, all or none.
    pub(super) fn store_changes(
        &mut self,
        world: &World,
        host: HostId,
        changes: &[Change],
    ) -> Result<(), StoreError> {
        let now = timestamp(world, host);
        let disk = self.disk(host)?;
        let transaction = disk
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let origins: BTreeMap<CommandId, Origin> = BTreeMap::new();
        deliveries::apply(&transaction, changes, &origins, &now)?;
        transaction.commit()?;
        Ok(())
    }

    pub(super) fn store_stop_number(&mut self, host: HostId, number: u64) -> Result<(), StoreError> {
        self.disk(host)?.last_stop_number = number;
        Ok(())
    }

    /// Copies one station's disk to another's.
    pub(super) fn copy(&mut self, from: HostId, to: HostId) -> Result<(), StoreError> {
        let mut copy = Connection::open_in_memory()?;
        let original = self.disk(from)?;
        let given = original.last_stop_number;
        Backup::new(&original.connection, &mut copy)?.run_to_completion(i32::MAX, Duration::ZERO, None)?;
        let disk = self.disk(to)?;
        (disk.connection, disk.last_stop_number) = (copy, given);
        Ok(())
    }

    /// Every delivery in a store, and its outcome.
    pub(super) fn deliveries(
        &mut self,
        host: HostId,
        issuer: PeerId,
    ) -> Result<Vec<(CommandId, PeerId, Option<Outcome>)>, StoreError> {
        let disk = self.disk(host)?;
        let sql = "SELECT epoch, seq, node, reply FROM deliveries
                   JOIN commands ON commands.number = deliveries.command ORDER BY epoch, seq, node";
        let mut statement = disk.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let number = |column: usize| -> rusqlite::Result<u64> {
                Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
            };
            let id = CommandId {
                issuer,
                epoch: number(0)?,
                seq: number(1)?,
            };
            let reply: Option<String> = row.get(3)?;
            let reply = reply.and_then(|text| serde_json::from_str::<Reply>(&text).ok());
            all.push((id, PeerId(row.get(2)?), reply.map(|reply| reply.state)));
        }
        Ok(all)
    }
}

/// The current time on all clocks of this host that a store uses.
fn timestamp(world: &World, host: HostId) -> Timestamp {
    Timestamp {
        instant: world.monotonic_now(host),
        boot: world.boot_id(host),
        since_boot: world.since_boot(host),
        unix_ms: world.wall_clock_ms(host),
    }
}
