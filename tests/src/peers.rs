//! Programs of other systems, in `tests/peers`: written from the documentation of those systems, in Python with its
//! standard library only.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::fleet::{TEST_TIMEOUT, TestDir};
use crate::process::{Process, Stream};

/// Ends a test that needs Python where there is none.
#[macro_export]
macro_rules! needs_python {
    () => {
        if !$crate::peers::python() {
            return;
        }
    };
}

/// Whether Python is installed; if not, prints a message that is visible.
///
/// # Panics
/// If it is not, and the environment has `CI`: there, no test may be skipped.
pub fn python() -> bool {
    let version = Command::new("python3")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if version.is_ok_and(|status| status.success()) {
        return true;
    }
    let why = "there is no python3, which plays the programs of other systems: install it";
    assert!(std::env::var_os("CI").is_none(), "{why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Written directly, because the output of `eprintln!` is hidden when a test passes.
    let _written = std::io::stderr().write_all(format!("skipped: {test}: {why}\n").as_bytes());
    false
}

/// Path of a script.
pub fn script_path(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script)
}

/// Starts a script; it writes lines of JSON to its standard output.
///
/// # Panics
/// If there is no Python.
pub fn start(field: &TestDir, script: &str, args: &[&str]) -> Process {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut command = Command::new("python3");
    // Unbuffered: its log is read while it runs.
    command.arg("-u").arg(script_path(script)).args(args);
    Process::spawn(command, &format!("{script}-{number}"), field.path())
}

/// Runs a script to its end; returns its output.
///
/// # Panics
/// If it fails.
pub fn run(field: &TestDir, script: &str, args: &[&str]) -> Vec<Value> {
    let mut peer = start(field, script, args);
    let status = peer.wait_exit(2 * TEST_TIMEOUT);
    assert!(
        status.success(),
        "{script} {args:?}: {status}\n{}",
        peer.log_tail()
    );
    let read = |line: &String| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{script}: not JSON: {line:?}: {error}"))
    };
    peer.lines(Stream::Out).iter().map(read).collect()
}
