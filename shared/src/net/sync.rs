//! A mutex for short critical sections in which nothing waits.

use std::sync::{MutexGuard, PoisonError};

/// A [`std::sync::Mutex`] without poisoning: a panic elsewhere does not make its value inaccessible.
///
/// No section that it guards can leave the value half changed, and a station that has lost one task still has to
/// send emergency stops.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A mutex around `value`, unlocked.
    pub const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    /// Blocks until the value is free.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
