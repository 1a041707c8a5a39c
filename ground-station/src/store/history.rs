//! The questions that people ask about the past. They only read, and over a connection of their own, so that a long
//! look at a million deliveries holds up nothing that is to be stored.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, Row, params};
use serde_json::Value;
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::{NodeAttributes, Selector};

use super::members::decode_json;
use super::{StoreError, audit, deliveries, from_sql, open_read_only, to_sql};
use swarm_shared::api::{
    AuditView, CommandKind, CommandView, HistoryDelivery, HistoryQuery, HistoryState, round_to_microsecond,
};

/// Most commands, or entries of the audit, in one answer.
pub const ROWS_MAX: u32 = 100_000;

const SELECT_COMMANDS_SQL: &str =
    "SELECT number, issued_ms, who, kind, action, arguments, selector, life_ms, retry_of, batch
    FROM commands";
const SELECT_DELIVERIES_SQL: &str =
    "SELECT name, node, outcome, reply, ended_us, about, received_us, accepted_us, started_us
    FROM deliveries WHERE command = ?1 ORDER BY name, node, part";

/// Asks the file of a state directory, whoever else has it open.
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

/// The newest commands that a query means, newest first. `now_ms` is what its span of time ends with.
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
    let sql = format!("{SELECT_COMMANDS_SQL} WHERE number = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([to_sql(number)])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let states = count_states(connection, to_sql(number))?;
    let retries = retries(connection, to_sql(number))?;
    Ok(Some(command_view(row, states, retries)?))
}

/// What the nodes know a command by; `None` if it was not an action, or there is none with this number.
///
/// # Errors
/// [`StoreError`].
pub fn command_id(connection: &Connection, number: u64) -> Result<Option<CommandId>, StoreError> {
    let sql = "SELECT issuer, epoch, seq FROM commands
               WHERE number = ?1 AND issuer IS NOT NULL AND epoch IS NOT NULL AND seq IS NOT NULL";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([to_sql(number)])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(CommandId {
        issuer: PeerId(row.get(0)?),
        epoch: from_sql(row.get(1)?),
        seq: from_sql(row.get(2)?),
    }))
}

/// The deliveries of a command that a query means, by name.
///
/// # Errors
/// [`StoreError`].
pub fn deliveries(
    connection: &Connection,
    number: u64,
    query: &HistoryQuery,
) -> Result<Vec<HistoryDelivery>, StoreError> {
    let mut statement = connection.prepare_cached(SELECT_DELIVERIES_SQL)?;
    let mut rows = statement.query([to_sql(number)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let delivery = delivery_view(row, number)?;
        let meant = query.state.is_none_or(|state| state == delivery.state)
            && query
                .nodes
                .as_ref()
                .is_none_or(|nodes| selector_matches(nodes, &delivery.node, &delivery.id));
        if meant {
            found.push(delivery);
        }
    }
    Ok(found)
}

/// All deliveries of a command and of those that repeat it, or repeat one that does: what has come of it so far.
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
    let mut statement = connection.prepare_cached(sql)?;
    let members: Vec<i64> = statement
        .query_map([to_sql(number)], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut all = Vec::new();
    for member in members {
        all.extend(deliveries(
            connection,
            from_sql(member),
            &HistoryQuery::default(),
        )?);
    }
    Ok(all)
}

/// Who did what, newest first.
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
    Ok(entries
        .into_iter()
        .map(|entry| AuditView {
            at_ms: entry.at_ms,
            who: entry.user,
            what: entry.action,
            detail: entry.detail,
            outcome: entry.outcome,
        })
        .collect())
}

/// The oldest and the newest number that there are; `None` if nothing was ever sent.
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
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([number])?;
    let mut states = BTreeMap::new();
    while let Some(row) = rows.next()? {
        states.insert(parse_state(row.get(0)?)?, from_sql(row.get(1)?));
    }
    Ok(states)
}

fn parse_state(outcome: Option<String>) -> Result<HistoryState, StoreError> {
    let Some(outcome) = outcome else {
        return Ok(HistoryState::Open);
    };
    HistoryState::parse(&outcome).ok_or_else(|| StoreError::BadRow {
        what: "outcome",
        reason: format!("{outcome:?} is none"),
    })
}

fn has_matching_delivery(connection: &Connection, number: i64, nodes: &Selector) -> Result<bool, StoreError> {
    let sql = "SELECT name, node FROM deliveries WHERE command = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([number])?;
    while let Some(row) = rows.next()? {
        let name = deliveries::parse_name(&row.get::<_, String>(0)?)?;
        if selector_matches(nodes, &name, &PeerId(row.get(1)?)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn selector_matches(nodes: &Selector, name: &NodeName, id: &PeerId) -> bool {
    let tags = BTreeMap::new();
    nodes.matches(&NodeAttributes {
        name,
        id,
        tags: &tags,
    })
}

/// The commands that repeat this one, oldest first.
fn retries(connection: &Connection, number: i64) -> Result<Vec<u64>, StoreError> {
    let sql = "SELECT number FROM commands WHERE retry_of = ?1 ORDER BY number";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_map([number], |row| Ok(from_sql(row.get(0)?)))?;
    Ok(found.collect::<Result<_, _>>()?)
}

fn command_view(
    row: &Row<'_>,
    states: BTreeMap<HistoryState, u64>,
    retried_by: Vec<u64>,
) -> Result<CommandView, StoreError> {
    let kind: String = row.get(3)?;
    let arguments: String = row.get(5)?;
    Ok(CommandView {
        command: from_sql(row.get(0)?),
        at_ms: from_sql(row.get(1)?),
        who: row.get(2)?,
        kind: CommandKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or_else(|| StoreError::BadRow {
                what: "kind",
                reason: format!("{kind:?} is none"),
            })?,
        action: row.get(4)?,
        arguments: decode_json("arguments", &arguments)?,
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
    let reply: Option<String> = row.get(3)?;
    let reply: Option<Reply> = reply.map(|text| decode_json("reply", &text)).transpose()?;
    let ended = ms(4)?;
    let mut stages = BTreeMap::new();
    stages.extend(ms(6)?.map(|at| (Stage::Received, at)));
    stages.extend(ms(7)?.map(|at| (Stage::Accepted, at)));
    stages.extend(ms(8)?.map(|at| (Stage::Started, at)));
    if matches!(state, HistoryState::Ended(Outcome::Done | Outcome::Failed)) {
        stages.extend(ended.map(|at| (Stage::Finished, at)));
    }
    let empty = Reply::done(Value::Null);
    let Reply {
        state: _,
        value,
        output,
        exit,
        error,
    } = reply.unwrap_or(empty);
    Ok(HistoryDelivery {
        node: deliveries::parse_name(&row.get::<_, String>(0)?)?,
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

/// From microseconds; exact up to 285 years.
fn micros_to_ms(micros: i64) -> f64 {
    round_to_microsecond(std::time::Duration::from_micros(from_sql(micros)).as_secs_f64() * 1_000.0)
}
