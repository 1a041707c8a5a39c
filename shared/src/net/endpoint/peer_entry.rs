//! An entry of the table of peers.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::net::peer::{LinkCommand, PeerInfo, SessionHandle};
use crate::proto::session::simultaneous_open::LinkTieBreaker;

/// One peer: its sessions, and the control link that is up.
pub(super) struct PeerEntry {
    pub(super) control: SessionHandle,
    pub(super) bulk: Option<SessionHandle>,
    pub(super) choice: LinkTieBreaker,
    /// The link attached last.
    pub(super) link_number: u64,
    pub(super) info: Option<Arc<PeerInfo>>,
    /// The number of the newest fleet state that the peer has or was sent.
    pub(super) fleet_state: u64,
    pub(super) is_open: bool,
    /// The number of the open bulk connection; 0 if there is none.
    pub(super) bulk_link_number: u64,
    pub(super) is_dialling_bulk: bool,
    pub(super) shutdown: CancellationToken,
}

impl PeerEntry {
    /// Sends a command to both sessions; false if the queue of one is full.
    pub(super) fn close(&self, input: impl Fn() -> LinkCommand) -> bool {
        let mut sent = true;
        for session in [Some(&self.control), self.bulk.as_ref()].into_iter().flatten() {
            sent &= session.commands.try_send(input()).is_ok();
        }
        sent
    }
}
