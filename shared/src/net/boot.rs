//! The boot id of this machine, and the time since boot.
//!
//! Within one boot, time since its start measures exactly and counts sleep, whatever becomes of the wall clock. That
//! makes deadlines that outlive a program: see the station's store.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The kernel's boot id: random, and new at each boot.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// This boot's id; empty if the kernel has none, which equals no other id.
pub fn id() -> String {
    std::fs::read_to_string(BOOT_ID_FILE).map_or_else(|_no_proc| String::new(), |id| id.trim().to_owned())
}

/// Time since boot, with the time that the machine was suspended.
pub fn time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_id_is_stable_and_boot_time_advances() {
        assert_eq!(id().len(), 36, "{:?}", id());
        assert_eq!(id(), id());
        let before = time();
        std::thread::sleep(Duration::from_millis(2));
        assert!(time() >= before + Duration::from_millis(2));
    }
}
