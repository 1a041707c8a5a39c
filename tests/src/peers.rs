//! Programs of other systems, in `tests/peers`: written against what is known of those systems, in Python with its
//! standard library only.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::fleet::{Field, PATIENCE};
use crate::process::{Process, Stream};

/// Starts one; it writes lines of JSON to its standard output.
///
/// # Panics
/// If there is no Python.
pub fn start(field: &Field, script: &str, args: &[&str]) -> Process {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
    let mut command = Command::new("python3");
    // Its log is read while it runs.
    command.arg("-u").arg(path).args(args);
    Process::spawn(command, &format!("{script}-{number}"), field.path())
}

/// Runs one to its end; what it wrote.
///
/// # Panics
/// If it fails.
pub fn run(field: &Field, script: &str, args: &[&str]) -> Vec<Value> {
    let mut peer = start(field, script, args);
    let status = peer.wait_exit(2 * PATIENCE);
    assert!(status.success(), "{script} {args:?}: {status}\n{}", peer.tail());
    let read = |line: &String| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{script}: not JSON: {line:?}: {error}"))
    };
    peer.lines(Stream::Out).iter().map(read).collect()
}
