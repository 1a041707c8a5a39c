//! The result of one delivery.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::NodeRef;
use crate::proto::id::{NodeName, PeerId};
use crate::proto::outcome::{Outcome, Reply};

/// How one delivery ended; `--json` prints exactly this object on one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Name of the node.
    pub node: NodeName,
    /// Id of the node.
    pub id: PeerId,
    /// The outcome.
    pub state: Outcome,
    /// The action's result.
    pub value: Option<Value>,
    /// What the action's program printed.
    pub output: Option<String>,
    /// The program's exit status; 128 plus the signal's number if a signal ended it.
    pub exit: Option<i32>,
    /// What went wrong and what to do about it, for people.
    pub error: Option<String>,
    /// Milliseconds from the request until the outcome.
    pub ms: f64,
}

impl Delivery {
    /// The node.
    pub fn target(&self) -> NodeRef {
        NodeRef {
            node: self.node.clone(),
            id: self.id,
        }
    }

    /// The delivery that a node's reply ends, `ms` milliseconds after the request.
    pub fn new(target: NodeRef, reply: Reply, ms: f64) -> Self {
        Self {
            node: target.node,
            id: target.id,
            state: reply.state,
            value: reply.value,
            output: reply.output,
            exit: reply.exit,
            error: reply.error,
            ms: round_to_microsecond(ms),
        }
    }
}

/// Rounds milliseconds to whole microseconds: further digits are noise.
pub fn round_to_microsecond(ms: f64) -> f64 {
    (ms * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_rounded_to_microseconds() {
        for (ms, written) in [
            (0.1 + 0.2, "0.3"),
            (1.234_567_891, "1.235"),
            (12_345.678_9, "12345.679"),
        ] {
            assert_eq!(serde_json::json!(round_to_microsecond(ms)).to_string(), written);
        }
    }
}
