//! Turns events into text. Everything here is pure: it reads no clock, no terminal and no environment, so a test can
//! show exactly what an operator sees.

use std::time::Duration;

use crate::duration;

pub mod datetime;
pub mod deliveries;
pub mod fleet;
pub mod history;
pub mod json;
pub mod nodes;
pub mod peers;
mod readings;
pub mod stop;
pub mod table;
pub mod users;

#[cfg(test)]
mod tests;

/// How text is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// With colours.
    pub color: bool,
    /// Width to which lines are cut, for text that is redrawn in place.
    pub columns: Option<usize>,
}

/// Three colours with a meaning, and two that help reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Online, done.
    Good,
    /// Silent, no answer.
    Warning,
    /// Offline, failed.
    Bad,
    /// Headings.
    Strong,
    /// Details.
    Dim,
}

impl Style {
    /// `text` in a colour, or unchanged without colours.
    pub fn paint(self, text: &str, paint: Paint) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Good => "32",
            Paint::Warning => "33",
            Paint::Bad => "31",
            Paint::Strong => "1",
            Paint::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A node's text without control of the terminal: control characters except line ends and tabs become `�`.
pub fn sanitize(text: &str) -> String {
    text.replace("\r\n", "\n")
        .chars()
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// A time ago, in one unit: `now`, `12 s ago`, `3 min ago`.
pub fn format_age(ms: Option<u64>) -> String {
    let Some(ms) = ms else { return "never".to_owned() };
    match ms / 1_000 {
        0 => "now".to_owned(),
        s @ 1..120 => format!("{s} s ago"),
        s @ 120..7_200 => format!("{} min ago", s / 60),
        s @ 7_200..172_800 => format!("{} h ago", s / 3_600),
        s => format!("{} d ago", s / 86_400),
    }
}

/// Milliseconds to three digits: `0.31 ms`, `12.4 ms`, `250 ms`, `1.20 s`.
pub fn format_ms(ms: f64) -> String {
    if ms < 9.995 {
        format!("{ms:.2} ms")
    } else if ms < 99.95 {
        format!("{ms:.1} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else {
        duration::show(Duration::try_from_secs_f64(ms / 1_000.0).unwrap_or(Duration::MAX))
    }
}
