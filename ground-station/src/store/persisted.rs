//! Values that take effect at once and are written to the store in the background.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Store;
use super::meta::MetaValue;

/// Time until a failed write is tried again.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A value in memory that follows into the store. No change waits for the disk. Clones share the value.
#[derive(Debug)]
pub struct Persisted<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    stored_as: MetaValue<T>,
    current: watch::Sender<Versioned<T>>,
    stored: watch::Sender<Stored>,
}

#[derive(Debug)]
struct Versioned<T> {
    value: T,
    /// Counts changes.
    version: u64,
}

/// The state of the store.
#[derive(Debug, Default)]
struct Stored {
    version: u64,
    /// Version and error of the last write, if it failed.
    failure: Option<(u64, String)>,
}

impl<T> Clone for Persisted<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Serialize> Persisted<T> {
    /// Starts with `value` as version 0, which is not written.
    pub fn new(stored_as: MetaValue<T>, value: T) -> Self {
        let current = watch::Sender::new(Versioned { value, version: 0 });
        Self(Arc::new(Inner {
            stored_as,
            current,
            stored: watch::Sender::default(),
        }))
    }

    /// Calls `read` with the value.
    pub fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.0.current.borrow().value)
    }

    /// Changes the value. `change` returns `None` if it has changed nothing.
    pub fn modify<R>(&self, change: impl FnOnce(&mut T) -> Option<R>) -> Option<R> {
        let mut result = None;
        self.0.current.send_if_modified(|current| {
            result = change(&mut current.value);
            current.version += u64::from(result.is_some());
            result.is_some()
        });
        result
    }

    /// Number of changes so far.
    pub fn version(&self) -> u64 {
        self.0.current.borrow().version
    }

    /// Waits until a version, or a later one, is stored.
    ///
    /// # Errors
    /// Why the write failed; it is tried again.
    pub async fn wait_stored(&self, version: u64) -> Result<(), String> {
        let mut changes = self.0.stored.subscribe();
        let tried = changes.wait_for(|stored| {
            let failed = stored.failure.as_ref().is_some_and(|(of, _)| *of >= version);
            stored.version >= version || failed
        });
        match tried.await {
            Ok(stored) if stored.version >= version => Ok(()),
            Ok(stored) => Err(stored
                .failure
                .as_ref()
                .map_or(String::new(), |(_, why)| why.clone())),
            Err(_closed) => Err("the station is shutting down".to_owned()),
        }
    }

    /// Writes each change to the store until shutdown, and then the last one.
    pub async fn persist_changes(self, store: Store, shutdown: CancellationToken) {
        let mut changes = self.0.current.subscribe();
        loop {
            // Read first: a change that comes during the last write is written too.
            let is_last = shutdown.is_cancelled();
            let failed = self.write_current(&store).await.is_err();
            if is_last {
                return;
            }
            let due = async {
                if failed {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                } else {
                    // The sender is `self`.
                    changes.changed().await.ok();
                }
            };
            shutdown.run_until_cancelled(due).await;
        }
    }

    /// Writes the value if its version is not stored.
    async fn write_current(&self, store: &Store) -> Result<(), ()> {
        let (version, write) = {
            let current = self.0.current.borrow();
            if current.version == self.0.stored.borrow().version {
                return Ok(());
            }
            let write = store.save_value(&self.0.stored_as, &current.value);
            (current.version, write)
        };
        let written = write.await;
        let key = self.0.stored_as.key();
        self.0.stored.send_modify(|stored| match &written {
            Ok(()) => {
                if stored.failure.take().is_some() {
                    tracing::info!(key, "Value is stored again");
                }
                stored.version = version;
            }
            Err(error) => {
                if stored.failure.is_none() {
                    tracing::error!(key, %error, "Value is not stored; the write is repeated each second");
                }
                stored.failure = Some((version, error.to_string()));
            }
        });
        written.map_err(drop)
    }
}
