//! What is kept, and what goes: the oldest commands whose deliveries have all ended, in small slices, so that nothing
//! that is to be stored waits long for it. An open delivery never goes, and neither does its command.
//!
//! The file does not shrink: SQLite uses the pages again that a slice leaves, so the file stays at the size that it once
//! needed. Giving pages back (`auto_vacuum`) would cost every write, and the bounds below hold without it.

use rusqlite::{Connection, OptionalExtension, params};

use crate::config::RetentionPolicy;

use super::{Store, StoreError, audit, from_sql, meta, to_sql};

/// Most deliveries that one slice removes.
pub const SLICE_DELIVERIES: u32 = 500;
/// Most bytes of the file that may be in use; beyond them the oldest goes, however young and few.
pub const STORE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

const DAY_MS: u64 = 86_400_000;

impl Store {
    /// Removes one slice of what is too old or too much; says whether there may be more.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was removed.
    pub async fn prune(&self, policy: RetentionPolicy, now_ms: u64) -> Result<bool, StoreError> {
        self.write(move |connection| prune_slice(connection, policy, now_ms))
            .await
    }
}

/// Removes one slice, and notes the time; says whether there may be more.
///
/// # Errors
/// [`StoreError`]; then the transaction has to be rolled back.
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
        let removed = connection.prepare_cached(sql)?.execute(params![number, left])?;
        let less = i64::try_from(removed).unwrap_or(i64::MAX);
        meta::increment(connection, meta::DELIVERY_COUNT, -less)?;
        let removed = u32::try_from(removed).unwrap_or(u32::MAX);
        if removed < left {
            // None is left of it.
            let sql = "DELETE FROM commands WHERE number = ?1";
            connection.prepare_cached(sql)?.execute([number])?;
        }
        left = left.saturating_sub(removed.max(1));
    }
    Ok(true)
}

/// The oldest command whose deliveries have all ended, and when it was issued. Those before it are open, and few.
fn oldest_ended(connection: &Connection) -> Result<Option<(i64, u64)>, StoreError> {
    let sql = "SELECT number, issued_ms FROM commands
               WHERE NOT EXISTS (SELECT 1 FROM deliveries INDEXED BY deliveries_open
                                 WHERE command = commands.number AND outcome IS NULL)
               ORDER BY number LIMIT 1";
    let found = connection
        .prepare_cached(sql)?
        .query_row([], |row| Ok((row.get(0)?, from_sql(row.get(1)?))))
        .optional()?;
    Ok(found)
}

fn prune_audit(connection: &Connection, before_ms: u64) -> Result<bool, StoreError> {
    let sql = "DELETE FROM audit WHERE number IN
                   (SELECT number FROM (SELECT number, at_ms FROM audit ORDER BY number LIMIT ?1)
                    WHERE at_ms < ?2 OR number <= (SELECT max(number) FROM audit) - ?3)";
    let removed = connection.prepare_cached(sql)?.execute(params![
        SLICE_DELIVERIES,
        to_sql(before_ms),
        to_sql(audit::AUDIT_ROWS_MAX)
    ])?;
    Ok(u32::try_from(removed).is_ok_and(|removed| removed == SLICE_DELIVERIES))
}

/// Bytes of the pages that hold something.
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
