//! The audit: one entry for each request that changes the fleet or makes its nodes act.

use rusqlite::{Connection, params};

use super::sql::{execute, from_sql, query_all, to_sql};
use super::{Store, StoreError};

/// Most entries; beyond them the oldest are removed.
pub const AUDIT_ROWS_MAX: u64 = 100_000;
/// Longest text of an entry, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// An entry of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Time, in milliseconds since 1970.
    pub at_ms: u64,
    /// The user who made the request.
    pub user: String,
    /// The request in a word or two.
    pub action: String,
    /// Subject of the request, such as a node.
    pub detail: String,
    /// Outcome of the request.
    pub outcome: String,
}

impl Store {
    /// Adds an entry.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is stored.
    pub async fn audit(&self, entry: AuditEntry) -> Result<(), StoreError> {
        self.write(move |connection| insert(connection, &entry)).await
    }
}

/// Adds an entry; each text is cut to 512 bytes.
///
/// # Errors
/// [`StoreError`].
pub fn insert(connection: &Connection, entry: &AuditEntry) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit (at_ms, who, what, detail, outcome) VALUES (?1, ?2, ?3, ?4, ?5)";
    let row = params![
        to_sql(entry.at_ms),
        truncate(&entry.user),
        truncate(&entry.action),
        truncate(&entry.detail),
        truncate(&entry.outcome),
    ];
    execute(connection, sql, row).map(drop)
}

/// The newest entries since `since_ms`, newest first. They are ordered by their time and not by their number: repeated
/// requests are counted first and stored later.
///
/// # Errors
/// [`StoreError`].
pub fn newest(connection: &Connection, since_ms: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
    let sql = "SELECT at_ms, who, what, detail, outcome FROM audit WHERE at_ms >= ?1
               ORDER BY at_ms DESC, number DESC LIMIT ?2";
    query_all(connection, sql, params![to_sql(since_ms), limit], |row| {
        Ok(AuditEntry {
            at_ms: from_sql(row.get(0)?),
            user: row.get(1)?,
            action: row.get(2)?,
            detail: row.get(3)?,
            outcome: row.get(4)?,
        })
    })
}

fn truncate(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
