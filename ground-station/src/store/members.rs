//! Members of the fleet, and peers that wait to be accepted.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use swarm_shared::proto::hex;
use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
use swarm_shared::proto::trust::Role;

use super::sql::{execute, from_sql, query_all, to_sql};
use super::{Store, StoreError};

/// Most pending peers; the one that was heard least recently makes room.
pub const PENDING_MAX: usize = 256;

/// A member of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Its public key.
    pub key: PublicKey,
    /// The name that it gives itself.
    pub name: NodeName,
    /// Its role in the fleet.
    pub role: Role,
    /// Node or station.
    pub kind: PeerKind,
    /// The tags that it gives itself.
    pub tags: BTreeMap<String, String>,
    /// Its last address.
    pub address: Option<SocketAddr>,
    /// When it was heard last, in milliseconds since 1970; 0 if never.
    pub last_seen_ms: u64,
    /// Its grant, as its issuer signed it (JSON).
    pub grant: Option<String>,
    /// Whether its key is revoked.
    pub revoked: bool,
}

/// A peer that waits to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRow {
    /// Its public key.
    pub key: PublicKey,
    /// The name that it gives itself.
    pub name: NodeName,
    /// Node or station.
    pub kind: PeerKind,
    /// The address at which it listens.
    pub address: Option<SocketAddr>,
    /// When it first asked, in milliseconds since 1970.
    pub first_seen_ms: u64,
}

impl Store {
    /// Adds or updates members, all or none. A revoked member stays revoked.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn put_members(&self, members: Vec<MemberRow>) -> Result<(), StoreError> {
        self.write(move |connection| {
            members
                .iter()
                .try_for_each(|member| put_member(connection, member))
        })
        .await
    }

    /// Marks members as revoked; unknown keys change nothing.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn revoke_members(&self, keys: Vec<PublicKey>) -> Result<(), StoreError> {
        self.write(move |connection| {
            for key in keys {
                let sql = "UPDATE members SET revoked = 1 WHERE key = ?1";
                execute(connection, sql, [hex::encode(&key.0)])?;
            }
            Ok(())
        })
        .await
    }

    /// All members, including revoked ones, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn members(&self) -> Result<Vec<MemberRow>, StoreError> {
        self.read(members).await
    }

    /// Adds a pending peer, or updates it if it asks again at `at_ms`. Beyond [`PENDING_MAX`] the peer that was heard
    /// least recently is removed; a real one asks again.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn put_pending(&self, pending: PendingRow, at_ms: u64) -> Result<(), StoreError> {
        self.write(move |connection| {
            let key = hex::encode(&pending.key.0);
            let sql = "INSERT INTO pending (key, name, kind, address, first_seen_ms, last_seen_ms)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                       ON CONFLICT (key) DO UPDATE SET
                           name = excluded.name, kind = excluded.kind, address = excluded.address,
                           last_seen_ms = excluded.last_seen_ms";
            let row = params![
                key,
                pending.name.as_str(),
                encode_json("kind", &pending.kind)?,
                pending.address.map(|address| address.to_string()),
                to_sql(pending.first_seen_ms),
                to_sql(at_ms),
            ];
            execute(connection, sql, row)?;
            let sql = "DELETE FROM pending WHERE key IN
                           (SELECT key FROM pending ORDER BY last_seen_ms DESC, key = ?2 DESC LIMIT -1 OFFSET ?1)";
            execute(connection, sql, params![to_sql(PENDING_MAX as u64), key]).map(drop)
        })
        .await
    }

    /// The pending peers, the one that waits longest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pending(&self) -> Result<Vec<PendingRow>, StoreError> {
        self.read(|connection| {
            let sql =
                "SELECT key, name, kind, address, first_seen_ms FROM pending ORDER BY first_seen_ms, key";
            query_all(connection, sql, [], |row| {
                Ok(PendingRow {
                    key: read_public_key(row, 0)?,
                    name: read_name(row, 1)?,
                    kind: read_json(row, 2, "kind")?,
                    address: read_address(row, 3)?,
                    first_seen_ms: from_sql(row.get(4)?),
                })
            })
        })
        .await
    }

    /// Removes a pending peer; whether there was one with this key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_pending(&self, key: PublicKey) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let sql = "DELETE FROM pending WHERE key = ?1";
            Ok(execute(connection, sql, [hex::encode(&key.0)])? > 0)
        })
        .await
    }
}

/// All members, including revoked ones, by name.
///
/// # Errors
/// [`StoreError`].
pub fn members(connection: &Connection) -> Result<Vec<MemberRow>, StoreError> {
    let sql = "SELECT key, name, role, kind, tags, address, last_seen_ms, grant_json, revoked
               FROM members ORDER BY name, key";
    query_all(connection, sql, [], |row| {
        Ok(MemberRow {
            key: read_public_key(row, 0)?,
            name: read_name(row, 1)?,
            role: read_json(row, 2, "role")?,
            kind: read_json(row, 3, "kind")?,
            tags: read_json(row, 4, "tags")?,
            address: read_address(row, 5)?,
            last_seen_ms: from_sql(row.get(6)?),
            grant: row.get(7)?,
            revoked: row.get(8)?,
        })
    })
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
    let row = params![
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
    ];
    execute(connection, sql, row).map(drop)
}

fn read_public_key(row: &Row<'_>, column: usize) -> Result<PublicKey, StoreError> {
    let text: String = row.get(column)?;
    let key = hex::decode(&text).map(PublicKey);
    key.ok_or_else(|| StoreError::bad_row("public key", format!("{text:?} is not a key")))
}

/// Reads the name of a node.
pub(super) fn read_name(row: &Row<'_>, column: usize) -> Result<NodeName, StoreError> {
    NodeName::parse(&row.get::<_, String>(column)?).map_err(|error| StoreError::bad_row("name", error))
}

fn read_address(row: &Row<'_>, column: usize) -> Result<Option<SocketAddr>, StoreError> {
    let text: Option<String> = row.get(column)?;
    let address = text.map(|text| text.parse()).transpose();
    address.map_err(|_not_an_address| StoreError::bad_row("address", "it is not ADDR:PORT"))
}

/// Reads a value that is stored as JSON, in the form that the protocol uses.
pub(super) fn read_json<T: DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
    what: &'static str,
) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| StoreError::bad_row(what, error))
}

/// Encodes a value for [`read_json`].
pub(super) fn encode_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::bad_row(what, error))
}
