//! The task that owns the table of peers and the book of addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::{self, Arrival, JOINS_MAX, Listening};
use super::{Ask, JoinRequest, Notice};
use crate::net::handshake::{Greeted, HandshakeError, Local};
use crate::net::peer::{
    Attachment, LinkInput, LinkWord, PeerControl, PeerEvent, PeerInfo, PeerLink, TaskParts,
    spawn as spawn_peer,
};
use crate::net::socket::KeepaliveConfig;
use crate::net::{clock, random};
use crate::proto::dial::{DialBook, Hint, Source};
use crate::proto::duplicates::{Dialler, LinkChoice, LinkFacts, Verdict};
use crate::proto::id::{PeerId, PeerKind};
use crate::proto::message::{Channel, ROSTER_PEERS_MAX, RefusalCode, Refused, Roster, RosterPeer};
use crate::proto::parcel::Parcel;
use crate::proto::session::{Outgoing, Timing};
use crate::proto::trust::Membership;
use crate::proto::wire::{Frame, Kind, Lane, Limits};

/// How often linked peers are told whom this one knows.
const ROSTER_INTERVAL: Duration = Duration::from_secs(30);
/// Words of links and arrivals that wait for this task.
const INPUTS_MAX: usize = 1_024;
/// Frames of a bulk session that wait for the application: small, because each may hold a chunk.
const BULK_EVENTS_MAX: usize = 4;

pub(super) struct Parts {
    pub(super) local: Local,
    pub(super) keepalive: KeepaliveConfig,
    pub(super) timing: Timing,
    pub(super) membership: watch::Sender<Option<Arc<Membership>>>,
    pub(super) joins: Option<mpsc::Sender<JoinRequest>>,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) events: mpsc::Sender<PeerEvent>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// One peer: its sessions, and the control link that is up.
struct Entry {
    control: PeerControl,
    bulk: Option<PeerControl>,
    choice: LinkChoice,
    /// The link attached last.
    number: u64,
    info: Option<Arc<PeerInfo>>,
    /// The fleet state that the peer had when it said hello.
    fleet_state: u64,
    open: bool,
    bulk_dialling: bool,
    stop: CancellationToken,
}

struct EndpointTask {
    parts: Parts,
    id: PeerId,
    peers: BTreeMap<PeerId, Entry>,
    book: DialBook,
    links: u64,
    words: mpsc::Sender<LinkWord>,
    arrivals: mpsc::Sender<Arrival>,
    joins_waiting: Arc<Semaphore>,
    next_roster: Instant,
}

pub(super) fn spawn(parts: Parts, listener: TcpListener) {
    let (words, words_in) = mpsc::channel(INPUTS_MAX);
    let (arrivals, arrivals_in) = mpsc::channel(INPUTS_MAX);
    let listening = Listening {
        listener,
        local: parts.local.clone(),
        keepalive: parts.keepalive,
        arrivals: arrivals.clone(),
        stop: parts.stop.clone(),
        tasks: parts.tasks.clone(),
    };
    let tasks = parts.tasks.clone();
    tasks.spawn(accept::listen(listening));
    let task = EndpointTask {
        id: parts.local.identity.key.public().id(),
        parts,
        peers: BTreeMap::new(),
        book: DialBook::default(),
        links: 0,
        words,
        arrivals,
        joins_waiting: Arc::new(Semaphore::new(JOINS_MAX)),
        next_roster: clock::now() + ROSTER_INTERVAL,
    };
    tasks.spawn(task.run(words_in, arrivals_in));
}

impl EndpointTask {
    async fn run(mut self, mut words: mpsc::Receiver<LinkWord>, mut arrivals: mpsc::Receiver<Arrival>) {
        let stop = self.parts.stop.clone();
        loop {
            self.dial_due();
            let next = self
                .book
                .poll_timeout()
                .map_or(self.next_roster, |next| next.min(self.next_roster));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(word) = words.recv() => self.take_word(word),
                Some(arrival) = arrivals.recv() => self.take_arrival(arrival),
                Some(ask) = self.parts.asks.recv() => self.take_ask(ask),
                () = sleep_until(next.into()) => self.send_rosters_when_due(),
            }
        }
        // The peers' tasks say good-bye with the same token; their last words need a reader until all are gone.
        drop(self);
        words.close();
        while words.recv().await.is_some() {}
    }

    fn take_ask(&mut self, ask: Ask) {
        let now = clock::now();
        match ask {
            Ask::Heard { addr, source, hint } => self.book.heard(addr, source, hint, now),
            Ask::Withdrawn(addr) => self.book.withdrawn(addr),
            Ask::Nudge => self.book.nudge(now),
            Ask::Open { id, answer } => {
                if let Some(entry) = self.entry(id) {
                    let _caller_gone = answer.send(entry.control.link.clone());
                }
            }
            Ask::Bulk { id, answer } => {
                if let Some(link) = self.bulk_session(id) {
                    let _caller_gone = answer.send(link);
                    self.want_bulk(id);
                }
            }
            Ask::Adopt(membership) => self.adopt(membership),
        }
    }

    // ── Addresses ────────────────────────────────────────────────────────────────────────────────────────────

    fn dial_due(&mut self) {
        if self.parts.membership.borrow().is_none() {
            // Nobody would take a link of ours.
            return;
        }
        for addr in self.book.due(clock::now()) {
            self.spawn_dial(addr, Channel::Control);
        }
    }

    fn spawn_dial(&self, addr: SocketAddr, channel: Channel) {
        let (local, keepalive) = (self.parts.local.clone(), self.parts.keepalive);
        let (arrivals, stop) = (self.arrivals.clone(), self.parts.stop.clone());
        self.parts.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                arrival = accept::dial(local, keepalive, addr, channel) => {
                    let _stopping = arrivals.send(arrival).await;
                }
            }
        });
    }

    // ── Connections ──────────────────────────────────────────────────────────────────────────────────────────

    fn take_arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Accepted {
                result: Ok(greeted), ..
            } => match greeted.hello.channel {
                Channel::Control => self.take_control(greeted),
                Channel::Bulk => self.take_bulk(greeted),
                Channel::Join => self.take_join(greeted),
            },
            Arrival::Accepted {
                addr,
                result: Err(error),
            } => self.report(addr, error),
            Arrival::Dialled {
                addr,
                channel,
                result,
            } => self.take_dialled(addr, channel, result),
        }
    }

    fn take_dialled(
        &mut self,
        addr: SocketAddr,
        channel: Channel,
        result: Result<Box<Greeted>, HandshakeError>,
    ) {
        let (now, spread) = (clock::now(), random::spread());
        match (channel, result) {
            (Channel::Control, Ok(greeted)) => {
                self.book.dialled(addr, greeted.key.id(), now, spread);
                self.take_control(greeted);
            }
            (Channel::Bulk, Ok(greeted)) => self.take_bulk(greeted),
            // Joining dials on its own.
            (Channel::Join, _) => {}
            (Channel::Control, Err(error)) => {
                self.book.failed(addr, now, spread);
                self.report(addr, error);
            }
            (Channel::Bulk, Err(error)) => {
                for entry in self.peers.values_mut() {
                    if entry
                        .info
                        .as_ref()
                        .is_some_and(|info| info.addr == addr || info.listens == addr)
                    {
                        entry.bulk_dialling = false;
                    }
                }
                self.report(addr, error);
            }
        }
    }

    fn take_control(&mut self, greeted: Box<Greeted>) {
        let id = greeted.key.id();
        let us = self.id;
        let facts = LinkFacts {
            dialler: greeted.dialler,
            instance: greeted.hello.instance,
        };
        let Some(entry) = self.entry(id) else { return };
        match entry.choice.offer(us, id, facts) {
            Verdict::Take => self.attach_control(id, greeted),
            Verdict::Refuse => {
                let reason = "another link between the two stays";
                self.refuse(greeted, Refused::new(RefusalCode::Duplicate, reason));
            }
            Verdict::Cloned => self.refuse_clone(id, greeted),
        }
    }

    fn attach_control(&mut self, id: PeerId, greeted: Box<Greeted>) {
        let Greeted {
            mut conn,
            key,
            hello,
            grant,
            addr,
            ..
        } = *greeted;
        let Some(grant) = grant else { return };
        self.links += 1;
        let number = self.links;
        conn.set_limits(Limits::CONTROL);
        let info = Arc::new(PeerInfo {
            id,
            key,
            kind: hello.kind,
            role: grant.role,
            name: hello.name,
            tags: hello.tags,
            software: hello.software,
            addr,
            listens: SocketAddr::new(addr.ip(), hello.port),
            instance: hello.instance,
        });
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let attachment = Box::new(Attachment {
            conn,
            info: Arc::clone(&info),
            number,
        });
        if entry
            .control
            .links
            .try_send(LinkInput::Attach(attachment))
            .is_err()
        {
            // It is taking up others faster than it can: the peer dials again.
            tracing::warn!(peer = %info.name, "too many links at once; one dropped");
            return;
        }
        entry.number = number;
        entry.info = Some(Arc::clone(&info));
        entry.fleet_state = hello.fleet_state;
        entry.open = false;
        if wants(self.parts.local.kind, info.kind) && info.listens.port() != 0 {
            self.book
                .heard(info.listens, Source::Known, Hint::Id(id), clock::now());
        }
        self.book.linked(id);
    }

    fn refuse_clone(&mut self, id: PeerId, greeted: Box<Greeted>) {
        let other = (greeted.hello.name.clone(), greeted.addr);
        let linked = self.peers.get(&id).and_then(|entry| entry.info.clone());
        let linked = linked.map_or_else(|| other.clone(), |info| (info.name.clone(), info.addr));
        let reason = format!(
            "key {} is in use by {} at {} too: two devices hold one copied identity.key; delete it on one of them and \
             join that one anew",
            id.short(),
            linked.0,
            linked.1.ip()
        );
        self.notice(Notice::Cloned { id, linked, other });
        self.refuse(greeted, Refused::new(RefusalCode::ClonedKey, reason));
    }

    fn take_bulk(&mut self, greeted: Box<Greeted>) {
        let id = greeted.key.id();
        let linked = self.peers.get_mut(&id).and_then(|entry| {
            entry.bulk_dialling = false;
            entry
                .info
                .clone()
                .filter(|info| info.instance == greeted.hello.instance)
        });
        let Some(info) = linked else {
            let reason = "a connection for files needs a link first";
            return self.refuse(greeted, Refused::new(RefusalCode::Protocol, reason));
        };
        if self.bulk_session(id).is_none() {
            return;
        }
        self.links += 1;
        let number = self.links;
        let Greeted { mut conn, .. } = *greeted;
        conn.set_limits(Limits::BULK);
        let attachment = Box::new(Attachment { conn, info, number });
        if let Some(Entry { bulk: Some(bulk), .. }) = self.peers.get(&id)
            && bulk.links.try_send(LinkInput::Attach(attachment)).is_err()
        {
            tracing::warn!(peer = %id.short(), "too many bulk connections at once; one dropped");
        }
    }

    fn take_join(&mut self, greeted: Box<Greeted>) {
        let Ok(permit) = Arc::clone(&self.joins_waiting).try_acquire_owned() else {
            let busy = "too many wait to be taken in already; try again later";
            return self.refuse(greeted, Refused::new(RefusalCode::Busy, busy));
        };
        let (joins, stop) = (self.parts.joins.clone(), self.parts.stop.clone());
        self.parts.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = accept::take_in(greeted, joins) => {}
            }
            drop(permit);
        });
    }

    fn refuse(&self, greeted: Box<Greeted>, refused: Refused) {
        self.parts.tasks.spawn(accept::refuse(greeted, refused));
    }

    // ── Sessions ─────────────────────────────────────────────────────────────────────────────────────────────

    /// The peer's entry, with a session that waits for its first link if it is new.
    fn entry(&mut self, id: PeerId) -> Option<&mut Entry> {
        if !self.peers.contains_key(&id) {
            let stop = self.parts.stop.child_token();
            let control =
                self.spawn_session(id, Channel::Control, self.parts.events.clone(), stop.clone())?;
            let entry = Entry {
                control,
                bulk: None,
                choice: LinkChoice::default(),
                number: 0,
                info: None,
                fleet_state: 0,
                open: false,
                bulk_dialling: false,
                stop,
            };
            self.peers.insert(id, entry);
        }
        self.peers.get_mut(&id)
    }

    fn spawn_session(
        &self,
        id: PeerId,
        channel: Channel,
        events: mpsc::Sender<PeerEvent>,
        stop: CancellationToken,
    ) -> Option<PeerControl> {
        let parts = TaskParts {
            id,
            channel,
            instance: self.parts.local.identity.instance,
            timing: self.parts.timing,
            events,
            words: self.words.clone(),
            stop,
            tasks: self.parts.tasks.clone(),
        };
        spawn_peer(parts)
            .inspect_err(|error| tracing::error!(%error, "no session"))
            .ok()
    }

    fn bulk_session(&mut self, id: PeerId) -> Option<PeerLink> {
        let entry = self.entry(id)?;
        if let Some(bulk) = &entry.bulk {
            return Some(bulk.link.clone());
        }
        let stop = entry.stop.clone();
        let (events, events_in) = mpsc::channel(BULK_EVENTS_MAX);
        let bulk = self.spawn_session(id, Channel::Bulk, events, stop)?;
        let link = bulk.link.clone();
        self.entry(id)?.bulk = Some(bulk);
        let told = PeerEvent::Bulk {
            id,
            link: link.clone(),
            events: events_in,
        };
        let application = self.parts.events.clone();
        self.parts.tasks.spawn(async move {
            let _stopping = application.send(told).await;
        });
        Some(link)
    }

    /// Opens the connection for files: whoever dialled the link dials this one too, because it can.
    fn want_bulk(&mut self, id: PeerId) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let (Some(info), Some(link)) = (entry.info.clone(), entry.choice.current()) else {
            return;
        };
        match link.dialler {
            Dialler::Us if entry.bulk_dialling => {}
            Dialler::Us => {
                entry.bulk_dialling = true;
                self.spawn_dial(info.addr, Channel::Bulk);
            }
            Dialler::Them => {
                let ask = Frame::binary(Kind::OpenBulk, bytes::Bytes::new());
                send(&entry.control.link, &ask);
            }
        }
    }

    // ── Words of links ───────────────────────────────────────────────────────────────────────────────────────

    fn take_word(&mut self, word: LinkWord) {
        match word {
            LinkWord::Opened {
                id,
                channel: Channel::Control,
            } => self.opened(id),
            LinkWord::Opened {
                channel: Channel::Bulk | Channel::Join,
                ..
            } => {}
            LinkWord::Closed {
                id,
                channel,
                number,
                addr,
                refused,
            } => {
                if let Some(refused) = refused {
                    self.report_refusal(addr, Some(id), refused, false);
                }
                self.closed(id, channel, number);
            }
            LinkWord::WantBulk { id } => self.want_bulk(id),
            LinkWord::Frame { peer, frame } => self.take_frame(&peer, &frame),
        }
    }

    fn opened(&mut self, id: PeerId) {
        let membership = self.parts.membership.borrow().clone();
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        entry.open = true;
        if let Some(membership) = membership
            && entry.fleet_state < membership.state_number()
        {
            send(
                &entry.control.link,
                &Frame::json(Kind::FleetState, membership.fleet_state()),
            );
        }
        self.send_roster(id);
    }

    fn closed(&mut self, id: PeerId, channel: Channel, number: u64) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        if channel != Channel::Control || entry.number != number {
            return;
        }
        entry.choice.closed();
        entry.open = false;
        self.book.unlinked(id, clock::now(), random::spread());
    }

    fn take_frame(&mut self, peer: &PeerInfo, frame: &Frame) {
        let outcome = match frame.header.kind {
            Some(Kind::Roster) => frame.read::<Roster>().map(|roster| self.take_roster(roster)),
            Some(Kind::FleetState) => frame.read().map(|state| self.take_fleet_state(peer, state)),
            Some(Kind::OpenBulk) => {
                self.want_bulk(peer.id);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::warn!(peer = %peer.name, kind = ?frame.header.kind, %error, "unreadable frame");
        }
    }

    // ── Rosters ──────────────────────────────────────────────────────────────────────────────────────────────

    fn send_rosters_when_due(&mut self) {
        let now = clock::now();
        if now < self.next_roster {
            return;
        }
        self.next_roster = now + ROSTER_INTERVAL;
        let open: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, e)| e.open)
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            self.send_roster(id);
        }
    }

    /// A node is told of stations, a station of everybody.
    fn send_roster(&self, to: PeerId) {
        let Some(Entry {
            info: Some(receiver),
            control,
            ..
        }) = self.peers.get(&to)
        else {
            return;
        };
        let known = self
            .peers
            .values()
            .filter(|entry| entry.open)
            .filter_map(|entry| entry.info.as_ref());
        let wanted =
            known.filter(|info| info.id != to && wants(receiver.kind, info.kind) && info.listens.port() != 0);
        let peers: Vec<RosterPeer> = wanted
            .take(ROSTER_PEERS_MAX)
            .map(|info| RosterPeer {
                id: info.id,
                kind: info.kind,
                name: info.name.clone(),
                addr: info.listens,
            })
            .collect();
        if peers.is_empty() {
            return;
        }
        send(&control.link, &Frame::json(Kind::Roster, &Roster { peers }));
    }

    fn take_roster(&mut self, roster: Roster) {
        let now = clock::now();
        for peer in roster.peers.into_iter().take(ROSTER_PEERS_MAX) {
            if peer.id != self.id && wants(self.parts.local.kind, peer.kind) {
                self.book.heard(peer.addr, Source::Roster, Hint::Id(peer.id), now);
            }
        }
    }

    // ── The fleet ────────────────────────────────────────────────────────────────────────────────────────────

    fn take_fleet_state(&mut self, peer: &PeerInfo, state: crate::proto::message::FleetStateMessage) {
        let Some(membership) = self.parts.membership.borrow().clone() else {
            return;
        };
        let mut membership = Membership::clone(&membership);
        match membership.adopt_state(state) {
            Ok(true) => self.adopt(Arc::new(membership)),
            Ok(false) => {}
            Err(error) => tracing::warn!(peer = %peer.name, %error, "fleet state not taken"),
        }
    }

    fn adopt(&mut self, membership: Arc<Membership>) {
        self.parts.membership.send_replace(Some(Arc::clone(&membership)));
        if membership.own_key_revoked() {
            self.notice(Notice::OwnKeyRevoked);
        }
        let news = Frame::json(Kind::FleetState, membership.fleet_state());
        let mut revoked = Vec::new();
        for (id, entry) in &mut self.peers {
            let Some(info) = &entry.info else { continue };
            if membership.is_revoked(&info.key) {
                revoked.push(*id);
            } else if entry.open && entry.fleet_state < membership.state_number() {
                entry.fleet_state = membership.state_number();
                send(&entry.control.link, &news);
            }
        }
        for id in revoked {
            self.put_out(id, &membership);
        }
    }

    fn put_out(&mut self, id: PeerId, membership: &Membership) {
        let Some(entry) = self.peers.get(&id) else { return };
        let Some(info) = entry.info.clone().filter(|_| entry.choice.current().is_some()) else {
            return;
        };
        let Err(refused) = membership.check_peer(&info.key, None) else {
            return;
        };
        let sessions = [Some(&entry.control), entry.bulk.as_ref()];
        for session in sessions.into_iter().flatten() {
            if session.links.try_send(LinkInput::Close(refused.clone())).is_err() {
                tracing::warn!(peer = %info.name, "its link closes late");
            }
        }
        self.report_refusal(info.addr, Some(id), refused, true);
    }

    // ── For the operator ─────────────────────────────────────────────────────────────────────────────────────

    fn report(&self, addr: SocketAddr, error: HandshakeError) {
        match error {
            HandshakeError::ByPeer(refused) => self.report_refusal(addr, None, refused, false),
            HandshakeError::ByUs { key, name, refused } => {
                let peer = Some(key.id());
                self.notice(Notice::Refused {
                    addr,
                    peer,
                    name: Some(name),
                    by_us: true,
                    refused,
                });
            }
            HandshakeError::Io(_)
            | HandshakeError::Read(_)
            | HandshakeError::Wire(_)
            | HandshakeError::Tls(_)
            | HandshakeError::TimedOut => tracing::debug!(%addr, %error, "no link"),
        }
    }

    fn report_refusal(&self, addr: SocketAddr, peer: Option<PeerId>, refused: Refused, by_us: bool) {
        if matches!(refused.code, RefusalCode::Duplicate | RefusalCode::ShuttingDown) {
            return;
        }
        let info = peer
            .and_then(|id| self.peers.get(&id))
            .and_then(|entry| entry.info.as_ref());
        let name = info.map(|info| info.name.clone());
        self.notice(Notice::Refused {
            addr,
            peer,
            name,
            by_us,
            refused,
        });
    }

    fn notice(&self, notice: Notice) {
        if let Err(error) = self.parts.notices.try_send(notice) {
            tracing::warn!(%error, "a notice was lost");
        }
    }
}

/// Whether a program of one kind keeps links to programs of the other by itself.
fn wants(kind: PeerKind, of: PeerKind) -> bool {
    match (kind, of) {
        (PeerKind::Station, PeerKind::Node | PeerKind::Station) | (PeerKind::Node, PeerKind::Station) => true,
        (PeerKind::Node, PeerKind::Node) => false,
    }
}

fn send(link: &PeerLink, frame: &Frame) {
    let parcel = match Parcel::new(frame) {
        Ok(parcel) => parcel,
        Err(error) => return tracing::error!(%error, "a frame of ours does not encode"),
    };
    if let Err(error) = link.try_send(Outgoing {
        parcel,
        lane: Lane::Control,
        deadline: None,
    }) {
        tracing::debug!(peer = %link.id().short(), %error, "not told");
    }
}
