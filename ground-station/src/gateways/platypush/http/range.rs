//! The header `Range` (RFC 9110, section 14).

/// The part of a file that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The whole file: no range, several ranges, or another unit than bytes.
    All,
    /// From the first to the last byte, inclusive.
    Bytes(u64, u64),
    /// The range begins after the end of the file.
    Beyond,
}

/// Reads `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-LENGTH`.
pub(super) fn part(range: Option<&str>, length: u64) -> Part {
    let Some((first, last)) = range.and_then(read) else {
        return Part::All;
    };
    let Some(end) = length.checked_sub(1) else {
        return Part::Beyond;
    };
    match (first, last) {
        (Some(first), Some(last)) if last < first => Part::All,
        (Some(first), _) if first > end => Part::Beyond,
        (Some(first), last) => Part::Bytes(first, last.unwrap_or(end).min(end)),
        (None, Some(0)) => Part::Beyond,
        (None, Some(suffix)) => Part::Bytes(length.saturating_sub(suffix), end),
        (None, None) => Part::All,
    }
}

fn read(range: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, set) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number beyond a u64 is beyond every file.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", "") => None,
        ("", last) => Some((None, Some(number(last)?))),
        (first, "") => Some((Some(number(first)?), None)),
        (first, last) => Some((Some(number(first)?), Some(number(last)?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clamped_to_the_file() {
        for (range, wanted) in [
            (None, Part::All),
            (Some("bytes=0-3"), Part::Bytes(0, 3)),
            (Some("bytes=4-"), Part::Bytes(4, 9)),
            (Some("bytes=-3"), Part::Bytes(7, 9)),
            (Some("bytes=-30"), Part::Bytes(0, 9)),
            (Some("bytes=0-99999999999999999999999"), Part::Bytes(0, 9)),
            (Some("bytes=9-9"), Part::Bytes(9, 9)),
            (Some("Bytes = 1 - 2"), Part::Bytes(1, 2)),
            (Some("bytes=10-"), Part::Beyond),
            (Some("bytes=99999999999999999999999-"), Part::Beyond),
            (Some("bytes=-0"), Part::Beyond),
            (Some("bytes=5-4"), Part::All),
            (Some("bytes=0-1,3-4"), Part::All),
            (Some("bytes=x-"), Part::All),
            (Some("bytes=+1-2"), Part::All),
            (Some("bytes=-"), Part::All),
            (Some("lines=1-2"), Part::All),
            (Some(""), Part::All),
        ] {
            assert_eq!(part(range, 10), wanted, "{range:?}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Beyond);
        assert_eq!(part(None, 0), Part::All);
    }
}
