//! Limits on unauthenticated connections: in all, and for each source.
//!
//! | connection | then |
//! |---|---|
//! | all slots are taken | waits in the kernel: nothing is accepted |
//! | its source has [`PREAUTH_PER_SOURCE_MAX`] | is closed at once |
//! | otherwise | holds a [`SlotGuard`] until the handshake has ended, refused or timed out |
//!
//! A source is an IPv4 address or a /64 of IPv6: see [`Source`]. Loopback addresses are not
//! counted: a local program could do worse, and a demo runs its whole fleet there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::net::sync::Mutex;
use crate::proto::rate::Source;

/// Most unauthenticated connections at once.
pub const PREAUTH_CONNECTIONS_MAX: usize = 64;
/// Most of them from one source, so that no single host can take them all.
pub const PREAUTH_PER_SOURCE_MAX: usize = 8;

/// Connections of each source; a source without any has no entry, so there are no more entries than slots.
type Counts = Arc<Mutex<BTreeMap<Source, usize>>>;

/// All slots of one endpoint.
#[derive(Debug)]
pub(super) struct PreauthLimiter {
    free: Arc<Semaphore>,
    counts: Counts,
}

impl Default for PreauthLimiter {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(PREAUTH_CONNECTIONS_MAX)),
            counts: Counts::default(),
        }
    }
}

/// A slot before its source is known: one more connection may be accepted.
#[derive(Debug)]
pub(super) struct Slot {
    permit: OwnedSemaphorePermit,
    counts: Counts,
}

/// The slot of one unauthenticated connection; dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct SlotGuard {
    _permit: OwnedSemaphorePermit,
    source: Option<Source>,
    counts: Counts,
}

impl PreauthLimiter {
    /// Waits until one is free.
    pub(super) async fn acquire(&self) -> std::io::Result<Slot> {
        let permit = Arc::clone(&self.free).acquire_owned().await;
        Ok(Slot {
            permit: permit.map_err(std::io::Error::other)?,
            counts: Arc::clone(&self.counts),
        })
    }
}

impl Slot {
    /// The slot of a connection from `addr`; `None` if its source has reached its limit.
    pub(super) fn assign_to(self, source_ip: IpAddr) -> Option<SlotGuard> {
        let Self { permit, counts } = self;
        let source = (!source_ip.to_canonical().is_loopback()).then(|| Source::of(source_ip));
        if let Some(source) = source {
            let mut counts = counts.lock();
            let count = counts.entry(source).or_default();
            if *count >= PREAUTH_PER_SOURCE_MAX {
                return None;
            }
            *count += 1;
        }
        Some(SlotGuard {
            _permit: permit,
            source,
            counts,
        })
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let Some(source) = self.source else { return };
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    async fn acquire_slot(limiter: &PreauthLimiter, from: &str) -> Option<SlotGuard> {
        let slot = limiter.acquire().await.expect("the semaphore is never closed");
        slot.assign_to(ip(from))
    }

    async fn fill(limiter: &PreauthLimiter, from: &str) -> Vec<SlotGuard> {
        let mut held = Vec::new();
        while let Some(slot) = acquire_slot(limiter, from).await {
            held.push(slot);
        }
        held
    }

    #[tokio::test]
    async fn each_source_is_limited_and_releases_its_slots() {
        let limiter = PreauthLimiter::default();
        let mut held = fill(&limiter, "192.168.1.5").await;
        assert_eq!(held.len(), PREAUTH_PER_SOURCE_MAX);
        assert!(
            acquire_slot(&limiter, "::ffff:192.168.1.5").await.is_none(),
            "the same"
        );
        assert!(
            acquire_slot(&limiter, "192.168.1.6").await.is_some(),
            "another host"
        );
        held.pop();
        held.extend(acquire_slot(&limiter, "192.168.1.5").await);
        assert_eq!(held.len(), PREAUTH_PER_SOURCE_MAX);
        assert!(acquire_slot(&limiter, "192.168.1.5").await.is_none());
        drop(held);
        assert!(limiter.counts.lock().is_empty(), "no source has an entry");
        assert_eq!(limiter.free.available_permits(), PREAUTH_CONNECTIONS_MAX);
    }

    #[tokio::test]
    async fn ipv6_sources_are_64_prefixes_except_link_local() {
        let limiter = PreauthLimiter::default();
        let held = fill(&limiter, "2001:db8:0:7::1").await;
        assert_eq!(held.len(), PREAUTH_PER_SOURCE_MAX);
        assert!(acquire_slot(&limiter, "2001:db8:0:7:ffff::2").await.is_none());
        assert!(acquire_slot(&limiter, "2001:db8:0:8::1").await.is_some());
        let held = fill(&limiter, "fe80::1").await;
        assert_eq!(held.len(), PREAUTH_PER_SOURCE_MAX);
        assert!(acquire_slot(&limiter, "fe80::2").await.is_some());
    }

    #[tokio::test]
    async fn loopback_connections_are_not_limited_per_source() {
        let limiter = PreauthLimiter::default();
        let mut held = Vec::new();
        for from in ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"] {
            for _ in 0..PREAUTH_CONNECTIONS_MAX / 4 {
                held.extend(acquire_slot(&limiter, from).await);
            }
        }
        assert_eq!(held.len(), PREAUTH_CONNECTIONS_MAX);
        let full = limiter.acquire();
        assert!(at_once(full).await.is_none(), "the next one waits");
    }

    /// What a future gives without waiting.
    async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }
}
