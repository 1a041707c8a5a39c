//! Who belongs, who is invited, and who waits at the gateway.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use swarm_shared::proto::hex;
use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
use swarm_shared::proto::trust::Role;

use super::meta::parse_public_key;
use super::{Store, StoreError, from_sql, to_sql};

/// Most peers that wait to be accepted; the one not heard for longest makes room.
pub const PENDING_MAX: usize = 256;

/// A member of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// What it is.
    pub key: PublicKey,
    /// Its name as it says.
    pub name: NodeName,
    /// What it may do.
    pub role: Role,
    /// What it runs.
    pub kind: PeerKind,
    /// Its tags as it says.
    pub tags: BTreeMap<String, String>,
    /// Where it was seen last.
    pub address: Option<SocketAddr>,
    /// When it was heard last, in milliseconds since 1970; 0 if never.
    pub last_seen_ms: u64,
    /// Its grant, as its issuer signed it (JSON).
    pub grant: Option<String>,
    /// Whether it has been put out.
    pub revoked: bool,
}

/// One that waits to be accepted by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRow {
    /// What it is.
    pub key: PublicKey,
    /// The name that it gives itself.
    pub name: NodeName,
    /// What it runs.
    pub kind: PeerKind,
    /// Where it knocked from.
    pub address: Option<SocketAddr>,
    /// When it first knocked, in milliseconds since 1970.
    pub first_seen_ms: u64,
}

impl Store {
    /// Adds members or replaces what is known of them, all or none. A revoked key stays revoked.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn put_members(&self, members: Vec<MemberRow>) -> Result<(), StoreError> {
        self.with_connection(move |connection| {
            let transaction = connection.transaction()?;
            for member in &members {
                put_member(&transaction, member)?;
            }
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// Marks members as put out; unknown keys change nothing.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn revoke_members(&self, keys: Vec<PublicKey>) -> Result<(), StoreError> {
        self.with_connection(move |connection| {
            let transaction = connection.transaction()?;
            for key in keys {
                transaction.execute(
                    "UPDATE members SET revoked = 1 WHERE key = ?1",
                    [hex::encode(&key.0)],
                )?;
            }
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// All members, revoked ones too, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn members(&self) -> Result<Vec<MemberRow>, StoreError> {
        self.with_connection(|connection| members(connection)).await
    }

    /// Adds one that waits, or notes that it knocked again at `at_ms`. Beyond [`PENDING_MAX`] the one that was not
    /// heard for longest is forgotten: a real one knocks again.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn put_pending(&self, pending: PendingRow, at_ms: u64) -> Result<(), StoreError> {
        self.with_connection(move |connection| {
            let transaction = connection.transaction()?;
            let sql = "INSERT INTO pending (key, name, kind, address, first_seen_ms, last_seen_ms)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                       ON CONFLICT (key) DO UPDATE SET
                           name = excluded.name, kind = excluded.kind, address = excluded.address,
                           last_seen_ms = excluded.last_seen_ms";
            transaction.execute(
                sql,
                params![
                    hex::encode(&pending.key.0),
                    pending.name.as_str(),
                    encode_json("kind", &pending.kind)?,
                    pending.address.map(|address| address.to_string()),
                    to_sql(pending.first_seen_ms),
                    to_sql(at_ms),
                ],
            )?;
            let sql = "DELETE FROM pending WHERE key IN
                           (SELECT key FROM pending ORDER BY last_seen_ms DESC, key = ?2 DESC LIMIT -1 OFFSET ?1)";
            let most = i64::try_from(PENDING_MAX).unwrap_or(i64::MAX);
            transaction.execute(sql, params![most, hex::encode(&pending.key.0)])?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// Who waits, the longest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pending(&self) -> Result<Vec<PendingRow>, StoreError> {
        self.with_connection(|connection| {
            let sql =
                "SELECT key, name, kind, address, first_seen_ms FROM pending ORDER BY first_seen_ms, key";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            let mut waiting = Vec::new();
            while let Some(row) = rows.next()? {
                waiting.push(PendingRow {
                    key: parse_public_key("pending key", &row.get::<_, String>(0)?)?,
                    name: read_name(row, 1)?,
                    kind: decode_json("kind", &row.get::<_, String>(2)?)?,
                    address: read_address(row, 3)?,
                    first_seen_ms: from_sql(row.get(4)?),
                });
            }
            Ok(waiting)
        })
        .await
    }

    /// Forgets one that waited; says whether it was there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_pending(&self, key: PublicKey) -> Result<bool, StoreError> {
        self.with_connection(move |connection| {
            Ok(connection.execute("DELETE FROM pending WHERE key = ?1", [hex::encode(&key.0)])? > 0)
        })
        .await
    }
}

/// All members, revoked ones too, by name.
///
/// # Errors
/// [`StoreError`].
pub fn members(connection: &Connection) -> Result<Vec<MemberRow>, StoreError> {
    let sql = "SELECT key, name, role, kind, tags, address, last_seen_ms, grant_json, revoked
               FROM members ORDER BY name, key";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut members = Vec::new();
    while let Some(row) = rows.next()? {
        members.push(read_member(row)?);
    }
    Ok(members)
}

fn put_member(connection: &Connection, member: &MemberRow) -> Result<(), StoreError> {
    let sql = "INSERT INTO members
                   (key, id, name, role, kind, tags, address, last_seen_ms, grant_json, revoked)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
               ON CONFLICT (key) DO UPDATE SET
                   name = excluded.name, role = excluded.role, kind = excluded.kind, tags = excluded.tags,
                   address = coalesce(excluded.address, address),
                   last_seen_ms = max(excluded.last_seen_ms, last_seen_ms),
                   grant_json = coalesce(excluded.grant_json, grant_json),
                   revoked = max(excluded.revoked, revoked)";
    connection.prepare_cached(sql)?.execute(params![
        hex::encode(&member.key.0),
        member.key.id().to_string(),
        member.name.as_str(),
        encode_json("role", &member.role)?,
        encode_json("kind", &member.kind)?,
        encode_json("tags", &member.tags)?,
        member.address.map(|address| address.to_string()),
        to_sql(member.last_seen_ms),
        member.grant,
        member.revoked,
    ])?;
    Ok(())
}

fn read_member(row: &Row<'_>) -> Result<MemberRow, StoreError> {
    Ok(MemberRow {
        key: parse_public_key("member key", &row.get::<_, String>(0)?)?,
        name: read_name(row, 1)?,
        role: decode_json("role", &row.get::<_, String>(2)?)?,
        kind: decode_json("kind", &row.get::<_, String>(3)?)?,
        tags: decode_json("tags", &row.get::<_, String>(4)?)?,
        address: read_address(row, 5)?,
        last_seen_ms: from_sql(row.get(6)?),
        grant: row.get(7)?,
        revoked: row.get(8)?,
    })
}

fn read_name(row: &Row<'_>, column: usize) -> Result<NodeName, StoreError> {
    NodeName::parse(&row.get::<_, String>(column)?).map_err(|error| StoreError::BadRow {
        what: "name",
        reason: error.to_string(),
    })
}

fn read_address(row: &Row<'_>, column: usize) -> Result<Option<SocketAddr>, StoreError> {
    row.get::<_, Option<String>>(column)?
        .map(|text| text.parse())
        .transpose()
        .map_err(|_not_an_address| StoreError::BadRow {
            what: "address",
            reason: "not ADDR:PORT".to_owned(),
        })
}

/// Words and tags are stored as the JSON that the protocol uses for them.
pub(super) fn encode_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::BadRow {
        what,
        reason: error.to_string(),
    })
}

pub(super) fn decode_json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::BadRow {
        what,
        reason: error.to_string(),
    })
}
