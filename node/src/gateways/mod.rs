//! Gateways: programs of other systems that this node works for, each off unless the owner configures it.
//!
//! A door turns foreign messages into errands ([`crate::links::errands`]) and their ends into foreign answers. What
//! passes is judged twice: by the door's own `allow`, and by the one gate for the role that the owner has given it.

pub mod clever_show;

use crate::links::Links;
use crate::node::Node;

/// Opens what the configuration names.
pub fn open(node: &Node, links: &Links) {
    if let Some(config) = node.config.gateways.clever_show.clone() {
        clever_show::open(config, node, links.local_commands());
    }
}
