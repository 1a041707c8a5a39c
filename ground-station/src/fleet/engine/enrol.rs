//! Requests about the fleet itself: making one, joining one, putting out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::join::{JoinError, join};
use swarm_shared::proto::dial::{Hint, Source};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::trust::invite::Invitation;
use tokio::sync::mpsc;

use super::calls::finish;
use super::office::OfficeError;
use super::roll::member_view;
use super::{Task, office};
use crate::fleet::{Event, Failure, MembershipView};
use crate::store::MemberRow;

/// Between two attempts to reach the station that gave out a code.
const JOIN_PAUSE: Duration = Duration::from_millis(500);

/// How long a newcomer has to store its grant and dial, before it is dialled.
const NEWCOMER_HEAD_START: Duration = Duration::from_secs(2);

impl Task {
    fn membership(&self) -> Option<Arc<Membership>> {
        self.shared.endpoint.membership().borrow().clone()
    }

    /// Dials who has just been taken in, unless it dials first: dialled before it has its grant, it would be refused for
    /// want of one.
    pub(super) fn dial_newcomer(&self, member: &MemberRow) {
        let (endpoint, hint, address) = (
            self.shared.endpoint.clone(),
            Hint::Id(member.key.id()),
            member.address,
        );
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let head_start = stop
                .run_until_cancelled(tokio::time::sleep(NEWCOMER_HEAD_START))
                .await;
            if let (Some(()), Some(address)) = (head_start, address) {
                endpoint.heard(address, Source::Known, hint).await;
            }
        });
    }

    /// Makes a fleet if this station has none, and says so.
    pub(super) async fn ensure_fleet(&mut self, events: &mpsc::Sender<Event>) -> Result<(), String> {
        if self.membership().is_some() {
            return Ok(());
        }
        let membership = self
            .found()
            .await
            .map_err(|error| format!("cannot make a fleet: {error}"))?;
        let note = format!(
            "made a new fleet, {}; its root key is on this machine: back up the state directory",
            membership.fingerprint().short()
        );
        let _caller_gone = events.send(Event::note(note)).await;
        Ok(())
    }

    async fn found(&mut self) -> Result<Arc<Membership>, OfficeError> {
        let own = self.shared.endpoint.local().identity.key.public();
        let membership = Arc::new(self.office.found(own).await?);
        self.shared.endpoint.adopt(Arc::clone(&membership)).await;
        Ok(membership)
    }

    pub(super) async fn init(&mut self, events: mpsc::Sender<Event>) {
        let made = match self.membership() {
            Some(old) => Err(OfficeError::HasFleet(old.fingerprint().short())),
            None => self.found().await,
        };
        let view = match made {
            Ok(_) => self.membership_view().map(|view| vec![Event::Membership(view)]),
            Err(error) => Err(error),
        };
        finish(&events, view).await;
    }

    pub(super) fn membership_view(&self) -> Result<MembershipView, OfficeError> {
        let Some(membership) = self.membership() else {
            return Err(OfficeError::Internal(
                "this station belongs to no fleet".to_owned(),
            ));
        };
        Ok(MembershipView {
            node: self.shared.endpoint.profile().borrow().name.clone(),
            id: self.shared.endpoint.id(),
            role: membership.own_role(),
            fleet: PeerId(membership.fingerprint().0),
            has_root: self.office.has_root(),
        })
    }

    pub(super) async fn revoke(&mut self, node: &str) -> Result<Vec<Event>, OfficeError> {
        let row = self.roll.find(node).map_err(|why| {
            OfficeError::WhichOne(format!(
                "{why} among the members; see `ground-station fleet members`"
            ))
        })?;
        let membership = self.membership().ok_or(OfficeError::NoRoot)?;
        let membership = Arc::new(self.office.revoke(row.key, &membership).await?);
        office::keep_membership(&self.store, &membership).await?;
        self.store.revoke_members(self.roll.revoke(&membership)).await?;
        self.shared.endpoint.adopt(membership).await;
        let mut row = row;
        row.revoked = true;
        Ok(vec![Event::Member(member_view(&row))])
    }

    /// Joins another station's fleet by its code.
    pub(super) async fn join(&mut self, code: String, timeout_ms: u64, events: mpsc::Sender<Event>) {
        let usage = |message: String| Event::failed(Failure::Usage, message);
        let invitation: Invitation = match code.parse() {
            Ok(invitation) => invitation,
            Err(error) => {
                let _caller_gone = events.send(usage(format!("{error}"))).await;
                return;
            }
        };
        // A code of the same fleet brings another role; a fleet without members is given up for another one.
        let own = self.membership();
        let other = own
            .as_ref()
            .is_some_and(|own| own.fingerprint() != *invitation.fingerprint());
        if other && !self.roll.is_empty() {
            let fleet = own.map_or_else(String::new, |own| own.fingerprint().short());
            let _caller_gone = events.send(usage(OfficeError::HasFleet(fleet).to_string())).await;
            return;
        }
        let deadline = clock::now() + Duration::from_millis(timeout_ms);
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let first = invitation.addresses().first().copied().unwrap_or(nowhere);
        let membership = loop {
            let tried = tokio::select! {
                biased;
                () = events.closed() => return,
                tried = clock::timeout_at(deadline, self.join_any(&invitation)) => tried,
            };
            match tried.unwrap_or(Err(JoinError::NoAnswer(first))) {
                Ok(membership) => break membership,
                // The station's word is final; that nobody answers is not.
                Err(error @ (JoinError::Refused(_) | JoinError::Trust(_))) => {
                    let _caller_gone = events
                        .send(Event::failed(Failure::Failed, error.to_string()))
                        .await;
                    return;
                }
                Err(error) if clock::now() >= deadline => {
                    let message =
                        format!("cannot join: {error}; check that `ground-station serve` runs there");
                    let _caller_gone = events.send(Event::failed(Failure::Failed, message)).await;
                    return;
                }
                Err(_nobody_yet) => tokio::time::sleep(JOIN_PAUSE).await,
            }
        };
        let joined = async {
            if other {
                self.office.leave().await?;
            }
            office::keep_membership(&self.store, &membership).await?;
            self.shared.endpoint.adopt(Arc::new(membership)).await;
            for addr in invitation.addresses() {
                self.remember_station(*addr).await;
            }
            self.membership_view().map(|view| vec![Event::Membership(view)])
        };
        let joined = joined.await;
        finish(&events, joined).await;
    }

    async fn join_any(&self, invitation: &Invitation) -> Result<Membership, JoinError> {
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

    async fn remember_station(&self, addr: SocketAddr) {
        self.shared.endpoint.heard(addr, Source::Known, Hint::None).await;
    }
}

#[cfg(test)]
mod tests {
    use swarm_shared::net::random;
    use swarm_shared::proto::trust::Fingerprint;
    use swarm_shared::proto::trust::invite::InviteSecret;

    use super::*;
    use crate::config::Config;
    use crate::fleet::Request;
    use crate::fleet::engine::{Engine, Settings};

    #[tokio::test]
    async fn joining_ends_in_time_where_something_listens_and_says_nothing() {
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let secret = InviteSecret::new(random::bytes().expect("randomness"));
        let code = Invitation::new(
            Fingerprint([1; 32]),
            secret,
            vec![mute.local_addr().expect("an address")],
        );
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::load(None, dir.path()).expect("the usual");
        config.listen = ([127, 0, 0, 1], 0).into();
        (config.pings, config.mdns) = (false, false);
        let settings = Settings {
            config,
            state_dir: dir.path().to_owned(),
            stays: false,
        };
        let engine = Engine::start(settings).await.expect("started");
        let began = clock::now();
        let join = Request::Join {
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
        engine.stop().await;
    }
}
