//! The sessions of each peer: started with its entry in the table, and its bulk connection when needed.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::accept::DialPurpose;
use super::peer_entry::PeerEntry;
use super::task::{EndpointTask, send_frame};
use crate::net::peer::{PeerEvent, PeerLink, SessionHandle, TaskParts, spawn as spawn_peer};
use crate::proto::id::PeerId;
use crate::proto::message::Channel;
use crate::proto::session::simultaneous_open::{DialedBy, LinkTieBreaker};
use crate::proto::trust::gate::{Permission, permit};
use crate::proto::wire::{Frame, Kind, Lane};

/// Frames of a bulk session that wait for the application: small, because each may hold a chunk.
const BULK_EVENTS_MAX: usize = 4;

impl EndpointTask {
    /// The peer's entry, with a session that waits for its first link if it is new.
    pub(super) fn peer_entry(&mut self, id: PeerId) -> Option<&mut PeerEntry> {
        if !self.peers.contains_key(&id) {
            let shutdown = self.parts.shutdown.child_token();
            let control =
                self.spawn_session(id, Channel::Control, self.parts.events.clone(), shutdown.clone())?;
            let entry = PeerEntry {
                control,
                bulk: None,
                choice: LinkTieBreaker::default(),
                link_number: 0,
                info: None,
                fleet_state: 0,
                is_open: false,
                bulk_link_number: 0,
                is_dialling_bulk: false,
                shutdown,
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
        shutdown: CancellationToken,
    ) -> Option<SessionHandle> {
        let parts = TaskParts {
            id,
            channel,
            instance: self.parts.local.identity.instance,
            timing: self.parts.timing,
            events,
            deliveries: match channel {
                Channel::Control | Channel::Join => self.parts.deliveries.clone(),
                Channel::Bulk => None,
            },
            stops: self.parts.stops.clone(),
            link_events: self.link_events.clone(),
            shutdown,
            tasks: self.parts.tasks.clone(),
        };
        spawn_peer(parts)
            .inspect_err(|error| tracing::error!(%error, "Session not started"))
            .ok()
    }

    pub(super) fn ensure_bulk_session(&mut self, id: PeerId) -> Option<PeerLink> {
        let entry = self.peer_entry(id)?;
        if let Some(bulk) = &entry.bulk {
            return Some(bulk.link.clone());
        }
        let shutdown = entry.shutdown.clone();
        let (events, events_receiver) = mpsc::channel(BULK_EVENTS_MAX);
        let bulk = self.spawn_session(id, Channel::Bulk, events, shutdown)?;
        let link = bulk.link.clone();
        self.peer_entry(id)?.bulk = Some(bulk);
        let event = PeerEvent::BulkOpened {
            id,
            link: link.clone(),
            events: events_receiver,
        };
        let (application, shutdown) = (self.parts.events.clone(), self.parts.shutdown.clone());
        self.parts.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                _stopping = application.send(event) => {}
            }
        });
        Some(link)
    }

    /// Opens the bulk connection: the side that dialled the control link dials it, because that way works.
    pub(super) fn open_bulk_connection(&mut self, id: PeerId) {
        let can_ask = self.can_send(Kind::OpenBulk);
        let Some(entry) = self.peers.get_mut(&id) else {
            return;
        };
        let (Some(info), Some(link)) = (entry.info.clone(), entry.choice.current()) else {
            return;
        };
        match link.dialler {
            DialedBy::Local if entry.is_dialling_bulk => {}
            DialedBy::Local => {
                entry.is_dialling_bulk = true;
                self.spawn_dial(info.addr, DialPurpose::Bulk(id));
            }
            DialedBy::Remote if can_ask => {
                let request = Frame::binary(Kind::OpenBulk, bytes::Bytes::new());
                send_frame(&entry.control.link, &request, Lane::Control);
            }
            DialedBy::Remote => {
                tracing::debug!(peer = %info.name, "Bulk connection not requested: own role does not permit it");
            }
        }
    }

    /// Whether the peers' gate would let a frame of ours through.
    pub(super) fn can_send(&self, kind: Kind) -> bool {
        let membership = self.parts.membership.borrow();
        membership
            .as_ref()
            .is_some_and(|membership| permit(membership.own_role(), &Permission::Frame(kind)).is_ok())
    }
}
