//! Open commands at a start of the station.

use rusqlite::{Connection, Row, params};
use swarm_shared::proto::delivery::tracker::{OpenCommand, OpenDelivery, StoredCommand, StoredState};
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::{Outcome, Reply};

use super::StoreError;
use super::members::{encode_json, read_json};
use super::meta;
use super::sql::{execute, from_sql, query_all, query_first};
use super::timestamp::{StoredDeadline, Timestamp, remaining_ms};

/// Error of a delivery that the station cannot continue after a restart.
pub const STATION_STOPPED: &str =
    "the station stopped midway: it may have happened, or not; look before you repeat it";

/// The open commands of `issuer`, oldest first, with their open deliveries. To be called once, in a transaction, when the
/// station starts. Deliveries that cannot continue end as `unknown`: transfers of files, stops, releases, and commands
/// that were issued with another key than `issuer`, which a node would take for new ones.
///
/// # Errors
/// [`StoreError`]; then the caller rolls the transaction back.
pub fn recover(
    connection: &Connection,
    issuer: PeerId,
    now: &Timestamp,
) -> Result<Vec<OpenCommand>, StoreError> {
    let newest_ms = meta::get_number(connection, meta::NEWEST_MS)?.max(newest_wall_clock_ms(connection)?);
    let mut open = Vec::new();
    // The index holds open deliveries only, so the ended ones are not read.
    let sql = "SELECT DISTINCT command FROM deliveries INDEXED BY deliveries_open WHERE outcome IS NULL";
    let numbers: Vec<i64> = query_all(connection, sql, [], |row| Ok(row.get(0)?))?;
    for number in numbers {
        let sql = "SELECT epoch, seq, action, arguments, lane, life_ms FROM commands
                   WHERE number = ?1 AND issuer = ?2 AND epoch IS NOT NULL AND seq IS NOT NULL";
        let command = query_first(connection, sql, params![number, issuer.0], |row| {
            read_stored_command(row, issuer)
        });
        match command? {
            Some(command) => {
                let deliveries = open_deliveries(connection, number, command.ttl_ms, now, newest_ms)?;
                open.push(OpenCommand { command, deliveries });
            }
            None => {
                let reply = Reply::ended(Outcome::Unknown, STATION_STOPPED);
                let sql =
                    "UPDATE deliveries SET outcome = ?2, reply = ?3 WHERE command = ?1 AND outcome IS NULL";
                let row = params![number, reply.state.as_str(), encode_json("reply", &reply)?];
                execute(connection, sql, row)?;
            }
        }
    }
    meta::advance_newest_ms(connection, now.unix_ms)?;
    Ok(open)
}

fn read_stored_command(row: &Row<'_>, issuer: PeerId) -> Result<StoredCommand, StoreError> {
    Ok(StoredCommand {
        id: CommandId {
            issuer,
            epoch: from_sql(row.get(0)?),
            seq: from_sql(row.get(1)?),
        },
        action: row.get(2)?,
        arguments: row.get(3)?,
        lane: read_json(row, 4, "lane")?,
        ttl_ms: from_sql(row.get(5)?),
    })
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
    query_all(connection, sql, [number], |row| {
        let state: String = row.get(1)?;
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
        Ok(OpenDelivery {
            to: PeerId(row.get(0)?),
            state: StoredState::parse(&state)
                .ok_or_else(|| StoreError::bad_row("standing", format!("{state:?} is no state")))?,
            deadline: now.instant.checked_add(left).unwrap_or(now.instant),
            stage: reached(7, Stage::Started)?
                .or(reached(6, Stage::Accepted)?)
                .or(reached(5, Stage::Received)?),
        })
    })
}

/// The newest time of the wall clock that any command or entry of the audit has.
fn newest_wall_clock_ms(connection: &Connection) -> Result<u64, StoreError> {
    let sql = "SELECT max(
                   coalesce((SELECT issued_ms FROM commands ORDER BY number DESC LIMIT 1), 0),
                   coalesce((SELECT at_ms FROM audit ORDER BY number DESC LIMIT 1), 0))";
    Ok(from_sql(connection.query_row(sql, [], |row| row.get(0))?))
}
