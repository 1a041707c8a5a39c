//! The fleet authority: invites, admits and revokes members. Only the station that holds `fleet-root.key` can do this.
//!
//! The record of the root is stored before anything that the root has signed leaves this process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use swarm_shared::net::clock;
use swarm_shared::net::discovery::interfaces;
use swarm_shared::net::endpoint::JoinRequest;
use swarm_shared::net::identity::{self, IdentityError, KeyFile};
use swarm_shared::net::join::JoinError;
use swarm_shared::net::random::{self, NoRandomness};
use swarm_shared::proto::id::{PeerId, PeerKind, PublicKey};
use swarm_shared::proto::message::{JoinProof, Joined, RefusalCode, Refused};
use swarm_shared::proto::trust::invitations::{Admission, Invitations, InviteError};
use swarm_shared::proto::trust::invite::{Invitation, InviteCodeError, InviteSecret};
use swarm_shared::proto::trust::{FleetRoot, Grant, Membership, Role, Signed, TrustError};
use tokio::sync::oneshot;

use crate::engine::EngineError;
use crate::engine::registry::{SharedNodeRegistry, find_unique};
use crate::store::{MemberRow, PendingRow, Store, StoreError, meta};
use swarm_shared::api::{Event, Failure, InvitationView, PendingView};

type JoinReplySender = oneshot::Sender<Result<Box<Joined>, Refused>>;

/// Most connections of one pending peer that are held open.
const WAITING_PER_KEY_MAX: usize = 2;

/// The authority, with the root if its key is here.
pub(crate) struct FleetAuthority {
    state_dir: PathBuf,
    store: Store,
    root: Option<FleetRoot>,
    invitations: Invitations,
    /// Replies to pending peers whose connections are held open until the operator decides.
    waiting_joins: BTreeMap<PeerId, Vec<JoinReplySender>>,
}

/// The request fails. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// Another station holds the root key.
    #[error(
        "this station does not hold the fleet's root key: do it on the station that made the fleet, or move \
         fleet-root.key here"
    )]
    NoRoot,
    /// The station belongs to a fleet.
    #[error("this station already belongs to fleet {0}; for another one use another --state-dir")]
    AlreadyInFleet(String),
    /// No member, or more than one, has this name or id prefix.
    #[error("{0}")]
    NoUniqueMember(String),
    /// The root refuses to sign.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The invitation is not possible.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The kernel gave no random bytes.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The code of an invitation is mistyped.
    #[error(transparent)]
    Code(#[from] InviteCodeError),
    /// The other station refuses the join.
    #[error(transparent)]
    JoinRefused(JoinError),
    /// No station has answered the join in time.
    #[error("cannot join: {0}; check that `ground-station serve` runs there")]
    JoinTimedOut(JoinError),
    /// Another error.
    #[error("{0}")]
    Internal(String),
}

impl AuthorityError {
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::NoRoot | Self::AlreadyInFleet(_) | Self::Invite(_) | Self::Code(_) => Failure::Usage,
            Self::NoUniqueMember(_) => Failure::NoMatch,
            Self::Trust(_)
            | Self::Store(_)
            | Self::Identity(_)
            | Self::Random(_)
            | Self::JoinRefused(_)
            | Self::JoinTimedOut(_)
            | Self::Internal(_) => Failure::Failed,
        }
    }
}

/// Reads this station's membership from the store, and checks that it belongs to the key `own`.
pub(crate) async fn load_membership(
    store: &Store,
    own: &PublicKey,
) -> Result<Option<Membership>, EngineError> {
    let membership = store.load_value(&meta::MEMBERSHIP).await?;
    if let Some(membership) = &membership {
        membership
            .check_own(own)
            .map_err(|error| EngineError::Fleet(error.to_string()))?;
    }
    Ok(membership)
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| unreachable!("plain data serialises: {e}"))
}

impl FleetAuthority {
    pub(crate) async fn open(state_dir: &Path, store: Store) -> Result<Self, EngineError> {
        let dir = state_dir.to_owned();
        let key = tokio::task::spawn_blocking(move || identity::load(&dir, KeyFile::FleetRoot));
        let key = key.await.map_err(|e| EngineError::Fleet(e.to_string()))??;
        let record = store.load_value(&meta::ROOT_RECORD).await?;
        let root = key.map(|key| match record {
            Some(record) => FleetRoot::restore(key, record),
            // The process ended between the creation of the key and its first signature.
            None => FleetRoot::create(key),
        });
        let root = root.transpose();
        let root = root.map_err(|error| EngineError::Fleet(error.to_string()))?;
        let invitations = store.load_value(&meta::INVITATIONS).await?.unwrap_or_default();
        let state_dir = state_dir.to_owned();
        Ok(Self {
            state_dir,
            store,
            root,
            invitations,
            waiting_joins: BTreeMap::new(),
        })
    }

    pub(crate) fn has_root(&self) -> bool {
        self.root.is_some()
    }

    /// Makes a fleet with a new root, and this station as its first admin.
    pub(crate) async fn create_fleet(&mut self, own: PublicKey) -> Result<Membership, AuthorityError> {
        let root = match &mut self.root {
            Some(root) => root,
            None => {
                let dir = self.state_dir.clone();
                let key =
                    tokio::task::spawn_blocking(move || identity::load_or_create(&dir, KeyFile::FleetRoot));
                let key = key.await.map_err(|e| AuthorityError::Internal(e.to_string()))??;
                self.root.insert(FleetRoot::create(key)?)
            }
        };
        let grant = root.grant(own, Role::Admin)?;
        let membership = Membership::new(root.public(), &own, grant, root.state().clone())?;
        self.store.set_membership(&membership).await?;
        self.save_root().await?;
        Ok(membership)
    }

    /// Leaves this station's own fleet, which has no members. Its root key is renamed and not deleted.
    pub(crate) async fn leave_fleet(&mut self) -> Result<(), AuthorityError> {
        if self.root.take().is_none() {
            return Ok(());
        }
        let key = self.state_dir.join(KeyFile::FleetRoot.name());
        let aside = key.with_extension("key.unused");
        let moved = tokio::task::spawn_blocking(move || std::fs::rename(key, aside)).await;
        moved
            .map_err(|error| AuthorityError::Internal(error.to_string()))?
            .map_err(|error| AuthorityError::Internal(format!("cannot put the old root key aside: {error}")))
    }

    async fn save_root(&self) -> Result<(), StoreError> {
        match &self.root {
            Some(root) => self.store.save_value(&meta::ROOT_RECORD, root.record()).await,
            None => Ok(()),
        }
    }

    async fn save_invitations(&self) -> Result<(), StoreError> {
        self.store.save_value(&meta::INVITATIONS, &self.invitations).await
    }

    pub(crate) async fn invite(
        &mut self,
        role: Role,
        uses: u32,
        valid_ms: u64,
        listens: SocketAddr,
    ) -> Result<Vec<Event>, AuthorityError> {
        let fingerprint = self.root.as_ref().ok_or(AuthorityError::NoRoot)?.fingerprint();
        let secret = InviteSecret::new(random::bytes()?);
        self.invitations
            .issue(secret.clone(), role, uses, clock::unix_time_ms(), valid_ms)?;
        self.save_invitations().await?;
        let code = Invitation::new(fingerprint, secret, dial_addresses(listens)).to_string();
        Ok(vec![Event::Invitation(InvitationView {
            code,
            role,
            uses,
            valid_for_ms: valid_ms,
        })])
    }

    pub(crate) async fn pending(&self) -> Result<Vec<Event>, AuthorityError> {
        let now = clock::unix_time_ms();
        let rows = self.store.pending().await?;
        let view = |row: PendingRow| PendingView {
            id: row.key.id(),
            node: row.name,
            address: row.address,
            waiting_ms: now.saturating_sub(row.first_seen_ms),
        };
        Ok(rows.into_iter().map(view).map(Event::Pending).collect())
    }

    /// Admits a pending peer. It gets its grant over its open connection, or over its next one.
    pub(crate) async fn accept(
        &mut self,
        node: &str,
        membership: Option<&Membership>,
    ) -> Result<MemberRow, AuthorityError> {
        let rows = self.store.pending().await?;
        let row = find_unique(&rows, node, |row| (&row.name, row.key.id())).map_err(|why| {
            AuthorityError::NoUniqueMember(format!(
                "{why} among the pending peers; see `ground-station fleet pending`"
            ))
        })?;
        let role = match row.kind {
            PeerKind::Node => Role::Node,
            PeerKind::Station => Role::Operator,
        };
        let member = self.enrol(row.key, role, row.clone(), membership).await?;
        self.store.remove_pending(row.key).await?;
        if let Some(grant) = &member.grant {
            for reply in self.waiting_joins.remove(&row.key.id()).unwrap_or_default() {
                let _peer_gone = reply.send(self.joined_reply(grant, membership, None));
            }
        }
        Ok(member)
    }

    /// The root with the newest state of the fleet: the key may have been moved here without its record, or restored from an
    /// old copy.
    fn current_root(&mut self, membership: Option<&Membership>) -> Result<&mut FleetRoot, AuthorityError> {
        let root = self.root.as_mut().ok_or(AuthorityError::NoRoot)?;
        if let Some(membership) = membership {
            root.merge_state(membership.fleet_state(), membership.own_serial())?;
        }
        Ok(root)
    }

    /// Grants a role to a key and stores the member.
    async fn enrol(
        &mut self,
        key: PublicKey,
        role: Role,
        seen: PendingRow,
        membership: Option<&Membership>,
    ) -> Result<MemberRow, AuthorityError> {
        let root = self.current_root(membership)?;
        let grant = to_json(&root.grant(key, role)?);
        self.save_root().await?;
        let member = MemberRow {
            key,
            name: seen.name,
            role,
            kind: seen.kind,
            tags: BTreeMap::new(),
            address: seen.address,
            last_seen_ms: clock::unix_time_ms(),
            grant: Some(grant),
            revoked: false,
        };
        self.store.put_members(vec![member.clone()]).await?;
        Ok(member)
    }

    /// Revokes a key. Returns the membership with the new fleet state.
    pub(crate) async fn revoke(
        &mut self,
        key: PublicKey,
        membership: &Membership,
    ) -> Result<Membership, AuthorityError> {
        let state = self.current_root(Some(membership))?.revoke(key)?.clone();
        self.save_root().await?;
        let mut membership = membership.clone();
        membership.adopt_state(state)?;
        Ok(membership)
    }

    fn joined_reply(
        &self,
        grant: &str,
        membership: Option<&Membership>,
        proof: Option<JoinProof>,
    ) -> Result<Box<Joined>, Refused> {
        let broken =
            |why: String| Refused::new(RefusalCode::Other, format!("the station cannot answer: {why}"));
        let grant: Signed<Grant> = serde_json::from_str(grant).map_err(|e| broken(e.to_string()))?;
        let membership = membership.ok_or_else(|| broken("it has no fleet".to_owned()))?;
        let (root, fleet_state) = (*membership.root(), membership.fleet_state().clone());
        Ok(Box::new(Joined {
            root,
            grant,
            fleet_state,
            proof,
        }))
    }

    /// Handles a join of a peer. Returns the member if it was admitted.
    pub(crate) async fn on_join(
        &mut self,
        join: JoinRequest,
        membership: Option<&Membership>,
        registry: &SharedNodeRegistry,
    ) -> Option<MemberRow> {
        let JoinRequest {
            key,
            name,
            kind,
            listen_addr: listens,
            proof,
            exporter,
            reply: answer,
        } = join;
        let seen = PendingRow {
            key,
            name,
            kind,
            address: (listens.port() != 0).then_some(listens),
            first_seen_ms: clock::unix_time_ms(),
        };
        if !self.has_root() {
            let _peer_gone = answer.send(Err(Refused::new(
                RefusalCode::NotAllowed,
                "this station does not hold the fleet's root key: ask the station that gave the code out",
            )));
            return None;
        }
        match proof {
            Some(proof) => {
                self.on_join_with_code(seen, &proof, &exporter, answer, membership)
                    .await
            }
            None => {
                self.on_join_without_code(seen, answer, membership, registry)
                    .await
            }
        }
    }

    async fn on_join_with_code(
        &mut self,
        seen: PendingRow,
        proof: &JoinProof,
        exporter: &[u8],
        answer: JoinReplySender,
        membership: Option<&Membership>,
    ) -> Option<MemberRow> {
        let key = seen.key;
        let before = self.invitations.clone();
        let redeemed = async {
            let Admission { role, proof } =
                self.invitations
                    .redeem(proof, exporter, clock::unix_time_ms(), &key)?;
            if (role == Role::Node) != (seen.kind == PeerKind::Node) {
                let reason = format!(
                    "the code is for role {}, and this is a {}",
                    role_name(role),
                    seen.kind
                );
                return Err(Refused::new(RefusalCode::BadCode, reason));
            }
            let internal_refusal = |error: &dyn std::fmt::Display| {
                Refused::new(
                    RefusalCode::Other,
                    format!("the station cannot admit members: {error}"),
                )
            };
            self.save_invitations().await.map_err(|e| internal_refusal(&e))?;
            let member = self
                .enrol(key, role, seen, membership)
                .await
                .map_err(|e| internal_refusal(&e))?;
            let joined = self.joined_reply(
                member.grant.as_deref().unwrap_or_default(),
                membership,
                Some(proof),
            )?;
            Ok((member, joined))
        };
        let redeemed = redeemed.await;
        match redeemed {
            Ok((member, joined)) => {
                tracing::info!(name = %member.name, id = %key.id().short(), "Member admitted by code");
                let _peer_gone = answer.send(Ok(joined));
                Some(member)
            }
            Err(refused) => {
                tracing::warn!(id = %key.id().short(), "Join refused: {refused}");
                self.restore_invitations(before).await;
                let _peer_gone = answer.send(Err(refused));
                None
            }
        }
    }

    /// Restores the invitations after a refused join, so that it uses up no code.
    async fn restore_invitations(&mut self, before: Invitations) {
        if self.invitations == before {
            return;
        }
        self.invitations = before;
        if let Err(error) = self.save_invitations().await {
            tracing::error!(%error, "Invitations are not stored");
        }
    }

    async fn on_join_without_code(
        &mut self,
        seen: PendingRow,
        answer: JoinReplySender,
        membership: Option<&Membership>,
        registry: &SharedNodeRegistry,
    ) -> Option<MemberRow> {
        let id = seen.key.id();
        // It was accepted while it had no open connection.
        let granted = registry.lock().grant(id);
        if let Some(grant) = granted {
            let _peer_gone = answer.send(self.joined_reply(&grant, membership, None));
            return None;
        }
        tracing::info!(name = %seen.name, id = %id.short(), "Peer waits to be accepted: `ground-station fleet accept {}`", seen.name);
        if let Err(error) = self.store.put_pending(seen, clock::unix_time_ms()).await {
            tracing::error!(%error, "Pending peer is not stored");
        }
        self.waiting_joins.retain(|_, answers| {
            answers.retain(|answer| !answer.is_closed());
            !answers.is_empty()
        });
        let answers = self.waiting_joins.entry(id).or_default();
        if answers.len() >= WAITING_PER_KEY_MAX {
            // Dropping the oldest refuses it as busy.
            answers.remove(0);
        }
        answers.push(answer);
        None
    }
}

pub(crate) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Observer => "observer",
        Role::Node => "node",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

/// Addresses at which others can dial this station: the listening address, or those of all interfaces if it listens on all.
/// Loopback addresses are included only if there are no others.
fn dial_addresses(listens: SocketAddr) -> Vec<SocketAddr> {
    if !listens.ip().is_unspecified() {
        return vec![listens];
    }
    let all = interfaces::list().unwrap_or_default();
    let mut ips: Vec<_> = all.into_iter().map(|interface| interface.ip).collect();
    ips.retain(|ip| listens.is_ipv6() || ip.is_ipv4());
    ips.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    if ips.iter().any(|ip| !ip.is_loopback()) {
        ips.retain(|ip| !ip.is_loopback());
    }
    ips.into_iter()
        .map(|ip| SocketAddr::new(ip, listens.port()))
        .collect()
}

#[cfg(test)]
mod tests {
    use swarm_shared::proto::id::NodeName;
    use swarm_shared::proto::trust::SigningKey;
    use swarm_shared::proto::trust::invite::{self, JoinSide};

    use super::*;

    const EXPORTER: [u8; 32] = [7; 32];

    struct Rig {
        authority: FleetAuthority,
        membership: Membership,
        _dir: tempfile::TempDir,
    }

    impl Rig {
        async fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let store = Store::open(dir.path()).await.expect("opened");
            let mut authority = FleetAuthority::open(dir.path(), store).await.expect("opened");
            let own = SigningKey::from_seed([1; 32]).public();
            let membership = authority.create_fleet(own).await.expect("a fleet");
            Self {
                authority,
                membership,
                _dir: dir,
            }
        }

        async fn invite(&mut self) -> Invitation {
            let listens = ([127, 0, 0, 1], 7421).into();
            let events = self.authority.invite(Role::Node, 1, 60_000, listens).await;
            match events.expect("an invitation").as_slice() {
                [Event::Invitation(view)] => view.code.parse().expect("a code"),
                other => panic!("{other:?}"),
            }
        }

        async fn join(&mut self, invitation: &Invitation, key: PublicKey) -> Result<(), String> {
            let (answer, answered) = oneshot::channel();
            let join = JoinRequest {
                key,
                name: NodeName::from_host("n1"),
                kind: PeerKind::Node,
                listen_addr: ([127, 0, 0, 1], 7420).into(),
                proof: Some(invite::prove(invitation.secret(), JoinSide::Joiner, &EXPORTER)),
                exporter: EXPORTER,
                reply: answer,
            };
            let registry = SharedNodeRegistry::default();
            self.authority
                .on_join(join, Some(&self.membership), &registry)
                .await;
            let verdict = answered.await.expect("answered");
            verdict.map(drop).map_err(|refused| refused.to_string())
        }
    }

    #[tokio::test]
    async fn revoked_key_does_not_consume_an_invitation() {
        let mut rig = Rig::new().await;
        let out = PublicKey([9; 32]);
        rig.membership = rig.authority.revoke(out, &rig.membership).await.expect("put out");
        let invitation = rig.invite().await;
        rig.join(&invitation, out).await.expect_err("stays out");
        let stored = rig.authority.store.load_value(&meta::INVITATIONS).await;
        assert_eq!(stored.expect("read"), Some(rig.authority.invitations.clone()));
        rig.join(&invitation, PublicKey([5; 32]))
            .await
            .expect("the use is still there");
        rig.join(&invitation, PublicKey([6; 32]))
            .await
            .expect_err("and only that one");
    }
}
