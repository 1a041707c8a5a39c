//! Durations as people write them: `500ms`, `0.5s`, `15m`, `2h`, `7d`.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is not a number with a unit.
    #[error("{0:?} is not a duration: write a number and ms, s, m, h or d, such as 500ms, 0.5s or 15m")]
    Syntax(String),
    /// It is longer than [`DAYS_MAX`].
    #[error("{0:?} is too long: the most is {DAYS_MAX}d")]
    TooLong(String),
    /// It is zero where that has no meaning.
    #[error("{0:?} is zero: write at least 1ms")]
    Zero(String),
}

/// Longest duration, in days: a year, well inside the range of every clock.
pub const DAYS_MAX: u64 = 366;

/// Parses a number with a unit; the number may have a decimal point: `0.5s`.
///
/// # Errors
/// [`DurationError::Syntax`] and [`DurationError::TooLong`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let quoted = || text.chars().take(80).collect();
    let syntax = || DurationError::Syntax(quoted());
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
        _ => return Err(syntax()),
    };
    let number: f64 = number.parse().map_err(|_not_a_number| syntax())?;
    let seconds = number * unit_ms / 1_000.0;
    if seconds > Duration::from_secs(DAYS_MAX * 86_400).as_secs_f64() {
        return Err(DurationError::TooLong(quoted()));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_out_of_range| syntax())
}

/// [`parse`] for what cannot be zero, such as a time-out or an interval.
///
/// # Errors
/// [`DurationError`].
pub fn parse_nonzero(text: &str) -> Result<Duration, DurationError> {
    let duration = parse(text)?;
    if duration.is_zero() {
        return Err(DurationError::Zero(text.to_owned()));
    }
    Ok(duration)
}

/// A duration for people, to about three digits: `0.31 s`, `12.4 s`, `2 min 5 s`.
pub fn show(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let whole = duration.as_secs();
    match whole {
        0..10 => format!("{seconds:.2} s"),
        10..60 => format!("{seconds:.1} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// Whole milliseconds, for messages that carry a duration as a number.
pub fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("0.5s", 500),
            ("15m", 900_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("0s", 0),
            ("5 s", 5_000),
        ] {
            assert_eq!(parse(text).map(to_ms), Ok(ms), "{text}");
        }
    }

    #[test]
    fn invalid_durations_are_refused_with_the_rule() {
        for text in ["", "30", "s", "-1s", "1e3s", "1..2s", "30 parsecs", "1w", "5µs"] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains("such as 500ms, 0.5s or 15m"), "{error}");
        }
    }

    #[test]
    fn longest_duration_is_a_year() {
        for text in ["367d", "1000d", "999999999d"] {
            let error = parse(text).expect_err(text).to_string();
            assert_eq!(error, format!("{text:?} is too long: the most is 366d"));
        }
        assert!(parse("366d").is_ok());
    }

    #[test]
    fn zero_is_refused_where_it_has_no_meaning() {
        let error = parse_nonzero("0s").expect_err("zero").to_string();
        assert_eq!(error, "\"0s\" is zero: write at least 1ms");
        assert_eq!(parse_nonzero("1ms"), Ok(Duration::from_millis(1)));
    }

    #[test]
    fn durations_are_shown_with_three_digits() {
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
