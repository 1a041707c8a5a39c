//! What of the dead-man outlives the process: `lost-link.json` in the state directory, good for one boot.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::memory::Memory;

/// How it stood when the process before this one, on the same boot, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Past {
    /// A commanding station had been linked, and no loss since has been seen to its end.
    Linked,
    /// The link was lost, its command had ended, and no station had been heard again.
    Over,
}

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    boot: String,
    state: Past,
}

impl Kept {
    /// What holds on this boot. Nothing of another one does: the machine may have been carried home in between.
    pub(crate) fn on(self, boot: &str) -> Option<Past> {
        (self.boot == boot && !boot.is_empty()).then_some(self.state)
    }
}

/// Writes down each change, the newest only if the disk is slower; ends with what tells of them.
pub(super) async fn keep(memory: Memory, boot: String, mut facts: watch::Receiver<Option<Past>>) {
    while facts.changed().await.is_ok() {
        let state = *facts.borrow_and_update();
        if let Some(state) = state.filter(|_| !boot.is_empty()) {
            let boot = boot.clone();
            memory.keep_past(Kept { boot, state }).await;
        }
    }
}
