//! The membership task: requests about the fleet, peers that want to join, and the fleet's state in the store.
//!
//! It handles one request at a time, in order. Requests wait for the disk, and a join for another station. The engine's own
//! task waits for neither, so that an emergency stop and its reports pass.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Time between two attempts to reach the station that made a code.
const JOIN_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long a new member may take to store its grant and dial, before it is dialled.
const NEW_MEMBER_DIAL_DELAY: Duration = Duration::from_secs(2);

/// A request about the fleet.
#[derive(Debug)]
pub(crate) struct MembershipRequest {
    pub(crate) request: FleetRequest,
    pub(crate) reporter: Reporter,
}

/// State of the task.
pub(crate) struct MembershipTask {
    pub(crate) shared: SharedContext,
    pub(crate) store: Store,
    pub(crate) authority: FleetAuthority,
    pub(crate) registry: SharedNodeRegistry,
    pub(crate) keepalive: KeepaliveConfig,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl MembershipTask {
    /// Runs until shutdown.
    pub(crate) async fn run(
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
                Some(request) = requests.recv() => self.on_request(request).await,
                Some(join) = joins.recv() => self.on_join(join).await,
            }
        }
    }

    /// Stores the fleet's state and the revoked members.
    async fn persist_membership(&self, membership: Option<Arc<Membership>>) {
        let Some(membership) = membership else { return };
        let revoked = self.registry.lock().revoke(&membership);
        let kept = async {
            self.store.set_membership(&membership).await?;
            self.store.revoke_members(revoked).await
        };
        if let Err(error) = kept.await {
            tracing::error!(%error, "State of the fleet is not stored");
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
            && let Err(error) = self.ensure_fleet(&reporter).await
        {
            let message = format!("cannot make a fleet: {error}");
            return reporter.spawn_finish(Err((Failure::Failed, message)));
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
            FleetRequest::Join { code, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms);
                self.join(&code, timeout, &reporter).await
            }
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

    /// Dials a new member after a delay, unless it dials first. Before it has stored its grant, it would refuse the link.
    fn dial_new_member(&self, member: &MemberRow) {
        let Some(address) = member.address else { return };
        let (endpoint, hint) = (self.shared.endpoint.clone(), Hint::Id(member.key.id()));
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let delay = tokio::time::sleep(NEW_MEMBER_DIAL_DELAY);
            if shutdown.run_until_cancelled(delay).await.is_some() {
                endpoint.address_discovered(address, Source::Known, hint).await;
            }
        });
    }

    /// Makes a fleet if this station has none, and sends a note of it.
    async fn ensure_fleet(&mut self, reporter: &Reporter) -> Result<(), AuthorityError> {
        if self.membership().is_some() {
            return Ok(());
        }
        let membership = self.create_fleet().await?;
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
        let mut row = self.registry.lock().find(node).map_err(|why| {
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
        row.revoked = true;
        Ok(vec![Event::Member(member_view(&row))])
    }

    /// Joins the fleet of another station by its code. Returns no events if the caller disconnects first.
    async fn join(
        &mut self,
        code: &str,
        timeout: Duration,
        reporter: &Reporter,
    ) -> Result<Vec<Event>, AuthorityError> {
        let invitation: Invitation = code.parse()?;
        // A code of the same fleet brings another role; a fleet without members is given up for another one.
        let own = self.membership();
        let own = own.filter(|own| own.fingerprint() != *invitation.fingerprint());
        if let Some(own) = &own
            && !self.registry.lock().is_empty()
        {
            return Err(AuthorityError::AlreadyInFleet(own.fingerprint().short()));
        }
        let membership = tokio::select! {
            biased;
            () = reporter.caller().closed() => return Ok(Vec::new()),
            joined = self.request_membership(&invitation, clock::now() + timeout) => joined?,
        };
        if own.is_some() {
            self.authority.leave_fleet().await?;
        }
        self.store.set_membership(&membership).await?;
        let endpoint = &self.shared.endpoint;
        endpoint.adopt_membership(Arc::new(membership)).await;
        for addr in invitation.addresses() {
            endpoint
                .address_discovered(*addr, Source::Known, Hint::None)
                .await;
        }
        Ok(vec![Event::Membership(self.membership_view()?)])
    }

    /// Asks the stations of an invitation until one answers.
    async fn request_membership(
        &self,
        invitation: &Invitation,
        deadline: Instant,
    ) -> Result<Membership, AuthorityError> {
        let mut last_error = None;
        loop {
            for addr in invitation.addresses() {
                let local = self.shared.endpoint.local();
                let attempt = join(local, &self.keepalive, *addr, Some(invitation));
                let attempt = clock::timeout_at(deadline, attempt).await;
                match attempt.unwrap_or(Err(JoinError::NoAnswer(*addr))) {
                    Ok(membership) => return Ok(membership),
                    // The answer of a station is final; other errors may pass.
                    Err(error @ (JoinError::Refused(_) | JoinError::Trust(_))) => {
                        return Err(AuthorityError::JoinRefused(error));
                    }
                    Err(error) => last_error = Some(error),
                }
            }
            if clock::now() >= deadline {
                let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
                let error = last_error.unwrap_or(JoinError::NoAnswer(nowhere));
                return Err(AuthorityError::JoinTimedOut(error));
            }
            tokio::time::sleep(JOIN_RETRY_INTERVAL).await;
        }
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
        disk.execute_batch("BEGIN IMMEDIATE")
            .expect("the test alone writes");
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
