//! Single values: the epoch, the fleet's root and its record, invitations, and this station's own membership.

use std::collections::BTreeMap;

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use swarm_shared::proto::delivery::next_epoch;
use swarm_shared::proto::hex;
use swarm_shared::proto::id::{PeerId, PublicKey};

use super::{Store, StoreError, from_sql, to_sql};

const EPOCH: &str = "epoch";
/// How many deliveries there are, so that nobody has to count a million.
pub(super) const DELIVERY_COUNT: &str = "deliveries";
/// The newest time on the wall clock that this station has seen, in milliseconds since 1970.
pub(super) const NEWEST_MS: &str = "newest_ms";
const FLEET_ROOT: &str = "fleet_root";
const ROOT_RECORD: &str = "root_record";
/// The highest number that an emergency stop of this station has had.
const STOP_NUMBER: &str = "stop_number";
/// Nodes that have not confirmed the last stop, with its number.
const UNCONFIRMED_STOPS: &str = "unconfirmed_stops";
const INVITATIONS: &str = "invitations";
/// Stops that stand for drones of other programs.
const BRIDGED_STOPS: &str = "guest_stops";
const MEMBERSHIP: &str = "membership";

impl Store {
    /// The fleet root's public key, if this station belongs to a fleet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fleet_root(&self) -> Result<Option<PublicKey>, StoreError> {
        let text = self
            .with_connection(|connection| get_text(connection, FLEET_ROOT))
            .await?;
        text.map(|text| parse_public_key("fleet root", &text)).transpose()
    }

    /// This station's own membership, as its owner wrote it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn membership(&self) -> Result<Option<String>, StoreError> {
        self.with_connection(|connection| membership(connection)).await
    }

    /// Remembers the fleet's root and this station's own membership (JSON): both or neither. Another root means
    /// another fleet: members, invitations and pending of the old one are forgotten.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn set_membership(&self, root: PublicKey, json: String) -> Result<(), StoreError> {
        self.with_connection(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let root = hex::encode(&root.0);
            if get_text(&transaction, FLEET_ROOT)?.is_some_and(|old| old != root) {
                transaction.execute_batch("DELETE FROM members; DELETE FROM pending;")?;
                let old = params![ROOT_RECORD, INVITATIONS];
                transaction.execute("DELETE FROM meta WHERE key IN (?1, ?2)", old)?;
            }
            put(&transaction, FLEET_ROOT, &root)?;
            put(&transaction, MEMBERSHIP, &json)?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// What the fleet root counts and has revoked, as its owner wrote it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn root_record(&self) -> Result<Option<String>, StoreError> {
        self.with_connection(|connection| get_text(connection, ROOT_RECORD))
            .await
    }

    /// Remembers the fleet root's record (JSON). Call it before anything that the root has signed is handed out.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn set_root_record(&self, json: String) -> Result<(), StoreError> {
        self.with_connection(move |connection| put(connection, ROOT_RECORD, &json))
            .await
    }

    /// The highest number that an emergency stop of this station has had; 0 if there was none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stop_number(&self) -> Result<u64, StoreError> {
        self.with_connection(|connection| stop_number(connection)).await
    }

    /// Remembers the number of an emergency stop; a lower one than is remembered changes nothing.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn save_stop_number(&self, given: u64) -> Result<(), StoreError> {
        self.with_connection(move |connection| {
            let highest = get_number(connection, STOP_NUMBER)?.max(given);
            put(connection, STOP_NUMBER, to_sql(highest))
        })
        .await
    }

    /// The nodes that have not confirmed an emergency stop of this station, each with the number of the stop.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::BadRow`]: what is stored is damaged.
    pub async fn unconfirmed_stops(&self) -> Result<BTreeMap<PeerId, u64>, StoreError> {
        let found = self.with_connection(|connection| {
            let sql = "SELECT value FROM meta WHERE key = ?1";
            let found = connection.query_row(sql, [UNCONFIRMED_STOPS], |row| row.get::<_, SqlValue>(0));
            Ok(found.optional()?)
        });
        let bad = |reason: String| StoreError::BadRow {
            what: "stop that is not confirmed",
            reason,
        };
        match found.await? {
            None => Ok(BTreeMap::new()),
            Some(SqlValue::Text(text)) => serde_json::from_str(&text).map_err(|error| bad(error.to_string())),
            Some(other) => Err(bad(format!("it is of type {}", other.data_type()))),
        }
    }

    /// Remembers those, and no others.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn save_unconfirmed_stops(&self, all: BTreeMap<PeerId, u64>) -> Result<(), StoreError> {
        let json = serde_json::to_string(&all).map_err(|error| StoreError::BadRow {
            what: "stop that is not confirmed",
            reason: error.to_string(),
        })?;
        self.with_connection(move |connection| put(connection, UNCONFIRMED_STOPS, &json))
            .await
    }

    /// The invitations given out, as their owner wrote them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn invitations(&self) -> Result<Option<String>, StoreError> {
        self.with_connection(|connection| get_text(connection, INVITATIONS))
            .await
    }

    /// Remembers the invitations given out (JSON; it holds their secrets).
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn set_invitations(&self, json: String) -> Result<(), StoreError> {
        self.with_connection(move |connection| put(connection, INVITATIONS, &json))
            .await
    }

    /// The stops that stand for drones of other programs, as their owner wrote them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn bridged_stops(&self) -> Result<Option<String>, StoreError> {
        self.with_connection(|connection| get_text(connection, BRIDGED_STOPS))
            .await
    }

    /// Remembers them (JSON).
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn save_bridged_stops(&self, json: String) -> Result<(), StoreError> {
        self.with_connection(move |connection| put(connection, BRIDGED_STOPS, &json))
            .await
    }
}

/// This station's own membership, as its owner wrote it.
///
/// # Errors
/// [`StoreError`].
pub fn membership(connection: &Connection) -> Result<Option<String>, StoreError> {
    get_text(connection, MEMBERSHIP)
}

/// The highest number that an emergency stop of this station has had; 0 if there was none.
///
/// # Errors
/// [`StoreError`].
pub fn stop_number(connection: &Connection) -> Result<u64, StoreError> {
    get_number(connection, STOP_NUMBER)
}

/// Begins the next epoch and returns it; see [`next_epoch`].
pub(super) fn begin_epoch(connection: &Connection, unix_ms: u64, random: u16) -> Result<u64, StoreError> {
    let epoch = next_epoch(get_number(connection, EPOCH)?, unix_ms, random);
    put(connection, EPOCH, to_sql(epoch))?;
    Ok(epoch)
}

/// A number; 0 if there is none.
pub(super) fn get_number(connection: &Connection, key: &str) -> Result<u64, StoreError> {
    let sql = "SELECT value FROM meta WHERE key = ?1";
    let found = connection
        .prepare_cached(sql)?
        .query_row([key], |row| row.get(0))
        .optional()?;
    Ok(from_sql(found.unwrap_or(0)))
}

/// Counts a number up, or down, but not below 0.
pub(super) fn increment(connection: &Connection, key: &str, more: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, max(0, ?2))
               ON CONFLICT (key) DO UPDATE SET value = max(0, value + ?2)";
    connection.prepare_cached(sql)?.execute(params![key, more])?;
    Ok(())
}

/// Notes the time on the wall clock, unless a newer one was seen.
pub(super) fn advance_newest_ms(connection: &Connection, unix_ms: u64) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2)
               ON CONFLICT (key) DO UPDATE SET value = max(value, ?2)";
    connection
        .prepare_cached(sql)?
        .execute(params![NEWEST_MS, to_sql(unix_ms)])?;
    Ok(())
}

pub(super) fn parse_public_key(what: &'static str, text: &str) -> Result<PublicKey, StoreError> {
    hex::decode(text)
        .map(PublicKey)
        .ok_or_else(|| StoreError::BadRow {
            what,
            reason: format!("{text:?} is not a key"),
        })
}

fn get_text(connection: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT value FROM meta WHERE key = ?1";
    Ok(connection.query_row(sql, [key], |row| row.get(0)).optional()?)
}

fn put(connection: &Connection, key: &str, value: impl rusqlite::ToSql) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    connection.execute(sql, params![key, value])?;
    Ok(())
}
