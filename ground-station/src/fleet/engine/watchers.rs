//! Whoever watches nodes: told of each change, and of what was missed as soon as there is room.

use std::collections::BTreeSet;

use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::selector::Selector;
use tokio::sync::mpsc;

use super::registry::Roll;
use crate::fleet::Event;

/// See the module.
#[derive(Default)]
pub(super) struct Watchers {
    all: Vec<Watcher>,
    /// Of whom it has been told that they are put out of the fleet: it is for good.
    out: BTreeSet<PeerId>,
}

struct Watcher {
    selector: Selector,
    events: mpsc::Sender<Event>,
    /// Nodes whose newest state found no room.
    missed: BTreeSet<PeerId>,
}

impl Watchers {
    /// Shows all nodes that the selector means, and from now on each change.
    pub(super) fn add(&mut self, roll: &Roll, selector: Selector, events: mpsc::Sender<Event>) {
        let missed = roll.views(&selector).into_iter().map(|view| view.id).collect();
        let mut watcher = Watcher {
            selector,
            events,
            missed,
        };
        watcher.catch_up(roll);
        self.all.push(watcher);
    }

    /// Tells of one node's state, and of those that have its name: they say so.
    pub(super) fn tell(&mut self, roll: &Roll, id: PeerId) {
        let namesakes = roll.namesakes(id);
        for watcher in &mut self.all {
            watcher.missed.insert(id);
            watcher.missed.extend(&namesakes);
            watcher.catch_up(roll);
        }
    }

    /// Tells that this one is put out of the fleet, once: fleets remember them all.
    pub(super) fn tell_out(&mut self, roll: &Roll, id: PeerId) {
        if self.out.insert(id) {
            self.tell(roll, id);
        }
    }

    /// Tells what found no room before, and forgets who has gone.
    pub(super) fn catch_up(&mut self, roll: &Roll) {
        self.all.retain(|watcher| !watcher.events.is_closed());
        for watcher in &mut self.all {
            watcher.catch_up(roll);
        }
    }
}

impl Watcher {
    fn catch_up(&mut self, roll: &Roll) {
        while let Some(id) = self.missed.first().copied() {
            if let Some(view) = roll.view_of(id, &self.selector)
                && self.events.try_send(Event::Node(view)).is_err()
            {
                return;
            }
            self.missed.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
    use swarm_shared::proto::trust::Role;

    use super::*;
    use crate::fleet::{NodeState, NodeView};
    use crate::store::MemberRow;

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

    fn told(events: &mut mpsc::Receiver<Event>) -> Vec<NodeView> {
        let mut views = Vec::new();
        while let Ok(Event::Node(view)) = events.try_recv() {
            views.push(view);
        }
        views
    }

    #[test]
    fn a_watcher_that_is_behind_misses_nobody() {
        let mut roll = Roll::default();
        for number in 1..=5 {
            roll.admit(node(number, false));
        }
        let (events, mut seen) = mpsc::channel(2);
        let mut watchers = Watchers::default();
        watchers.add(&roll, Selector::all(), events);
        let mut names = Vec::new();
        for _ in 0..3 {
            names.extend(told(&mut seen).into_iter().map(|view| view.node.to_string()));
            watchers.catch_up(&roll);
        }
        names.sort();
        assert_eq!(names, ["n1", "n2", "n3", "n4", "n5"]);
    }

    #[test]
    fn that_one_is_put_out_is_told_once_however_often_the_fleet_says_so() {
        let mut roll = Roll::default();
        roll.admit(node(1, false));
        let (events, mut seen) = mpsc::channel(8);
        let mut watchers = Watchers::default();
        watchers.add(&roll, Selector::all(), events);
        assert!(!told(&mut seen)[0].has_left());
        roll.admit(node(1, true));
        let id = PublicKey([1; 32]).id();
        watchers.tell_out(&roll, id);
        watchers.tell_out(&roll, id);
        let views = told(&mut seen);
        assert!(views.len() == 1 && views[0].has_left(), "{views:?}");
    }

    #[test]
    fn two_with_one_name_are_told_of_as_soon_as_there_are_two() {
        let mut roll = Roll::default();
        roll.admit(node(1, false));
        let (events, mut seen) = mpsc::channel(8);
        let mut watchers = Watchers::default();
        watchers.add(&roll, Selector::all(), events);
        assert!(told(&mut seen)[0].warnings.is_empty());
        let id = PublicKey([2; 32]).id();
        roll.admit(MemberRow {
            name: NodeName::from_host("n1"),
            ..node(2, false)
        });
        watchers.tell(&roll, id);
        let views = told(&mut seen);
        assert_eq!(views.len(), 2, "both");
        for view in &views {
            let expected = format!(
                "two nodes are called n1; tell them apart by id, rename one with: \
                 ground-station call id:{} id new_id=NAME",
                view.id.short()
            );
            assert_eq!(view.warnings, [expected]);
        }
        assert_eq!(roll.views(&Selector::all()).len(), 2);
        assert!(
            roll.views(&Selector::all())
                .iter()
                .all(|view| view.warnings.len() == 1)
        );
        roll.rename(id, NodeName::from_host("n2"));
        watchers.tell(&roll, PublicKey([1; 32]).id());
        assert!(told(&mut seen)[0].warnings.is_empty());
    }

    #[test]
    fn one_that_is_put_out_does_not_stay_on_the_screen_as_it_was() {
        let mut roll = Roll::default();
        roll.admit(node(1, false));
        let (events, mut seen) = mpsc::channel(8);
        let mut watchers = Watchers::default();
        watchers.add(&roll, Selector::all(), events);
        assert_eq!(told(&mut seen).len(), 1);
        roll.admit(node(1, true));
        watchers.tell(&roll, PublicKey([1; 32]).id());
        let views = told(&mut seen);
        assert_eq!(views.len(), 1);
        assert_eq!(views[0].state, NodeState::Offline);
        assert_eq!(views[0].warnings, ["put out of the fleet"]);
        let (events, mut seen) = mpsc::channel(8);
        watchers.add(&roll, Selector::all(), events);
        assert!(told(&mut seen).is_empty(), "who comes later never sees it");
    }
}
