//! TCP ports of 127.0.0.1 for processes under test: a process keeps its port over restarts.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the kernel's ephemeral ports (32768 and up), so that no outgoing connection takes one.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;
/// Distance of the first ports of concurrent test processes, by their process ids.
const STRIDE: u32 = 61;

/// The next port that is free now.
pub(super) fn next_free() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(STRIDE) % u32::from(COUNT);
    let start = u16::try_from(start).expect("below COUNT");
    for _ in 0..COUNT {
        let offset = TAKEN.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + offset) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of 127.0.0.1 is free");
}
