//! Every use of the door in the node's log, as often as a memory card can bear: what is left out is counted.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use swarm_shared::net::clock;
use swarm_shared::proto::clever_show::Pace;

/// Lines in a second, in the long run; the others are counted.
const LINES_PER_SECOND: u32 = 5;
/// Lines at once.
const LINES_AT_ONCE: u32 = 100;

#[derive(Debug)]
pub(super) struct Log {
    state: Mutex<(Pace, u64)>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            state: Mutex::new((Pace::with_burst(LINES_PER_SECOND, LINES_AT_ONCE), 0)),
        }
    }
}

impl Log {
    /// Tells of one use, and how it ended. Texts of the other side are escaped as field values.
    pub(super) fn note(
        &self,
        server: Option<SocketAddr>,
        what: &'static str,
        name: &str,
        outcome: Result<String, String>,
    ) {
        let left_out = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let (pace, left_out) = &mut *state;
            if pace.take(clock::now()).is_err() {
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
