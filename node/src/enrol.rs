//! Enrolment: how a node joins a fleet. By a code from its configuration, by a code from a user of the device, or,
//! where the configuration says `adoptable`, by asking the discovered stations.
//!
//! | state | asks | until |
//! |---|---|---|
//! | no fleet, a code | the code's addresses, then discovered stations, with backoff | it has joined, or another code comes |
//! | no fleet, adoptable | discovered stations, each for as long as it keeps the connection | an operator accepts it |
//! | in a fleet | nothing, unless a code comes | shutdown |

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::Endpoint;
use swarm_shared::net::join::{JoinError, join, join_with_callback};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::discovery::address_book::{BACKOFF_MAX, BACKOFF_MIN, Hint, Source};
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::message::RefusalCode;
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::trust::invite::Invitation;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::fleet_store::FleetStore;
use crate::status::{JOIN_UPDATES_MAX, JoinRequest, Status};

/// Most discovered stations that are asked in turn; the oldest is dropped for a new one.
const DISCOVERED_MAX: usize = 16;
/// Time-out of a code that a user of the device handed in.
pub(crate) const JOIN_CODE_TIMEOUT: Duration = Duration::from_secs(45);
/// Wait before a refused code is tried again: the refusal will hardly change soon.
const RETRY_AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// Everything that enrolment uses.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(crate) endpoint: Endpoint,
    pub(crate) keepalive: KeepaliveConfig,
    /// The code in the configuration.
    pub(crate) code: Option<String>,
    pub(crate) adoptable: bool,
    /// Stations that the configuration names.
    pub(crate) configured: Vec<SocketAddr>,
    /// Addresses of discovered stations.
    pub(crate) discovered: mpsc::Receiver<SocketAddr>,
    /// Codes from users of the device.
    pub(crate) requests: mpsc::Receiver<JoinRequest>,
    /// Time for which each of them is tried.
    pub(crate) timeout: Duration,
    pub(crate) store: FleetStore,
    pub(crate) status: Status,
    pub(crate) shutdown: CancellationToken,
}

/// Runs the enrolment until shutdown.
pub(crate) async fn run(mut enrolment: Enrolment) {
    let shutdown = enrolment.shutdown.clone();
    let invitation = enrolment.configured_code();
    let mut candidates: VecDeque<SocketAddr> = enrolment.configured.iter().copied().collect();
    let (_none, closed) = mpsc::channel(1);
    let mut requests = std::mem::replace(&mut enrolment.requests, closed);
    let mut pause = BACKOFF_MIN;
    loop {
        let enrolling = !enrolment.has_fleet() && (invitation.is_some() || enrolment.adoptable);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(request) = requests.recv() => enrolment.handle_request(request, &mut candidates).await,
            Some(addr) = enrolment.discovered.recv() => {
                if enrolment.add_candidate(&mut candidates, addr) {
                    pause = BACKOFF_MIN;
                }
            }
            () = tokio::time::sleep(pause), if enrolling => {
                let tried = enrolment.try_candidates(invitation.as_ref(), &mut candidates);
                let tried = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    // A wait for an operator's acceptance does not delay a code.
                    Some(request) = requests.recv() => Err(request),
                    tried = tried => Ok(tried),
                };
                match tried {
                    Err(request) => enrolment.handle_request(request, &mut candidates).await,
                    Ok((Some((membership, addr)), _)) => enrolment.join_fleet(membership, addr).await,
                    Ok((None, next)) => pause = next.unwrap_or((pause * 2).min(BACKOFF_MAX)),
                }
            }
        }
    }
}

impl Enrolment {
    fn has_fleet(&self) -> bool {
        self.endpoint.membership().borrow().is_some()
    }

    fn configured_code(&self) -> Option<Invitation> {
        if self.has_fleet() {
            return None;
        }
        let parsed = self.code.as_deref()?.parse::<Invitation>();
        parsed
            .inspect_err(|error| {
                self.record_refusal(&format!("the configured `join` code is not valid: {error}"));
            })
            .ok()
    }

    fn record_refusal(&self, text: &str) {
        tracing::warn!("{text}");
        self.status
            .update(|facts| facts.last_refusal = Some(text.to_owned()));
    }

    /// Adds a discovered station; returns whether it is new. The newest are kept, and those that the configuration
    /// names.
    fn add_candidate(&self, candidates: &mut VecDeque<SocketAddr>, addr: SocketAddr) -> bool {
        if candidates.contains(&addr) {
            return false;
        }
        candidates.push_back(addr);
        let discovered = candidates
            .iter()
            .filter(|addr| !self.configured.contains(addr))
            .count();
        if discovered > DISCOVERED_MAX
            && let Some(oldest) = candidates.iter().position(|addr| !self.configured.contains(addr))
        {
            candidates.remove(oldest);
        }
        true
    }

    /// Asks every candidate once. Returns the membership and the station that granted it, or a wait that replaces the
    /// backoff.
    async fn try_candidates(
        &self,
        invitation: Option<&Invitation>,
        candidates: &mut VecDeque<SocketAddr>,
    ) -> (Option<(Membership, SocketAddr)>, Option<Duration>) {
        let mut next = None;
        let own = invitation
            .map(|invitation| invitation.addresses().to_vec())
            .unwrap_or_default();
        let discovered = candidates.iter().copied().filter(|addr| !own.contains(addr));
        let all: Vec<(SocketAddr, bool)> = own
            .iter()
            .map(|addr| (*addr, true))
            .chain(discovered.map(|addr| (addr, false)))
            .collect();
        for (addr, is_own) in all {
            if invitation.is_none() {
                let id = self.endpoint.id().short();
                tracing::info!(%addr, id, "Station asked for admission: accept this node there by `ground-station fleet accept`");
            }
            match join(self.endpoint.local(), &self.keepalive, addr, invitation).await {
                Ok(membership) => return (Some((membership, addr)), None),
                Err(JoinError::Refused(refused)) if refused.code == RefusalCode::Pending => {}
                Err(JoinError::Refused(refused)) if is_own => {
                    self.record_refusal(&format!("the station at {addr} refused: {refused}"));
                    next = Some(RETRY_AFTER_REFUSAL);
                }
                Err(error) => {
                    tracing::debug!(%addr, %error, "Station did not admit this node");
                    if !is_own {
                        // A station of another fleet, or one that has gone: if it is still there, it is discovered
                        // again.
                        candidates.retain(|known| *known != addr || self.configured.contains(known));
                    }
                }
            }
        }
        (None, next)
    }

    /// Adopts the membership, and dials the station that granted it: it may be unable to dial this node.
    async fn join_fleet(&self, membership: Membership, station: SocketAddr) {
        let membership = Arc::new(membership);
        tracing::info!(fleet = membership.fingerprint().short(), "Node joined a fleet");
        // Stored before the success is reported.
        self.store.save_fleet(&membership).await;
        self.endpoint.adopt_membership(membership).await;
        self.endpoint
            .address_discovered(station, Source::Known, Hint::None)
            .await;
    }

    /// Tries a code from a user of the device: at once, and for as long as its sender waits.
    async fn handle_request(&mut self, request: JoinRequest, candidates: &mut VecDeque<SocketAddr>) {
        let JoinRequest {
            code,
            updates,
            reply: mut done,
        } = request;
        let mut progress = ProgressReporter::new(updates);
        let shutdown = self.shutdown.clone();
        let tried = tokio::select! {
            biased;
            // First: a node that was admitted joins, even if the sender leaves at that moment.
            tried = self.try_code(&code, candidates, &mut progress) => tried,
            () = shutdown.cancelled() => Err("the node is shutting down".to_owned()),
            () = done.closed() => return,
        };
        let entered = match tried {
            Ok((membership, addr)) => {
                let fleet = membership.fingerprint().short();
                self.join_fleet(membership, addr).await;
                Ok(fleet)
            }
            Err(why) => {
                self.record_refusal(&format!("did not join: {why}"));
                Err(why)
            }
        };
        let _sender_gone = done.send(entered);
    }

    /// Returns the membership and the station that granted it. It can be dropped at any await: nothing is stored
    /// before it returns.
    async fn try_code(
        &mut self,
        code: &str,
        candidates: &mut VecDeque<SocketAddr>,
        progress: &mut ProgressReporter,
    ) -> Result<(Membership, SocketAddr), String> {
        let invitation: Invitation = code.parse().map_err(|error| format!("{error}"))?;
        let timeout = self.timeout;
        let deadline = clock::now() + timeout;
        let mut pause = BACKOFF_MIN;
        loop {
            let mut last = "the code holds no address, and no station was discovered".to_owned();
            let all: Vec<SocketAddr> = invitation
                .addresses()
                .iter()
                .chain(candidates.iter())
                .copied()
                .collect();
            for addr in all {
                progress.report(format!("connecting to {addr}"));
                let found = |name: &NodeName| {
                    progress.report(format!("found {name} at {addr}, waiting for its answer"));
                };
                match join_with_callback(
                    self.endpoint.local(),
                    &self.keepalive,
                    addr,
                    Some(&invitation),
                    found,
                )
                .await
                {
                    Ok(membership) => return Ok((membership, addr)),
                    // A refusal by a station that the code names is final.
                    Err(JoinError::Refused(refused)) if invitation.addresses().contains(&addr) => {
                        return Err(refused.to_string());
                    }
                    Err(error) => {
                        last = error.to_string();
                        progress.report(last.clone());
                    }
                }
            }
            if clock::now() >= deadline {
                return Err(format!(
                    "{last}; tried for {timeout:?}. Run `ground-station serve` on the machine that made the \
                     code, on a network that this device reaches, and join again; `--station ADDR:PORT`, or `stations` \
                     in the configuration, says where it is if that has changed"
                ));
            }
            progress.report(format!(
                "no station has let this device in yet; trying for {timeout:?}"
            ));
            tokio::select! {
                biased;
                Some(addr) = self.discovered.recv() => {
                    if self.add_candidate(candidates, addr) {
                        pause = BACKOFF_MIN;
                    }
                }
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF_MAX),
            }
        }
    }
}

/// Sends progress to the waiting user, each message once.
struct ProgressReporter {
    updates: mpsc::Sender<String>,
    sent: BTreeSet<String>,
}

impl ProgressReporter {
    fn new(updates: mpsc::Sender<String>) -> Self {
        let sent = BTreeSet::new();
        Self { updates, sent }
    }

    fn report(&mut self, update: String) {
        if self.sent.len() < JOIN_UPDATES_MAX && self.sent.insert(update.clone()) {
            // The channel is full only if the user does not read.
            let _unread = self.updates.try_send(update);
        }
    }
}

#[cfg(test)]
mod tests;
