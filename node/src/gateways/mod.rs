//! Gateways: servers of other systems that this node works for. Each is off unless the owner configures it.
//!
//! A gateway turns foreign messages into [local commands](crate::links::local_commands), and their outcomes into foreign
//! responses. Two checks apply to each command: the gateway's own `allow`, and the permissions of the role that the owner
//! has given to it.

pub mod clever_show;

use crate::links::Links;
use crate::node::Node;

/// Starts the configured gateways.
pub fn open(node: &Node, links: &Links) {
    if let Some(config) = node.config.gateways.clever_show.clone() {
        clever_show::open(config, node, links.local_commands());
    }
}
