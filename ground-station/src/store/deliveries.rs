//! Commands and how their deliveries stand: what the book of deliveries has written, and what it is given back when
//! the station starts.
//!
//! Everything here runs on a plain connection, inside a transaction of its caller's, so that a simulation can run the
//! same SQL on a database in memory.
//!
//! Invariants: a delivery that has ended never changes again; of an open one nothing is ever removed.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;
use swarm_shared::proto::delivery::tracker::{
    Change, IssuedCommand, OpenCommand, OpenDelivery, StoredCommand, StoredState,
};
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::Lane;

use super::members::{decode_json, encode_json};
use super::timestamp::{StoredDeadline, Timestamp, remaining_ms, whole_micros};
use super::{HistoryNumber, StoreError, audit, from_sql, meta, to_sql};
use swarm_shared::api::{CommandKind, NodeRef};

/// Most bytes kept of each text of a reply: its output, its error, its value. The live reply goes to whoever asked
/// whole.
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

/// What the store notes of a command that its order does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What was asked for.
    pub kind: CommandKind,
    /// The user of this machine who asked.
    pub user: String,
    /// The command that this one repeats.
    pub retry_of: Option<u64>,
    /// How it is spread over batches, as it was asked.
    pub batch: Option<String>,
    /// The nodes as people read it, if the selector was made by a program.
    pub shown_selector: Option<String>,
    /// Its number in the history: set by whoever had it written down, for whoever wants to know.
    pub history_number: HistoryNumber,
}

impl Origin {
    /// An ordinary command.
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

/// Something that is done to many nodes without the book: a transfer of files, a stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Who asked, and for what.
    pub origin: Origin,
    /// In a word or two, for people.
    pub action: String,
    /// All that is needed to do it again (JSON).
    pub arguments: String,
    /// How urgent.
    pub lane: Lane,
    /// Of whom, as people wrote it.
    pub selector: String,
    /// How long it may still start, in milliseconds.
    pub ttl_ms: u64,
    /// Each delivery.
    pub deliveries: Vec<RecordTarget>,
}

/// One delivery of a [`Record`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordTarget {
    /// The node.
    pub node: NodeRef,
    /// Tells several for one node apart.
    pub part: u32,
    /// What this one is about, such as its file.
    pub about: Option<String>,
}

/// How one delivery of a [`Record`] ended.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveryEnd {
    /// The node.
    pub node: PeerId,
    /// Which of those for this node.
    pub part: u32,
    /// How.
    pub reply: Reply,
}

/// Writes what has changed; all or nothing is its caller's transaction. Returns the numbers in the history of the
/// commands that begin, in their order. `origins` says what is to be noted of them.
///
/// # Errors
/// [`StoreError`]; then the transaction has to be rolled back.
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
                state: standing,
                deadline,
            } => {
                let (due_boot_ms, due_ms) = now.encode_deadline(*deadline);
                let sql = "UPDATE deliveries SET standing = ?3, boot = ?4, due_boot_ms = ?5, due_ms = ?6
                           WHERE command = ?1 AND node = ?2 AND part = 0 AND outcome IS NULL";
                connection.prepare_cached(sql)?.execute(params![
                    to_sql(require_command(connection, *id)?.number),
                    to.0,
                    standing.as_str(),
                    boot_number(connection, &now.boot)?,
                    to_sql(due_boot_ms),
                    to_sql(due_ms),
                ])?;
            }
            Change::Stage { id, to, stage, at } => {
                let command = require_command(connection, *id)?;
                let column = match stage {
                    Stage::Received => "received_us",
                    Stage::Accepted => "accepted_us",
                    Stage::Started => "started_us",
                    // Said by the reply, which ends the delivery.
                    Stage::Finished => continue,
                };
                let waited = now.instant.saturating_duration_since(*at).as_micros();
                let waited = u64::try_from(waited).unwrap_or(u64::MAX);
                let sql = format!(
                    "UPDATE deliveries SET {column} = coalesce({column}, ?3)
                     WHERE command = ?1 AND node = ?2 AND part = 0 AND outcome IS NULL"
                );
                connection.prepare_cached(&sql)?.execute(params![
                    to_sql(command.number),
                    to.0,
                    to_sql(command.micros_since_issue(now).saturating_sub(waited)),
                ])?;
            }
            Change::Ended { id, to, reply } => {
                // A command whose own write failed is ended all the same, in case it came through. If it did not, there
                // is nothing to end, and to refuse that would fail whatever else is written with it, for ever.
                if let Some(command) = find_command(connection, *id)? {
                    end_delivery(connection, &command, *to, 0, reply, now)?;
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
    let order = &issued.command;
    let begins = CommandInsert {
        id: Some(order.id),
        origin,
        action: &order.action,
        arguments: &order.arguments,
        lane: order.lane,
        selector: &issued.selector,
        ttl_ms: order.ttl_ms,
        targets: issued.deliveries.len(),
    };
    let (number, boot) = insert_command(connection, &begins, now)?;
    let mut insert = connection.prepare_cached(INSERT_DELIVERY_SQL)?;
    for delivery in &issued.deliveries {
        let (due_boot_ms, due_ms) = now.encode_deadline(delivery.deadline);
        insert.execute(params![
            to_sql(number),
            delivery.to.0,
            0,
            delivery.name.as_str(),
            None::<&str>,
            delivery.state.as_str(),
            boot,
            to_sql(due_boot_ms),
            to_sql(due_ms),
        ])?;
    }
    Ok(number)
}

/// Notes that something begins that the book does not carry, and returns its number in the history. Should the
/// station stop before a delivery of it has ended, that ends as `unknown` at the next start.
///
/// # Errors
/// [`StoreError`]; then the transaction has to be rolled back.
pub fn record(connection: &Connection, record: &Record, now: &Timestamp) -> Result<u64, StoreError> {
    let begins = CommandInsert {
        id: None,
        origin: &record.origin,
        action: &record.action,
        arguments: &record.arguments,
        lane: record.lane,
        selector: &record.selector,
        ttl_ms: record.ttl_ms,
        targets: record.deliveries.len(),
    };
    let (number, boot) = insert_command(connection, &begins, now)?;
    let life = std::time::Duration::from_millis(record.ttl_ms);
    let (due_boot_ms, due_ms) = now.encode_deadline(now.instant.checked_add(life).unwrap_or(now.instant));
    let mut insert = connection.prepare_cached(INSERT_DELIVERY_SQL)?;
    for delivery in &record.deliveries {
        insert.execute(params![
            to_sql(number),
            delivery.node.id.0,
            delivery.part,
            delivery.node.node.as_str(),
            delivery.about,
            StoredState::Sent.as_str(),
            boot,
            to_sql(due_boot_ms),
            to_sql(due_ms),
        ])?;
    }
    Ok(number)
}

/// Notes how a delivery of a [`Record`] ended.
///
/// # Errors
/// [`StoreError`]; then the transaction has to be rolled back.
pub fn record_delivery_end(
    connection: &Connection,
    number: u64,
    delivery_end: &DeliveryEnd,
    now: &Timestamp,
) -> Result<(), StoreError> {
    let sql = format!("{SELECT_COMMAND_SQL} WHERE commands.number = ?1");
    let found = connection
        .prepare_cached(&sql)?
        .query_row([to_sql(number)], CommandRow::from_row)
        .optional()?;
    let found = found.ok_or_else(|| unknown_command(&number))?;
    end_delivery(
        connection,
        &found,
        delivery_end.node,
        delivery_end.part,
        &delivery_end.reply,
        now,
    )
}

/// A command that begins, as its row says it.
struct CommandInsert<'a> {
    id: Option<CommandId>,
    origin: &'a Origin,
    action: &'a str,
    arguments: &'a str,
    lane: Lane,
    selector: &'a str,
    ttl_ms: u64,
    targets: usize,
}

/// Its number, and that of this boot.
fn insert_command(
    connection: &Connection,
    begins: &CommandInsert<'_>,
    now: &Timestamp,
) -> Result<(u64, i64), StoreError> {
    let boot = boot_number(connection, &now.boot)?;
    let CommandInsert { id, origin, .. } = begins;
    let selector = origin.shown_selector.as_deref().unwrap_or(begins.selector);
    let number: i64 = connection.prepare_cached(INSERT_COMMAND_SQL)?.query_row(
        params![
            id.map(|id| id.issuer.0),
            id.map(|id| to_sql(id.epoch)),
            id.map(|id| to_sql(id.seq)),
            origin.kind.as_str(),
            begins.action,
            begins.arguments,
            encode_json("lane", &begins.lane)?,
            selector,
            origin.user,
            origin.retry_of.map(to_sql),
            origin.batch,
            boot,
            to_sql(whole_micros(now.since_boot)),
            to_sql(now.unix_ms),
            to_sql(begins.ttl_ms),
        ],
        |row| row.get(0),
    )?;
    let number = from_sql(number);
    meta::increment(
        connection,
        meta::DELIVERY_COUNT,
        i64::try_from(begins.targets).unwrap_or(i64::MAX),
    )?;
    let entry = audit::AuditEntry {
        at_ms: now.unix_ms,
        user: origin.user.clone(),
        action: origin.kind.as_str().to_owned(),
        detail: format!("{} to {selector}", begins.action),
        outcome: format!(
            "command {number}, {} {}",
            begins.targets,
            if begins.targets == 1 {
                "delivery"
            } else {
                "deliveries"
            }
        ),
    };
    audit::insert(connection, &entry)?;
    Ok((number, boot))
}

fn end_delivery(
    connection: &Connection,
    command: &CommandRow,
    node: PeerId,
    part: u32,
    reply: &Reply,
    now: &Timestamp,
) -> Result<(), StoreError> {
    let reply = truncate_reply(reply);
    connection.prepare_cached(END_DELIVERY_SQL)?.execute(params![
        to_sql(command.number),
        node.0,
        part,
        reply.state.as_str(),
        encode_json("reply", &reply)?,
        to_sql(command.micros_since_issue(now)),
    ])?;
    Ok(())
}

/// When a command was issued, and its number.
struct CommandRow {
    number: u64,
    boot: String,
    boot_us: u64,
    unix_ms: u64,
}

const SELECT_COMMAND_SQL: &str = "SELECT commands.number, boots.id, issued_boot_us, issued_ms
    FROM commands LEFT JOIN boots ON boots.number = commands.boot";

impl CommandRow {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: from_sql(row.get(0)?),
            boot: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
            boot_us: from_sql(row.get(2)?),
            unix_ms: from_sql(row.get(3)?),
        })
    }

    /// From its issue until now.
    fn micros_since_issue(&self, now: &Timestamp) -> u64 {
        now.micros_since(&self.boot, self.boot_us, self.unix_ms)
    }
}

fn require_command(connection: &Connection, id: CommandId) -> Result<CommandRow, StoreError> {
    find_command(connection, id)?.ok_or_else(|| unknown_command(&id))
}

/// `None` if there is no such command.
fn find_command(connection: &Connection, id: CommandId) -> Result<Option<CommandRow>, StoreError> {
    let sql = format!("{SELECT_COMMAND_SQL} WHERE epoch = ?1 AND seq = ?2");
    let found = connection
        .prepare_cached(&sql)?
        .query_row([to_sql(id.epoch), to_sql(id.seq)], CommandRow::from_row)
        .optional()?;
    Ok(found)
}

fn unknown_command(which: &dyn std::fmt::Display) -> StoreError {
    StoreError::BadRow {
        what: "command",
        reason: format!("there is no command {which}"),
    }
}

/// The number of a boot.
fn boot_number(connection: &Connection, id: &str) -> Result<i64, StoreError> {
    let sql = "SELECT number FROM boots WHERE id = ?1";
    let known = connection
        .prepare_cached(sql)?
        .query_row([id], |row| row.get(0))
        .optional()?;
    if let Some(number) = known {
        return Ok(number);
    }
    let sql = "INSERT INTO boots (id) VALUES (?1) RETURNING number";
    Ok(connection.query_row(sql, [id], |row| row.get(0))?)
}

/// What is still open of what `issuer` has issued, oldest first: to be called once when the station starts, in a
/// transaction. What nobody can carry on any more ends as `unknown`: transfers of files, and commands that were issued
/// with another key than this station has now, which a node would take for new ones.
///
/// # Errors
/// [`StoreError`]; then the transaction has to be rolled back.
pub fn recover(
    connection: &Connection,
    issuer: PeerId,
    now: &Timestamp,
) -> Result<Vec<OpenCommand>, StoreError> {
    let newest_ms = meta::get_number(connection, meta::NEWEST_MS)?.max(newest_wall_clock_ms(connection)?);
    let mut open: Vec<OpenCommand> = Vec::new();
    let mut not_resumable = Vec::new();
    // Through the index of what is open: closed deliveries are not even looked at.
    let sql = "SELECT DISTINCT command FROM deliveries INDEXED BY deliveries_open WHERE outcome IS NULL";
    let mut statement = connection.prepare_cached(sql)?;
    let numbers: Vec<i64> = statement
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for number in numbers {
        let sql =
            "SELECT issuer, epoch, seq, action, arguments, lane, life_ms FROM commands WHERE number = ?1";
        let order = connection
            .prepare_cached(sql)?
            .query_row([number], |row| read_open_command(row, issuer))
            .optional()?;
        let Some(Some(order)) = order else {
            not_resumable.push(number);
            continue;
        };
        let order = order.into_stored_command()?;
        let deliveries = open_deliveries(connection, number, order.ttl_ms, now, newest_ms)?;
        open.push(OpenCommand {
            command: order,
            deliveries,
        });
    }
    for number in not_resumable {
        let reply = Reply::ended(
            Outcome::Unknown,
            "the station stopped midway: it may have happened, or not; look before you repeat it",
        );
        let sql = "UPDATE deliveries SET outcome = ?2, reply = ?3 WHERE command = ?1 AND outcome IS NULL";
        connection.prepare_cached(sql)?.execute(params![
            number,
            reply.state.as_str(),
            encode_json("reply", &reply)?
        ])?;
    }
    meta::advance_newest_ms(connection, now.unix_ms)?;
    Ok(open)
}

/// An order as its row says it.
struct OpenCommandRow {
    id: CommandId,
    action: String,
    arguments: String,
    lane: String,
    ttl_ms: u64,
}

impl OpenCommandRow {
    fn into_stored_command(self) -> Result<StoredCommand, StoreError> {
        Ok(StoredCommand {
            id: self.id,
            action: self.action,
            arguments: self.arguments,
            lane: decode_json("lane", &self.lane)?,
            ttl_ms: self.ttl_ms,
        })
    }
}

/// `None` if it is not `issuer`'s to carry on.
fn read_open_command(row: &Row<'_>, issuer: PeerId) -> rusqlite::Result<Option<OpenCommandRow>> {
    let by: Option<[u8; 32]> = row.get(0)?;
    if by != Some(issuer.0) {
        return Ok(None);
    }
    let id = CommandId {
        issuer,
        epoch: from_sql(row.get(1)?),
        seq: from_sql(row.get(2)?),
    };
    Ok(Some(OpenCommandRow {
        id,
        action: row.get(3)?,
        arguments: row.get(4)?,
        lane: row.get(5)?,
        ttl_ms: from_sql(row.get(6)?),
    }))
}

fn open_deliveries(
    connection: &Connection,
    number: i64,
    ttl_ms: u64,
    now: &Timestamp,
    newest_ms: u64,
) -> Result<Vec<OpenDelivery>, StoreError> {
    let sql = "SELECT node, standing, boots.id, due_boot_ms, due_ms, received_us, accepted_us, started_us
               FROM deliveries LEFT JOIN boots ON boots.number = deliveries.boot
               WHERE command = ?1 AND outcome IS NULL ORDER BY node";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([number])?;
    let mut open = Vec::new();
    while let Some(row) = rows.next()? {
        let standing: String = row.get(1)?;
        let boot: Option<String> = row.get(2)?;
        let due = StoredDeadline {
            boot: boot.as_deref().unwrap_or_default(),
            boot_ms: from_sql(row.get(3)?),
            unix_ms: from_sql(row.get(4)?),
            ttl_ms,
        };
        let left = std::time::Duration::from_millis(remaining_ms(due, now, newest_ms).unwrap_or(0));
        let reached = |column: usize, stage| -> rusqlite::Result<Option<Stage>> {
            Ok(row.get::<_, Option<i64>>(column)?.map(|_at| stage))
        };
        open.push(OpenDelivery {
            to: PeerId(row.get(0)?),
            state: StoredState::parse(&standing).ok_or_else(|| StoreError::BadRow {
                what: "standing",
                reason: format!("{standing:?} is none"),
            })?,
            deadline: now.instant.checked_add(left).unwrap_or(now.instant),
            stage: reached(7, Stage::Started)?
                .or(reached(6, Stage::Accepted)?)
                .or(reached(5, Stage::Received)?),
        });
    }
    Ok(open)
}

/// The newest time on the wall clock that any command or anything in the audit has.
fn newest_wall_clock_ms(connection: &Connection) -> Result<u64, StoreError> {
    let sql = "SELECT max(
                   coalesce((SELECT issued_ms FROM commands ORDER BY number DESC LIMIT 1), 0),
                   coalesce((SELECT at_ms FROM audit ORDER BY number DESC LIMIT 1), 0))";
    Ok(from_sql(connection.query_row(sql, [], |row| row.get(0))?))
}

/// The reply as it is kept: each text cut to [`REPLY_TEXT_BYTES_MAX`], with a note.
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

/// A name from a row.
pub(super) fn parse_name(text: &str) -> Result<NodeName, StoreError> {
    NodeName::parse(text).map_err(|error| StoreError::BadRow {
        what: "name",
        reason: error.to_string(),
    })
}
