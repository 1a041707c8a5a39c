//! Who did what: one row for whatever changes the fleet or makes its nodes do something.

use rusqlite::{Connection, params};

use super::{Store, StoreError, from_sql, to_sql};

/// Most entries kept; beyond them the oldest go.
pub const AUDIT_ROWS_MAX: u64 = 100_000;
/// Longest text of an entry, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The user of this machine who asked.
    pub who: String,
    /// What was asked, in one word.
    pub what: String,
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
    pub async fn audit(&self, entry: Entry) -> Result<(), StoreError> {
        self.change(move |connection| put(connection, &entry)).await
    }
}

/// Adds an entry; texts are cut to a bound.
///
/// # Errors
/// [`StoreError`].
pub fn put(connection: &Connection, entry: &Entry) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit (at_ms, who, what, detail, outcome) VALUES (?1, ?2, ?3, ?4, ?5)";
    connection.prepare_cached(sql)?.execute(params![
        to_sql(entry.at_ms),
        cut(&entry.who),
        cut(&entry.what),
        cut(&entry.detail),
        cut(&entry.outcome),
    ])?;
    Ok(())
}

/// The newest entries, newest first, also where one was noted later than it was: what repeats is counted before it is
/// noted. `since_ms`: none before that.
///
/// # Errors
/// [`StoreError`].
pub fn newest(connection: &Connection, since_ms: u64, limit: u32) -> Result<Vec<Entry>, StoreError> {
    let sql = "SELECT at_ms, who, what, detail, outcome FROM audit WHERE at_ms >= ?1
               ORDER BY at_ms DESC, number DESC LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let entries = statement.query_map(params![to_sql(since_ms), limit], |row| {
        Ok(Entry {
            at_ms: from_sql(row.get(0)?),
            who: row.get(1)?,
            what: row.get(2)?,
            detail: row.get(3)?,
            outcome: row.get(4)?,
        })
    })?;
    Ok(entries.collect::<Result<_, _>>()?)
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
