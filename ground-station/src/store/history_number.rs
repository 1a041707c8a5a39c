//! The number that something has in the history, for whoever waits until it is known.

use std::sync::Arc;

use tokio::sync::watch;

/// Unknown until it is stored; clones share it.
#[derive(Clone, Debug, Default)]
pub struct HistoryNumber(Arc<watch::Sender<Option<u64>>>);

impl HistoryNumber {
    /// If it is known.
    pub fn get(&self) -> Option<u64> {
        *self.0.borrow()
    }

    /// It is this, unless it has one already: that comes back.
    pub fn get_or_set(&self, number: u64) -> u64 {
        let mut stored = number;
        self.0.send_if_modified(|known| {
            let is_new = known.is_none();
            stored = *known.get_or_insert(number);
            is_new
        });
        stored
    }

    /// Returns as soon as it is known.
    pub async fn wait(&self) {
        let mut receiver = self.0.subscribe();
        // The sender is here as long as this waits.
        let _known = receiver.wait_for(Option::is_some).await;
    }
}

impl PartialEq for HistoryNumber {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for HistoryNumber {}
