//! Every use of the door in the node's log, as often as a memory card can bear: what is left out is counted.

use std::net::SocketAddr;

use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::rate::{Throttle, TokenBucket};

/// Lines in a second, in the long run; the others are counted.
const LINES_PER_SECOND: u32 = 5;
/// Lines at once.
const LINES_BURST: u32 = 100;

#[derive(Debug)]
pub(super) struct ThrottledLog {
    throttle: Mutex<Throttle>,
}

impl Default for ThrottledLog {
    fn default() -> Self {
        Self {
            throttle: Mutex::new(Throttle::new(TokenBucket::with_burst(
                LINES_PER_SECOND,
                LINES_BURST,
            ))),
        }
    }
}

impl ThrottledLog {
    /// Tells of one use, and how it ended. Texts of the other side are escaped as field values.
    pub(super) fn record(
        &self,
        server: Option<SocketAddr>,
        what: &'static str,
        name: &str,
        outcome: Result<String, String>,
    ) {
        let counted = self.throttle.lock().count(clock::now());
        let Some(count) = counted else { return };
        let left_out = count - 1;
        let name: String = name.chars().take(80).collect();
        let server = server.map(tracing::field::display);
        match outcome {
            Ok(outcome) => {
                tracing::info!(target: "door", door = "clever_show", server, what, name, outcome, left_out);
            }
            Err(why) => {
                tracing::warn!(target: "door", door = "clever_show", server, what, name, why, left_out, "not done");
            }
        }
    }
}
