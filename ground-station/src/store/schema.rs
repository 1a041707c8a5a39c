//! The schema and its migrations: step N brings a file from `user_version` N to N + 1, in one transaction each.
//! A released step never changes; later tables come as further steps.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// How long to wait for the lock of another process that reads the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Marks the file as ours: "SwSt".
const APPLICATION_ID: i64 = 0x5377_5374;

pub(super) const MIGRATIONS: &[&str] = &[
    "
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
",
    "
    -- Boots of this machine in which times were stored.
    CREATE TABLE boots (
        number INTEGER PRIMARY KEY,
        id     TEXT NOT NULL UNIQUE
    ) STRICT;

    -- AUTOINCREMENT: a number that people have seen never means another command.
    CREATE TABLE commands (
        number         INTEGER PRIMARY KEY AUTOINCREMENT,
        issuer         BLOB,
        epoch          INTEGER,
        seq            INTEGER,
        kind           TEXT NOT NULL,
        action         TEXT NOT NULL,
        arguments      TEXT NOT NULL,
        lane           TEXT NOT NULL,
        selector       TEXT NOT NULL,
        who            TEXT NOT NULL,
        retry_of       INTEGER,
        batch          TEXT,
        boot           INTEGER NOT NULL,
        issued_boot_us INTEGER NOT NULL,
        issued_ms      INTEGER NOT NULL,
        life_ms        INTEGER NOT NULL,
        UNIQUE (epoch, seq)
    ) STRICT;
    CREATE INDEX commands_retries ON commands (retry_of) WHERE retry_of IS NOT NULL;

    -- A file's number among those for one node is its part. Times in _us count from the issue.
    CREATE TABLE deliveries (
        command     INTEGER NOT NULL REFERENCES commands (number),
        node        BLOB NOT NULL,
        part        INTEGER NOT NULL,
        name        TEXT NOT NULL,
        about       TEXT,
        standing    TEXT NOT NULL,
        boot        INTEGER NOT NULL,
        due_boot_ms INTEGER NOT NULL,
        due_ms      INTEGER NOT NULL,
        received_us INTEGER,
        accepted_us INTEGER,
        started_us  INTEGER,
        ended_us    INTEGER,
        outcome     TEXT,
        reply       TEXT,
        PRIMARY KEY (command, node, part)
    ) STRICT, WITHOUT ROWID;
    -- What is open is found at once, however much has ended.
    CREATE INDEX deliveries_open ON deliveries (command) WHERE outcome IS NULL;

    CREATE TABLE audit (
        number  INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms   INTEGER NOT NULL,
        who     TEXT NOT NULL,
        what    TEXT NOT NULL,
        detail  TEXT NOT NULL,
        outcome TEXT NOT NULL
    ) STRICT;
",
    "
    -- Who may pass a door that asks for a name. AUTOINCREMENT: a user's number never means another one.
    CREATE TABLE users (
        number   INTEGER PRIMARY KEY AUTOINCREMENT,
        name     TEXT NOT NULL UNIQUE,
        password TEXT NOT NULL,
        made_ms  INTEGER NOT NULL
    ) STRICT;

    -- Never the token itself.
    CREATE TABLE tokens (
        number     INTEGER PRIMARY KEY AUTOINCREMENT,
        user       INTEGER NOT NULL REFERENCES users (number) ON DELETE CASCADE,
        kind       TEXT NOT NULL,
        label      TEXT NOT NULL,
        hash       BLOB NOT NULL UNIQUE,
        made_ms    INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX tokens_of_user ON tokens (user, kind);
",
];

/// The newest schema that this build knows.
pub const SCHEMA_VERSION: usize = MIGRATIONS.len();

/// The schema in which commands and deliveries came.
const HISTORY_SCHEMA_VERSION: i64 = 2;

/// Sets the connection up and brings the file to the newest schema.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let found = schema_version(connection, path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    for (version, step) in (1_i64..).zip(MIGRATIONS) {
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

/// Checks a file that is only read; says whether its schema has a history.
pub(super) fn has_history(connection: &Connection, path: &Path) -> Result<bool, StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(schema_version(connection, path)? >= HISTORY_SCHEMA_VERSION)
}

/// The file's schema; 0 if it is empty.
fn schema_version(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
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
        return Err(StoreError::NewerSchema {
            path: path.to_owned(),
            found,
            known,
        });
    }
    Ok(found)
}
