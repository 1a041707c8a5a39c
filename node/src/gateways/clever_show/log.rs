//! Every use of the door in the node's log, as often as a memory card can bear: what is left out is counted.

use std::net::SocketAddr;

use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::foreign::clever_show::TokenBucket;

/// Lines in a second, in the long run; the others are counted.
const LINES_PER_SECOND: u32 = 5;
/// Lines at once.
const LINES_BURST: u32 = 100;

#[derive(Debug)]
pub(super) struct ThrottledLog {
    state: Mutex<(TokenBucket, u64)>,
}

impl Default for ThrottledLog {
    fn default() -> Self {
        Self {
            state: Mutex::new((TokenBucket::with_burst(LINES_PER_SECOND, LINES_BURST), 0)),
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
        let left_out = {
            let mut state = self.state.lock();
            let (pace, left_out) = &mut *state;
            if pace.try_take(clock::now()).is_err() {
                *left_out += 1;
                return;
            }
            std::mem::take(left_out)
        };
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
