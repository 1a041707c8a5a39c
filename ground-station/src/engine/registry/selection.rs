//! What a selector matches, and what callers are told of terms that match nothing.

use std::collections::{BTreeMap, BTreeSet};

use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::selector::Selector;

use super::NodeRegistry;
use super::target::{Device, NodeDevice, Target};
use crate::text::fold;
use swarm_shared::api::NodeRef;

/// Most names in one note.
const NAMES_SHOWN_MAX: usize = 8;
/// Most unmatched terms that a note names.
const UNMATCHED_SHOWN_MAX: usize = 8;
/// Most stops in force that a note names.
const STOPS_SHOWN_MAX: usize = 4;
/// Error text of a selector in a fleet without nodes.
const NO_NODES: &str = "this fleet has no nodes yet: type `ground-station fleet invite` here and \
                        `swarm-node join CODE` on a device";

impl NodeRegistry {
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
    pub(super) fn unmatched_terms(&self, selector: &Selector) -> Vec<String> {
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

    /// A note that names the terms that match nothing; `retried` has the names of nodes by their terms.
    pub(in crate::engine) fn unmatched_note(
        &self,
        selector: &Selector,
        retried: &BTreeMap<String, NodeName>,
    ) -> Option<String> {
        let unmatched = self.unmatched_terms(selector);
        if unmatched.is_empty() {
            return None;
        }
        let names: BTreeSet<&NodeName> = unmatched.iter().filter_map(|term| retried.get(term)).collect();
        if !names.is_empty() {
            return Some(format!(
                "no node matches {}, so nothing is repeated there; drones of other programs are known once they have \
                 connected",
                fold(names)
            ));
        }
        let shown = unmatched.iter().take(UNMATCHED_SHOWN_MAX);
        let shown: Vec<String> = shown.map(|term| format!("{term:?}")).collect();
        let more = match unmatched.len().saturating_sub(UNMATCHED_SHOWN_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!("no node matches {}{more}", shown.join(", ")))
    }

    /// Error text of a selector that matches nothing.
    pub(in crate::engine) fn no_match_text(&self, selector: &Selector) -> String {
        match self.known_names() {
            Some(known) => format!("no node matches {:?}; {known}", selector.as_str()),
            None => NO_NODES.to_owned(),
        }
    }

    /// A note that names the stops in force for bridged devices.
    pub(in crate::engine) fn latched_stops_note(&self) -> Option<String> {
        let stops = self.devices.latches().stops();
        let shown = stops.iter().take(STOPS_SHOWN_MAX);
        let shown: Vec<String> = shown.map(|stop| format!("{stop:?}")).collect();
        (!stops.is_empty()).then(|| {
            format!(
                "a stop of {} is in force for drones of other programs, also for those that come; `release` ends it",
                shown.join(" and of ")
            )
        })
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
