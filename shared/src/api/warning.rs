//! What an operator should look into at a node.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::proto::id::{NodeName, PeerId};
use crate::proto::message::LOST_LINK_CHECK;

/// A fact about a node that an operator should look into. Programs compare the code; `Display` makes the sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Warning {
    /// The fleet has revoked its key. No further view of it follows.
    Revoked,
    /// A bridged device has disconnected, and the station has forgotten it. No further view of it follows.
    DeviceLeft,
    /// Several nodes of the fleet have one name.
    DuplicateName {
        /// The name.
        name: NodeName,
        /// The id of the node that carries this warning.
        id: PeerId,
        /// How many nodes have the name, this one included.
        nodes: usize,
    },
    /// Several bridged devices have one name.
    DuplicateDeviceName {
        /// The name.
        name: NodeName,
        /// How many devices have it, this one included.
        devices: usize,
    },
    /// A bridged device has the name of this node.
    NameUsedByDevice {
        /// The name.
        name: NodeName,
    },
    /// A node of the fleet has the name of this bridged device.
    NameUsedByNode {
        /// The name.
        name: NodeName,
    },
    /// Two running programs hold one key. The first one keeps its link.
    ClonedKey {
        /// The id that both have.
        id: PeerId,
        /// Name and address of the linked one.
        linked: (NodeName, SocketAddr),
        /// Name and address of the refused one.
        refused: (NodeName, SocketAddr),
    },
    /// An emergency stop is in force.
    Stopped {
        /// Its number.
        number: u64,
        /// The station that gave it.
        issuer: PeerId,
        /// What failed when the node carried it out.
        error: Option<String>,
    },
    /// The node does not know whether it is stopped, and starts no actions.
    Held,
    /// An emergency stop was sent, and the node has not confirmed it.
    StopUnconfirmed {
        /// Its number.
        number: u64,
    },
    /// An emergency stop is in force for a bridged device, which cannot confirm one.
    DeviceStopUnconfirmed,
    /// The node has run its lost-link command.
    LostLink {
        /// What the node says of it.
        text: String,
    },
}

impl Warning {
    /// Whether no further view of the node follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Revoked | Self::DeviceLeft)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revoked => f.write_str("put out of the fleet"),
            Self::DeviceLeft => f.write_str("not known any more: a drone of another program that has left"),
            Self::DuplicateName { name, id, nodes } => write!(
                f,
                "{} nodes are called {name}; tell them apart by id, rename one with: \
                 ground-station call id:{} id new_id=NAME",
                number_word(*nodes),
                id.short()
            ),
            Self::DuplicateDeviceName { name, devices } => write!(
                f,
                "{} drones call themselves {name}: give each its own name; until then, ids tell them apart",
                number_word(*devices)
            ),
            Self::NameUsedByDevice { name } => write!(
                f,
                "a drone of another program calls itself {name}, too; tell them apart by id"
            ),
            Self::NameUsedByNode { name } => write!(
                f,
                "a node of the fleet is called {name}, too, and this is a drone of another program; ids tell them apart"
            ),
            Self::ClonedKey {
                id,
                linked: (linked, linked_addr),
                refused: (refused, refused_addr),
            } => write!(
                f,
                "two devices hold the key of {}: {linked} at {linked_addr} (linked) and {refused} at {refused_addr} \
                 (refused); delete identity.key and fleet.json on one of them and join it anew",
                id.short()
            ),
            Self::Stopped {
                number,
                issuer,
                error,
            } => {
                write!(f, "STOPPED (number {number} of {})", issuer.short())?;
                match error {
                    Some(error) => write!(f, ": {error}"),
                    None => Ok(()),
                }
            }
            Self::Held => f.write_str(
                "HELD: its record of stops could not be read, so that it may have been stopped; it starts no actions \
                 until `release`",
            ),
            Self::StopUnconfirmed { number } => write!(
                f,
                "STOP NOT CONFIRMED (number {number}): it may be moving; it is sent nothing that acts until `release`"
            ),
            Self::DeviceStopUnconfirmed => f.write_str(
                "STOP NOT CONFIRMED: a drone of another program cannot confirm one; it may be moving, and is sent \
                 nothing that acts until `release`",
            ),
            Self::LostLink { text } => write!(f, "{LOST_LINK_CHECK}: {text}"),
        }
    }
}

fn number_word(number: usize) -> String {
    if number == 2 {
        "two".to_owned()
    } else {
        number.to_string()
    }
}
