//! The members of the fleet, with their links, and the bridged devices beside them: what selectors match.
//!
//! A name may belong to several nodes and devices: it matches all of them, and each carries a warning.

mod member;
mod selection;
mod target;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::Endpoint;
use swarm_shared::net::peer::{PeerInfo, PeerLink};
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind, PublicKey};
use swarm_shared::proto::message::{ActionCatalog, StopStatus};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::Membership;

pub(in crate::engine) use self::member::member_view;
use self::member::{Member, NameCount, warn_of_shared_name};
pub(in crate::engine) use self::target::{Device, NodeDevice, Target};
use crate::engine::observe::action_catalogs::KnownActions;
use crate::engine::stop::unconfirmed::UnconfirmedStops;
use crate::engine::transport::bridge::BridgedDevices;
use crate::store::{MemberRow, Store, StoreError};
use swarm_shared::api::{Check, MemberView, NodeView, StopView, Warning};

/// The results of a node's self-check.
#[derive(Debug)]
pub(in crate::engine) struct SelfCheckResult {
    pub(in crate::engine) id: PeerId,
    pub(in crate::engine) checks: Vec<Check>,
}

/// The registry, shared by requests and tasks. It is locked for a look-up or a change, never across an await.
#[derive(Clone, Default)]
pub(in crate::engine) struct SharedNodeRegistry(Arc<Mutex<NodeRegistry>>);

impl SharedNodeRegistry {
    pub(in crate::engine) fn new(registry: NodeRegistry) -> Self {
        Self(Arc::new(Mutex::new(registry)))
    }

    pub(in crate::engine) fn lock(&self) -> MutexGuard<'_, NodeRegistry> {
        self.0.lock()
    }

    /// Opens a session for every member that has none, so that commands can wait for absent ones.
    pub(in crate::engine) async fn open_sessions(&self, endpoint: &Endpoint) {
        let unopened = self.lock().without_session();
        for id in unopened {
            if let Ok(link) = endpoint.open_session(id).await {
                self.lock().set_session(id, link);
            }
        }
    }
}

/// All members and bridged devices.
#[derive(Default)]
pub(in crate::engine) struct NodeRegistry {
    members: BTreeMap<PeerId, Member>,
    unconfirmed: UnconfirmedStops,
    devices: BridgedDevices,
}

impl NodeRegistry {
    pub(in crate::engine) async fn load(
        store: &Store,
        unconfirmed: UnconfirmedStops,
        devices: BridgedDevices,
    ) -> Result<Self, StoreError> {
        let rows = store.members().await?;
        Ok(Self {
            members: rows
                .into_iter()
                .map(|row| (row.key.id(), Member::new(row)))
                .collect(),
            unconfirmed,
            devices,
        })
    }

    /// Whether this is the id of a member, revoked or not.
    pub(in crate::engine) fn is_member(&self, id: PeerId) -> bool {
        self.members.contains_key(&id)
    }

    pub(in crate::engine) fn devices(&self) -> &BridgedDevices {
        &self.devices
    }

    /// Adds a member, or updates it.
    pub(in crate::engine) fn admit(&mut self, row: MemberRow) {
        let id = row.key.id();
        match self.members.get_mut(&id) {
            Some(member) => member.row = row,
            None => drop(self.members.insert(id, Member::new(row))),
        }
    }

    /// Members that still lack a session.
    pub(in crate::engine) fn without_session(&self) -> Vec<PeerId> {
        let lacking = self
            .members
            .iter()
            .filter(|(_, member)| member.link.is_none() && !member.row.revoked);
        lacking.map(|(id, _)| *id).collect()
    }

    /// Last known addresses of members that are not revoked.
    pub(in crate::engine) fn addresses(&self) -> Vec<(PeerId, SocketAddr)> {
        let known = self.members.iter().filter(|(_, member)| !member.row.revoked);
        known
            .filter_map(|(id, member)| Some((*id, member.row.address?)))
            .collect()
    }

    pub(in crate::engine) fn set_session(&mut self, id: PeerId, link: PeerLink) {
        if let Some(member) = self.members.get_mut(&id) {
            member.link = Some(link);
        }
    }

    /// A peer is linked; a member that another station admitted becomes known now. Returns its session, if it has one.
    pub(in crate::engine) fn on_connected(&mut self, peer: &PeerInfo) -> Option<PeerLink> {
        let member = self.members.entry(peer.id).or_insert_with(|| {
            Member::new(MemberRow {
                key: peer.key,
                name: peer.name.clone(),
                role: peer.role,
                kind: peer.kind,
                tags: BTreeMap::new(),
                address: None,
                last_seen_ms: 0,
                grant: None,
                revoked: false,
            })
        });
        member.row.name = peer.name.clone();
        member.row.tags.clone_from(&peer.tags);
        member.row.role = peer.role;
        member.row.kind = peer.kind;
        member.row.address = Some(peer.listen_addr);
        member.row.last_seen_ms = clock::unix_time_ms();
        member.software = Some(peer.software.clone());
        member.silent = false;
        member.checks = None;
        member.stopped = None;
        member.unsaved = true;
        member
            .action_catalog
            .send_modify(|offered| offered.on_connected(clock::now()));
        member.online.send_replace(true);
        member.link.clone()
    }

    pub(in crate::engine) fn on_disconnected(&mut self, id: PeerId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.row.last_seen_ms = clock::unix_time_ms();
            member.unsaved = true;
            member.action_catalog.send_modify(KnownActions::on_disconnected);
            member.online.send_replace(false);
        }
    }

    /// A node reports the state of its emergency stop. Returns its link if a stop has just ended there, since its last
    /// self-check reported the stop.
    pub(in crate::engine) fn set_stop_report(&mut self, id: PeerId, report: &StopStatus) -> Option<PeerLink> {
        let member = self.members.get_mut(&id)?;
        let now = report.stopped.then(|| StopView {
            issuer: report.issuer,
            number: report.number,
            latched: report.latched,
            held: report.held,
            error: report.error.clone(),
        });
        let was = std::mem::replace(&mut member.stopped, now);
        let released = was.is_some() && !report.stopped;
        member.link.clone().filter(|_| released)
    }

    pub(in crate::engine) fn set_silent(&mut self, id: PeerId, silent: bool) {
        if let Some(member) = self.members.get_mut(&id) {
            member.silent = silent;
        }
    }

    pub(in crate::engine) fn set_action_catalog(&mut self, id: PeerId, offer: ActionCatalog) {
        if let Some(member) = self.members.get_mut(&id) {
            member
                .action_catalog
                .send_modify(|offered| offered.set_catalog(offer));
        }
    }

    pub(in crate::engine) fn rename(&mut self, id: PeerId, name: NodeName) {
        if let Some(member) = self.members.get_mut(&id) {
            member.row.name = name;
            member.unsaved = true;
        }
    }

    pub(in crate::engine) fn set_warning(&mut self, id: PeerId, warning: Warning) {
        if let Some(member) = self.members.get_mut(&id)
            && !member.warnings.contains(&warning)
        {
            // The newest warning replaces older ones: the addresses of a device change.
            member.warnings = vec![warning];
        }
    }

    pub(in crate::engine) fn set_self_check(&mut self, checked: SelfCheckResult) {
        if let Some(member) = self.members.get_mut(&checked.id) {
            member.checks = Some(checked.checks);
        }
    }

    /// Marks the members that the fleet state has revoked; returns their keys.
    pub(in crate::engine) fn revoke(&mut self, membership: &Membership) -> Vec<PublicKey> {
        let out = self
            .members
            .values_mut()
            .filter(|member| membership.is_revoked(&member.row.key));
        out.map(|member| {
            member.row.revoked = true;
            member.row.key
        })
        .collect()
    }

    pub(in crate::engine) fn display_name(&self, id: PeerId) -> String {
        self.members
            .get(&id)
            .map_or_else(|| id.short(), |member| member.row.name.to_string())
    }

    /// Whether there has never been a member.
    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The grant of a member that this station admitted.
    pub(in crate::engine) fn grant(&self, id: PeerId) -> Option<String> {
        let member = self.members.get(&id).filter(|member| !member.row.revoked)?;
        member.row.grant.clone()
    }

    /// Nodes that are not revoked.
    fn nodes(&self) -> impl Iterator<Item = &Member> {
        self.members
            .values()
            .filter(|member| member.row.kind == PeerKind::Node && !member.row.revoked)
    }

    /// Whether all matching nodes are linked and have checked themselves, and something matches.
    pub(in crate::engine) fn is_ready(&self, selector: &Selector) -> bool {
        let mut matching = self.nodes().filter(|member| member.matches(selector)).peekable();
        let any = matching.peek().is_some() || self.devices.any_matches(selector);
        any && matching.all(|member| member.is_online() && member.checks.is_some())
    }

    /// Views of all matching nodes and devices, in order of their names.
    pub(in crate::engine) fn views(&self, selector: &Selector) -> Vec<NodeView> {
        let now = clock::now();
        let names = self.count_names();
        let matched = self.nodes().filter(|member| member.matches(selector));
        let count = |name: &NodeName| names.get(name).copied().unwrap_or_default();
        let nodes = matched.map(|member| self.node_view(member, now, count(&member.row.name)));
        let devices = self.devices.views(selector).into_iter();
        let devices = devices.map(|view| {
            let names = count(&view.node);
            warn_of_shared_name(view, names)
        });
        let mut views: Vec<NodeView> = nodes.chain(devices).collect();
        views.sort_by(|a, b| (&a.node, a.id).cmp(&(&b.node, b.id)));
        views
    }

    /// One node or device, if the selector matches it; also a revoked node or a device that has left, for watchers that have
    /// seen it before.
    pub(in crate::engine) fn view(&self, id: PeerId, selector: &Selector) -> Option<NodeView> {
        let Some(member) = self.members.get(&id) else {
            let view = self.devices.view(id, selector)?;
            let count = self.count_name(&view.node);
            return Some(warn_of_shared_name(view, count));
        };
        let matches = member.row.kind == PeerKind::Node && member.matches(selector);
        matches.then(|| self.node_view(member, clock::now(), self.count_name(&member.row.name)))
    }

    fn node_view(&self, member: &Member, now: Instant, names: NameCount) -> NodeView {
        member.view(now, names, self.unconfirmed.stop_number(member.row.key.id()))
    }

    fn count_name(&self, name: &NodeName) -> NameCount {
        NameCount {
            nodes: self.nodes().filter(|member| member.row.name == *name).count(),
            devices: self.devices.named(name).len(),
        }
    }

    fn count_names(&self) -> BTreeMap<NodeName, NameCount> {
        let mut names: BTreeMap<NodeName, NameCount> = BTreeMap::new();
        for member in self.nodes() {
            names.entry(member.row.name.clone()).or_default().nodes += 1;
        }
        for name in self.devices.names() {
            names.entry(name).or_default().devices += 1;
        }
        names
    }

    /// Other nodes and devices that have the same name as this one.
    pub(in crate::engine) fn same_name_nodes(&self, id: PeerId) -> Vec<PeerId> {
        let name = match self.members.get(&id) {
            Some(member) => member.row.name.clone(),
            None => match self.devices.view(id, &Selector::all()) {
                Some(view) => view.node,
                None => return Vec::new(),
            },
        };
        let nodes = self.nodes().filter(|other| other.row.name == name);
        let nodes = nodes.map(|other| other.row.key.id());
        nodes
            .chain(self.devices.named(&name))
            .filter(|other| *other != id)
            .collect()
    }

    pub(in crate::engine) fn member_views(&self) -> Vec<MemberView> {
        let now = clock::now();
        let view = |member: &Member| MemberView {
            last_heard_ms: member.last_heard_ms(now),
            ..member_view(&member.row)
        };
        let mut views: Vec<MemberView> = self.members.values().map(view).collect();
        views.sort_by(|a, b| (&a.node, a.id).cmp(&(&b.node, b.id)));
        views
    }

    /// The only member with this name or id prefix.
    pub(in crate::engine) fn find(&self, text: &str) -> Result<MemberRow, String> {
        let rows: Vec<&MemberRow> = self
            .members
            .values()
            .map(|member| &member.row)
            .filter(|row| !row.revoked)
            .collect();
        find_unique(&rows, text, |row| (&row.name, row.key.id())).map(|row| (*row).clone())
    }

    /// Marks members as not stored.
    pub(in crate::engine) fn mark_unsaved(&mut self, ids: &[PeerId]) {
        for id in ids {
            if let Some(member) = self.members.get_mut(id) {
                member.unsaved = true;
            }
        }
    }

    /// Members that are not stored, which count as stored from now on.
    pub(in crate::engine) fn take_unsaved(&mut self) -> Vec<MemberRow> {
        let unsaved = self.members.values_mut().filter(|member| member.unsaved);
        unsaved
            .map(|member| {
                member.unsaved = false;
                member.row.clone()
            })
            .collect()
    }
}

/// The only one of `all` with this name or id prefix.
pub(in crate::engine) fn find_unique<'a, T>(
    all: &'a [T],
    text: &str,
    names: impl Fn(&T) -> (&NodeName, PeerId),
) -> Result<&'a T, String> {
    let prefix = text.strip_prefix("id:").unwrap_or(text);
    let named: Vec<&T> = all.iter().filter(|one| names(one).0.as_str() == text).collect();
    let found = if named.is_empty() {
        all.iter().filter(|one| names(one).1.has_prefix(prefix)).collect()
    } else {
        named
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(format!("no node has the name or id prefix {text:?}")),
        several => {
            let ids: Vec<String> = several.iter().map(|one| names(one).1.short()).collect();
            Err(format!(
                "{text:?} means {}: {}; say which with the beginning of its id",
                several.len(),
                ids.join(", ")
            ))
        }
    }
}
