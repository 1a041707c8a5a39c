//! The clerk: requests about the fleet itself, strangers at the door, and what is remembered of the fleet.
//!
//! One task, one thing at a time, in order. All of it waits for the disk, and joining for another station: the engine
//! waits for none of that, so that an emergency stop and its answers pass.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::JoinRequest;
use swarm_shared::net::join::{JoinError, join};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::discovery::address_book::{Hint, Source};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::trust::invite::Invitation;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::SharedContext;
use crate::engine::membership::authority::{AuthorityError, FleetAuthority};
use crate::engine::registry::{SharedNodeRegistry, member_view};
use crate::engine::reporter::Reporter;
use crate::store::{MemberRow, Store};
use swarm_shared::api::{Event, Failure, FleetRequest, MembershipView};

/// Between two attempts to reach the station that gave out a code.
const JOIN_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// How long a newcomer has to store its grant and dial, before it is dialled.
const NEW_MEMBER_DIAL_DELAY: Duration = Duration::from_secs(2);

/// What the clerk is asked for.
#[derive(Debug)]
pub(in crate::engine) struct MembershipRequest {
    pub(in crate::engine) request: FleetRequest,
    pub(in crate::engine) reporter: Reporter,
}

/// See the module.
pub(in crate::engine) struct MembershipTask {
    pub(in crate::engine) shared: SharedContext,
    pub(in crate::engine) store: Store,
    pub(in crate::engine) authority: FleetAuthority,
    pub(in crate::engine) registry: SharedNodeRegistry,
    pub(in crate::engine) keepalive: KeepaliveConfig,
    pub(in crate::engine) shutdown: CancellationToken,
    pub(in crate::engine) tasks: TaskTracker,
}

impl MembershipTask {
    /// Works until the station stops.
    pub(in crate::engine) async fn run(
        mut self,
        mut requests: mpsc::Receiver<MembershipRequest>,
        mut joins: mpsc::Receiver<JoinRequest>,
    ) {
        let shutdown = self.shutdown.clone();
        let mut membership = self.shared.endpoint.membership();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Ok(()) = membership.changed() => {
                    let now = membership.borrow_and_update().clone();
                    self.persist_membership(now).await;
                }
                Some(form) = requests.recv() => self.on_request(form).await,
                Some(join) = joins.recv() => self.on_join(join).await,
            }
        }
    }

    /// Remembers how the fleet stands, and who is out.
    async fn persist_membership(&self, membership: Option<Arc<Membership>>) {
        let Some(membership) = membership else { return };
        let revoked = self.registry.lock().revoke(&membership);
        let kept = async {
            self.store.set_membership(&membership).await?;
            self.store.revoke_members(revoked).await
        };
        if let Err(error) = kept.await {
            tracing::error!(%error, "the fleet's state is not stored");
        }
    }

    async fn on_join(&mut self, join: JoinRequest) {
        let membership = self.membership();
        let admitted = self
            .authority
            .on_join(join, membership.as_deref(), &self.registry)
            .await;
        if let Some(member) = admitted {
            self.admit(member).await;
        }
    }

    async fn admit(&self, member: MemberRow) {
        self.dial_new_member(&member);
        self.registry.lock().admit(member);
        self.registry.open_sessions(&self.shared.endpoint).await;
    }

    async fn on_request(&mut self, MembershipRequest { request, reporter }: MembershipRequest) {
        if request.needs_fleet()
            && let Err(message) = self.ensure_fleet(&reporter).await
        {
            let _caller_gone = reporter.send(Event::failed(Failure::Failed, message)).await;
            return;
        }
        let done = match request {
            FleetRequest::Init => self.init().await,
            FleetRequest::Invite {
                role,
                uses,
                valid_for_ms,
            } => {
                let listens = self.shared.endpoint.listen_addr();
                self.authority.invite(role, uses, valid_for_ms, listens).await
            }
            FleetRequest::Join { code, timeout_ms } => return self.join(code, timeout_ms, reporter).await,
            FleetRequest::Pending => self.authority.pending().await,
            FleetRequest::Accept { node } => self.accept(&node).await,
            FleetRequest::Revoke { node } => self.revoke(&node).await,
            FleetRequest::Members => self.members(),
            _ => Err(AuthorityError::Internal(
                "this request is of a later version".to_owned(),
            )),
        };
        let done = done.map_err(|error| (error.failure(), error.to_string()));
        reporter.spawn_finish(done);
    }

    async fn accept(&mut self, node: &str) -> Result<Vec<Event>, AuthorityError> {
        let membership = self.membership();
        let member = self.authority.accept(node, membership.as_deref()).await?;
        let view = member_view(&member);
        self.admit(member).await;
        Ok(vec![Event::Member(view)])
    }

    fn members(&self) -> Result<Vec<Event>, AuthorityError> {
        let own = Event::Membership(self.membership_view()?);
        let members = self.registry.lock().member_views();
        Ok(std::iter::once(own)
            .chain(members.into_iter().map(Event::Member))
            .collect())
    }

    fn membership(&self) -> Option<Arc<Membership>> {
        self.shared.endpoint.membership().borrow().clone()
    }

    /// Dials who has just been taken in, unless it dials first: dialled before it has its grant, it would be refused for
    /// want of one.
    fn dial_new_member(&self, member: &MemberRow) {
        let (endpoint, hint, address) = (
            self.shared.endpoint.clone(),
            Hint::Id(member.key.id()),
            member.address,
        );
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let head_start = shutdown
                .run_until_cancelled(tokio::time::sleep(NEW_MEMBER_DIAL_DELAY))
                .await;
            if let (Some(()), Some(address)) = (head_start, address) {
                endpoint.address_discovered(address, Source::Known, hint).await;
            }
        });
    }

    /// Makes a fleet if this station has none, and says so.
    async fn ensure_fleet(&mut self, reporter: &Reporter) -> Result<(), String> {
        if self.membership().is_some() {
            return Ok(());
        }
        let membership = self
            .create_fleet()
            .await
            .map_err(|error| format!("cannot make a fleet: {error}"))?;
        let note = format!(
            "made a new fleet, {}; its root key is on this machine: back up the state directory",
            membership.fingerprint().short()
        );
        let _caller_gone = reporter.send(Event::note(note)).await;
        Ok(())
    }

    async fn create_fleet(&mut self) -> Result<Arc<Membership>, AuthorityError> {
        let own = self.shared.endpoint.local().identity.key.public();
        let membership = Arc::new(self.authority.create_fleet(own).await?);
        self.shared
            .endpoint
            .adopt_membership(Arc::clone(&membership))
            .await;
        Ok(membership)
    }

    async fn init(&mut self) -> Result<Vec<Event>, AuthorityError> {
        if let Some(old) = self.membership() {
            return Err(AuthorityError::AlreadyInFleet(old.fingerprint().short()));
        }
        self.create_fleet().await?;
        self.membership_view().map(|view| vec![Event::Membership(view)])
    }

    fn membership_view(&self) -> Result<MembershipView, AuthorityError> {
        let Some(membership) = self.membership() else {
            return Err(AuthorityError::Internal(
                "this station belongs to no fleet".to_owned(),
            ));
        };
        Ok(MembershipView {
            node: self.shared.endpoint.profile().borrow().name.clone(),
            id: self.shared.endpoint.id(),
            role: membership.own_role(),
            fleet: PeerId(membership.fingerprint().0),
            has_root: self.authority.has_root(),
        })
    }

    async fn revoke(&mut self, node: &str) -> Result<Vec<Event>, AuthorityError> {
        let row = self.registry.lock().find(node).map_err(|why| {
            AuthorityError::NoUniqueMember(format!(
                "{why} among the members; see `ground-station fleet members`"
            ))
        })?;
        let membership = self.membership().ok_or(AuthorityError::NoRoot)?;
        let membership = Arc::new(self.authority.revoke(row.key, &membership).await?);
        self.store.set_membership(&membership).await?;
        let revoked = self.registry.lock().revoke(&membership);
        self.store.revoke_members(revoked).await?;
        self.shared.endpoint.adopt_membership(membership).await;
        let mut row = row;
        row.revoked = true;
        Ok(vec![Event::Member(member_view(&row))])
    }

    /// Joins another station's fleet by its code.
    async fn join(&mut self, code: String, timeout_ms: u64, reporter: Reporter) {
        let usage = |message: String| Event::failed(Failure::Usage, message);
        let invitation: Invitation = match code.parse() {
            Ok(invitation) => invitation,
            Err(error) => {
                let _caller_gone = reporter.send(usage(format!("{error}"))).await;
                return;
            }
        };
        // A code of the same fleet brings another role; a fleet without members is given up for another one.
        let own = self.membership();
        let other = own
            .as_ref()
            .is_some_and(|own| own.fingerprint() != *invitation.fingerprint());
        if other && !self.registry.lock().is_empty() {
            let fleet = own.map_or_else(String::new, |own| own.fingerprint().short());
            let _caller_gone = reporter
                .send(usage(AuthorityError::AlreadyInFleet(fleet).to_string()))
                .await;
            return;
        }
        let deadline = clock::now() + Duration::from_millis(timeout_ms);
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let first = invitation.addresses().first().copied().unwrap_or(nowhere);
        let membership = loop {
            let tried = tokio::select! {
                biased;
                () = reporter.caller().closed() => return,
                tried = clock::timeout_at(deadline, self.join_first_reachable(&invitation)) => tried,
            };
            match tried.unwrap_or(Err(JoinError::NoAnswer(first))) {
                Ok(membership) => break membership,
                // The station's word is final; that nobody answers is not.
                Err(error @ (JoinError::Refused(_) | JoinError::Trust(_))) => {
                    let _caller_gone = reporter
                        .send(Event::failed(Failure::Failed, error.to_string()))
                        .await;
                    return;
                }
                Err(error) if clock::now() >= deadline => {
                    let message =
                        format!("cannot join: {error}; check that `ground-station serve` runs there");
                    let _caller_gone = reporter.send(Event::failed(Failure::Failed, message)).await;
                    return;
                }
                Err(_nobody_yet) => tokio::time::sleep(JOIN_RETRY_INTERVAL).await,
            }
        };
        let joined = async {
            if other {
                self.authority.leave_fleet().await?;
            }
            self.store.set_membership(&membership).await?;
            self.shared.endpoint.adopt_membership(Arc::new(membership)).await;
            for addr in invitation.addresses() {
                self.remember_station_address(*addr).await;
            }
            self.membership_view().map(|view| vec![Event::Membership(view)])
        };
        let joined = joined.await;
        reporter.spawn_finish(joined.map_err(|error| (error.failure(), error.to_string())));
    }

    async fn join_first_reachable(&self, invitation: &Invitation) -> Result<Membership, JoinError> {
        let mut last = None;
        for addr in invitation.addresses() {
            match join(
                self.shared.endpoint.local(),
                &self.keepalive,
                *addr,
                Some(invitation),
            )
            .await
            {
                Ok(membership) => return Ok(membership),
                Err(error @ (JoinError::Refused(_) | JoinError::Trust(_))) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Err(last.unwrap_or(JoinError::NoAnswer(nowhere)))
    }

    async fn remember_station_address(&self, addr: SocketAddr) {
        self.shared
            .endpoint
            .address_discovered(addr, Source::Known, Hint::None)
            .await;
    }
}

#[cfg(test)]
mod tests {
    use swarm_shared::net::random;
    use swarm_shared::proto::selector::Selector;
    use swarm_shared::proto::trust::Fingerprint;
    use swarm_shared::proto::trust::Role;
    use swarm_shared::proto::trust::invite::InviteSecret;

    use super::*;
    use crate::config::Config;
    use crate::engine::{Engine, Mode, Settings};
    use swarm_shared::api::ActRequest;

    async fn start(dir: &std::path::Path) -> Engine {
        let mut config = Config::load(None, dir).expect("the usual");
        config.listen = ([127, 0, 0, 1], 0).into();
        (config.pings, config.mdns) = (false, false);
        let settings = Settings {
            config,
            state_dir: dir.to_owned(),
            mode: Mode::OneShot,
            bridges_devices: false,
        };
        Engine::start(settings).await.expect("started")
    }

    #[tokio::test]
    async fn stop_is_not_delayed_by_membership_disk_writes() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = start(dir.path()).await;
        let fleet = engine.fleet();
        let mut made = fleet.perform(FleetRequest::Init).await;
        assert!(matches!(made.recv().await, Some(Event::Membership(_))));
        let disk = rusqlite::Connection::open(dir.path().join("station.db")).expect("opens");
        disk.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        let invite = FleetRequest::Invite {
            role: Role::Node,
            uses: 1,
            valid_for_ms: 60_000,
        };
        let mut invited = fleet.perform(invite).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = clock::now();
        let stop = ActRequest::Stop {
            selector: Selector::all(),
            timeout_ms: Some(300),
        };
        let mut stopped = fleet.perform(stop).await;
        let event = stopped.recv().await;
        let nobody = Failure::NoMatch;
        assert!(
            matches!(&event, Some(Event::Failed { failure, .. }) if *failure == nobody),
            "{event:?}"
        );
        assert!(
            clock::now() - began < Duration::from_secs(2),
            "a write waits for 5 s"
        );
        assert!(invited.is_empty(), "it waits");
        disk.execute_batch("ROLLBACK").expect("free again");
        let event = invited.recv().await;
        assert!(matches!(event, Some(Event::Invitation(_))), "{event:?}");
        engine.shut_down().await;
    }

    #[tokio::test]
    async fn join_times_out_at_a_silent_listener() {
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let secret = InviteSecret::new(random::bytes().expect("randomness"));
        let code = Invitation::new(
            Fingerprint([1; 32]),
            secret,
            vec![mute.local_addr().expect("an address")],
        );
        let dir = tempfile::tempdir().expect("a directory");
        let engine = start(dir.path()).await;
        let began = clock::now();
        let join = FleetRequest::Join {
            code: code.to_string(),
            timeout_ms: 500,
        };
        let mut events = engine.fleet().perform(join).await;
        let last = events.recv().await.expect("an answer");
        assert!(
            matches!(
                last,
                Event::Failed {
                    failure: Failure::Failed,
                    ..
                }
            ),
            "{last:?}"
        );
        assert!(clock::now() - began < Duration::from_secs(3));
        engine.shut_down().await;
    }
}
