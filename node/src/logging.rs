//! Logging: to standard error, and to a ring buffer in memory, which `log` and `status` read.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use anyhow::Context;
use swarm_shared::net::sync::Mutex;
use tracing::{Level, Metadata};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that the ring buffer keeps.
pub const LOG_LINES_BURST: usize = 1000;
/// Longest line that the ring buffer keeps, in bytes; a longer one is truncated.
pub const LOG_LINE_BYTES_MAX: usize = 2048;

/// The newest lines of the log. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LogRing {
    lines: Arc<Mutex<VecDeque<LogLine>>>,
}

#[derive(Debug)]
struct LogLine {
    text: String,
    is_warning: bool,
}

impl LogRing {
    /// An empty ring buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last `count` lines, oldest first.
    pub fn last(&self, count: usize) -> Vec<String> {
        self.newest(count, |_| true)
    }

    /// The last `count` warnings and errors, oldest first.
    pub fn warnings(&self, count: usize) -> Vec<String> {
        self.newest(count, |line| line.is_warning)
    }

    fn newest(&self, count: usize, wanted: impl Fn(&LogLine) -> bool) -> Vec<String> {
        let lines = self.lines.lock();
        let mut newest: Vec<String> = lines
            .iter()
            .rev()
            .filter(|line| wanted(line))
            .take(count)
            .map(|line| line.text.clone())
            .collect();
        newest.reverse();
        newest
    }

    fn push(&self, text: &str, is_warning: bool) {
        let mut end = text.len().min(LOG_LINE_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let line = LogLine {
            text: text[..end].trim_end().to_owned(),
            is_warning,
        };
        let mut lines = self.lines.lock();
        if lines.len() == LOG_LINES_BURST {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// Writer of one event.
#[derive(Debug)]
pub struct EventWriter<'r> {
    ring: &'r LogRing,
    is_warning: bool,
    text: Vec<u8>,
}

impl Write for EventWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for EventWriter<'_> {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.ring
                .push(&String::from_utf8_lossy(&self.text), self.is_warning);
        }
    }
}

impl<'r> MakeWriter<'r> for LogRing {
    type Writer = EventWriter<'r>;

    fn make_writer(&'r self) -> Self::Writer {
        EventWriter {
            ring: self,
            is_warning: false,
            text: Vec::new(),
        }
    }

    fn make_writer_for(&'r self, meta: &Metadata<'_>) -> Self::Writer {
        let mut writer = self.make_writer();
        writer.is_warning = *meta.level() <= Level::WARN;
        writer
    }
}

/// Starts logging; once in a process. `level` is `error`, `warn`, `info`, `debug`, `trace`, or a filter such as
/// `info,swarm_shared=debug`.
///
/// # Errors
/// `level` is not a filter, or logging has been started before.
pub fn init(level: &str, ring: &LogRing) -> anyhow::Result<()> {
    // Not `EnvFilter`: its regular expressions would be one of the largest parts of the program.
    let filter: Targets = level
        .parse()
        .with_context(|| format!("--log {level:?} is not a level: use error, warn, info, debug or trace"))?;
    let screen = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // Systemd's journal adds its own time stamps.
    let screen = if std::env::var_os("JOURNAL_STREAM").is_some() {
        screen.without_time().boxed()
    } else {
        screen.boxed()
    };
    let kept = tracing_subscriber::fmt::layer()
        .with_writer(ring.clone())
        .with_ansi(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(screen)
        .with(kept)
        .try_init()
        .context("logging has been started before")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_ring_keeps_newest_lines_and_marks_warnings() {
        let ring = LogRing::new();
        let kept = tracing_subscriber::fmt::layer()
            .with_writer(ring.clone())
            .with_ansi(false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(kept), || {
            for i in 0..LOG_LINES_BURST + 5 {
                tracing::info!(i, "line");
            }
            tracing::info_span!("link", peer = "a1b2")
                .in_scope(|| tracing::warn!("careful {}", "é".repeat(2000)));
        });
        assert_eq!(ring.last(usize::MAX).len(), LOG_LINES_BURST);
        let last = ring.last(2);
        assert!(
            last[0].ends_with(&format!("line i={}", LOG_LINES_BURST + 4)),
            "{last:?}"
        );
        assert!(last[1].contains("peer=\"a1b2\"") && last[1].len() <= LOG_LINE_BYTES_MAX);
        assert_eq!(ring.warnings(10), last[1..]);
    }
}
