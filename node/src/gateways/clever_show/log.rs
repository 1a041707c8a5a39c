//! Logs each use of the gateway, at a rate that an SD card can bear; omitted lines are counted.

use std::net::SocketAddr;

use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::rate::{Throttle, TokenBucket};

/// Lines logged in a second, on average.
const LINES_PER_SECOND: u32 = 5;
/// Lines logged at once.
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
    /// Logs one use and its outcome. Texts of the server are field values, and so escaped.
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
                tracing::info!(target: "gateway", gateway = "clever_show", server, what, name, outcome, left_out);
            }
            Err(why) => {
                tracing::warn!(target: "gateway", gateway = "clever_show", server, what, name, why, left_out, "Request not done");
            }
        }
    }
}
