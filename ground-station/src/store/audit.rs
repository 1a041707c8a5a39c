//! Who did what: one row for whatever changes the fleet or makes its nodes do something.

use rusqlite::{Connection, params};

use super::{Store, StoreError, from_sql, to_sql};

/// Most entries kept; beyond them the oldest go.
pub const AUDIT_ROWS_MAX: u64 = 100_000;
/// Longest text of an entry, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The user of this machine who asked.
    pub user: String,
    /// What was asked, in one word.
    pub action: String,
    /// Of whom or with what.
    pub detail: String,
    /// How it ended.
    pub outcome: String,
}

impl Store {
    /// Notes who did what.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is noted.
    pub async fn audit(&self, entry: AuditEntry) -> Result<(), StoreError> {
        self.write(move |connection| insert(connection, &entry)).await
    }
}

/// Adds an entry; texts are cut to a bound.
///
/// # Errors
/// [`StoreError`].
pub fn insert(connection: &Connection, entry: &AuditEntry) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit (at_ms, who, what, detail, outcome) VALUES (?1, ?2, ?3, ?4, ?5)";
    connection.prepare_cached(sql)?.execute(params![
        to_sql(entry.at_ms),
        truncate(&entry.user),
        truncate(&entry.action),
        truncate(&entry.detail),
        truncate(&entry.outcome),
    ])?;
    Ok(())
}

/// The newest entries, newest first, also where one was noted later than it was: what repeats is counted before it is
/// noted. `since_ms`: none before that.
///
/// # Errors
/// [`StoreError`].
pub fn newest(connection: &Connection, since_ms: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
    let sql = "SELECT at_ms, who, what, detail, outcome FROM audit WHERE at_ms >= ?1
               ORDER BY at_ms DESC, number DESC LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let entries = statement.query_map(params![to_sql(since_ms), limit], |row| {
        Ok(AuditEntry {
            at_ms: from_sql(row.get(0)?),
            user: row.get(1)?,
            action: row.get(2)?,
            detail: row.get(3)?,
            outcome: row.get(4)?,
        })
    })?;
    Ok(entries.collect::<Result<_, _>>()?)
}

fn truncate(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
