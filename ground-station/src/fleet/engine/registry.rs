//! Who belongs to the fleet, and who of them is linked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::Endpoint;
use swarm_shared::net::peer::{PeerInfo, PeerLink};
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::message::{ActionCatalog, LOST_LINK_CHECK, StopStatus};
use swarm_shared::proto::selector::{NodeAttributes as Matched, Selector};
use swarm_shared::proto::trust::Membership;
use tokio::sync::watch;

use super::action_catalogs::KnownActions;
use super::unconfirmed_stops::UnconfirmedStops;
use crate::fleet::{Check, MemberView, NodeRef, NodeState, NodeView, StopView, Warning};
use crate::store::{MemberRow, Store, StoreError};

/// A node that a command goes to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) node: NodeRef,
    pub(super) link: PeerLink,
    /// Whether it is linked, and news of it.
    pub(super) online: watch::Receiver<bool>,
    /// What it has said that it can do, and news of it.
    pub(super) action_catalog: watch::Receiver<KnownActions>,
    /// Whether no other target has its name.
    pub(super) name_is_unique: bool,
    /// Where it was seen last.
    pub(super) address: Option<SocketAddr>,
}

impl Target {
    /// Waits until it is linked; whether that came in time.
    pub(super) async fn wait_online_until(&self, deadline: Instant) -> bool {
        let mut online = self.online.clone();
        let linked = online.wait_for(|online| *online);
        matches!(clock::timeout_at(deadline, linked).await, Ok(Ok(_)))
    }
}

/// What a node's check of itself said.
#[derive(Debug)]
pub(super) struct SelfCheckResult {
    pub(super) id: PeerId,
    pub(super) checks: Vec<Check>,
}

struct Member {
    row: MemberRow,
    link: Option<PeerLink>,
    online: watch::Sender<bool>,
    silent: bool,
    software: Option<String>,
    warnings: Vec<Warning>,
    /// `None` until the first self-check of this link has ended, however it ended.
    checks: Option<Vec<Check>>,
    stopped: Option<StopView>,
    unsaved: bool,
    /// What it has said that it can do.
    action_catalog: watch::Sender<KnownActions>,
}

impl Member {
    fn new(row: MemberRow) -> Self {
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

    fn is_online(&self) -> bool {
        *self.online.borrow()
    }

    fn matches(&self, selector: &Selector) -> bool {
        let id = self.row.key.id();
        selector.matches(&Matched {
            name: &self.row.name,
            id: &id,
            tags: &self.row.tags,
        })
    }

    fn last_heard_ms(&self, now: Instant) -> Option<u64> {
        if let Some(heard) = self.link.as_ref().and_then(PeerLink::last_heard) {
            let ago = now.saturating_duration_since(heard);
            return Some(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
        }
        (self.row.last_seen_ms > 0).then(|| clock::unix_time_ms().saturating_sub(self.row.last_seen_ms))
    }

    /// `called_so`: how many nodes have its name; `unconfirmed`: the stop that it has not confirmed.
    fn view(&self, now: Instant, same_name_count: usize, unconfirmed: Option<u64>) -> NodeView {
        let state = match (self.is_online(), self.silent) {
            (true, false) => NodeState::Online,
            (true, true) => NodeState::Silent,
            (false, _) => NodeState::Offline,
        };
        let mut warnings = self.warnings.clone();
        warnings.extend(self.row.revoked.then_some(Warning::Revoked));
        if same_name_count > 1 && !self.row.revoked {
            warnings.push(Warning::DuplicateName {
                name: self.row.name.clone(),
                id: self.row.key.id(),
                nodes: same_name_count,
            });
        }
        warnings.extend(self.stopped.as_ref().map(|stop| Warning::Stopped {
            number: stop.number,
            issuer: stop.issuer,
            error: stop.error.clone(),
        }));
        warnings.extend(unconfirmed.map(|number| Warning::StopUnconfirmed { number }));
        // What it did on its own is to be seen even if it went well.
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

/// The roll, for the engine and the clerk. It is locked for a moment at a time, and never while something is awaited.
#[derive(Clone, Default)]
pub(super) struct SharedNodeRegistry(Arc<Mutex<NodeRegistry>>);

impl SharedNodeRegistry {
    pub(super) fn new(roll: NodeRegistry) -> Self {
        Self(Arc::new(Mutex::new(roll)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, NodeRegistry> {
        self.0.lock()
    }

    /// Every member gets its session, so that commands can wait for those that are away.
    pub(super) async fn open_sessions(&self, endpoint: &Endpoint) {
        let unopened = self.lock().without_session();
        for id in unopened {
            if let Ok(link) = endpoint.open_session(id).await {
                self.lock().set_session(id, link);
            }
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct NodeRegistry(BTreeMap<PeerId, Member>, UnconfirmedStops);

impl NodeRegistry {
    pub(super) async fn load(store: &Store, unconfirmed: UnconfirmedStops) -> Result<Self, StoreError> {
        let rows = store.members().await?;
        Ok(Self(
            rows.into_iter()
                .map(|row| (row.key.id(), Member::new(row)))
                .collect(),
            unconfirmed,
        ))
    }

    /// Takes a member in, or notes what is new about it.
    pub(super) fn admit(&mut self, row: MemberRow) {
        let id = row.key.id();
        match self.0.get_mut(&id) {
            Some(member) => member.row = row,
            None => drop(self.0.insert(id, Member::new(row))),
        }
    }

    /// Members that still lack a session.
    pub(super) fn without_session(&self) -> Vec<PeerId> {
        let lacking = self
            .0
            .iter()
            .filter(|(_, member)| member.link.is_none() && !member.row.revoked);
        lacking.map(|(id, _)| *id).collect()
    }

    /// Where members were seen last.
    pub(super) fn addresses(&self) -> Vec<(PeerId, SocketAddr)> {
        let known = self.0.iter().filter(|(_, member)| !member.row.revoked);
        known
            .filter_map(|(id, member)| Some((*id, member.row.address?)))
            .collect()
    }

    pub(super) fn set_session(&mut self, id: PeerId, link: PeerLink) {
        if let Some(member) = self.0.get_mut(&id) {
            member.link = Some(link);
        }
    }

    /// A peer is linked. Its session, if a member has one; a station of the fleet that nobody here has taken in
    /// becomes known now.
    pub(super) fn on_connected(&mut self, peer: &PeerInfo) -> Option<PeerLink> {
        let member = self.0.entry(peer.id).or_insert_with(|| {
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

    pub(super) fn on_disconnected(&mut self, id: PeerId) {
        if let Some(member) = self.0.get_mut(&id) {
            member.row.last_seen_ms = clock::unix_time_ms();
            member.unsaved = true;
            member.action_catalog.send_modify(KnownActions::on_disconnected);
            member.online.send_replace(false);
        }
    }

    /// How a node's emergency stop stands. Its link, if a stop has just ended there: its checks said otherwise.
    pub(super) fn set_stop_report(&mut self, id: PeerId, report: &StopStatus) -> Option<PeerLink> {
        let member = self.0.get_mut(&id)?;
        let now = report.stopped.then(|| StopView {
            issuer: report.issuer,
            number: report.number,
            latched: report.latched,
            error: report.error.clone(),
        });
        let was = std::mem::replace(&mut member.stopped, now);
        let released = was.is_some() && !report.stopped;
        member.link.clone().filter(|_| released)
    }

    pub(super) fn set_silent(&mut self, id: PeerId, silent: bool) {
        if let Some(member) = self.0.get_mut(&id) {
            member.silent = silent;
        }
    }

    pub(super) fn set_action_catalog(&mut self, id: PeerId, offer: ActionCatalog) {
        if let Some(member) = self.0.get_mut(&id) {
            member
                .action_catalog
                .send_modify(|offered| offered.set_catalog(offer));
        }
    }

    pub(super) fn rename(&mut self, id: PeerId, name: NodeName) {
        if let Some(member) = self.0.get_mut(&id) {
            member.row.name = name;
            member.unsaved = true;
        }
    }

    pub(super) fn set_warning(&mut self, id: PeerId, warning: Warning) {
        if let Some(member) = self.0.get_mut(&id)
            && !member.warnings.contains(&warning)
        {
            // One device's addresses change; the newest warning says it all.
            member.warnings = vec![warning];
        }
    }

    pub(super) fn set_self_check(&mut self, checked: SelfCheckResult) {
        if let Some(member) = self.0.get_mut(&checked.id) {
            member.checks = Some(checked.checks);
        }
    }

    /// Marks those that the fleet state has put out; returns their keys.
    pub(super) fn revoke(&mut self, membership: &Membership) -> Vec<swarm_shared::proto::id::PublicKey> {
        let out = self
            .0
            .values_mut()
            .filter(|member| membership.is_revoked(&member.row.key));
        out.map(|member| {
            member.row.revoked = true;
            member.row.key
        })
        .collect()
    }

    pub(super) fn display_name(&self, id: PeerId) -> String {
        self.0
            .get(&id)
            .map_or_else(|| id.short(), |member| member.row.name.to_string())
    }

    /// Whether nobody has ever belonged.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The grant of a member that was taken in here.
    pub(super) fn grant(&self, id: PeerId) -> Option<String> {
        let member = self.0.get(&id).filter(|member| !member.row.revoked)?;
        member.row.grant.clone()
    }

    fn nodes(&self) -> impl Iterator<Item = &Member> {
        self.0
            .values()
            .filter(|member| member.row.kind == PeerKind::Node && !member.row.revoked)
    }

    pub(super) fn node_names(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.nodes().map(|member| member.row.name.to_string()).collect();
        names.into_iter().collect()
    }

    pub(super) fn targets(&self, selector: &Selector) -> Vec<Target> {
        let matched: Vec<&Member> = self.nodes().filter(|member| member.matches(selector)).collect();
        let mut names: BTreeMap<&NodeName, usize> = BTreeMap::new();
        for member in &matched {
            *names.entry(&member.row.name).or_default() += 1;
        }
        let mut targets: Vec<Target> = matched
            .iter()
            .filter_map(|member| {
                Some(Target {
                    node: NodeRef {
                        node: member.row.name.clone(),
                        id: member.row.key.id(),
                    },
                    link: member.link.clone()?,
                    online: member.online.subscribe(),
                    action_catalog: member.action_catalog.subscribe(),
                    address: member.row.address,
                    name_is_unique: names.get(&member.row.name) == Some(&1),
                })
            })
            .collect();
        targets.sort_by(|a, b| a.node.cmp(&b.node));
        targets
    }

    /// The terms of a selector that mean nobody.
    pub(super) fn unmatched_terms(&self, selector: &Selector) -> Vec<String> {
        let of_nobody = |term: &Selector| !self.nodes().any(|member| member.matches(term));
        let terms = selector.terms().filter(of_nobody);
        let exclusions = selector.exclusions().filter(of_nobody);
        let terms = terms.map(|term| term.to_string());
        terms.chain(exclusions.map(|term| format!("!{term}"))).collect()
    }

    /// The first `!term` that names a node exactly, and names nobody: most likely somebody else is meant, who is not to
    /// take part.
    pub(super) fn unmatched_exact_exclusion(&self, selector: &Selector) -> Option<String> {
        let of_nobody = |term: &Selector| !self.nodes().any(|member| member.matches(term));
        let mut mistaken = selector.exclusions().filter(Selector::is_exact).filter(of_nobody);
        mistaken.next().map(|term| term.to_string())
    }

    /// Whether all that a selector means are linked and have checked themselves.
    pub(super) fn is_ready(&self, selector: &Selector) -> bool {
        let mut matching = self.nodes().filter(|member| member.matches(selector)).peekable();
        matching.peek().is_some() && matching.all(|member| member.is_online() && member.checks.is_some())
    }

    pub(super) fn views(&self, selector: &Selector) -> Vec<NodeView> {
        let now = clock::now();
        let matched: Vec<&Member> = self.nodes().filter(|member| member.matches(selector)).collect();
        let names = matched.iter().map(|member| (&member.row.name, 0));
        let mut name_counts: BTreeMap<&NodeName, usize> = names.collect();
        for member in self.nodes() {
            if let Some(number) = name_counts.get_mut(&member.row.name) {
                *number += 1;
            }
        }
        let view = |member: &Member| {
            let same_name_count = name_counts.get(&member.row.name).copied().unwrap_or(0);
            member.view(now, same_name_count, self.1.stop_number(member.row.key.id()))
        };
        let mut views: Vec<NodeView> = matched.into_iter().map(view).collect();
        views.sort_by(|a, b| (&a.node, a.id).cmp(&(&b.node, b.id)));
        views
    }

    /// One node, if the selector means it; one that has been put out too, for whoever has seen it before.
    pub(super) fn view(&self, id: PeerId, selector: &Selector) -> Option<NodeView> {
        let member = self.0.get(&id)?;
        let matches = member.row.kind == PeerKind::Node && member.matches(selector);
        matches.then(|| {
            member.view(
                clock::now(),
                self.same_name_nodes(id).len() + 1,
                self.1.stop_number(id),
            )
        })
    }

    /// Other nodes that have the same name as this one.
    pub(super) fn same_name_nodes(&self, id: PeerId) -> Vec<PeerId> {
        let Some(member) = self.0.get(&id) else {
            return Vec::new();
        };
        let others = self.nodes().filter(|other| other.row.name == member.row.name);
        others
            .map(|other| other.row.key.id())
            .filter(|other| *other != id)
            .collect()
    }

    pub(super) fn member_views(&self) -> Vec<MemberView> {
        let now = clock::now();
        let view = |member: &Member| MemberView {
            last_heard_ms: member.last_heard_ms(now),
            ..member_view(&member.row)
        };
        let mut views: Vec<MemberView> = self.0.values().map(view).collect();
        views.sort_by(|a, b| (&a.node, a.id).cmp(&(&b.node, b.id)));
        views
    }

    /// The member that a name, or the beginning of an id, means.
    pub(super) fn find(&self, text: &str) -> Result<MemberRow, String> {
        let rows: Vec<&MemberRow> = self
            .0
            .values()
            .map(|member| &member.row)
            .filter(|row| !row.revoked)
            .collect();
        find_unique(&rows, text, |row| (&row.name, row.key.id())).map(|row| (*row).clone())
    }

    /// They were not written: they have to be.
    pub(super) fn mark_unsaved(&mut self, ids: &[PeerId]) {
        for id in ids {
            if let Some(member) = self.0.get_mut(id) {
                member.unsaved = true;
            }
        }
    }

    /// What has to be written to the store.
    pub(super) fn take_unsaved(&mut self) -> Vec<MemberRow> {
        let unsaved = self.0.values_mut().filter(|member| member.unsaved);
        unsaved
            .map(|member| {
                member.unsaved = false;
                member.row.clone()
            })
            .collect()
    }
}

/// The only one of `all` that has this name, or an id that begins so.
pub(super) fn find_unique<'a, T>(
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
        [] => Err(format!("nobody is called {text:?}, and no id begins so")),
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

pub(super) fn member_view(row: &MemberRow) -> MemberView {
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
