//! Guests that are called like nodes of the fleet, or like each other: whoever asks is told.
//!
//! Anybody may call a drone of another program what he likes. So a name means all that have it, as among own nodes, and
//! each of them carries a warning.

use std::collections::{BTreeMap, BTreeSet};

use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::selector::Selector;

use super::Guests;
use super::desk::Counter;
use crate::fleet::engine::{NO_NODES, PUT_OUT, TAKES_NOBODY};
use crate::fleet::{Event, Failure, NodeRef, NodeView, Request};

/// How many names are told in one note.
const NAMES_SHOWN: usize = 8;

impl Counter {
    /// Learns how the fleet's own nodes are called, until the engine ends.
    pub(super) async fn learn_names(&self) {
        let selector = Selector::all();
        let mut events = self.engine.perform(Request::Watch { selector }).await;
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

impl Guests {
    fn learn(&self, view: &NodeView) {
        let mut own = self
            .0
            .own
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = if view.warnings.iter().any(|warning| warning == PUT_OUT) {
            own.remove(&view.id)
        } else {
            own.insert(view.id, view.node.clone())
        };
        let changed = before.as_ref() != own.get(&view.id);
        drop(own);
        if changed {
            self.0.changed.send_modify(|version| *version += 1);
        }
    }

    /// Says who is known, where the engine says that somebody is not: it knows no guests.
    pub(super) fn name_in(&self, event: &mut Event) {
        let Event::Failed { failure, message } = event else {
            return;
        };
        let slip = *failure == Failure::Usage && message.contains(TAKES_NOBODY);
        if !(slip || *failure == Failure::NobodyMatched) {
            return;
        }
        let names: BTreeSet<NodeName> = {
            let book = self.book();
            book.values()
                .map(|guest| guest.profile.node.node.clone())
                .collect()
        };
        if names.is_empty() {
            return;
        }
        let shown: Vec<&str> = names.iter().take(NAMES_SHOWN).map(NodeName::as_str).collect();
        let more = match names.len() - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let guests = format!("known drones of other programs are {}{more}", shown.join(", "));
        *message = match message.strip_prefix(NO_NODES) {
            Some(rest) => format!("no node matches; {guests}{rest}"),
            None => format!("{message}; {guests}"),
        };
    }

    fn is_own(&self, name: &NodeName) -> bool {
        let own = self
            .0
            .own
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        own.values().any(|own| own == name)
    }

    /// Warns of guests that are called like this node of the fleet. Whether there are any.
    pub(super) fn warn(&self, own: &mut NodeView) -> bool {
        let book = self.book();
        let called_so = book.values().any(|guest| guest.profile.node.node == own.node);
        drop(book);
        if called_so {
            let name = &own.node;
            own.warnings.push(format!(
                "a drone of another program calls itself {name}, too; tell them apart by id"
            ));
        }
        called_so
    }

    /// Warns of others that are called like these guests.
    pub(super) fn warn_guests(&self, views: &mut [NodeView]) {
        // Programs at doors ask for a few nodes thousands of times a second.
        if views.is_empty() {
            return;
        }
        let own: BTreeSet<NodeName> = {
            let own = self
                .0
                .own
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            own.values().cloned().collect()
        };
        let mut guests: BTreeMap<NodeName, usize> = BTreeMap::new();
        for guest in self.book().values() {
            *guests.entry(guest.profile.node.node.clone()).or_default() += 1;
        }
        for view in views {
            let name = &view.node;
            let number = match guests.get(name) {
                None | Some(0 | 1) => None,
                Some(2) => Some("two".to_owned()),
                Some(more) => Some(more.to_string()),
            };
            let twins = number.map(|number| {
                format!("{number} drones call themselves {name}: give each its own name; until then, ids tell them apart")
            });
            let own = own.contains(name).then(|| {
                format!("a node of the fleet is called {name}, too, and this is a drone of another program; ids tell them apart")
            });
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
        let names: BTreeSet<&NodeName> = book.values().map(|guest| &guest.profile.node.node).collect();
        let shown = self.0.values_mut();
        let changed: Vec<NodeView> = shown
            .filter(|(plain, warned)| names.contains(&plain.node) != *warned)
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
