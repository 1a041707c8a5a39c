//! Single values: counters, the fleet's root, the fleet state, and this station's own membership.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use swarm_shared::proto::hex;
use swarm_shared::proto::id::PublicKey;

use super::{Store, StoreError, from_sql, to_sql};

pub(super) const EPOCH: &str = "epoch";
const GRANT_SERIAL: &str = "grant_serial";
const FLEET_ROOT: &str = "fleet_root";
const FLEET_STATE_NUMBER: &str = "fleet_state_number";
const FLEET_STATE: &str = "fleet_state";
const MEMBERSHIP: &str = "membership";

impl Store {
    /// The next serial for a grant, from 1; never handed out twice.
    ///
    /// # Errors
    /// [`StoreError`]; then none was handed out.
    pub async fn next_grant_serial(&self) -> Result<u64, StoreError> {
        self.call(|connection| count_up(connection, GRANT_SERIAL)).await
    }

    /// The fleet root's public key, if this station belongs to a fleet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fleet_root(&self) -> Result<Option<PublicKey>, StoreError> {
        let text = self.call(|connection| text(connection, FLEET_ROOT)).await?;
        text.map(|text| public_key("fleet root", &text)).transpose()
    }

    /// This station's own membership, as its owner wrote it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn membership(&self) -> Result<Option<String>, StoreError> {
        self.call(|connection| text(connection, MEMBERSHIP)).await
    }

    /// Remembers the fleet's root and this station's own membership (JSON): both or neither. Another root means
    /// another fleet: members, invitations, pending and fleet state of the old one are forgotten.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn set_membership(&self, root: PublicKey, json: String) -> Result<(), StoreError> {
        self.call(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let root = hex::encode(&root.0);
            if text(&transaction, FLEET_ROOT)?.is_some_and(|old| old != root) {
                transaction
                    .execute_batch("DELETE FROM members; DELETE FROM invitations; DELETE FROM pending;")?;
                let state = params![FLEET_STATE, FLEET_STATE_NUMBER];
                transaction.execute("DELETE FROM meta WHERE key IN (?1, ?2)", state)?;
            }
            put(&transaction, FLEET_ROOT, &root)?;
            put(&transaction, MEMBERSHIP, &json)?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// The newest fleet state and its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fleet_state(&self) -> Result<Option<(u64, String)>, StoreError> {
        self.call(|connection| {
            let number = number(connection, FLEET_STATE_NUMBER)?;
            let state = text(connection, FLEET_STATE)?;
            Ok(number.zip(state))
        })
        .await
    }

    /// Remembers a fleet state if its number is higher than the stored one; says whether it was.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn set_fleet_state(&self, number: u64, json: String) -> Result<bool, StoreError> {
        self.call(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if self::number(&transaction, FLEET_STATE_NUMBER)?.is_some_and(|stored| stored >= number) {
                return Ok(false);
            }
            put(&transaction, FLEET_STATE_NUMBER, to_sql(number))?;
            put(&transaction, FLEET_STATE, &json)?;
            transaction.commit()?;
            Ok(true)
        })
        .await
    }
}

/// Counts a value up, from 1, and returns it.
pub(super) fn count_up(connection: &mut Connection, key: &str) -> Result<u64, StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, 1)
               ON CONFLICT (key) DO UPDATE SET value = value + 1 RETURNING value";
    Ok(from_sql(connection.query_row(sql, [key], |row| row.get(0))?))
}

pub(super) fn public_key(what: &'static str, text: &str) -> Result<PublicKey, StoreError> {
    hex::decode(text)
        .map(PublicKey)
        .ok_or_else(|| StoreError::BadRow {
            what,
            reason: format!("{text:?} is not a key"),
        })
}

fn text(connection: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT value FROM meta WHERE key = ?1";
    Ok(connection.query_row(sql, [key], |row| row.get(0)).optional()?)
}

fn number(connection: &Connection, key: &str) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT value FROM meta WHERE key = ?1";
    Ok(connection
        .query_row(sql, [key], |row| row.get(0))
        .optional()?
        .map(from_sql))
}

fn put(connection: &Connection, key: &str, value: impl rusqlite::ToSql) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    connection.execute(sql, params![key, value])?;
    Ok(())
}
