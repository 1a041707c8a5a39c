//! Guests that are called like nodes of the fleet, or like each other: whoever asks is told.
//!
//! Anybody may call a drone of another program what he likes. So a name means all that have it, as among own nodes, and
//! each of them carries a warning.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::MutexGuard;

use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::selector::Selector;

use super::Guests;
use super::desk::Counter;
use crate::fleet::engine::{EXCLUDES_NO_NODE, NO_NODES};
use crate::fleet::{Event, Failure, NodeRef, NodeView, NodesRequest, Warning};

/// How many names are told in one note.
const NAMES_SHOWN: usize = 8;

impl Counter {
    /// Learns how the fleet's own nodes are called, until the engine ends.
    pub(super) async fn learn_names(&self) {
        let selector = Selector::all();
        let mut events = self.engine.perform(NodesRequest::Watch { selector }).await;
        while let Some(event) = events.recv().await {
            if let Event::Node(view) = event {
                self.guests.learn(&view);
            }
        }
    }

    /// What to tell whoever means somebody whose name a node of the fleet and a guest have.
    pub(super) fn ambiguous(&self, own: &[NodeRef], guests: &[NodeRef]) -> Option<String> {
        let names: BTreeSet<&NodeName> = guests.iter().map(|guest| &guest.node).collect();
        let taken = names.into_iter().filter(|name| self.guests.is_own(name));
        let told = taken.take(NAMES_SHOWN).map(|name| {
            if own.iter().any(|node| node.node == *name) {
                format!("{name} is a node of the fleet and a drone of another program: both are meant")
            } else {
                format!("{name} is a node of the fleet, too, which is not meant: this is a drone of another program")
            }
        });
        let told: Vec<String> = told.collect();
        (!told.is_empty()).then(|| format!("{}; id:PREFIX says which", told.join("; ")))
    }
}

/// How many are called so: names are looked up for each request, and there may be thousands a second.
#[derive(Debug, Default)]
pub(super) struct Called(BTreeMap<NodeName, usize>);

impl Called {
    pub(super) fn add(&mut self, name: &NodeName) {
        *self.0.entry(name.clone()).or_default() += 1;
    }

    pub(super) fn remove(&mut self, name: &NodeName) {
        if let Some(number) = self.0.get_mut(name) {
            *number -= 1;
            if *number == 0 {
                self.0.remove(name);
            }
        }
    }

    fn count(&self, name: &NodeName) -> usize {
        self.0.get(name).copied().unwrap_or(0)
    }

    fn names(&self) -> impl ExactSizeIterator<Item = &NodeName> {
        self.0.keys()
    }
}

/// How the fleet's own nodes are called.
#[derive(Debug, Default)]
pub(super) struct OwnNames {
    nodes: BTreeMap<PeerId, NodeName>,
    called: Called,
}

impl OwnNames {
    /// Learns how a node is called; `None`: it is put out of the fleet. Whether that is new.
    fn learn(&mut self, id: PeerId, name: Option<&NodeName>) -> bool {
        if self.nodes.get(&id) == name {
            return false;
        }
        if let Some(before) = self.nodes.remove(&id) {
            self.called.remove(&before);
        }
        if let Some(name) = name {
            self.called.add(name);
            self.nodes.insert(id, name.clone());
        }
        true
    }
}

impl Guests {
    fn learn(&self, view: &NodeView) {
        if self
            .own()
            .learn(view.id, (!view.has_left()).then_some(&view.node))
        {
            self.0.changed.send_modify(|version| *version += 1);
        }
    }

    fn own(&self) -> MutexGuard<'_, OwnNames> {
        self.0.own.lock()
    }

    /// Whether it is a list of names, and each is of nodes of the fleet and of no guest.
    pub(super) fn are_none_of(&self, selector: &Selector) -> bool {
        let Some(names) = selector.exact_names() else {
            return false;
        };
        let (own, book) = (self.own(), self.book());
        let mut names = names.into_iter();
        names.all(|name| own.called.count(&name) > 0 && book.called.count(&name) == 0)
    }

    /// Says who is known, where the engine says that somebody is not: it knows no guests.
    pub(super) fn name_in(&self, event: &mut Event) {
        let Event::Failed { failure, message } = event else {
            return;
        };
        let slip = *failure == Failure::Usage && message.contains(EXCLUDES_NO_NODE);
        if !(slip || *failure == Failure::NoMatch) {
            return;
        }
        let book = self.book();
        let names = book.called.names();
        let known = names.len();
        let shown: Vec<&str> = names.take(NAMES_SHOWN).map(NodeName::as_str).collect();
        let more = match known - shown.len() {
            0 if known == 0 => return,
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let guests = format!("known drones of other programs are {}{more}", shown.join(", "));
        drop(book);
        *message = match message.strip_prefix(NO_NODES) {
            Some(rest) => format!("no node matches; {guests}{rest}"),
            None => format!("{message}; {guests}"),
        };
    }

    fn is_own(&self, name: &NodeName) -> bool {
        self.own().called.count(name) > 0
    }

    /// Warns of guests that are called like this node of the fleet. Whether there are any.
    pub(super) fn warn(&self, own: &mut NodeView) -> bool {
        let called_so = self.book().called.count(&own.node) > 0;
        if called_so {
            let name = own.node.clone();
            own.warnings.push(Warning::NameUsedByDevice { name });
        }
        called_so
    }

    /// Warns of others that are called like these guests.
    pub(super) fn warn_guests(&self, views: &mut [NodeView]) {
        let (own, book) = (self.own(), self.book());
        for view in views {
            let name = &view.node;
            let devices = book.called.count(name);
            let twins = (devices > 1).then(|| Warning::DuplicateDeviceName {
                name: name.clone(),
                devices,
            });
            let own = (own.called.count(name) > 0).then(|| Warning::NameUsedByNode { name: name.clone() });
            view.warnings.extend(own.into_iter().chain(twins));
        }
    }
}

/// Nodes of the fleet, as they were shown to whoever watches.
#[derive(Default)]
pub(super) struct Shown(BTreeMap<PeerId, (NodeView, bool)>);

impl Shown {
    /// A view as the engine tells it, with what there is to warn of.
    pub(super) fn take(&mut self, view: &mut NodeView, guests: &Guests) {
        let plain = view.clone();
        let warned = guests.warn(view);
        self.0.insert(view.id, (plain, warned));
    }

    /// Those of which there is another thing to warn of than was told.
    pub(super) fn changed(&mut self, guests: &Guests) -> Vec<NodeView> {
        let book = guests.book();
        let shown = self.0.values_mut();
        let changed: Vec<NodeView> = shown
            .filter(|(plain, warned)| (book.called.count(&plain.node) > 0) != *warned)
            .map(|(plain, warned)| {
                *warned = !*warned;
                plain.clone()
            })
            .collect();
        drop(book);
        let warn = |mut view: NodeView| {
            guests.warn(&mut view);
            view
        };
        changed.into_iter().map(warn).collect()
    }
}
