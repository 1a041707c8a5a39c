//! Watchers: each is sent the state of nodes and bridged devices, and every change. A state that finds no room is sent as soon
//! as there is some, in its newest form.

use std::collections::BTreeSet;

use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::selector::Selector;
use tokio::sync::mpsc;

use crate::engine::registry::NodeRegistry;
use swarm_shared::api::Event;

/// All watchers.
#[derive(Default)]
pub(in crate::engine) struct Watchers {
    all: Vec<Watcher>,
    /// Members whose revocation has been reported: it is final.
    reported_revoked: BTreeSet<PeerId>,
}

struct Watcher {
    selector: Selector,
    events: mpsc::Sender<Event>,
    /// Nodes whose newest state found no room.
    pending: BTreeSet<PeerId>,
}

impl Watchers {
    /// Sends the matching nodes, and from now on each change of them.
    pub(in crate::engine) fn subscribe(
        &mut self,
        registry: &NodeRegistry,
        selector: Selector,
        events: mpsc::Sender<Event>,
    ) {
        let missed = registry
            .views(&selector)
            .into_iter()
            .map(|view| view.id)
            .collect();
        let mut watcher = Watcher {
            selector,
            events,
            pending: missed,
        };
        watcher.flush(registry);
        self.all.push(watcher);
    }

    /// Sends the state of one node, and of the nodes with its name, which carry a warning of it.
    pub(in crate::engine) fn notify(&mut self, registry: &NodeRegistry, id: PeerId) {
        let namesakes = registry.same_name_nodes(id);
        for watcher in &mut self.all {
            watcher.pending.insert(id);
            watcher.pending.extend(&namesakes);
            watcher.flush(registry);
        }
    }

    /// Reports a revocation once, although each fleet state names it.
    pub(in crate::engine) fn notify_revoked(&mut self, registry: &NodeRegistry, id: PeerId) {
        if self.reported_revoked.insert(id) {
            self.notify(registry, id);
        }
    }

    /// Sends what found no room before, and drops watchers that have gone.
    pub(in crate::engine) fn flush(&mut self, registry: &NodeRegistry) {
        self.all.retain(|watcher| !watcher.events.is_closed());
        for watcher in &mut self.all {
            watcher.flush(registry);
        }
    }
}

impl Watcher {
    fn flush(&mut self, registry: &NodeRegistry) {
        while let Some(id) = self.pending.first().copied() {
            if let Some(view) = registry.view(id, &self.selector)
                && self.events.try_send(Event::Node(view)).is_err()
            {
                return;
            }
            self.pending.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
    use swarm_shared::proto::trust::Role;

    use super::*;
    use crate::store::MemberRow;
    use swarm_shared::api::NodeState;
    use swarm_shared::api::NodeView;
    use swarm_shared::api::Warning;

    fn node(number: u8, revoked: bool) -> MemberRow {
        MemberRow {
            key: PublicKey([number; 32]),
            name: NodeName::from_host(&format!("n{number}")),
            role: Role::Node,
            kind: PeerKind::Node,
            tags: BTreeMap::new(),
            address: None,
            last_seen_ms: 0,
            grant: None,
            revoked,
        }
    }

    fn received(events: &mut mpsc::Receiver<Event>) -> Vec<NodeView> {
        let mut views = Vec::new();
        while let Ok(Event::Node(view)) = events.try_recv() {
            views.push(view);
        }
        views
    }

    #[test]
    fn slow_watcher_receives_every_node() {
        let mut registry = NodeRegistry::default();
        for number in 1..=5 {
            registry.admit(node(number, false));
        }
        let (events, mut seen) = mpsc::channel(2);
        let mut watchers = Watchers::default();
        watchers.subscribe(&registry, Selector::all(), events);
        let mut names = Vec::new();
        for _ in 0..3 {
            names.extend(received(&mut seen).into_iter().map(|view| view.node.to_string()));
            watchers.flush(&registry);
        }
        names.sort();
        assert_eq!(names, ["n1", "n2", "n3", "n4", "n5"]);
    }

    #[test]
    fn watchers_are_notified_of_a_revocation_once() {
        let mut registry = NodeRegistry::default();
        registry.admit(node(1, false));
        let (events, mut seen) = mpsc::channel(8);
        let mut watchers = Watchers::default();
        watchers.subscribe(&registry, Selector::all(), events);
        assert!(!received(&mut seen)[0].has_left());
        registry.admit(node(1, true));
        let id = PublicKey([1; 32]).id();
        watchers.notify_revoked(&registry, id);
        watchers.notify_revoked(&registry, id);
        let views = received(&mut seen);
        assert!(views.len() == 1 && views[0].has_left(), "{views:?}");
    }

    #[test]
    fn watchers_are_warned_of_duplicate_names_at_once() {
        let mut registry = NodeRegistry::default();
        registry.admit(node(1, false));
        let (events, mut seen) = mpsc::channel(8);
        let mut watchers = Watchers::default();
        watchers.subscribe(&registry, Selector::all(), events);
        assert!(received(&mut seen)[0].warnings.is_empty());
        let id = PublicKey([2; 32]).id();
        registry.admit(MemberRow {
            name: NodeName::from_host("n1"),
            ..node(2, false)
        });
        watchers.notify(&registry, id);
        let views = received(&mut seen);
        assert_eq!(views.len(), 2, "both");
        for view in &views {
            let expected = Warning::DuplicateName {
                name: NodeName::from_host("n1"),
                id: view.id,
                nodes: 2,
            };
            assert_eq!(view.warnings, [expected]);
        }
        assert_eq!(registry.views(&Selector::all()).len(), 2);
        assert!(
            registry
                .views(&Selector::all())
                .iter()
                .all(|view| view.warnings.len() == 1)
        );
        registry.rename(id, NodeName::from_host("n2"));
        watchers.notify(&registry, PublicKey([1; 32]).id());
        assert!(received(&mut seen)[0].warnings.is_empty());
    }

    #[test]
    fn revoked_node_is_shown_offline_to_current_watchers() {
        let mut registry = NodeRegistry::default();
        registry.admit(node(1, false));
        let (events, mut seen) = mpsc::channel(8);
        let mut watchers = Watchers::default();
        watchers.subscribe(&registry, Selector::all(), events);
        assert_eq!(received(&mut seen).len(), 1);
        registry.admit(node(1, true));
        watchers.notify(&registry, PublicKey([1; 32]).id());
        let views = received(&mut seen);
        assert_eq!(views.len(), 1);
        assert_eq!(views[0].state, NodeState::Offline);
        assert_eq!(views[0].warnings, [Warning::Revoked]);
        let (events, mut seen) = mpsc::channel(8);
        watchers.subscribe(&registry, Selector::all(), events);
        assert!(received(&mut seen).is_empty(), "later watchers are not sent it");
    }
}
