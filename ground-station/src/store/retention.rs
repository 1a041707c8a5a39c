//! Removes the oldest commands whose deliveries have all ended, in small slices, so that no write waits long. Commands
//! with an open delivery stay.
//!
//! The file does not shrink: SQLite reuses the pages that a slice frees. Returning them (`auto_vacuum`) would slow down
//! every write, and the limits below hold without it.

use rusqlite::{Connection, params};

use crate::config::RetentionPolicy;

use super::sql::{execute, from_sql, query_first, to_sql};
use super::{Store, StoreError, audit, meta};

/// Most deliveries in one slice.
pub const SLICE_DELIVERIES: u32 = 500;
/// Most used bytes of the file; beyond them the oldest commands are removed, whatever the policy.
pub const STORE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

const DAY_MS: u64 = 86_400_000;

impl Store {
    /// Removes one slice of the commands that exceed the policy; whether there may be more.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was removed.
    pub async fn prune(&self, policy: RetentionPolicy, now_ms: u64) -> Result<bool, StoreError> {
        self.write(move |connection| prune_slice(connection, policy, now_ms))
            .await
    }
}

/// Removes one slice, and stores the time; whether there may be more.
///
/// # Errors
/// [`StoreError`]; then the caller rolls the transaction back.
pub fn prune_slice(
    connection: &Connection,
    policy: RetentionPolicy,
    now_ms: u64,
) -> Result<bool, StoreError> {
    meta::advance_newest_ms(connection, now_ms)?;
    let before_ms = now_ms.saturating_sub(u64::from(policy.days) * DAY_MS);
    let more = prune_commands(connection, policy, before_ms)?;
    Ok(prune_audit(connection, before_ms)? || more)
}

fn prune_commands(
    connection: &Connection,
    keep: RetentionPolicy,
    before_ms: u64,
) -> Result<bool, StoreError> {
    let mut left = SLICE_DELIVERIES;
    while left > 0 {
        let Some((number, issued_ms)) = oldest_ended(connection)? else {
            return Ok(false);
        };
        let is_due = issued_ms < before_ms
            || meta::get_number(connection, meta::DELIVERY_COUNT)? > keep.deliveries
            || bytes_used(connection)? > STORE_BYTES_MAX;
        if !is_due {
            return Ok(false);
        }
        let sql = "DELETE FROM deliveries WHERE command = ?1 AND (node, part) IN
                       (SELECT node, part FROM deliveries WHERE command = ?1 LIMIT ?2)";
        let removed = execute(connection, sql, params![number, left])?;
        let less = i64::try_from(removed).unwrap_or(i64::MAX);
        meta::increment(connection, meta::DELIVERY_COUNT, -less)?;
        let removed = u32::try_from(removed).unwrap_or(u32::MAX);
        if removed < left {
            execute(connection, "DELETE FROM commands WHERE number = ?1", [number])?;
        }
        left = left.saturating_sub(removed.max(1));
    }
    Ok(true)
}

/// Number and time of issue of the oldest command whose deliveries have all ended. The commands before it are open, and
/// few.
fn oldest_ended(connection: &Connection) -> Result<Option<(i64, u64)>, StoreError> {
    let sql = "SELECT number, issued_ms FROM commands
               WHERE NOT EXISTS (SELECT 1 FROM deliveries INDEXED BY deliveries_open
                                 WHERE command = commands.number AND outcome IS NULL)
               ORDER BY number LIMIT 1";
    query_first(connection, sql, [], |row| {
        Ok((row.get(0)?, from_sql(row.get(1)?)))
    })
}

fn prune_audit(connection: &Connection, before_ms: u64) -> Result<bool, StoreError> {
    let sql = "DELETE FROM audit WHERE number IN
                   (SELECT number FROM (SELECT number, at_ms FROM audit ORDER BY number LIMIT ?1)
                    WHERE at_ms < ?2 OR number <= (SELECT max(number) FROM audit) - ?3)";
    let limits = params![SLICE_DELIVERIES, to_sql(before_ms), to_sql(audit::AUDIT_ROWS_MAX)];
    let removed = execute(connection, sql, limits)?;
    Ok(u32::try_from(removed).is_ok_and(|removed| removed == SLICE_DELIVERIES))
}

/// Bytes of the pages in use.
fn bytes_used(connection: &Connection) -> Result<u64, StoreError> {
    let pragma = |name: &str| -> rusqlite::Result<u64> {
        connection
            .prepare_cached(&format!("PRAGMA {name}"))?
            .query_row([], |row| row.get(0))
            .map(from_sql)
    };
    let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
    Ok(pages.saturating_mul(pragma("page_size")?))
}
