//! One member of the fleet.

use std::collections::BTreeMap;
use std::time::Instant;

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::message::LOST_LINK_CHECK;
use swarm_shared::proto::selector::{NodeAttributes, Selector};
use tokio::sync::watch;

use crate::engine::observe::action_catalogs::KnownActions;
use crate::store::MemberRow;
use swarm_shared::api::{Check, MemberView, NodeState, NodeView, StopView, Warning};

/// A member of the fleet, with what is known of it since this process started.
pub(super) struct Member {
    pub(super) row: MemberRow,
    pub(super) link: Option<PeerLink>,
    pub(super) online: watch::Sender<bool>,
    pub(super) silent: bool,
    pub(super) software: Option<String>,
    pub(super) warnings: Vec<Warning>,
    /// `None` until the first self-check of this link has ended, however it ended.
    pub(super) checks: Option<Vec<Check>>,
    pub(super) stopped: Option<StopView>,
    pub(super) unsaved: bool,
    /// The actions that it has offered.
    pub(super) action_catalog: watch::Sender<KnownActions>,
}

impl Member {
    pub(super) fn new(row: MemberRow) -> Self {
        Self {
            row,
            link: None,
            online: watch::Sender::new(false),
            silent: false,
            software: None,
            warnings: Vec::new(),
            checks: None,
            stopped: None,
            unsaved: false,
            action_catalog: watch::Sender::default(),
        }
    }

    pub(super) fn is_online(&self) -> bool {
        *self.online.borrow()
    }

    pub(super) fn matches(&self, selector: &Selector) -> bool {
        let id = self.row.key.id();
        selector.matches(&NodeAttributes {
            name: &self.row.name,
            id: &id,
            tags: &self.row.tags,
        })
    }

    pub(super) fn last_heard_ms(&self, now: Instant) -> Option<u64> {
        if let Some(heard) = self.link.as_ref().and_then(PeerLink::last_heard) {
            let ago = now.saturating_duration_since(heard);
            return Some(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
        }
        (self.row.last_seen_ms > 0).then(|| clock::unix_time_ms().saturating_sub(self.row.last_seen_ms))
    }

    /// `names`: how many have its name; `unconfirmed`: the stop that it has not confirmed.
    pub(super) fn view(&self, now: Instant, names: NameCount, unconfirmed: Option<u64>) -> NodeView {
        let state = match (self.is_online(), self.silent) {
            (true, false) => NodeState::Online,
            (true, true) => NodeState::Silent,
            (false, _) => NodeState::Offline,
        };
        let mut warnings = self.warnings.clone();
        warnings.extend(self.row.revoked.then_some(Warning::Revoked));
        if names.nodes > 1 && !self.row.revoked {
            warnings.push(Warning::DuplicateName {
                name: self.row.name.clone(),
                id: self.row.key.id(),
                nodes: names.nodes,
            });
        }
        warnings.extend(self.stopped.as_ref().map(|stop| {
            if stop.held {
                return Warning::Held;
            }
            Warning::Stopped {
                number: stop.number,
                issuer: stop.issuer,
                error: stop.error.clone(),
            }
        }));
        warnings.extend(unconfirmed.map(|number| Warning::StopUnconfirmed { number }));
        if names.devices > 0 {
            let name = self.row.name.clone();
            warnings.push(Warning::NameUsedByDevice { name });
        }
        // The operator should see what the node did by itself, even if it went well.
        let lost = self.checks.iter().flatten();
        let lost = lost.filter(|check| check.ok && check.name == LOST_LINK_CHECK);
        warnings.extend(lost.filter_map(|check| {
            Some(Warning::LostLink {
                text: check.text.clone()?,
            })
        }));
        NodeView {
            stopped: self.stopped.clone(),
            stop_unconfirmed: unconfirmed,
            node: self.row.name.clone(),
            id: self.row.key.id(),
            state,
            kind: self.row.kind,
            address: self.row.address,
            last_heard_ms: self.last_heard_ms(now),
            tags: self.row.tags.clone(),
            software: self.software.clone(),
            warnings,
            checks: self.checks.clone().unwrap_or_default(),
            telemetry: BTreeMap::new(),
        }
    }
}

/// How many nodes and how many bridged devices have one name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NameCount {
    pub(super) nodes: usize,
    pub(super) devices: usize,
}

/// Adds to the view of a bridged device which others have its name.
pub(super) fn warn_of_shared_name(mut view: NodeView, count: NameCount) -> NodeView {
    let name = || view.node.clone();
    let by_node = (count.nodes > 0).then(|| Warning::NameUsedByNode { name: name() });
    let by_devices = (count.devices > 1).then(|| Warning::DuplicateDeviceName {
        name: name(),
        devices: count.devices,
    });
    view.warnings.extend(by_node.into_iter().chain(by_devices));
    view
}

/// A member as `fleet members` shows it.
pub(in crate::engine) fn member_view(row: &MemberRow) -> MemberView {
    MemberView {
        node: row.name.clone(),
        id: row.key.id(),
        kind: row.kind,
        role: row.role,
        revoked: row.revoked,
        address: row.address,
        last_heard_ms: (row.last_seen_ms > 0).then(|| clock::unix_time_ms().saturating_sub(row.last_seen_ms)),
    }
}
