//! Lengths of time as people write them: `500ms`, `30s`, `15m`, `2h`, `7d`.

use std::time::Duration;

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// It is no number with a unit.
    #[error("{0:?} is not a length of time: write a number and ms, s, m, h or d, such as 500ms, 30s or 15m")]
    NotATime(String),
    /// It is longer than is ever sensible.
    #[error("{0:?} is too long: {DAYS_MAX}d is the most")]
    TooLong(String),
}

/// Longest time that is read, in days: a year, well inside every clock's range.
pub const DAYS_MAX: u64 = 366;

/// Parses a length of time; parts of a unit are written with a point: `0.5s`.
///
/// # Errors
/// [`BadDuration`], which quotes the text and says the rule.
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    let quoted = || text.chars().take(80).collect();
    let bad = || BadDuration::NotATime(quoted());
    let digits = text
        .bytes()
        .take_while(|b| b.is_ascii_digit() || *b == b'.')
        .count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit.trim() {
        "ms" => 1.0,
        "s" => 1_000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return Err(bad()),
    };
    let number: f64 = number.parse().map_err(|_not_a_number| bad())?;
    let seconds = number * unit_ms / 1_000.0;
    if seconds > Duration::from_secs(DAYS_MAX * 86_400).as_secs_f64() {
        return Err(BadDuration::TooLong(quoted()));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_out_of_range| bad())
}

/// A length of time for people, to three digits: `0.31 s`, `12.4 s`, `2 min 5 s`.
pub fn show(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let whole = time.as_secs();
    match whole {
        0..10 => format!("{seconds:.2} s"),
        10..60 => format!("{seconds:.1} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// A length of time as milliseconds, for messages that carry it so.
pub fn to_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("0.5s", 500),
            ("15m", 900_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text).map(to_ms), Ok(ms), "{text}");
        }
    }

    #[test]
    fn anything_else_says_the_rule() {
        for text in ["", "30", "s", "-1s", "1e3s", "1..2s", "30 parsecs", "1w"] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains("such as 500ms, 30s or 15m"), "{error}");
        }
    }

    #[test]
    fn one_that_is_too_long_says_what_is_the_most() {
        for text in ["367d", "1000d", "999999999d"] {
            let error = parse(text).expect_err(text).to_string();
            assert_eq!(error, format!("{text:?} is too long: 366d is the most"));
        }
        assert!(parse("366d").is_ok());
    }

    #[test]
    fn times_are_short_for_people() {
        for (ms, text) in [
            (310, "0.31 s"),
            (12_400, "12.4 s"),
            (125_000, "2 min 5 s"),
            (7_260_000, "2 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(show(Duration::from_millis(ms)), text);
        }
    }
}
