//! Dates and times for people.

use super::format_age;

/// Events within this time are shown by their age; in milliseconds.
const RECENT_MS: u64 = 24 * 3_600_000;

/// `3 min ago`, or `2026-11-20 14:03Z` for times more than a day ago or in the future.
pub fn age_or_date(at_ms: u64, now_ms: u64) -> String {
    match now_ms.checked_sub(at_ms) {
        Some(passed) if passed < RECENT_MS => format_age(Some(passed)),
        Some(_) | None => {
            let (date, time, _) = date_and_time(at_ms);
            format!("{date} {}Z", &time[..5])
        }
    }
}

/// `2026-11-20 14:03:09Z`.
pub fn utc_datetime(at_ms: u64) -> String {
    let (date, time, _) = date_and_time(at_ms);
    format!("{date} {time}Z")
}

/// Date, time and day of a moment in milliseconds since 1970, in UTC.
fn date_and_time(at_ms: u64) -> (String, String, u64) {
    let seconds = at_ms / 1_000;
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, of_month) = civil_from_days(day);
    let time = format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60);
    (format!("{year:04}-{month:02}-{of_month:02}"), time, day)
}

/// Year, month and day of the month, of a day counted from 1970-01-01 in the Gregorian calendar. Years are counted from
/// March, so that the leap day is the last day.
fn civil_from_days(day: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // From 0000-03-01.
    let day = day + 719_468;
    let (era, of_era) = (day / DAYS_OF_400_YEARS, day % DAYS_OF_400_YEARS);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 {
        (year, month + 3)
    } else {
        (year + 1, month - 9)
    };
    (era * 400 + year, month, of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_times_format_as_utc_dates() {
        for (at_s, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_078_012_800, "2004-02-29 00:00:00Z"),
            (1_709_164_800, "2024-02-29 00:00:00Z"),
            (1_735_689_599, "2024-12-31 23:59:59Z"),
            (1_795_238_179, "2026-11-21 05:16:19Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc_datetime(at_s * 1_000), text);
        }
    }

    #[test]
    fn recent_times_are_shown_as_ages() {
        let now = 1_795_238_179_000;
        assert_eq!(age_or_date(now - 200_000, now), "3 min ago");
        assert_eq!(age_or_date(now - 90_000_000, now), "2026-11-20 04:16Z");
        assert_eq!(
            age_or_date(now + 60_000, now),
            "2026-11-21 05:17Z",
            "the clock was put back"
        );
    }
}
