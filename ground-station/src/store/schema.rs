//! The schema and its migrations: step N brings a file from `user_version` N to N + 1, in one transaction each.
//! A released step never changes; later tables come as further steps.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Marks the file as ours: "SwSt".
const APPLICATION_ID: i64 = 0x5377_5374;

const STEPS: &[&str] = &["
    CREATE TABLE meta (
        key   TEXT PRIMARY KEY,
        value ANY NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE members (
        key          TEXT PRIMARY KEY,
        id           TEXT NOT NULL UNIQUE,
        name         TEXT NOT NULL,
        role         TEXT NOT NULL,
        kind         TEXT NOT NULL,
        tags         TEXT NOT NULL,
        address      TEXT,
        last_seen_ms INTEGER NOT NULL,
        grant_json   TEXT,
        revoked      INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE pending (
        key           TEXT PRIMARY KEY,
        name          TEXT NOT NULL,
        kind          TEXT NOT NULL,
        address       TEXT,
        first_seen_ms INTEGER NOT NULL,
        last_seen_ms  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
"];

/// The newest schema that this build knows.
pub const SCHEMA_VERSION: usize = STEPS.len();

/// Sets the connection up and brings the file to the newest schema.
pub(super) fn prepare(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let known = i64::try_from(SCHEMA_VERSION).unwrap_or(i64::MAX);
    if application != APPLICATION_ID && (application != 0 || found != 0 || tables != 0) {
        let reason = "it belongs to another program".to_owned();
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            reason,
        });
    }
    if found > known {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    for (version, step) in (1_i64..).zip(STEPS) {
        if version > found {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", version)?;
            transaction.commit()?;
        }
    }
    Ok(())
}
