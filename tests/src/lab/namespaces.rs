//! Unique names for namespaces, and the removal of namespaces whose owner has ended.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::SkipReason;

/// Prefix of the names of all labs; the id of the owning process follows.
const PREFIX: &str = "swarmlab";

/// A prefix that no other lab of this machine has.
pub(super) fn next_prefix() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}-", std::process::id())
}

/// Checks that a lab is possible on this machine.
pub(super) fn check_machine() -> Result<(), SkipReason> {
    if !geteuid().is_root() {
        return Err(SkipReason("network namespaces need root".to_owned()));
    }
    for (program, package) in [("ip", "iproute2"), ("bridge", "iproute2"), ("tc", "iproute2")] {
        let runs = Command::new(program)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if runs.is_err() {
            return Err(SkipReason(format!(
                "{program} is not installed (package {package})"
            )));
        }
    }
    Ok(())
}

/// Deletes, once in a process, the labs whose owner has ended.
pub(super) fn delete_stale() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for name in first_words(&["netns", "list"]) {
            let owner: Option<&str> = name
                .strip_prefix(PREFIX)
                .and_then(|rest| Some(rest.split_once('-')?.0));
            let gone = owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
            if gone {
                delete(&name);
            }
        }
    });
}

/// Kills the processes in a namespace and deletes it.
pub(super) fn delete(namespace: &str) {
    for pid in first_words(&["netns", "pids", namespace]) {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ended_meanwhile = kill_process(pid, Signal::KILL);
        }
    }
    let _never_made = Command::new("ip")
        .args(["netns", "delete", namespace])
        .stderr(Stdio::null())
        .status();
}

/// The first word of each line that `ip` prints.
fn first_words(args: &[&str]) -> Vec<String> {
    let Ok(output) = Command::new("ip").args(args).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect()
}
