//! Changes of commands and of their deliveries.
//!
//! All functions run on a plain connection, in a transaction of the caller, so that a simulation can run the same SQL on a
//! database in memory.
//!
//! Invariants: an ended delivery never changes; an open delivery is never removed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row, params};
use serde_json::Value;
use swarm_shared::proto::delivery::tracker::{Change, IssuedCommand, StoredState};
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::Lane;

use super::members::encode_json;
use super::sql::{execute, from_sql, query_first, to_sql};
use super::timestamp::{Timestamp, whole_micros};
use super::{HistoryNumber, StoreError, audit, meta};
use swarm_shared::api::{CommandKind, NodeRef};

/// Most stored bytes of each text of a reply: output, error and value. The caller gets the whole reply.
pub const REPLY_TEXT_BYTES_MAX: usize = 4 * 1024;

const INSERT_COMMAND_SQL: &str = "INSERT INTO commands
        (issuer, epoch, seq, kind, action, arguments, lane, selector, who, retry_of, batch,
         boot, issued_boot_us, issued_ms, life_ms)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) RETURNING number";
const INSERT_DELIVERY_SQL: &str = "INSERT INTO deliveries
        (command, node, part, name, about, standing, boot, due_boot_ms, due_ms)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const END_DELIVERY_SQL: &str = "UPDATE deliveries SET outcome = ?4, reply = ?5, ended_us = ?6
    WHERE command = ?1 AND node = ?2 AND part = ?3 AND outcome IS NULL";

/// What the history keeps of a command beside the command itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Kind of the request.
    pub kind: CommandKind,
    /// The user who made the request.
    pub user: String,
    /// The command that this one repeats.
    pub retry_of: Option<u64>,
    /// Size of its batches, as the user wrote it.
    pub batch: Option<String>,
    /// The nodes in readable form, if a program made the selector.
    pub shown_selector: Option<String>,
    /// Its number in the history, set when it is stored.
    pub history_number: HistoryNumber,
}

impl Origin {
    /// The origin of an action.
    pub fn command_by(user: impl Into<String>) -> Self {
        Self {
            kind: CommandKind::Command,
            user: user.into(),
            retry_of: None,
            batch: None,
            shown_selector: None,
            history_number: HistoryNumber::default(),
        }
    }
}

/// A command that the tracker does not follow: a transfer of files, a stop, a release.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// User and kind.
    pub origin: Origin,
    /// Action in the history.
    pub action: String,
    /// Arguments in JSON, enough to repeat the command.
    pub arguments: String,
    /// Urgency.
    pub lane: Lane,
    /// Selector as the user wrote it.
    pub selector: String,
    /// Time to live, in milliseconds.
    pub ttl_ms: u64,
    /// The deliveries.
    pub deliveries: Vec<RecordTarget>,
}

/// A delivery of a [`Record`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordTarget {
    /// The node.
    pub node: NodeRef,
    /// Distinguishes several deliveries to one node.
    pub part: u32,
    /// Subject of this delivery, such as its file.
    pub about: Option<String>,
}

/// The end of a delivery of a [`Record`].
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryEnd {
    /// The node.
    pub node: PeerId,
    /// Part of the delivery; see [`RecordTarget::part`].
    pub part: u32,
    /// The outcome.
    pub reply: Reply,
}

/// Stores changes of the tracker. Returns the numbers in the history of the commands that are issued among them, in their
/// order. `origins` belong to those commands.
///
/// # Errors
/// [`StoreError`]; then the caller rolls the transaction back.
pub fn apply(
    connection: &Connection,
    changes: &[Change],
    origins: &BTreeMap<CommandId, Origin>,
    now: &Timestamp,
) -> Result<Vec<u64>, StoreError> {
    let mut numbers = Vec::new();
    for change in changes {
        match change {
            Change::Issued(issued) => {
                let default_origin = Origin::command_by("");
                let origin = origins.get(&issued.command.id).unwrap_or(&default_origin);
                numbers.push(insert_issued(connection, issued, origin, now)?);
            }
            Change::StateChanged {
                id,
                to,
                state,
                deadline,
            } => {
                let (due_boot_ms, due_ms) = now.encode_deadline(*deadline);
                let sql = "UPDATE deliveries SET standing = ?3, boot = ?4, due_boot_ms = ?5, due_ms = ?6
                           WHERE command = ?1 AND node = ?2 AND part = 0 AND outcome IS NULL";
                let row = params![
                    to_sql(require_command(connection, *id)?.number),
                    to.0,
                    state.as_str(),
                    boot_number(connection, &now.boot)?,
                    to_sql(due_boot_ms),
                    to_sql(due_ms),
                ];
                execute(connection, sql, row)?;
            }
            Change::Stage { id, to, stage, at } => {
                let command = require_command(connection, *id)?;
                let column = match stage {
                    Stage::Received => "received_us",
                    Stage::Accepted => "accepted_us",
                    Stage::Started => "started_us",
                    // The reply ends the delivery and stores this time.
                    Stage::Finished => continue,
                };
                let waited = whole_micros(now.instant.saturating_duration_since(*at));
                let sql = format!(
                    "UPDATE deliveries SET {column} = coalesce({column}, ?3)
                     WHERE command = ?1 AND node = ?2 AND part = 0 AND outcome IS NULL"
                );
                let at_us = command.micros_since_issue(now).saturating_sub(waited);
                execute(
                    connection,
                    &sql,
                    params![to_sql(command.number), to.0, to_sql(at_us)],
                )?;
            }
            Change::Ended { id, to, reply } => {
                // The tracker also ends a command whose own write has failed, since it may be stored all the same. If it
                // is not, there is nothing to end; an error would fail the whole group, at each retry.
                if let Some(command) = find_command(connection, *id)? {
                    end_delivery(connection, &command, (*to, 0), reply, now)?;
                }
            }
        }
    }
    Ok(numbers)
}

fn insert_issued(
    connection: &Connection,
    issued: &IssuedCommand,
    origin: &Origin,
    now: &Timestamp,
) -> Result<u64, StoreError> {
    let command = CommandInsert {
        id: Some(issued.command.id),
        origin,
        action: &issued.command.action,
        arguments: &issued.command.arguments,
        lane: issued.command.lane,
        selector: &issued.selector,
        ttl_ms: issued.command.ttl_ms,
    };
    let deliveries = issued.deliveries.iter().map(|delivery| DeliveryInsert {
        node: delivery.to,
        part: 0,
        name: delivery.name.as_str(),
        about: None,
        state: delivery.state,
        deadline: delivery.deadline,
    });
    insert_command(connection, &command, deliveries, now)
}

/// Stores a command that the tracker does not follow. Returns its number in the history. If the station stops before the
/// end of a delivery is stored, the delivery ends as `unknown` at the next start.
///
/// # Errors
/// [`StoreError`]; then the caller rolls the transaction back.
pub fn record(connection: &Connection, record: &Record, now: &Timestamp) -> Result<u64, StoreError> {
    let command = CommandInsert {
        id: None,
        origin: &record.origin,
        action: &record.action,
        arguments: &record.arguments,
        lane: record.lane,
        selector: &record.selector,
        ttl_ms: record.ttl_ms,
    };
    let ttl = Duration::from_millis(record.ttl_ms);
    let deadline = now.instant.checked_add(ttl).unwrap_or(now.instant);
    let deliveries = record.deliveries.iter().map(|delivery| DeliveryInsert {
        node: delivery.node.id,
        part: delivery.part,
        name: delivery.node.node.as_str(),
        about: delivery.about.as_deref(),
        state: StoredState::Sent,
        deadline,
    });
    insert_command(connection, &command, deliveries, now)
}

/// Stores the end of a delivery of a [`Record`].
///
/// # Errors
/// [`StoreError`]; then the caller rolls the transaction back.
pub fn record_delivery_end(
    connection: &Connection,
    number: u64,
    end: &DeliveryEnd,
    now: &Timestamp,
) -> Result<(), StoreError> {
    let sql = format!("{SELECT_COMMAND_SQL} WHERE commands.number = ?1");
    let command = query_first(connection, &sql, [to_sql(number)], CommandRow::from_row)?;
    let command = command.ok_or_else(|| unknown_command(&number))?;
    end_delivery(connection, &command, (end.node, end.part), &end.reply, now)
}

/// A new row of `commands`.
struct CommandInsert<'a> {
    /// `None` if the tracker does not follow the command.
    id: Option<CommandId>,
    origin: &'a Origin,
    action: &'a str,
    arguments: &'a str,
    lane: Lane,
    selector: &'a str,
    ttl_ms: u64,
}

/// A new row of `deliveries`.
struct DeliveryInsert<'a> {
    node: PeerId,
    part: u32,
    name: &'a str,
    about: Option<&'a str>,
    state: StoredState,
    deadline: Instant,
}

/// Adds a command, its deliveries and its entry in the audit. Returns its number in the history.
fn insert_command<'a>(
    connection: &Connection,
    command: &CommandInsert<'_>,
    deliveries: impl ExactSizeIterator<Item = DeliveryInsert<'a>>,
    now: &Timestamp,
) -> Result<u64, StoreError> {
    let boot = boot_number(connection, &now.boot)?;
    let CommandInsert { id, origin, .. } = command;
    let selector = origin.shown_selector.as_deref().unwrap_or(command.selector);
    let row = params![
        id.map(|id| id.issuer.0),
        id.map(|id| to_sql(id.epoch)),
        id.map(|id| to_sql(id.seq)),
        origin.kind.as_str(),
        command.action,
        command.arguments,
        encode_json("lane", &command.lane)?,
        selector,
        origin.user,
        origin.retry_of.map(to_sql),
        origin.batch,
        boot,
        to_sql(whole_micros(now.since_boot)),
        to_sql(now.unix_ms),
        to_sql(command.ttl_ms),
    ];
    let mut insert = connection.prepare_cached(INSERT_COMMAND_SQL)?;
    let number: i64 = insert.query_row(row, |row| row.get(0))?;
    let count = deliveries.len();
    meta::increment(
        connection,
        meta::DELIVERY_COUNT,
        i64::try_from(count).unwrap_or(i64::MAX),
    )?;
    let entry = audit::AuditEntry {
        at_ms: now.unix_ms,
        user: origin.user.clone(),
        action: origin.kind.as_str().to_owned(),
        detail: format!("{} to {selector}", command.action),
        outcome: match count {
            1 => format!("command {number}, 1 delivery"),
            count => format!("command {number}, {count} deliveries"),
        },
    };
    audit::insert(connection, &entry)?;
    let mut insert = connection.prepare_cached(INSERT_DELIVERY_SQL)?;
    for delivery in deliveries {
        let (due_boot_ms, due_ms) = now.encode_deadline(delivery.deadline);
        insert.execute(params![
            number,
            delivery.node.0,
            delivery.part,
            delivery.name,
            delivery.about,
            delivery.state.as_str(),
            boot,
            to_sql(due_boot_ms),
            to_sql(due_ms),
        ])?;
    }
    Ok(from_sql(number))
}

fn end_delivery(
    connection: &Connection,
    command: &CommandRow,
    (node, part): (PeerId, u32),
    reply: &Reply,
    now: &Timestamp,
) -> Result<(), StoreError> {
    let reply = truncate_reply(reply);
    let row = params![
        to_sql(command.number),
        node.0,
        part,
        reply.state.as_str(),
        encode_json("reply", &reply)?,
        to_sql(command.micros_since_issue(now)),
    ];
    execute(connection, END_DELIVERY_SQL, row).map(drop)
}

/// Number of a command, and the time of its issue on two clocks.
struct CommandRow {
    number: u64,
    boot: String,
    boot_us: u64,
    unix_ms: u64,
}

const SELECT_COMMAND_SQL: &str = "SELECT commands.number, boots.id, issued_boot_us, issued_ms
    FROM commands LEFT JOIN boots ON boots.number = commands.boot";

impl CommandRow {
    fn from_row(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            number: from_sql(row.get(0)?),
            boot: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
            boot_us: from_sql(row.get(2)?),
            unix_ms: from_sql(row.get(3)?),
        })
    }

    /// Time from its issue until `now`, in microseconds.
    fn micros_since_issue(&self, now: &Timestamp) -> u64 {
        now.micros_since(&self.boot, self.boot_us, self.unix_ms)
    }
}

fn require_command(connection: &Connection, id: CommandId) -> Result<CommandRow, StoreError> {
    find_command(connection, id)?.ok_or_else(|| unknown_command(&id))
}

fn find_command(connection: &Connection, id: CommandId) -> Result<Option<CommandRow>, StoreError> {
    let sql = format!("{SELECT_COMMAND_SQL} WHERE epoch = ?1 AND seq = ?2");
    query_first(
        connection,
        &sql,
        [to_sql(id.epoch), to_sql(id.seq)],
        CommandRow::from_row,
    )
}

fn unknown_command(which: &dyn std::fmt::Display) -> StoreError {
    StoreError::bad_row("command", format!("there is no command {which}"))
}

/// The number of a boot, which is added if it is new.
fn boot_number(connection: &Connection, id: &str) -> Result<i64, StoreError> {
    let sql = "SELECT number FROM boots WHERE id = ?1";
    if let Some(number) = query_first(connection, sql, [id], |row| Ok(row.get(0)?))? {
        return Ok(number);
    }
    let sql = "INSERT INTO boots (id) VALUES (?1) RETURNING number";
    Ok(connection.query_row(sql, [id], |row| row.get(0))?)
}

/// The stored form of a reply: each text is cut to [`REPLY_TEXT_BYTES_MAX`], with a note.
pub(crate) fn truncate_reply(reply: &Reply) -> Reply {
    let value = reply.value.clone().map(|value| match value.to_string() {
        text if text.len() > REPLY_TEXT_BYTES_MAX => Value::String(truncate_text(text)),
        _ => value,
    });
    Reply {
        state: reply.state,
        value,
        output: reply.output.clone().map(truncate_text),
        exit: reply.exit,
        error: reply.error.clone().map(truncate_text),
    }
}

fn truncate_text(mut text: String) -> String {
    if text.len() > REPLY_TEXT_BYTES_MAX {
        let bytes = text.len();
        let mut end = REPLY_TEXT_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(&format!("\n[cut: {bytes} bytes in all]"));
    }
    text
}
