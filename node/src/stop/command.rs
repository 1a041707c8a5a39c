//! The owner's command of `[emergency_stop]`.

use tokio_util::sync::CancellationToken;

use crate::config::EmergencyStop;
use crate::process::{self, EndReason, Stderr};

/// The owner's command while it runs.
pub(super) struct RunningCommand {
    pub(super) cancel: CancellationToken,
    /// The stop that it was started for has been released.
    pub(super) released: bool,
    /// A new stop came after that release: the command runs once more when it has ended.
    pub(super) restart: bool,
}

/// Runs the command; `None` if the shutdown killed it, so that the next start runs it again.
pub(super) async fn run_to_end(
    config: &EmergencyStop,
    cancel: &CancellationToken,
    shutdown: &CancellationToken,
) -> Option<Result<(), String>> {
    let timeout = config.timeout;
    let finished = match process::run(config.command.as_slice(), Stderr::Merged, timeout, cancel).await {
        Ok(finished) => finished,
        Err(error) => return Some(Err(error.to_string())),
    };
    if finished.reason == EndReason::Cancelled && shutdown.is_cancelled() {
        return None;
    }
    Some(match (finished.reason, finished.exit_code) {
        (EndReason::TimedOut, _) => Err(format!("ran longer than {timeout:?} and was killed")),
        (EndReason::Exited | EndReason::Cancelled, 0) => Ok(()),
        (EndReason::Exited | EndReason::Cancelled, exit) => {
            let last = finished.output.trim_end().lines().last().unwrap_or_default();
            Err(format!("exit status {exit}: {last}"))
        }
    })
}
