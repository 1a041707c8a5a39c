//! Writes the output of all verbs: results to standard output, everything else to standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::config::ConfigError;
use crate::control::server::ServerError;
use crate::engine::EngineError;
use crate::engine::files::names::FilesError;
use crate::store::lock::LockError;
use crate::view::deliveries::DeliveryReport;
use crate::view::{self, Paint, Style};
use swarm_shared::api::{Delivery, Event, Failure};
use swarm_shared::client::RequestError;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::BadSelector;

/// Exit status: the request failed.
pub(super) const EXIT_FAILED: u8 = 1;
/// Exit status: wrong usage or configuration.
pub(super) const EXIT_USAGE: u8 = 2;
/// Exit status: no node matched.
pub(super) const EXIT_NO_MATCH: u8 = 3;
/// Exit status: Ctrl-C (128 + SIGINT).
pub(super) const EXIT_INTERRUPTED: u8 = 130;
/// Exit status: the reader of the output is gone (128 + SIGPIPE).
const EXIT_BROKEN_PIPE: u8 = 141;

/// Why a verb ends early.
#[derive(Debug)]
pub(super) struct CliError {
    status: u8,
    /// Absent after Ctrl-C, and if the output cannot be written.
    message: Option<String>,
}

impl CliError {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self {
            status: EXIT_FAILED,
            message: Some(message.into()),
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self {
            status: EXIT_USAGE,
            message: Some(message.into()),
        }
    }

    /// Ctrl-C ended the verb.
    pub(super) fn interrupted() -> Self {
        Self {
            status: EXIT_INTERRUPTED,
            message: None,
        }
    }

    /// The text; empty if there is none.
    pub(super) fn message(&self) -> &str {
        self.message.as_deref().unwrap_or_default()
    }

    pub(super) fn from_failure(failure: Failure, message: impl Into<String>) -> Self {
        let status = match failure {
            Failure::Usage => EXIT_USAGE,
            Failure::NoMatch => EXIT_NO_MATCH,
            Failure::Failed | Failure::ShutDown | _ => EXIT_FAILED,
        };
        Self {
            status,
            message: Some(message.into()),
        }
    }
}

/// A plain I/O error comes from writing to the screen only.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self {
                status: EXIT_BROKEN_PIPE,
                message: None,
            };
        }
        Self::failed(format!("cannot write the output: {error}"))
    }
}

/// Errors that the user mends by another option or configuration.
macro_rules! usage_errors {
    ($($error:ty),*) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::usage(error.to_string())
            }
        })*
    };
}

usage_errors!(
    ConfigError,
    LockError,
    ServerError,
    FilesError,
    EngineError,
    BadSelector
);

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        Self::from_failure(error.failure(), error.to_string())
    }
}

/// Standard output and standard error, with the style of each.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) json: bool,
    pub(super) quiet: bool,
    /// Style of results.
    pub(super) style: Style,
    /// Whether results go to a terminal.
    pub(super) is_terminal: bool,
    error_style: Style,
    progress_bar: Option<ProgressBar>,
    /// Lines that the next redraw replaces.
    drawn_lines: usize,
}

impl Screen {
    pub(super) fn new(json: bool, quiet: bool, no_color: bool) -> Self {
        let style = |color| Style { color, columns: None };
        Self {
            json,
            quiet,
            style: style(wants_color(no_color, &io::stdout())),
            is_terminal: io::stdout().is_terminal(),
            error_style: style(wants_color(no_color, &io::stderr())),
            progress_bar: None,
            drawn_lines: 0,
        }
    }

    /// Writes a result of whole lines.
    pub(super) fn print_result(&mut self, text: &str) -> Result<(), CliError> {
        self.clear_progress();
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }

    /// With `--json`: writes the event's line of JSON, if it has one.
    pub(super) fn print_event(&mut self, event: &Event) -> Result<(), CliError> {
        match view::json::line(event) {
            Some(line) if self.json => self.print_result(&line),
            Some(_) | None => Ok(()),
        }
    }

    /// Adds the outcome `no-answer` for each target without an outcome, so that every target is in the report.
    pub(super) fn report_no_answer(
        &mut self,
        report: &mut DeliveryReport,
        reason: &str,
        took: Duration,
    ) -> Result<(), CliError> {
        for target in report.unanswered_targets() {
            let reply = Reply::ended(Outcome::NoAnswer, reason);
            let event = Event::Delivery(Delivery::new(target, reply, took.as_secs_f64() * 1_000.0));
            self.print_event(&event)?;
            report.on_event(&event);
        }
        Ok(())
    }

    /// Without `--json`: writes the groups of a report, and its summary unless that is left out.
    pub(super) fn print_report(
        &mut self,
        report: &DeliveryReport,
        summary: Option<Duration>,
    ) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        self.print_result(&report.groups(self.style))?;
        match summary {
            Some(took) => self.print_result(&format!("\n{}", report.summary(took, self.style))),
            None => Ok(()),
        }
    }

    /// Writes a note for people; nothing with `--quiet`.
    pub(super) fn print_note(&mut self, text: &str) {
        if !self.quiet {
            let text = self.error_style.paint(&view::sanitize(text), Paint::Dim);
            self.print_stderr(&text);
        }
    }

    /// Writes a warning, which is neither dimmed nor hidden by `--quiet`.
    pub(super) fn print_warning(&mut self, text: &str) {
        let text = self.error_style.paint(&view::sanitize(text), Paint::Bad);
        self.print_stderr(&text);
    }

    /// Prints why a verb ended early, and returns its exit status.
    pub(super) fn print_error(&mut self, error: &CliError) -> u8 {
        self.clear_progress();
        if let Some(message) = &error.message {
            if self.json {
                let line = json!({ "error": message }).to_string();
                self.print_stderr(&line);
            } else {
                let label = self.error_style.paint("error:", Paint::Bad);
                self.print_stderr(&format!("{label} {}", view::sanitize(message)));
            }
        }
        error.status
    }

    /// Writes a line to standard error; ignored if that is closed.
    fn print_stderr(&self, text: &str) {
        let write = || writeln!(io::stderr().lock(), "{text}").ok();
        match &self.progress_bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
    }

    /// Shows progress on standard error if that is a terminal.
    pub(super) fn show_progress(&mut self, report: &DeliveryReport) {
        let (ended, all) = report.counts();
        if self.json || self.quiet || (all < 2 && report.bytes_transferred().is_none()) {
            return;
        }
        let bar = self.progress_bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let template = match report.bytes_transferred() {
            Some((bytes, total)) => {
                bar.set_length(total);
                bar.set_position(bytes);
                "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {msg}"
            }
            None => {
                bar.set_length(u64::try_from(all).unwrap_or(u64::MAX));
                bar.set_position(u64::try_from(ended).unwrap_or(u64::MAX));
                "{wide_bar} {msg}"
            }
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(report.progress_text());
    }

    fn clear_progress(&mut self) {
        if let Some(bar) = self.progress_bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Columns and rows of the terminal that results go to; 80 by 24 if unknown.
    pub(super) fn terminal_size(&self) -> (usize, usize) {
        match rustix::termios::tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            Ok(_) | Err(_) => (80, 24),
        }
    }

    /// Replaces the lines drawn last. They have to be cut to the width; those beyond the height are left out.
    pub(super) fn redraw(&mut self, lines: &[String]) -> Result<(), CliError> {
        let (_, rows) = self.terminal_size();
        let fit = rows.saturating_sub(2).max(1);
        let mut text = if self.drawn_lines > 0 {
            format!("\x1b[{}A\r\x1b[J", self.drawn_lines)
        } else {
            String::new()
        };
        for line in lines.iter().take(fit) {
            text.push_str(line);
            text.push('\n');
        }
        self.drawn_lines = lines.len().min(fit);
        if lines.len() > fit {
            text.push_str(&format!("… {} more lines; name fewer nodes\n", lines.len() - fit));
            self.drawn_lines += 1;
        }
        self.print_result(&text)
    }
}

/// Writes a prompt to standard error, without an end of line; ignored if that is closed.
pub(super) fn prompt(text: &str) {
    let mut to = io::stderr().lock();
    write!(to, "{text}").and_then(|()| to.flush()).ok();
}

/// Whether a stream gets colours: a terminal that has them, unless NO_COLOR is set (<https://no-color.org>).
pub(super) fn wants_color(no_color: bool, stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    !no_color && !refused && !dumb && stream.is_terminal()
}
