//! A verb of `ground-station`, running or ended.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use swarm_shared::net::clock;

use crate::process::{Process, Signal, Stream};

/// A running verb. Dropping it kills it.
#[derive(Debug)]
pub struct Verb {
    pub(super) words: String,
    pub(super) process: Process,
    pub(super) started: Instant,
}

impl Verb {
    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn finish(mut self, patience: Duration) -> VerbOutput {
        let status = self.process.wait_exit(patience);
        let lines = self.process.lines(Stream::Out);
        VerbOutput {
            words: self.words,
            status: status.code(),
            duration: clock::now() - self.started,
            stderr: self.process.lines(Stream::Err).join("\n"),
            stdout: lines,
        }
    }

    /// Sends a signal, such as that of Ctrl-C.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// A verb that has ended.
#[derive(Debug)]
pub struct VerbOutput {
    words: String,
    /// Its exit status; absent if a signal ended it.
    pub status: Option<i32>,
    /// Time from start to end.
    pub duration: Duration,
    /// Lines of standard output.
    pub stdout: Vec<String>,
    /// All of standard error.
    pub stderr: String,
}

impl VerbOutput {
    /// Checks the exit status, and returns itself.
    ///
    /// # Panics
    /// If it is another.
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            Some(status),
            "exit status of: {}\n{}\n{}",
            self.words,
            self.stdout.join("\n"),
            self.stderr
        );
        self
    }

    /// Checks that standard error contains a text, and returns itself.
    ///
    /// # Panics
    /// If it does not contain it.
    pub fn expect_stderr(self, what: &str) -> Self {
        assert!(
            self.stderr.contains(what),
            "{}: not on standard error: {what:?}\n{}\n{}",
            self.words,
            self.stdout.join("\n"),
            self.stderr
        );
        self
    }

    /// The lines of standard output, each a JSON object.
    ///
    /// # Panics
    /// If a line is not one.
    pub fn json(&self) -> Vec<Value> {
        let read = |line: &String| {
            let value: Value = serde_json::from_str(line)
                .unwrap_or_else(|e| panic!("{}: not JSON: {line:?}: {e}", self.words));
            assert!(value.is_object(), "{}: not an object: {line:?}", self.words);
            value
        };
        self.stdout.iter().map(read).collect()
    }

    /// The only line of this node.
    ///
    /// # Panics
    /// If there is none, or more than one.
    pub fn line_of(&self, node: &str) -> Value {
        let mut lines = self.json();
        lines.retain(|line| line["node"] == node);
        assert_eq!(
            lines.len(),
            1,
            "{}: lines of {node}\n{}\n{}",
            self.words,
            self.stdout.join("\n"),
            self.stderr
        );
        lines.remove(0)
    }

    /// The outcome of this node.
    ///
    /// # Panics
    /// If there is not exactly one.
    pub fn outcome_of(&self, node: &str) -> String {
        super::str_field(&self.line_of(node), "state").to_owned()
    }
}

/// Names of the log files of a station's verbs.
#[derive(Debug)]
pub(super) struct VerbLogs {
    pub(super) dir: PathBuf,
    pub(super) station: String,
    pub(super) count: std::cell::Cell<usize>,
}

impl VerbLogs {
    pub(super) fn next_name(&self) -> String {
        let number = self.count.get() + 1;
        self.count.set(number);
        format!("{}-verb{number}", self.station)
    }
}
