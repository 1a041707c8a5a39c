//! The part of the endpoint's task that concerns the whole fleet: rosters, fleet states, notices for the operator.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::Notice;
use super::peer_entry::PeerEntry;
use super::task::{EndpointTask, ROSTER_INTERVAL, send_frame, should_link};
use crate::net::clock;
use crate::net::handshake::HandshakeError;
use crate::net::peer::{LinkCommand, PeerInfo};
use crate::proto::discovery::address_book::{Hint, Source};
use crate::proto::id::{NodeName, PeerId};
use crate::proto::message::{FleetStateMessage, ROSTER_PEERS_MAX, RefusalCode, Refused, Roster, RosterPeer};
use crate::proto::trust::Membership;
use crate::proto::wire::{Frame, Kind, Lane};

impl PeerEntry {
    /// Sends the fleet state to a linked peer that lacks it, in the emergency lane: it may hold a revocation.
    pub(super) fn send_fleet_state(&mut self, membership: &Membership) {
        if self.fleet_state < membership.state_number() {
            self.fleet_state = membership.state_number();
            let frame = Frame::json(Kind::FleetState, membership.fleet_state());
            send_frame(&self.control.link, &frame, Lane::Emergency);
        }
    }
}

/// Whether a host elsewhere can dial an address. The zone of a link-local one says nothing to other hosts.
fn is_dialable_elsewhere(addr: SocketAddr) -> bool {
    let is_link_local = matches!(addr.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    addr.port() != 0 && !is_link_local
}

impl EndpointTask {
    // ── Rosters ──────────────────────────────────────────────────────────────────────────────────────────────

    pub(super) fn send_due_rosters(&mut self) {
        let now = clock::now();
        if now < self.next_roster_at {
            return;
        }
        self.next_roster_at = now + ROSTER_INTERVAL;
        let open: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, e)| e.is_open)
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            self.send_roster(id);
        }
    }

    /// The peers that a roster lists: for a node the stations, for a station all.
    pub(super) fn send_roster(&self, to: PeerId) {
        if !self.can_send(Kind::Roster) {
            return;
        }
        let Some(PeerEntry {
            info: Some(receiver),
            control,
            ..
        }) = self.peers.get(&to)
        else {
            return;
        };
        let linked = self
            .peers
            .values()
            .filter(|entry| entry.is_open)
            .filter_map(|entry| entry.info.as_ref());
        let wanted = linked.filter(|info| {
            info.id != to && should_link(receiver.kind, info.kind) && is_dialable_elsewhere(info.listen_addr)
        });
        let peers: Vec<RosterPeer> = wanted
            .take(ROSTER_PEERS_MAX)
            .map(|info| RosterPeer {
                id: info.id,
                kind: info.kind,
                name: info.name.clone(),
                addr: info.listen_addr,
            })
            .collect();
        if !peers.is_empty() {
            let roster = Frame::json(Kind::Roster, &Roster { peers });
            send_frame(&control.link, &roster, Lane::Control);
        }
    }

    /// This program's name has changed: sends all linked peers a roster that contains this program.
    pub(super) fn send_name(&self) {
        if !self.can_send(Kind::Roster) {
            return;
        }
        let local = &self.parts.local;
        let (name, port) = {
            let profile = local.profile.borrow();
            (profile.name.clone(), profile.port)
        };
        let own = RosterPeer {
            id: self.id,
            kind: local.kind,
            name,
            // The receiver knows this program's address from the connection.
            addr: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        };
        let roster = Frame::json(Kind::Roster, &Roster { peers: vec![own] });
        for entry in self.peers.values().filter(|entry| entry.is_open) {
            send_frame(&entry.control.link, &roster, Lane::Control);
        }
    }

    fn rename_peer(&mut self, id: PeerId, name: NodeName) {
        let Some(info) = self.peers.get_mut(&id).and_then(|entry| entry.info.as_mut()) else {
            return;
        };
        if info.name != name {
            let old = info.name.clone();
            *info = Arc::new(PeerInfo {
                name: name.clone(),
                ..PeerInfo::clone(info)
            });
            self.notify(Notice::Renamed { id, old, new: name });
        }
    }

    pub(super) fn on_roster(&mut self, from: PeerId, roster: Roster) {
        let now = clock::now();
        for peer in roster.peers.into_iter().take(ROSTER_PEERS_MAX) {
            if peer.id == from {
                self.rename_peer(from, peer.name);
            } else if peer.id != self.id && should_link(self.parts.local.kind, peer.kind) {
                self.address_book
                    .discovered(peer.addr, Source::Roster, Hint::Id(peer.id), now);
            }
        }
    }

    // ── The fleet ────────────────────────────────────────────────────────────────────────────────────────────

    pub(super) fn on_fleet_state(&mut self, peer: &PeerInfo, state: FleetStateMessage) {
        let Some(membership) = self.parts.membership.borrow().clone() else {
            return;
        };
        let mut membership = Membership::clone(&membership);
        match membership.adopt_state(state) {
            Ok(true) => {
                if let Some(entry) = self.peers.get_mut(&peer.id) {
                    // The sender has this state already.
                    entry.fleet_state = membership.state_number();
                }
                self.adopt_membership(membership);
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(peer = %peer.name, %error, "Fleet state rejected"),
        }
    }

    /// Adopts a membership, new or with a newer fleet state, and closes or renews the links that it affects.
    pub(super) fn adopt_membership(&mut self, mut membership: Membership) {
        let old = self.parts.membership.borrow().clone();
        if let Some(old) = &old
            && old.root() == membership.root()
            && let Err(error) = membership.adopt_state(old.fleet_state().clone())
        {
            tracing::warn!(%error, "Fleet state rejected: it is older");
        }
        let membership = Arc::new(membership);
        self.parts.membership.send_replace(Some(Arc::clone(&membership)));
        if membership.is_own_key_revoked() {
            self.notify(Notice::OwnKeyRevoked);
        }
        let fleet_changed = old.as_ref().is_some_and(|old| old.root() != membership.root());
        let grant_changed = old.is_some_and(|old| old.grant() != membership.grant());
        let mut revoked = Vec::new();
        for (id, entry) in &mut self.peers {
            let Some(info) = &entry.info else { continue };
            if fleet_changed {
                let fleet = membership.fingerprint().short();
                let reason = format!("this program has moved to fleet {fleet}");
                let refused = Refused::new(RefusalCode::WrongFleet, reason);
                entry.close(|| LinkCommand::Close(refused.clone()));
            } else if membership.is_revoked(&info.key) {
                revoked.push(*id);
            } else if entry.is_open {
                entry.send_fleet_state(&membership);
                if grant_changed {
                    let reason = "this program has a new grant, and reconnects to show it";
                    let refused = Refused::new(RefusalCode::ShuttingDown, reason);
                    entry.close(|| LinkCommand::Close(refused.clone()));
                }
            }
        }
        for id in revoked {
            self.revoke(id, &membership);
        }
    }

    /// Ends the sessions with a peer whose key is revoked.
    fn revoke(&mut self, id: PeerId, membership: &Membership) {
        let Some(entry) = self.peers.remove(&id) else {
            return;
        };
        self.dial_claims.set_unlinked(id);
        self.address_book.remove_peer(id);
        let Some(info) = &entry.info else { return };
        let Err(refused) = membership.check_peer(&info.key, None) else {
            return;
        };
        if !entry.close(|| LinkCommand::EndSession(refused.clone())) {
            entry.shutdown.cancel();
        }
        if entry.choice.current().is_some() {
            self.notify(Notice::Refused {
                addr: info.addr,
                peer: Some(id),
                name: Some(info.name.clone()),
                by_us: true,
                refused,
            });
        }
    }

    // ── For the operator ─────────────────────────────────────────────────────────────────────────────────────

    pub(super) fn notify_handshake_error(&self, addr: SocketAddr, error: HandshakeError) {
        match error {
            HandshakeError::RefusedByPeer(refused) => self.notify_refused_by_peer(addr, None, refused),
            HandshakeError::RefusedByUs { key, name, refused } => {
                let peer = Some(key.id());
                self.notify(Notice::Refused {
                    addr,
                    peer,
                    name,
                    by_us: true,
                    refused,
                });
            }
            HandshakeError::Io(_)
            | HandshakeError::Read(_)
            | HandshakeError::Wire(_)
            | HandshakeError::Tls(_)
            | HandshakeError::AlreadyLinked(_)
            | HandshakeError::SmallSegmentsRequested
            | HandshakeError::TimedOut => tracing::debug!(%addr, %error, "Handshake failed"),
        }
    }

    pub(super) fn notify_refused_by_peer(&self, addr: SocketAddr, peer: Option<PeerId>, refused: Refused) {
        if matches!(refused.code, RefusalCode::Duplicate | RefusalCode::ShuttingDown) {
            return;
        }
        let info = peer
            .and_then(|id| self.peers.get(&id))
            .and_then(|entry| entry.info.as_ref());
        let name = info.map(|info| info.name.clone());
        self.notify(Notice::Refused {
            addr,
            peer,
            name,
            by_us: false,
            refused,
        });
    }

    pub(super) fn notify(&self, notice: Notice) {
        if let Err(error) = self.parts.notices.try_send(notice) {
            tracing::warn!(%error, "Notice dropped");
        }
    }
}
