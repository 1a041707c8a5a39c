//! A program under test: its output goes to files, tests wait for its lines, and it never outlives the test.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use serde_json::Value;
use swarm_shared::net::clock;

pub use rustix::process::Signal;

/// Time between two checks of a log or a process.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Lines of a log that are shown at a failure.
const TAIL_LINES: usize = 40;

/// An output of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error: the log.
    Err,
}

/// A running program. Dropping it kills it; if the test fails, its last lines are shown first.
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    logs: [PathBuf; 2],
    lines_read: [usize; 2],
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({:?}, pid {})", self.name, self.child.id())
    }
}

impl Process {
    /// Starts a command with its output in `DIR/NAME.out` and `DIR/NAME.err`, and empty standard input.
    ///
    /// # Panics
    /// If it does not start.
    pub fn spawn(mut command: Command, name: &str, dir: &Path) -> Self {
        let logs = [dir.join(format!("{name}.out")), dir.join(format!("{name}.err"))];
        let file = |path: &Path| {
            // A restarted program continues its log.
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()))
        };
        let read = [0, 1].map(|stream: usize| lines(&logs[stream]).len());
        let child = command
            .stdin(Stdio::null())
            .stdout(file(&logs[0]))
            .stderr(file(&logs[1]))
            .spawn()
            .unwrap_or_else(|e| panic!("{name} does not start: {e}: {command:?}"));
        Self {
            name: name.to_owned(),
            child,
            status: None,
            logs,
            lines_read: read,
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; does nothing if the process has ended.
    ///
    /// # Panics
    /// If the kernel rejects it.
    pub fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_some() {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.expect("a child has a number above 0");
        kill_process(pid, signal).unwrap_or_else(|e| panic!("cannot signal {}: {e}", self.name));
    }

    /// The exit status, if the process has ended.
    ///
    /// # Panics
    /// If the kernel gives no status.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child can be waited for");
        }
        self.status
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        let deadline = clock::now() + patience;
        loop {
            if let Some(status) = self.exit_status() {
                return status;
            }
            assert!(
                clock::now() < deadline,
                "{} did not end within {patience:?}\n{}",
                self.name,
                self.log_tail()
            );
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits for a line that was not returned before and returns it; the lines before it are dropped.
    ///
    /// # Panics
    /// If it does not come in time, or the program has ended without it.
    pub fn wait_line(
        &mut self,
        stream: Stream,
        patience: Duration,
        what: &str,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> String {
        let deadline = clock::now() + patience;
        let which = stream as usize;
        loop {
            // In this order, so that lines written just before the end are still read.
            let ended = self.exit_status();
            let late = clock::now() >= deadline;
            let lines = lines(&self.logs[which]);
            while self.lines_read[which] < lines.len() {
                let line = &lines[self.lines_read[which]];
                self.lines_read[which] += 1;
                if wanted(line) {
                    return line.clone();
                }
            }
            if let Some(status) = ended {
                panic!(
                    "{} ended ({status}) without: {what}\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            assert!(
                !late,
                "{}: not within {patience:?}: {what}\n{}",
                self.name,
                self.log_tail()
            );
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits for a line of standard output that is JSON and meets a condition.
    ///
    /// # Panics
    /// As [`Process::wait_line`].
    pub fn wait_json(
        &mut self,
        patience: Duration,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut found = Value::Null;
        self.wait_line(Stream::Out, patience, what, |line| {
            let value = serde_json::from_str(line).ok().filter(|value| wanted(value));
            value.map(|value| found = value).is_some()
        });
        found
    }

    /// All complete lines so far.
    pub fn lines(&self, stream: Stream) -> Vec<String> {
        lines(&self.logs[stream as usize])
    }

    /// Drops all lines that exist now.
    pub fn skip_lines(&mut self) {
        self.lines_read = [0, 1].map(|stream: usize| lines(&self.logs[stream]).len());
    }

    /// The last lines of both outputs, for messages.
    pub fn log_tail(&self) -> String {
        let mut tail = String::new();
        for path in &self.logs {
            let lines = lines(path);
            let from = lines.len().saturating_sub(TAIL_LINES);
            let shown = lines[from..].join("\n    ");
            tail.push_str(&format!("  {}:\n    {shown}\n", path.display()));
        }
        tail
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            let text = format!("--- {} (pid {})\n{}", self.name, self.pid(), self.log_tail());
            let _written = std::io::stderr().write_all(text.as_bytes());
        }
        if self.exit_status().is_none() {
            let _gone_already = self.child.kill();
            let _gone_already = self.child.wait();
        }
    }
}

/// Complete lines only: the last one may still be in progress.
fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(str::to_owned).collect()
}

/// Repeats a check until it returns true.
///
/// # Panics
/// If it does not in time.
pub fn wait_until(patience: Duration, what: &str, mut answer: impl FnMut() -> bool) {
    let deadline = clock::now() + patience;
    while !answer() {
        assert!(clock::now() < deadline, "not within {patience:?}: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Waits for a fixed time: only where a test checks that nothing happens, or that something takes its time.
pub fn sleep_for(time: Duration) {
    thread::sleep(time);
}
