//! The task that owns the table of peers and the book of addresses: its loop, its dials, its connections, and word of
//! its links. The table's entries are in [`super::sessions`], and what it does for the fleet as a whole in
//! [`super::fleet`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::{self, Arrival, Errand, JOINS_MAX, Listening};
use super::fleet::ROSTER_INTERVAL;
use super::sessions::Entry;
use super::{Ask, JoinRequest, Notice};
use crate::net::handshake::{Greeted, HandshakeError, Local};
use crate::net::peer::{Attachment, LinkInput, LinkWord, PeerEvent, PeerInfo, PeerLink, StopHeard};
use crate::net::socket::KeepaliveConfig;
use crate::net::{clock, random};
use crate::proto::address_book::{DialBook, Hint, Source};
use crate::proto::encoded::Parcel;
use crate::proto::id::{PeerId, PeerKind};
use crate::proto::message::{Channel, RefusalCode, Refused, Roster};
use crate::proto::session::{Outgoing, Timing};
use crate::proto::simultaneous_open::{LinkFacts, Verdict};
use crate::proto::trust::Membership;
use crate::proto::wire::{Frame, Kind, Lane, Limits};

/// Words of links and arrivals that wait for this task.
const INPUTS_MAX: usize = 1_024;
/// Inputs of one kind taken in one go before the others get their turn.
const INPUTS_A_TURN: usize = 64;

pub(super) struct Parts {
    pub(super) local: Local,
    pub(super) keepalive: KeepaliveConfig,
    pub(super) timing: Timing,
    pub(super) membership: watch::Sender<Option<Arc<Membership>>>,
    pub(super) joins: Option<mpsc::Sender<JoinRequest>>,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) events: mpsc::Sender<PeerEvent>,
    pub(super) stops: mpsc::Sender<StopHeard>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

pub(super) struct EndpointTask {
    pub(super) parts: Parts,
    pub(super) id: PeerId,
    pub(super) peers: BTreeMap<PeerId, Entry>,
    pub(super) book: DialBook,
    links: u64,
    pub(super) words: mpsc::Sender<LinkWord>,
    arrivals: mpsc::Sender<Arrival>,
    joins_waiting: Arc<Semaphore>,
    pub(super) next_roster: Instant,
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
        let mut profile = self.parts.local.profile.clone();
        profile.mark_unchanged();
        loop {
            self.dial_due();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Ok(()) = profile.changed() => self.send_name(),
                () = self.work(&mut words, &mut arrivals) => {}
            }
        }
        // The peers' tasks say good-bye with the same token; their last words need a reader until all are gone.
        drop(self);
        words.close();
        while words.recv().await.is_some() {}
    }

    /// Takes what has come, of whichever kind: none may keep the others waiting.
    async fn work(&mut self, words: &mut mpsc::Receiver<LinkWord>, arrivals: &mut mpsc::Receiver<Arrival>) {
        let next = self
            .next_dial()
            .map_or(self.next_roster, |next| next.min(self.next_roster));
        tokio::select! {
            Some(word) = words.recv() => {
                self.take_word(word);
                for word in std::iter::from_fn(|| words.try_recv().ok()).take(INPUTS_A_TURN) {
                    self.take_word(word);
                }
            }
            Some(arrival) = arrivals.recv() => {
                self.take_arrival(arrival);
                for arrival in std::iter::from_fn(|| arrivals.try_recv().ok()).take(INPUTS_A_TURN) {
                    self.take_arrival(arrival);
                }
            }
            Some(ask) = self.parts.asks.recv() => self.take_ask(ask),
            () = clock::sleep_until(next) => self.send_rosters_when_due(),
        }
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
                    if self.peers.get(&id).is_some_and(|entry| entry.bulk_number == 0) {
                        self.want_bulk(id);
                    }
                }
            }
            Ask::Adopt { membership, done } => {
                self.adopt(Membership::clone(&membership));
                let _caller_gone = done.send(());
            }
        }
    }

    // ── Addresses ────────────────────────────────────────────────────────────────────────────────────────────

    /// Nobody would take a link of ours before we belong to a fleet.
    fn may_dial(&self) -> bool {
        self.parts.membership.borrow().is_some()
    }

    fn next_dial(&self) -> Option<Instant> {
        self.book.poll_timeout().filter(|_| self.may_dial())
    }

    fn dial_due(&mut self) {
        if !self.may_dial() {
            return;
        }
        for addr in self.book.due(clock::now()) {
            self.spawn_dial(addr, Errand::Link);
        }
    }

    pub(super) fn spawn_dial(&self, addr: SocketAddr, errand: Errand) {
        let (local, keepalive) = (self.parts.local.clone(), self.parts.keepalive);
        let (arrivals, stop) = (self.arrivals.clone(), self.parts.stop.clone());
        self.parts.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                arrival = accept::dial(local, keepalive, addr, errand) => {
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
            Arrival::Dialled { addr, errand, result } => self.take_dialled(addr, errand, result),
        }
    }

    fn take_dialled(
        &mut self,
        addr: SocketAddr,
        errand: Errand,
        result: Result<Box<Greeted>, HandshakeError>,
    ) {
        let (now, spread) = (clock::now(), random::spread());
        if let Errand::Files(id) = errand
            && let Some(entry) = self.peers.get_mut(&id)
        {
            entry.bulk_dialling = false;
        }
        match (errand, result) {
            (Errand::Link, Ok(greeted)) => {
                self.book.dialled(addr, greeted.key.id(), now, spread);
                self.take_control(greeted);
            }
            (Errand::Files(_), Ok(greeted)) => self.take_bulk(greeted),
            (Errand::Link, Err(error)) => {
                self.book.failed(addr, now, spread);
                self.report(addr, error);
            }
            (Errand::Files(_), Err(error)) => self.report(addr, error),
        }
    }

    /// Judges a peer once more: it may have been put out since it was greeted.
    fn judge(&mut self, greeted: Box<Greeted>) -> Option<Box<Greeted>> {
        let membership = self.parts.membership.borrow().clone()?;
        match membership.check_peer(&greeted.key, greeted.hello.grant.as_ref()) {
            Ok(_grant) => Some(greeted),
            Err(refused) => {
                self.notice(Notice::Refused {
                    addr: greeted.addr,
                    peer: Some(greeted.key.id()),
                    name: Some(greeted.hello.name.clone()),
                    by_us: true,
                    refused: refused.clone(),
                });
                self.refuse(greeted, refused);
                None
            }
        }
    }

    fn take_control(&mut self, greeted: Box<Greeted>) {
        let Some(greeted) = self.judge(greeted) else {
            return;
        };
        let id = greeted.key.id();
        let (us, now, lost_after) = (self.id, clock::now(), self.parts.timing.lost_after);
        let facts = LinkFacts {
            dialler: greeted.dialler,
            instance: greeted.hello.instance,
        };
        let Some(entry) = self.entry(id) else { return };
        match entry.choice.offer(us, id, facts, now, lost_after) {
            Verdict::Take => self.attach_control(id, greeted),
            Verdict::Refuse => {
                let reason = "another link between the two stays";
                self.refuse(greeted, Refused::new(RefusalCode::Duplicate, reason));
            }
            Verdict::Wait => {
                let reason =
                    "another run of this program is linked; once its link is gone, this one is taken";
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
            entry.choice.closed();
            return;
        }
        entry.number = number;
        entry.info = Some(info);
        entry.fleet_state = hello.fleet_state;
        entry.open = false;
        self.book.linked(id);
    }

    fn refuse_clone(&mut self, id: PeerId, greeted: Box<Greeted>) {
        let other = (greeted.hello.name.clone(), greeted.addr);
        let linked = self.peers.get(&id).and_then(|entry| entry.info.clone());
        // Where it listens: which side dialled, and from which port, tells nobody anything.
        let linked = linked.map_or_else(|| other.clone(), |info| (info.name.clone(), info.listens));
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
        let Some(greeted) = self.judge(greeted) else {
            return;
        };
        let id = greeted.key.id();
        let info = self.peers.get(&id).and_then(|entry| entry.info.clone());
        let Some(info) = info.filter(|info| info.instance == greeted.hello.instance) else {
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
        if let Some(entry) = self.peers.get_mut(&id)
            && let Some(bulk) = &entry.bulk
        {
            if bulk.links.try_send(LinkInput::Attach(attachment)).is_err() {
                tracing::warn!(peer = %id.short(), "too many bulk connections at once; one dropped");
                return;
            }
            entry.bulk_number = number;
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
                    self.report_refusal(addr, Some(id), refused);
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
        if let Some(info) = &entry.info
            && wants(self.parts.local.kind, info.kind)
            && info.listens.port() != 0
        {
            self.book
                .heard(info.listens, Source::Known, Hint::Id(id), clock::now());
        }
        if let Some(membership) = membership {
            entry.tell_fleet_state(&membership);
        }
        self.send_roster(id);
    }

    fn closed(&mut self, id: PeerId, channel: Channel, number: u64) {
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        match channel {
            Channel::Control if entry.number == number => {
                entry.choice.closed();
                if std::mem::take(&mut entry.open) {
                    self.book.unlinked(id, clock::now(), random::spread());
                } else {
                    self.book.turned_away(id);
                }
            }
            Channel::Bulk if entry.bulk_number == number => entry.bulk_number = 0,
            // Another has taken its place already.
            Channel::Control | Channel::Bulk | Channel::Join => {}
        }
    }

    fn take_frame(&mut self, peer: &PeerInfo, frame: &Frame) {
        let outcome = match frame.header.kind {
            Some(Kind::Roster) => frame
                .read::<Roster>()
                .map(|roster| self.take_roster(peer.id, roster)),
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
}

/// Whether a program of one kind keeps links to programs of the other by itself.
pub(super) fn wants(kind: PeerKind, of: PeerKind) -> bool {
    match (kind, of) {
        (PeerKind::Station, PeerKind::Node | PeerKind::Station) | (PeerKind::Node, PeerKind::Station) => true,
        (PeerKind::Node, PeerKind::Node) => false,
    }
}

pub(super) fn send(link: &PeerLink, frame: &Frame, lane: Lane) {
    let parcel = match Parcel::new(frame) {
        Ok(parcel) => parcel,
        Err(error) => return tracing::error!(%error, "a frame of ours does not encode"),
    };
    if let Err(error) = link.try_send(Outgoing {
        parcel,
        lane,
        deadline: None,
    }) {
        tracing::debug!(peer = %link.id().short(), %error, "not told");
    }
}
