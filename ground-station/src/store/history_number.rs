//! The number of a command in the history, which is known when it is stored.

use std::sync::Arc;

use tokio::sync::watch;

/// A number in the history; clones share it.
#[derive(Clone, Debug, Default)]
pub struct HistoryNumber(Arc<watch::Sender<Option<u64>>>);

impl HistoryNumber {
    /// The number; `None` as long as it is not known.
    pub fn get(&self) -> Option<u64> {
        *self.0.borrow()
    }

    /// Sets the number, unless it is known already. Returns the number that is known then.
    pub fn get_or_set(&self, number: u64) -> u64 {
        let mut stored = number;
        self.0.send_if_modified(|known| {
            let is_new = known.is_none();
            stored = *known.get_or_insert(number);
            is_new
        });
        stored
    }

    /// Waits until the number is known.
    pub async fn wait(&self) {
        let mut receiver = self.0.subscribe();
        // `self` holds the sender, so this cannot fail.
        let _known = receiver.wait_for(Option::is_some).await;
    }
}

impl PartialEq for HistoryNumber {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for HistoryNumber {}
