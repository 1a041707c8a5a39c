//! Single values, by key. The owner of a value declares it as a [`MetaValue`]; the store itself keeps the epoch and
//! counters here.

use std::marker::PhantomData;

use rusqlite::types::{Value as SqlValue, ValueRef};
use rusqlite::{Connection, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use swarm_shared::proto::delivery::next_epoch;
use swarm_shared::proto::hex;
use swarm_shared::proto::trust::invitations::Invitations;
use swarm_shared::proto::trust::{Membership, RootRecord};

use super::sql::{execute, from_sql, query_first, to_sql};
use super::{Store, StoreError};

/// This station's own membership; written by [`Store::set_membership`].
pub const MEMBERSHIP: MetaValue<Membership> = MetaValue::new("membership");
/// Numbers and revocations of the fleet root. Stored before anything that the root has signed leaves this process.
pub const ROOT_RECORD: MetaValue<RootRecord> = MetaValue::new("root_record");
/// Open invitations, with their secrets.
pub const INVITATIONS: MetaValue<Invitations> = MetaValue::new("invitations");
/// Highest number that an emergency stop of this station has had.
pub const STOP_NUMBER: MetaValue<u64> = MetaValue::new("stop_number");

const SELECT_SQL: &str = "SELECT value FROM meta WHERE key = ?1";
const EPOCH: &str = "epoch";
/// Number of deliveries in the history, so that they need not be counted.
pub(super) const DELIVERY_COUNT: &str = "deliveries";
/// Newest time that the wall clock has shown, in milliseconds since 1970.
pub(super) const NEWEST_MS: &str = "newest_ms";
/// Public key of the fleet root, in hexadecimal digits.
const FLEET_ROOT: &str = "fleet_root";

/// A single value: its key in the database and its type. A number is stored as INTEGER, anything else as JSON text.
#[derive(Debug)]
pub struct MetaValue<T> {
    key: &'static str,
    value: PhantomData<fn() -> T>,
}

impl<T> MetaValue<T> {
    /// The value under `key`.
    pub const fn new(key: &'static str) -> Self {
        Self {
            key,
            value: PhantomData,
        }
    }

    /// Key in the database.
    pub fn key(&self) -> &'static str {
        self.key
    }
}

impl<T: DeserializeOwned> MetaValue<T> {
    /// Reads the value; `None` if it was never stored.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] if it is damaged; [`StoreError`].
    pub fn read(&self, connection: &Connection) -> Result<Option<T>, StoreError> {
        read(connection, self.key)
    }
}

fn read<T: DeserializeOwned>(connection: &Connection, key: &'static str) -> Result<Option<T>, StoreError> {
    query_first(connection, SELECT_SQL, [key], |row| {
        let value = match row.get_ref(0)? {
            ValueRef::Text(text) => serde_json::from_slice(text).map_err(|error| error.to_string()),
            ValueRef::Integer(number) => {
                serde_json::from_value(number.into()).map_err(|error| error.to_string())
            }
            other @ (ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_)) => {
                Err(format!("it is of type {}", other.data_type()))
            }
        };
        value.map_err(|reason| StoreError::bad_row(key, reason))
    })
}

fn encode<T: Serialize>(value: &MetaValue<T>, new: &T) -> Result<SqlValue, StoreError> {
    let json = serde_json::to_string(new).map_err(|error| StoreError::bad_row(value.key, error))?;
    Ok(json.parse().map_or(SqlValue::Text(json), SqlValue::Integer))
}

impl Store {
    /// Reads a single value; `None` if it was never stored.
    ///
    /// # Errors
    /// [`StoreError::BadRow`] if it is damaged; [`StoreError`].
    pub async fn load_value<T>(&self, value: &MetaValue<T>) -> Result<Option<T>, StoreError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let key = value.key;
        self.read(move |connection| read(connection, key)).await
    }

    /// Stores a single value.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub fn save_value<T: Serialize>(
        &self,
        value: &MetaValue<T>,
        new: &T,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + use<T> {
        let (store, key, encoded) = (self.clone(), value.key, encode(value, new));
        async move {
            let new = encoded?;
            store.write(move |connection| put(connection, key, new)).await
        }
    }

    /// Stores this station's own membership. If its root is another one than before, this deletes the members, the
    /// invitations and the pending peers of the old fleet.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn set_membership(&self, membership: &Membership) -> Result<(), StoreError> {
        let root = hex::encode(&membership.root().0);
        let membership = encode(&MEMBERSHIP, membership)?;
        self.write(move |connection| {
            let old = query_first(connection, SELECT_SQL, [FLEET_ROOT], |row| {
                Ok(row.get::<_, String>(0)?)
            })?;
            if old.is_some_and(|old| old != root) {
                connection.execute_batch("DELETE FROM members; DELETE FROM pending;")?;
                let old = [ROOT_RECORD.key, INVITATIONS.key];
                execute(connection, "DELETE FROM meta WHERE key IN (?1, ?2)", old)?;
            }
            put(connection, FLEET_ROOT, root)?;
            put(connection, MEMBERSHIP.key, membership)
        })
        .await
    }
}

/// Begins the next epoch and returns it; see [`next_epoch`].
pub(super) fn begin_epoch(connection: &Connection, unix_ms: u64, random: u16) -> Result<u64, StoreError> {
    let epoch = next_epoch(get_number(connection, EPOCH)?, unix_ms, random);
    put(connection, EPOCH, to_sql(epoch))?;
    Ok(epoch)
}

/// A number; 0 if it was never stored.
pub(super) fn get_number(connection: &Connection, key: &str) -> Result<u64, StoreError> {
    let found = query_first(connection, SELECT_SQL, [key], |row| Ok(from_sql(row.get(0)?)))?;
    Ok(found.unwrap_or(0))
}

/// Adds `more`, which may be negative, to a number. The sum is not below 0.
pub(super) fn increment(connection: &Connection, key: &str, more: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, max(0, ?2))
               ON CONFLICT (key) DO UPDATE SET value = max(0, value + ?2)";
    execute(connection, sql, params![key, more]).map(drop)
}

/// Stores the time of the wall clock, unless a newer one is stored.
pub(super) fn advance_newest_ms(connection: &Connection, unix_ms: u64) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2)
               ON CONFLICT (key) DO UPDATE SET value = max(value, ?2)";
    execute(connection, sql, params![NEWEST_MS, to_sql(unix_ms)]).map(drop)
}

fn put(connection: &Connection, key: &str, value: impl rusqlite::ToSql) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    execute(connection, sql, params![key, value]).map(drop)
}
