//! Queries of users about earlier commands. They use a connection of their own, so that a query over a million deliveries
//! delays no write.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, Row, params};
use serde_json::Value;
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::{NodeAttributes, Selector};

use super::members::{read_json, read_name};
use super::sql::{from_sql, query_all, query_first, to_sql};
use super::{StoreError, audit, open_read_only};
use swarm_shared::api::{
    AuditView, CommandKind, CommandView, HistoryDelivery, HistoryQuery, HistoryState, round_to_microsecond,
};

/// Most commands, or entries of the audit, in one result.
pub const ROWS_MAX: u32 = 100_000;

const SELECT_COMMANDS_SQL: &str =
    "SELECT number, issued_ms, who, kind, action, arguments, selector, life_ms, retry_of, batch
    FROM commands";
const SELECT_DELIVERIES_SQL: &str =
    "SELECT name, node, outcome, reply, ended_us, about, received_us, accepted_us, started_us
    FROM deliveries WHERE command = ?1 ORDER BY name, node, part";

/// Runs a query on the file of a state directory; another process may have it open. `None` if there is no history.
///
/// # Errors
/// [`StoreError`].
pub async fn run_query<T, F>(state_dir: &Path, query: F) -> Result<Option<T>, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
{
    let state_dir = state_dir.to_owned();
    let task = tokio::task::spawn_blocking(move || {
        open_read_only(&state_dir)?
            .map(|connection| query(&connection))
            .transpose()
    });
    task.await.map_err(|_panicked| StoreError::Closed)?
}

/// The commands that match a query, newest first. The time span of the query ends at `now_ms`.
///
/// # Errors
/// [`StoreError`].
pub fn commands(
    connection: &Connection,
    query: &HistoryQuery,
    now_ms: u64,
) -> Result<Vec<CommandView>, StoreError> {
    let since_ms = query.within_ms.map_or(0, |within| now_ms.saturating_sub(within));
    let open = if query.state == Some(HistoryState::Open) {
        "AND number IN (SELECT command FROM deliveries INDEXED BY deliveries_open WHERE outcome IS NULL)"
    } else {
        ""
    };
    let sql = format!(
        "{SELECT_COMMANDS_SQL} WHERE issued_ms >= ?1 AND (?2 IS NULL OR action = ?2) {open} ORDER BY number DESC"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![to_sql(since_ms), query.action])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if found.len() >= usize::try_from(query.limit.min(ROWS_MAX)).unwrap_or(usize::MAX) {
            break;
        }
        let number: i64 = row.get(0)?;
        if let Some(nodes) = &query.nodes
            && !has_matching_delivery(connection, number, nodes)?
        {
            continue;
        }
        let states = count_states(connection, number)?;
        if query.state.is_none_or(|state| states.contains_key(&state)) {
            found.push(command_view(row, states, retries(connection, number)?)?);
        }
    }
    Ok(found)
}

/// One command; `None` if there is none with this number.
///
/// # Errors
/// [`StoreError`].
pub fn command(connection: &Connection, number: u64) -> Result<Option<CommandView>, StoreError> {
    let (sql, number) = (format!("{SELECT_COMMANDS_SQL} WHERE number = ?1"), to_sql(number));
    query_first(connection, &sql, [number], |row| {
        command_view(
            row,
            count_states(connection, number)?,
            retries(connection, number)?,
        )
    })
}

/// The identity of a command; `None` if the tracker does not follow it, or there is none with this number.
///
/// # Errors
/// [`StoreError`].
pub fn command_id(connection: &Connection, number: u64) -> Result<Option<CommandId>, StoreError> {
    let sql = "SELECT issuer, epoch, seq FROM commands
               WHERE number = ?1 AND issuer IS NOT NULL AND epoch IS NOT NULL AND seq IS NOT NULL";
    query_first(connection, sql, [to_sql(number)], |row| {
        Ok(CommandId {
            issuer: PeerId(row.get(0)?),
            epoch: from_sql(row.get(1)?),
            seq: from_sql(row.get(2)?),
        })
    })
}

/// The deliveries of a command that match a query, by name.
///
/// # Errors
/// [`StoreError`].
pub fn deliveries(
    connection: &Connection,
    number: u64,
    query: &HistoryQuery,
) -> Result<Vec<HistoryDelivery>, StoreError> {
    let mut found = query_all(connection, SELECT_DELIVERIES_SQL, [to_sql(number)], |row| {
        delivery_view(row, number)
    })?;
    found.retain(|delivery| {
        let nodes = query.nodes.as_ref();
        query.state.is_none_or(|state| state == delivery.state)
            && nodes.is_none_or(|nodes| selector_matches(nodes, &delivery.node, &delivery.id))
    });
    Ok(found)
}

/// All deliveries of a command and of its retries, direct and indirect.
///
/// # Errors
/// [`StoreError`].
pub fn deliveries_with_retries(
    connection: &Connection,
    number: u64,
) -> Result<Vec<HistoryDelivery>, StoreError> {
    let sql = "WITH RECURSIVE family (number) AS (
                   VALUES (?1)
                   UNION SELECT commands.number FROM commands JOIN family ON commands.retry_of = family.number)
               SELECT number FROM family ORDER BY number";
    let family = query_all(connection, sql, [to_sql(number)], |row| Ok(from_sql(row.get(0)?)))?;
    let mut all = Vec::new();
    for number in family {
        all.extend(deliveries(connection, number, &HistoryQuery::default())?);
    }
    Ok(all)
}

/// Entries of the audit, newest first.
///
/// # Errors
/// [`StoreError`].
pub fn audit_trail(
    connection: &Connection,
    query: &HistoryQuery,
    now_ms: u64,
) -> Result<Vec<AuditView>, StoreError> {
    let since_ms = query.within_ms.map_or(0, |within| now_ms.saturating_sub(within));
    let entries = audit::newest(connection, since_ms, query.limit.min(ROWS_MAX))?;
    let view = |entry: audit::AuditEntry| AuditView {
        at_ms: entry.at_ms,
        who: entry.user,
        what: entry.action,
        detail: entry.detail,
        outcome: entry.outcome,
    };
    Ok(entries.into_iter().map(view).collect())
}

/// The lowest and the highest number in the history; `None` if it is empty.
///
/// # Errors
/// [`StoreError`].
pub fn number_range(connection: &Connection) -> Result<Option<(u64, u64)>, StoreError> {
    let sql = "SELECT (SELECT number FROM commands ORDER BY number LIMIT 1),
                      (SELECT number FROM commands ORDER BY number DESC LIMIT 1)";
    let (first, last): (Option<i64>, Option<i64>) =
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(first
        .zip(last)
        .map(|(first, last)| (from_sql(first), from_sql(last))))
}

fn count_states(connection: &Connection, number: i64) -> Result<BTreeMap<HistoryState, u64>, StoreError> {
    let sql = "SELECT outcome, count(*) FROM deliveries WHERE command = ?1 GROUP BY outcome";
    let states = query_all(connection, sql, [number], |row| {
        Ok((parse_state(row.get(0)?)?, from_sql(row.get(1)?)))
    });
    Ok(states?.into_iter().collect())
}

fn parse_state(outcome: Option<String>) -> Result<HistoryState, StoreError> {
    let Some(outcome) = outcome else {
        return Ok(HistoryState::Open);
    };
    HistoryState::parse(&outcome)
        .ok_or_else(|| StoreError::bad_row("outcome", format!("{outcome:?} is no outcome")))
}

fn has_matching_delivery(connection: &Connection, number: i64, nodes: &Selector) -> Result<bool, StoreError> {
    let sql = "SELECT name, node FROM deliveries WHERE command = ?1";
    let matches = query_all(connection, sql, [number], |row| {
        Ok(selector_matches(nodes, &read_name(row, 0)?, &PeerId(row.get(1)?)))
    });
    Ok(matches?.contains(&true))
}

fn selector_matches(nodes: &Selector, name: &NodeName, id: &PeerId) -> bool {
    let tags = BTreeMap::new();
    nodes.matches(&NodeAttributes {
        name,
        id,
        tags: &tags,
    })
}

/// The retries of a command, oldest first.
fn retries(connection: &Connection, number: i64) -> Result<Vec<u64>, StoreError> {
    let sql = "SELECT number FROM commands WHERE retry_of = ?1 ORDER BY number";
    query_all(connection, sql, [number], |row| Ok(from_sql(row.get(0)?)))
}

fn command_view(
    row: &Row<'_>,
    states: BTreeMap<HistoryState, u64>,
    retried_by: Vec<u64>,
) -> Result<CommandView, StoreError> {
    let kind: String = row.get(3)?;
    Ok(CommandView {
        command: from_sql(row.get(0)?),
        at_ms: from_sql(row.get(1)?),
        who: row.get(2)?,
        kind: CommandKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or_else(|| StoreError::bad_row("kind", format!("{kind:?} is no kind of command")))?,
        action: row.get(4)?,
        arguments: read_json(row, 5, "arguments")?,
        selector: row.get(6)?,
        ttl_ms: from_sql(row.get(7)?),
        retry_of: row.get::<_, Option<i64>>(8)?.map(from_sql),
        retried_by,
        batch: row.get(9)?,
        deliveries: states.values().sum(),
        states,
    })
}

fn delivery_view(row: &Row<'_>, number: u64) -> Result<HistoryDelivery, StoreError> {
    let ms = |column: usize| -> rusqlite::Result<Option<f64>> {
        Ok(row.get::<_, Option<i64>>(column)?.map(micros_to_ms))
    };
    let state = parse_state(row.get(2)?)?;
    let reply: Reply = match state {
        HistoryState::Open => Reply::done(Value::Null),
        HistoryState::Ended(_) => read_json(row, 3, "reply")?,
    };
    let ended = ms(4)?;
    let mut stages = BTreeMap::new();
    stages.extend(ms(6)?.map(|at| (Stage::Received, at)));
    stages.extend(ms(7)?.map(|at| (Stage::Accepted, at)));
    stages.extend(ms(8)?.map(|at| (Stage::Started, at)));
    if matches!(state, HistoryState::Ended(Outcome::Done | Outcome::Failed)) {
        stages.extend(ended.map(|at| (Stage::Finished, at)));
    }
    let Reply {
        state: _,
        value,
        output,
        exit,
        error,
    } = reply;
    Ok(HistoryDelivery {
        node: read_name(row, 0)?,
        id: PeerId(row.get(1)?),
        state,
        value,
        output,
        exit,
        error,
        ms: ended,
        command: number,
        about: row.get(5)?,
        stages,
    })
}

/// Exact up to 285 years.
fn micros_to_ms(micros: i64) -> f64 {
    round_to_microsecond(std::time::Duration::from_micros(from_sql(micros)).as_secs_f64() * 1_000.0)
}
