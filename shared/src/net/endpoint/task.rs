//! The task that owns the table of peers and the address book: its loop, dials, new connections, events of links.
//! [`super::sessions`] starts the sessions of a peer, [`super::fleet`] sends rosters and fleet states.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::{self, AcceptLoop, DialPurpose, HandshakeResult, PENDING_JOINS_MAX};
use super::peer_entry::PeerEntry;
use super::{EndpointCommand, JoinRequest, Notice};
use crate::net::dial_claims::DialClaims;
use crate::net::handshake::{AuthenticatedConn, HandshakeError, LocalPeer};
use crate::net::peer::{Attachment, LinkCommand, LinkEvent, PeerEvent, PeerInfo, PeerLink, StopReceived};
use crate::net::socket::{self, KeepaliveConfig};
use crate::net::{clock, random};
use crate::proto::discovery::address_book::AddressBook;
use crate::proto::discovery::narrow_paths::NarrowPaths;
use crate::proto::id::{PeerId, PeerKind};
use crate::proto::message::{Channel, RefusalCode, Refused, Roster};
use crate::proto::session::simultaneous_open::{DialedBy, LinkDecision, LinkOrigin};
use crate::proto::session::{Outgoing, Timing};
use crate::proto::trust::Membership;
use crate::proto::wire::encoded::EncodedFrame;
use crate::proto::wire::{Frame, FrameLimits, Kind, Lane};

/// Events of links and handshake results that wait for this task.
const INPUTS_MAX: usize = 1_024;
/// Inputs of one kind handled in one go before the others get their turn.
const INPUTS_PER_TURN: usize = 64;

/// How often linked peers are sent a roster.
pub(super) const ROSTER_INTERVAL: Duration = Duration::from_secs(30);

pub(super) struct Parts {
    pub(super) local: LocalPeer,
    pub(super) keepalive: KeepaliveConfig,
    pub(super) timing: Timing,
    pub(super) membership: watch::Sender<Option<Arc<Membership>>>,
    pub(super) joins: Option<mpsc::Sender<JoinRequest>>,
    pub(super) commands: mpsc::Receiver<EndpointCommand>,
    pub(super) events: mpsc::Sender<PeerEvent>,
    pub(super) deliveries: Option<mpsc::Sender<PeerEvent>>,
    pub(super) stops: mpsc::Sender<StopReceived>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
}

pub(super) struct EndpointTask {
    pub(super) parts: Parts,
    pub(super) id: PeerId,
    pub(super) peers: BTreeMap<PeerId, PeerEntry>,
    pub(super) address_book: AddressBook,
    /// Read by handshakes of accepted connections, too.
    pub(super) narrow_paths: watch::Sender<NarrowPaths>,
    pub(super) dial_claims: DialClaims,
    last_link_number: u64,
    pub(super) link_events: mpsc::Sender<LinkEvent>,
    handshake_results: mpsc::Sender<HandshakeResult>,
    join_permits: Arc<Semaphore>,
    pub(super) next_roster_at: Instant,
}

pub(super) fn spawn(parts: Parts, listener: TcpListener) {
    let (link_events, link_events_receiver) = mpsc::channel(INPUTS_MAX);
    let (handshake_results, handshake_results_receiver) = mpsc::channel(INPUTS_MAX);
    let (narrow_paths, narrow_paths_receiver) = watch::channel(NarrowPaths::default());
    let listening = AcceptLoop {
        listener,
        local: parts.local.clone(),
        keepalive: parts.keepalive,
        narrow_paths: narrow_paths_receiver,
        handshake_results: handshake_results.clone(),
        shutdown: parts.shutdown.clone(),
        tasks: parts.tasks.clone(),
    };
    let tasks = parts.tasks.clone();
    tasks.spawn(accept::run_accept_loop(listening));
    let task = EndpointTask {
        id: parts.local.identity.key.public().id(),
        parts,
        peers: BTreeMap::new(),
        address_book: AddressBook::default(),
        narrow_paths,
        dial_claims: DialClaims::default(),
        last_link_number: 0,
        link_events,
        handshake_results,
        join_permits: Arc::new(Semaphore::new(PENDING_JOINS_MAX)),
        next_roster_at: clock::now() + ROSTER_INTERVAL,
    };
    tasks.spawn(task.run(link_events_receiver, handshake_results_receiver));
}

impl EndpointTask {
    async fn run(
        mut self,
        mut link_events: mpsc::Receiver<LinkEvent>,
        mut handshake_results: mpsc::Receiver<HandshakeResult>,
    ) {
        let shutdown = self.parts.shutdown.clone();
        let mut profile = self.parts.local.profile.clone();
        profile.mark_unchanged();
        loop {
            self.dial_due_addresses();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Ok(()) = profile.changed() => self.send_name(),
                () = self.handle_inputs(&mut link_events, &mut handshake_results) => {}
            }
        }
        // The sessions' tasks end by the same token; their last events need a reader until all have ended.
        drop(self);
        link_events.close();
        while link_events.recv().await.is_some() {}
    }

    /// Handles the inputs of whichever kind is ready; no kind starves the others.
    async fn handle_inputs(
        &mut self,
        link_events: &mut mpsc::Receiver<LinkEvent>,
        handshake_results: &mut mpsc::Receiver<HandshakeResult>,
    ) {
        let next = self
            .next_dial_at()
            .map_or(self.next_roster_at, |next| next.min(self.next_roster_at));
        tokio::select! {
            Some(event) = link_events.recv() => {
                self.on_link_event(event);
                for event in std::iter::from_fn(|| link_events.try_recv().ok()).take(INPUTS_PER_TURN) {
                    self.on_link_event(event);
                }
            }
            Some(handshake) = handshake_results.recv() => {
                self.on_handshake_result(handshake);
                for handshake in std::iter::from_fn(|| handshake_results.try_recv().ok()).take(INPUTS_PER_TURN) {
                    self.on_handshake_result(handshake);
                }
            }
            Some(command) = self.parts.commands.recv() => self.on_command(command),
            () = clock::sleep_until(next) => self.send_due_rosters(),
        }
    }

    fn on_command(&mut self, command: EndpointCommand) {
        let now = clock::now();
        match command {
            EndpointCommand::AddressDiscovered { addr, source, hint } => {
                self.address_book.discovered(addr, source, hint, now);
            }
            EndpointCommand::AddressWithdrawn(addr) => self.address_book.withdrawn(addr, now),
            EndpointCommand::RetryNow => self.address_book.retry_now(now),
            EndpointCommand::OpenSession { id, reply: answer } => {
                if let Some(entry) = self.peer_entry(id) {
                    answer.send(entry.control.link.clone()).ok();
                }
            }
            EndpointCommand::OpenBulkSession { id, reply: answer } => {
                if let Some(link) = self.ensure_bulk_session(id) {
                    answer.send(link).ok();
                    if self
                        .peers
                        .get(&id)
                        .is_some_and(|entry| entry.bulk_link_number == 0)
                    {
                        self.open_bulk_connection(id);
                    }
                }
            }
            EndpointCommand::AdoptMembership { membership, done } => {
                self.adopt_membership(Membership::clone(&membership));
                done.send(()).ok();
            }
        }
    }

    // ── Addresses ────────────────────────────────────────────────────────────────────────────────────────────

    /// Peers refuse links of a program without a fleet.
    fn can_dial(&self) -> bool {
        self.parts.membership.borrow().is_some()
    }

    fn next_dial_at(&self) -> Option<Instant> {
        self.address_book.poll_timeout().filter(|_| self.can_dial())
    }

    fn dial_due_addresses(&mut self) {
        if !self.can_dial() {
            return;
        }
        for addr in self.address_book.start_due_dials(clock::now()) {
            self.spawn_dial(addr, DialPurpose::Link);
        }
    }

    pub(super) fn spawn_dial(&self, addr: SocketAddr, dial_purpose: DialPurpose) {
        let (local, keepalive) = (self.parts.local.clone(), self.parts.keepalive);
        let (handshake_results, shutdown) = (self.handshake_results.clone(), self.parts.shutdown.clone());
        let claims = self.dial_claims.clone();
        let segments = self.segments_to(addr.ip());
        self.parts.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                handshake = accept::dial(local, keepalive, addr, dial_purpose, segments, claims) => {
                    handshake_results.send(handshake).await.ok();
                }
            }
        });
    }

    // ── Connections ──────────────────────────────────────────────────────────────────────────────────────────

    fn on_handshake_result(&mut self, handshake: HandshakeResult) {
        match handshake {
            HandshakeResult::Accepted {
                result: Ok(greeted), ..
            } => match greeted.hello.channel {
                Channel::Control => self.on_control_connection(greeted),
                Channel::Bulk => self.on_bulk_connection(greeted),
                Channel::Join => self.on_join_connection(greeted),
            },
            HandshakeResult::Accepted {
                addr,
                result: Err(error),
            } => self.notify_handshake_error(addr, error),
            HandshakeResult::Dialled {
                addr,
                dial_purpose,
                result,
            } => self.on_dialled(addr, dial_purpose, result),
        }
    }

    fn on_dialled(
        &mut self,
        addr: SocketAddr,
        dial_purpose: DialPurpose,
        result: Result<Box<AuthenticatedConn>, HandshakeError>,
    ) {
        let (now, jitter) = (clock::now(), random::jitter());
        if let Err(HandshakeError::SmallSegmentsRequested | HandshakeError::TimedOut) = result {
            // Without an answer the peer's hello may have been too large for the path.
            self.add_narrow_path(addr.ip());
        }
        if let Err(HandshakeError::SmallSegmentsRequested) = result {
            // The same dial goes on.
            return self.spawn_dial(addr, dial_purpose);
        }
        if let DialPurpose::Bulk(id) = dial_purpose
            && let Some(entry) = self.peers.get_mut(&id)
        {
            entry.is_dialling_bulk = false;
        }
        match (dial_purpose, result) {
            (DialPurpose::Link, Ok(greeted)) => {
                self.address_book
                    .dial_succeeded(addr, greeted.key.id(), now, jitter);
                self.on_control_connection(greeted);
            }
            (DialPurpose::Bulk(_), Ok(greeted)) => self.on_bulk_connection(greeted),
            (DialPurpose::Link, Err(HandshakeError::AlreadyLinked(id))) => {
                self.address_book.dial_reached_linked(addr, id, now);
            }
            (DialPurpose::Link, Err(error)) => {
                self.address_book.dial_failed(addr, now, jitter);
                self.notify_handshake_error(addr, error);
            }
            (DialPurpose::Bulk(_), Err(error)) => self.notify_handshake_error(addr, error),
        }
    }

    /// Checks a peer once more: its key may have been revoked since its handshake.
    fn recheck_membership(&mut self, peer: Box<AuthenticatedConn>) -> Option<Box<AuthenticatedConn>> {
        let membership = self.parts.membership.borrow().clone()?;
        match membership.check_peer(&peer.key, peer.hello.grant.as_ref()) {
            Ok(_grant) => Some(peer),
            Err(refused) => {
                self.notify(Notice::Refused {
                    addr: peer.addr,
                    peer: Some(peer.key.id()),
                    name: Some(peer.hello.name.clone()),
                    by_us: true,
                    refused: refused.clone(),
                });
                self.refuse(peer, refused);
                None
            }
        }
    }

    fn on_control_connection(&mut self, peer: Box<AuthenticatedConn>) {
        let Some(peer) = self.recheck_membership(peer) else {
            return;
        };
        let id = peer.key.id();
        let (us, now, lost_after) = (self.id, clock::now(), self.parts.timing.lost_after);
        let facts = LinkOrigin {
            dialler: peer.dialler,
            instance: peer.hello.instance,
        };
        let own_dial_stays = peer.dialler == DialedBy::Remote && us < id && self.dial_claims.is_claimed(id);
        let Some(entry) = self.peer_entry(id) else { return };
        if own_dial_stays && entry.choice.current().is_none() {
            // Both sides dial at once: taking this link first would only mean to replace it.
            let reason = "the other side's dial is taken";
            return self.refuse(peer, Refused::new(RefusalCode::Duplicate, reason));
        }
        match entry.choice.decide(us, id, facts, now, lost_after) {
            LinkDecision::Accept => self.attach_control(id, peer),
            LinkDecision::Reject => {
                let reason = "another link between the two stays";
                self.refuse(peer, Refused::new(RefusalCode::Duplicate, reason));
            }
            LinkDecision::RetryLater => {
                let reason = "another instance of this program is linked; this one is accepted once that link has closed";
                self.refuse(peer, Refused::new(RefusalCode::Duplicate, reason));
            }
            LinkDecision::ClonedKey => self.refuse_cloned_key(id, peer),
        }
    }

    fn attach_control(&mut self, id: PeerId, peer: Box<AuthenticatedConn>) {
        let AuthenticatedConn {
            mut conn,
            key,
            hello,
            grant,
            addr,
            dial_claim,
            ..
        } = *peer;
        let Some(grant) = grant else { return };
        self.last_link_number += 1;
        let number = self.last_link_number;
        conn.set_limits(FrameLimits::CONTROL);
        let info = Arc::new(PeerInfo {
            id,
            key,
            kind: hello.kind,
            role: grant.role,
            name: hello.name,
            tags: hello.tags,
            software: hello.software,
            addr,
            listen_addr: socket::with_port(addr, hello.port),
            instance: hello.instance,
        });
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let attachment = Box::new(Attachment {
            conn,
            info: Arc::clone(&info),
            link_number: number,
        });
        if entry
            .control
            .commands
            .try_send(LinkCommand::Attach(attachment))
            .is_err()
        {
            // The session's queue is full; the peer dials again.
            tracing::warn!(peer = %info.name, "Link dropped: too many at once");
            entry.choice.on_closed();
            self.dial_claims.set_unlinked(id);
            return;
        }
        entry.link_number = number;
        entry.info = Some(info);
        entry.fleet_state = hello.fleet_state;
        entry.is_open = false;
        self.address_book.linked(id);
        self.dial_claims.set_linked(id, hello.instance);
        drop(dial_claim);
    }

    fn refuse_cloned_key(&mut self, id: PeerId, peer: Box<AuthenticatedConn>) {
        let other = (peer.hello.name.clone(), peer.addr);
        let linked = self.peers.get(&id).and_then(|entry| entry.info.clone());
        // The address on which it listens: the port of an incoming connection is of no use to the operator.
        let linked = linked.map_or_else(|| other.clone(), |info| (info.name.clone(), info.listen_addr));
        let reason = format!(
            "key {} is in use by {} at {} too: two devices hold one copied identity.key; delete it on one of them and \
             join that one anew",
            id.short(),
            linked.0,
            linked.1.ip()
        );
        self.notify(Notice::ClonedKey { id, linked, other });
        self.refuse(peer, Refused::new(RefusalCode::ClonedKey, reason));
    }

    fn on_bulk_connection(&mut self, peer: Box<AuthenticatedConn>) {
        let Some(peer) = self.recheck_membership(peer) else {
            return;
        };
        let id = peer.key.id();
        let info = self.peers.get(&id).and_then(|entry| entry.info.clone());
        let Some(info) = info.filter(|info| info.instance == peer.hello.instance) else {
            let reason = "a connection for files needs a link first";
            return self.refuse(peer, Refused::new(RefusalCode::Protocol, reason));
        };
        if self.ensure_bulk_session(id).is_none() {
            return;
        }
        self.last_link_number += 1;
        let number = self.last_link_number;
        let AuthenticatedConn { mut conn, .. } = *peer;
        conn.set_limits(FrameLimits::BULK);
        let attachment = Box::new(Attachment {
            conn,
            info,
            link_number: number,
        });
        if let Some(entry) = self.peers.get_mut(&id)
            && let Some(bulk) = &entry.bulk
        {
            if bulk.commands.try_send(LinkCommand::Attach(attachment)).is_err() {
                tracing::warn!(peer = %id.short(), "Bulk connection dropped: too many at once");
                return;
            }
            entry.bulk_link_number = number;
        }
    }

    fn on_join_connection(&mut self, peer: Box<AuthenticatedConn>) {
        let Ok(permit) = Arc::clone(&self.join_permits).try_acquire_owned() else {
            let busy = "too many wait to be taken in already; try again later";
            return self.refuse(peer, Refused::new(RefusalCode::Busy, busy));
        };
        let (joins, shutdown) = (self.parts.joins.clone(), self.parts.shutdown.clone());
        self.parts.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = accept::handle_join_request(peer, joins) => {}
            }
            drop(permit);
        });
    }

    fn refuse(&self, peer: Box<AuthenticatedConn>, refused: Refused) {
        self.parts.tasks.spawn(accept::refuse(peer, refused));
    }

    // ── Events of links ──────────────────────────────────────────────────────────────────────────────────────

    fn on_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Opened {
                id,
                channel: Channel::Control,
            } => self.on_link_opened(id),
            LinkEvent::Opened {
                channel: Channel::Bulk | Channel::Join,
                ..
            } => {}
            LinkEvent::Closed {
                id,
                channel,
                link_number: number,
                addr,
                refused,
                path,
            } => {
                self.on_path_judged(addr.ip(), path);
                if let Some(refused) = refused {
                    self.notify_refused_by_peer(addr, Some(id), refused);
                }
                self.on_link_closed(id, channel, number);
            }
            LinkEvent::BulkWanted { id } => self.open_bulk_connection(id),
            LinkEvent::Frame { peer, frame } => self.on_frame(&peer, &frame),
        }
    }

    fn on_link_opened(&mut self, id: PeerId) {
        let membership = self.parts.membership.borrow().clone();
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        entry.is_open = true;
        if let Some(info) = &entry.info
            && should_link(self.parts.local.kind, info.kind)
        {
            let now = clock::now();
            // An address that was dialled is proved; where the peer listens is what it says.
            let is_dialled = entry
                .choice
                .current()
                .is_some_and(|link| link.dialler == DialedBy::Local);
            let addr = if is_dialled { info.addr } else { info.listen_addr };
            if addr.port() != 0 {
                self.address_book.link_opened(id, addr, now);
            }
        }
        if let Some(membership) = membership {
            entry.send_fleet_state(&membership);
        }
        self.send_roster(id);
    }

    fn on_link_closed(&mut self, id: PeerId, channel: Channel, number: u64) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        match channel {
            Channel::Control if entry.link_number == number => {
                entry.choice.on_closed();
                self.dial_claims.set_unlinked(id);
                if std::mem::take(&mut entry.is_open) {
                    self.address_book.unlinked(id, clock::now(), random::jitter());
                } else {
                    self.address_book.link_rejected(id);
                }
            }
            Channel::Bulk if entry.bulk_link_number == number => entry.bulk_link_number = 0,
            // Another has taken its place already.
            Channel::Control | Channel::Bulk | Channel::Join => {}
        }
    }

    fn on_frame(&mut self, peer: &PeerInfo, frame: &Frame) {
        let outcome = match frame.header.kind {
            Some(Kind::Roster) => frame
                .parse_content::<Roster>()
                .map(|roster| self.on_roster(peer.id, roster)),
            Some(Kind::FleetState) => frame
                .parse_content()
                .map(|state| self.on_fleet_state(peer, state)),
            Some(Kind::OpenBulk) => {
                self.open_bulk_connection(peer.id);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::warn!(peer = %peer.name, kind = ?frame.header.kind, %error, "Frame unreadable");
        }
    }
}

/// Whether a program of one kind keeps links to programs of the other by itself.
pub(super) fn should_link(kind: PeerKind, of: PeerKind) -> bool {
    match (kind, of) {
        (PeerKind::Station, PeerKind::Node | PeerKind::Station) | (PeerKind::Node, PeerKind::Station) => true,
        (PeerKind::Node, PeerKind::Node) => false,
    }
}

pub(super) fn send_frame(link: &PeerLink, frame: &Frame, lane: Lane) {
    let frame = match EncodedFrame::new(frame) {
        Ok(frame) => frame,
        Err(error) => return tracing::error!(%error, "Own frame not encodable"),
    };
    if let Err(error) = link.try_send(Outgoing {
        frame,
        lane,
        deadline: None,
    }) {
        tracing::debug!(peer = %link.id().short(), %error, "Frame not queued");
    }
}
