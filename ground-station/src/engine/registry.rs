//! The members of the fleet, with their links, and the bridged devices beside them: what selectors match.
//!
//! A name may belong to several nodes and devices: it matches all of them, and each carries a warning.

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

use crate::engine::observe::action_catalogs::KnownActions;
use crate::engine::stop::unconfirmed::UnconfirmedStops;
use crate::engine::transport::DeviceTransport;
use crate::engine::transport::bridge::{BridgedDevices, BridgedTransport};
use crate::store::{MemberRow, Store, StoreError};
use swarm_shared::api::{Check, MemberView, NodeRef, NodeState, NodeView, StopView, Warning};

/// Most names in one note.
const NAMES_SHOWN_MAX: usize = 8;

/// A node or a bridged device that a request goes to.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Target {
    pub(in crate::engine) node: NodeRef,
    pub(in crate::engine) device: Device,
    /// Whether no other target has its name.
    pub(in crate::engine) name_is_unique: bool,
}

/// What a target is.
#[derive(Clone, Debug)]
pub(in crate::engine) enum Device {
    /// A node of the fleet.
    Node(NodeDevice),
    /// A device behind a gateway.
    Bridged(BridgedTransport),
}

/// A node of the fleet, as a target.
#[derive(Clone, Debug)]
pub(in crate::engine) struct NodeDevice {
    pub(in crate::engine) link: PeerLink,
    /// Whether it is linked.
    pub(in crate::engine) online: watch::Receiver<bool>,
    /// The actions that it has offered.
    pub(in crate::engine) action_catalog: watch::Receiver<KnownActions>,
    /// Its last address.
    pub(in crate::engine) address: Option<SocketAddr>,
}

impl Target {
    pub(in crate::engine) fn transport(&self) -> &dyn DeviceTransport {
        match &self.device {
            Device::Node(node) => &node.link,
            Device::Bridged(bridged) => bridged,
        }
    }

    /// The node, if it is no bridged device.
    pub(in crate::engine) fn own_node(&self) -> Option<&NodeDevice> {
        match &self.device {
            Device::Node(node) => Some(node),
            Device::Bridged(_) => None,
        }
    }

    /// The bridged device, if it is one.
    pub(in crate::engine) fn bridged(&self) -> Option<&BridgedTransport> {
        match &self.device {
            Device::Node(_) => None,
            Device::Bridged(bridged) => Some(bridged),
        }
    }
}

impl NodeDevice {
    /// Waits until the node is linked; whether that came in time.
    pub(in crate::engine) async fn wait_online_until(&self, deadline: Instant) -> bool {
        let mut online = self.online.clone();
        let linked = online.wait_for(|online| *online);
        matches!(clock::timeout_at(deadline, linked).await, Ok(Ok(_)))
    }
}

/// What a node's check of itself said.
#[derive(Debug)]
pub(in crate::engine) struct SelfCheckResult {
    pub(in crate::engine) id: PeerId,
    pub(in crate::engine) checks: Vec<Check>,
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

    /// `names`: how many have its name; `unconfirmed`: the stop that it has not confirmed.
    fn view(&self, now: Instant, names: NameCount, unconfirmed: Option<u64>) -> NodeView {
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
        warnings.extend(self.stopped.as_ref().map(|stop| Warning::Stopped {
            number: stop.number,
            issuer: stop.issuer,
            error: stop.error.clone(),
        }));
        warnings.extend(unconfirmed.map(|number| Warning::StopUnconfirmed { number }));
        if names.devices > 0 {
            let name = self.row.name.clone();
            warnings.push(Warning::NameUsedByDevice { name });
        }
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

/// How many nodes and how many bridged devices have one name.
#[derive(Clone, Copy, Debug, Default)]
struct NameCount {
    nodes: usize,
    devices: usize,
}

/// Adds to the view of a bridged device which others have its name.
fn warn_of_shared_name(mut view: NodeView, count: NameCount) -> NodeView {
    let name = || view.node.clone();
    let by_node = (count.nodes > 0).then(|| Warning::NameUsedByNode { name: name() });
    let by_devices = (count.devices > 1).then(|| Warning::DuplicateDeviceName {
        name: name(),
        devices: count.devices,
    });
    view.warnings.extend(by_node.into_iter().chain(by_devices));
    view
}

/// The registry, for the engine's task and the membership task. It is locked for a moment at a time, and never while something is awaited.
#[derive(Clone, Default)]
pub(in crate::engine) struct SharedNodeRegistry(Arc<Mutex<NodeRegistry>>);

impl SharedNodeRegistry {
    pub(in crate::engine) fn new(roll: NodeRegistry) -> Self {
        Self(Arc::new(Mutex::new(roll)))
    }

    pub(in crate::engine) fn lock(&self) -> MutexGuard<'_, NodeRegistry> {
        self.0.lock()
    }

    /// Every member gets its session, so that commands can wait for those that are away.
    pub(in crate::engine) async fn open_sessions(&self, endpoint: &Endpoint) {
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

    /// Takes a member in, or notes what is new about it.
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

    /// Where members were seen last.
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

    /// A peer is linked. Its session, if a member has one; a station of the fleet that nobody here has taken in
    /// becomes known now.
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

    /// How a node's emergency stop stands. Its link, if a stop has just ended there: its checks said otherwise.
    pub(in crate::engine) fn set_stop_report(&mut self, id: PeerId, report: &StopStatus) -> Option<PeerLink> {
        let member = self.members.get_mut(&id)?;
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
            // One device's addresses change; the newest warning says it all.
            member.warnings = vec![warning];
        }
    }

    pub(in crate::engine) fn set_self_check(&mut self, checked: SelfCheckResult) {
        if let Some(member) = self.members.get_mut(&checked.id) {
            member.checks = Some(checked.checks);
        }
    }

    /// Marks those that the fleet state has put out; returns their keys.
    pub(in crate::engine) fn revoke(
        &mut self,
        membership: &Membership,
    ) -> Vec<swarm_shared::proto::id::PublicKey> {
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

    /// The grant of a member that was taken in here.
    pub(in crate::engine) fn grant(&self, id: PeerId) -> Option<String> {
        let member = self.members.get(&id).filter(|member| !member.row.revoked)?;
        member.row.grant.clone()
    }

    fn nodes(&self) -> impl Iterator<Item = &Member> {
        self.members
            .values()
            .filter(|member| member.row.kind == PeerKind::Node && !member.row.revoked)
    }

    /// Names to choose from, for an error text; `None` if nothing is known.
    pub(in crate::engine) fn known_names(&self) -> Option<String> {
        let nodes = self.nodes().map(|member| member.row.name.clone());
        let nodes = list_names("known are", nodes.collect());
        let devices = self.devices.names().into_iter().collect();
        let devices = list_names("known drones of other programs are", devices);
        let texts: Vec<String> = nodes.into_iter().chain(devices).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    pub(in crate::engine) fn targets(&self, selector: &Selector) -> Vec<Target> {
        let nodes = self.nodes().filter(|member| member.matches(selector));
        let nodes = nodes.filter_map(|member| {
            let device = NodeDevice {
                link: member.link.clone()?,
                online: member.online.subscribe(),
                action_catalog: member.action_catalog.subscribe(),
                address: member.row.address,
            };
            let node = NodeRef {
                node: member.row.name.clone(),
                id: member.row.key.id(),
            };
            Some((node, Device::Node(device)))
        });
        let devices = self.devices.targets(selector).into_iter();
        let devices = devices.map(|(node, device)| (node, Device::Bridged(device)));
        let mut targets: Vec<Target> = nodes
            .chain(devices)
            .map(|(node, device)| Target {
                node,
                device,
                name_is_unique: true,
            })
            .collect();
        targets.sort_by(|a, b| a.node.cmp(&b.node));
        for one in 1..targets.len() {
            if targets[one - 1].node.node == targets[one].node.node {
                targets[one - 1].name_is_unique = false;
                targets[one].name_is_unique = false;
            }
        }
        targets
    }

    /// Whether a selector matches a node or a device.
    fn any_matches(&self, selector: &Selector) -> bool {
        self.nodes().any(|member| member.matches(selector)) || self.devices.any_matches(selector)
    }

    /// The terms of a selector that match no node and no device, exclusions with their `!`.
    pub(in crate::engine) fn unmatched_terms(&self, selector: &Selector) -> Vec<String> {
        let is_unmatched = |term: &Selector| !self.any_matches(term);
        let terms = selector.terms().filter(is_unmatched);
        let exclusions = selector.exclusions().filter(is_unmatched);
        let terms = terms.map(|term| term.to_string());
        terms.chain(exclusions.map(|term| format!("!{term}"))).collect()
    }

    /// The first exclusion that is an exact name or id and matches nothing: most likely it is misspelt, and the node that
    /// it should exclude would take part.
    pub(in crate::engine) fn unmatched_exact_exclusion(&self, selector: &Selector) -> Option<String> {
        let mut exclusions = selector.exclusions().filter(Selector::is_exact);
        let unmatched = exclusions.find(|term| !self.any_matches(term));
        unmatched.map(|term| term.to_string())
    }

    /// Names that a node and one of these bridged devices share, for a note; `None` if there are none.
    pub(in crate::engine) fn shared_names_note(&self, targets: &[Target]) -> Option<String> {
        let devices = targets.iter().filter(|target| target.bridged().is_some());
        let names: BTreeSet<&NodeName> = devices.map(|target| &target.node.node).collect();
        let shared = names
            .into_iter()
            .filter(|name| self.nodes().any(|member| member.row.name == **name));
        let texts = shared.take(NAMES_SHOWN_MAX).map(|name| {
            let mut nodes = targets.iter().filter(|target| target.own_node().is_some());
            if nodes.any(|target| target.node.node == *name) {
                format!("{name} is a node of the fleet and a drone of another program: both are meant")
            } else {
                format!("{name} is a node of the fleet, too, which is not meant: this is a drone of another program")
            }
        });
        let texts: Vec<String> = texts.collect();
        (!texts.is_empty()).then(|| format!("{}; id:PREFIX says which", texts.join("; ")))
    }

    /// Whether all matching nodes are linked and have checked themselves, and something matches.
    pub(in crate::engine) fn is_ready(&self, selector: &Selector) -> bool {
        let mut matching = self.nodes().filter(|member| member.matches(selector)).peekable();
        let any = matching.peek().is_some() || self.devices.any_matches(selector);
        any && matching.all(|member| member.is_online() && member.checks.is_some())
    }

    /// All matching nodes and devices, by name.
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

    /// The member that a name, or the beginning of an id, means.
    pub(in crate::engine) fn find(&self, text: &str) -> Result<MemberRow, String> {
        let rows: Vec<&MemberRow> = self
            .members
            .values()
            .map(|member| &member.row)
            .filter(|row| !row.revoked)
            .collect();
        find_unique(&rows, text, |row| (&row.name, row.key.id())).map(|row| (*row).clone())
    }

    /// They were not written: they have to be.
    pub(in crate::engine) fn mark_unsaved(&mut self, ids: &[PeerId]) {
        for id in ids {
            if let Some(member) = self.members.get_mut(id) {
                member.unsaved = true;
            }
        }
    }

    /// What has to be written to the store.
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

fn list_names(what: &str, names: BTreeSet<NodeName>) -> Option<String> {
    let shown: Vec<&str> = names.iter().take(NAMES_SHOWN_MAX).map(NodeName::as_str).collect();
    let more = match names.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!names.is_empty()).then(|| format!("{what} {}{more}", shown.join(", ")))
}

/// The only one of `all` that has this name, or an id that begins so.
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
