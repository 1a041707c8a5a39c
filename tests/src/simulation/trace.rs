//! The events of a run, as lines: their digest shows whether two runs were equal, their last lines explain a
//! violation.

use std::collections::VecDeque;
use std::fmt::Write as _;

use ring::digest::{Context, SHA256};

/// Lines that are kept for the report of a violation.
const TAIL_LINES: usize = 60;

pub(super) struct Trace {
    digest: Context,
    tail: VecDeque<String>,
    lines: u64,
    print: bool,
}

impl Trace {
    pub(super) fn new(print: bool) -> Self {
        Self {
            digest: Context::new(&SHA256),
            tail: VecDeque::new(),
            lines: 0,
            print,
        }
    }

    #[expect(clippy::print_stdout, reason = "printing its events is what --trace asks for")]
    pub(super) fn log(&mut self, at_ms: u64, who: &str, what: std::fmt::Arguments<'_>) {
        let mut line = if self.tail.len() >= TAIL_LINES {
            self.tail.pop_front().unwrap_or_default()
        } else {
            String::new()
        };
        line.clear();
        // Writing to a string cannot fail.
        let _infallible = write!(line, "{:>3}.{:03} {who:<9} {what}", at_ms / 1000, at_ms % 1000);
        self.digest.update(line.as_bytes());
        self.digest.update(b"\n");
        self.lines += 1;
        if self.print {
            println!("{line}");
        }
        self.tail.push_back(line);
    }

    pub(super) fn line_count(&self) -> u64 {
        self.lines
    }

    /// The digest of all lines so far.
    pub(super) fn digest(&self) -> String {
        let mut text = String::new();
        for byte in &self.digest.clone().finish().as_ref()[..16] {
            let _infallible = write!(text, "{byte:02x}");
        }
        text
    }

    pub(super) fn tail(&self) -> String {
        let mut text = String::new();
        for line in &self.tail {
            text.push_str("  ");
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}
