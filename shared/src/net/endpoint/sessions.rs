//! The entries of the table of peers, and the sessions behind them.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::accept::Errand;
use super::task::{EndpointTask, send};
use crate::net::peer::{
    LinkInput, PeerControl, PeerEvent, PeerInfo, PeerLink, TaskParts, spawn as spawn_peer,
};
use crate::proto::id::PeerId;
use crate::proto::message::Channel;
use crate::proto::simultaneous_open::{Dialler, LinkChoice};
use crate::proto::trust::gate::{Wish, permit};
use crate::proto::wire::{Frame, Kind, Lane};

/// Frames of a bulk session that wait for the application: small, because each may hold a chunk.
const BULK_EVENTS_MAX: usize = 4;

/// One peer: its sessions, and the control link that is up.
pub(super) struct Entry {
    pub(super) control: PeerControl,
    pub(super) bulk: Option<PeerControl>,
    pub(super) choice: LinkChoice,
    /// The link attached last.
    pub(super) number: u64,
    pub(super) info: Option<Arc<PeerInfo>>,
    /// The newest fleet state that the peer has or was sent.
    pub(super) fleet_state: u64,
    pub(super) open: bool,
    /// The connection for files that is up, or 0.
    pub(super) bulk_number: u64,
    pub(super) bulk_dialling: bool,
    pub(super) stop: CancellationToken,
}

impl Entry {
    /// Closes the links of both sessions; false if one is so far behind that it cannot be told.
    pub(super) fn close(&self, input: impl Fn() -> LinkInput) -> bool {
        let mut told = true;
        for session in [Some(&self.control), self.bulk.as_ref()].into_iter().flatten() {
            told &= session.links.try_send(input()).is_ok();
        }
        told
    }
}

impl EndpointTask {
    /// The peer's entry, with a session that waits for its first link if it is new.
    pub(super) fn entry(&mut self, id: PeerId) -> Option<&mut Entry> {
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
                bulk_number: 0,
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
            stops: self.parts.stops.clone(),
            words: self.words.clone(),
            stop,
            tasks: self.parts.tasks.clone(),
        };
        spawn_peer(parts)
            .inspect_err(|error| tracing::error!(%error, "no session"))
            .ok()
    }

    pub(super) fn bulk_session(&mut self, id: PeerId) -> Option<PeerLink> {
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
        let (application, stop) = (self.parts.events.clone(), self.parts.stop.clone());
        self.parts.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _stopping = application.send(told) => {}
            }
        });
        Some(link)
    }

    /// Opens the connection for files: whoever dialled the link dials this one too, because it can.
    pub(super) fn want_bulk(&mut self, id: PeerId) {
        let may_ask = self.may_send(Kind::OpenBulk);
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
                self.spawn_dial(info.addr, Errand::Files(id));
            }
            Dialler::Them if may_ask => {
                let ask = Frame::binary(Kind::OpenBulk, bytes::Bytes::new());
                send(&entry.control.link, &ask, Lane::Control);
            }
            Dialler::Them => tracing::debug!(peer = %info.name, "our role allows no connection for files"),
        }
    }

    /// Whether the peers' gate would let a frame of ours through.
    pub(super) fn may_send(&self, kind: Kind) -> bool {
        let membership = self.parts.membership.borrow();
        membership
            .as_ref()
            .is_some_and(|membership| permit(membership.own_role(), &Wish::Frame(kind)).is_ok())
    }
}
