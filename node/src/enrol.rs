//! How a node comes into a fleet: by a code from its configuration, by one that somebody on the device hands in, or,
//! where the configuration says `adoptable`, by asking whatever station it hears of.
//!
//! | state | tries | until |
//! |---|---|---|
//! | no fleet, a code | the code's addresses, then stations heard of, with backoff | taken in, or a later code |
//! | no fleet, adoptable | stations heard of, each for as long as it lets us wait | accepted by its operator |
//! | in a fleet | nothing, unless a code is handed in | stop |

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::Endpoint;
use swarm_shared::net::join::{JoinError, join, join_telling};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::address_book::{BACKOFF_MAX, BACKOFF_MIN, Hint, Source};
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::message::RefusalCode;
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::trust::invite::Invitation;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::fleet_store::Memory;
use crate::status::{JOIN_WORDS_MAX, JoinRequest, Status};

/// Most stations heard of that are asked in turn; the newest stay.
const STRANGERS_MAX: usize = 16;
/// How long somebody on the device waits for a code to be tried.
pub(crate) const REQUEST_PATIENCE: Duration = Duration::from_secs(45);
/// How long to wait before a code that was refused is tried again: it will not get better soon.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// What enrolment works with.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(crate) endpoint: Endpoint,
    pub(crate) keepalive: KeepaliveConfig,
    /// From the configuration.
    pub(crate) code: Option<String>,
    pub(crate) adoptable: bool,
    /// Stations that the configuration names.
    pub(crate) known: Vec<SocketAddr>,
    /// Stations heard of while there is no fleet.
    pub(crate) strangers: mpsc::Receiver<SocketAddr>,
    /// Codes handed in on this device.
    pub(crate) requests: mpsc::Receiver<JoinRequest>,
    /// How long each of them is tried.
    pub(crate) patience: Duration,
    pub(crate) memory: Memory,
    pub(crate) status: Status,
    pub(crate) stop: CancellationToken,
}

/// Enrols until the node stops.
pub(crate) async fn run(mut this: Enrolment) {
    let stop = this.stop.clone();
    let invitation = this.configured_code();
    let mut heard: VecDeque<SocketAddr> = this.known.iter().copied().collect();
    let (_none, nobody) = mpsc::channel(1);
    let mut requests = std::mem::replace(&mut this.requests, nobody);
    let mut pause = BACKOFF_MIN;
    loop {
        let wants = !this.has_fleet() && (invitation.is_some() || this.adoptable);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(request) = requests.recv() => this.take_request(request, &mut heard).await,
            Some(addr) = this.strangers.recv() => {
                if this.remember(&mut heard, addr) {
                    pause = BACKOFF_MIN;
                }
            }
            () = tokio::time::sleep(pause), if wants => {
                let tried = this.try_all(invitation.as_ref(), &mut heard);
                let tried = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    // Whoever waits at the door of a station does not keep somebody with a code waiting.
                    Some(request) = requests.recv() => Err(request),
                    tried = tried => Ok(tried),
                };
                match tried {
                    Err(request) => this.take_request(request, &mut heard).await,
                    Ok((Some((membership, addr)), _)) => this.enter(membership, addr).await,
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
            .inspect_err(|error| self.tell(&format!("the code of `join` is no code: {error}")))
            .ok()
    }

    fn tell(&self, text: &str) {
        tracing::warn!("{text}");
        self.status
            .update(|facts| facts.last_refusal = Some(text.to_owned()));
    }

    /// Remembers a station that was heard of; the newest stay, and those that the configuration names. Says whether it
    /// is news.
    fn remember(&self, heard: &mut VecDeque<SocketAddr>, addr: SocketAddr) -> bool {
        if heard.contains(&addr) {
            return false;
        }
        heard.push_back(addr);
        let strangers = heard.iter().filter(|addr| !self.known.contains(addr)).count();
        if strangers > STRANGERS_MAX
            && let Some(oldest) = heard.iter().position(|addr| !self.known.contains(addr))
        {
            heard.remove(oldest);
        }
        true
    }

    /// Asks everybody once. Returns the fleet and who let this node in, or how long to wait if that is not for the backoff to say.
    async fn try_all(
        &self,
        invitation: Option<&Invitation>,
        heard: &mut VecDeque<SocketAddr>,
    ) -> (Option<(Membership, SocketAddr)>, Option<Duration>) {
        let mut next = None;
        let own = invitation
            .map(|invitation| invitation.addresses().to_vec())
            .unwrap_or_default();
        let strangers = heard.iter().copied().filter(|addr| !own.contains(addr));
        let all: Vec<(SocketAddr, bool)> = own
            .iter()
            .map(|addr| (*addr, true))
            .chain(strangers.map(|addr| (addr, false)))
            .collect();
        for (addr, is_own) in all {
            if invitation.is_none() {
                let id = self.endpoint.id().short();
                tracing::info!(%addr, id, "asking to be taken in: `ground-station fleet accept` there lets this node in");
            }
            match join(self.endpoint.local(), &self.keepalive, addr, invitation).await {
                Ok(membership) => return (Some((membership, addr)), None),
                Err(JoinError::Refused(refused)) if refused.code == RefusalCode::Pending => {}
                Err(JoinError::Refused(refused)) if is_own => {
                    self.tell(&format!("the station at {addr} refused: {refused}"));
                    next = Some(REFUSED_PAUSE);
                }
                Err(error) => {
                    tracing::debug!(%addr, %error, "not taken in");
                    if !is_own {
                        // Another fleet's station, or one that has gone: it is heard again if it is there.
                        heard.retain(|known| *known != addr || self.known.contains(known));
                    }
                }
            }
        }
        (None, next)
    }

    /// Takes the fleet up, and dials the station that let this node in: it may have no way to dial back.
    async fn enter(&self, membership: Membership, station: SocketAddr) {
        let membership = Arc::new(membership);
        tracing::info!(fleet = membership.fingerprint().short(), "joined a fleet");
        // Written before anybody hears that it went well.
        self.memory.keep_fleet(&membership).await;
        self.endpoint.adopt(membership).await;
        self.endpoint.heard(station, Source::Known, Hint::None).await;
    }

    /// A code handed in on this device: tried at once, and for as long as its sender waits.
    async fn take_request(&mut self, request: JoinRequest, heard: &mut VecDeque<SocketAddr>) {
        let JoinRequest {
            code,
            words,
            mut done,
        } = request;
        let mut told = Told::new(words);
        let stop = self.stop.clone();
        let tried = tokio::select! {
            biased;
            // First: whoever has been taken in enters, whoever goes at that moment.
            tried = self.try_code(&code, heard, &mut told) => tried,
            () = stop.cancelled() => Err("the node is shutting down".to_owned()),
            () = done.closed() => return,
        };
        let entered = match tried {
            Ok((membership, addr)) => {
                let fleet = membership.fingerprint().short();
                self.enter(membership, addr).await;
                Ok(fleet)
            }
            Err(why) => {
                self.tell(&format!("did not join: {why}"));
                Err(why)
            }
        };
        let _sender_gone = done.send(entered);
    }

    /// Returns the fleet and who let this node in. It can be dropped at any await: nothing is kept before it returns.
    async fn try_code(
        &mut self,
        code: &str,
        heard: &mut VecDeque<SocketAddr>,
        told: &mut Told,
    ) -> Result<(Membership, SocketAddr), String> {
        let invitation: Invitation = code.parse().map_err(|error| format!("{error}"))?;
        let patience = self.patience;
        let deadline = clock::now() + patience;
        let mut pause = BACKOFF_MIN;
        loop {
            let mut last = "the code holds no address, and no station is heard of".to_owned();
            let all: Vec<SocketAddr> = invitation
                .addresses()
                .iter()
                .chain(heard.iter())
                .copied()
                .collect();
            for addr in all {
                told.say(format!("looking at {addr}"));
                let found =
                    |name: &NodeName| told.say(format!("found {name} at {addr}, waiting for its word"));
                match join_telling(
                    self.endpoint.local(),
                    &self.keepalive,
                    addr,
                    Some(&invitation),
                    found,
                )
                .await
                {
                    Ok(membership) => return Ok((membership, addr)),
                    // The word of the station that gave the code out is final.
                    Err(JoinError::Refused(refused)) if invitation.addresses().contains(&addr) => {
                        return Err(refused.to_string());
                    }
                    Err(error) => {
                        last = error.to_string();
                        told.say(last.clone());
                    }
                }
            }
            if clock::now() >= deadline {
                return Err(format!(
                    "{last}; tried for {patience:?}. Run `ground-station serve` on the machine that made the \
                     code, on a network that this device reaches, and join again; `--station ADDR:PORT`, or `stations` \
                     in the configuration, says where it is if that has changed"
                ));
            }
            told.say(format!(
                "no station has let this device in yet; trying for {patience:?}"
            ));
            tokio::select! {
                biased;
                Some(addr) = self.strangers.recv() => {
                    if self.remember(heard, addr) {
                        pause = BACKOFF_MIN;
                    }
                }
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF_MAX),
            }
        }
    }
}

/// What somebody who waits has been told, each thing once.
struct Told {
    words: mpsc::Sender<String>,
    said: BTreeSet<String>,
}

impl Told {
    fn new(words: mpsc::Sender<String>) -> Self {
        let said = BTreeSet::new();
        Self { words, said }
    }

    fn say(&mut self, word: String) {
        if self.said.len() < JOIN_WORDS_MAX && self.said.insert(word.clone()) {
            // Without room nobody reads.
            let _unread = self.words.try_send(word);
        }
    }
}

#[cfg(test)]
mod tests;
