//! Patterns for names and tag values: `*` any text, `?` any one character, `[a-f]` one of these, `[!a-f]` none of
//! these, and `[01-12,15]` a number from a list of ranges, the form in which groups of names are displayed.
//!
//! Matching tracks the set of reachable positions, so that its time is bounded by the product of the two lengths.

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    AnyRun,
    AnyOne,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    NumberRanges(Vec<NumberRange>),
}

/// A range of numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NumberRange {
    from: u64,
    to: u64,
    /// Exact number of digits, with leading zeros; `None` for numbers without them.
    width: Option<usize>,
}

/// Most digits of a number in brackets: every such number fits `u64`.
const NUMBER_DIGITS_MAX: usize = 18;

impl Glob {
    /// Parses a pattern.
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            tokens.push(match c {
                '*' => Token::AnyRun,
                '?' => Token::AnyOne,
                '[' => {
                    // A leading `]` is literal, as in shells.
                    let skip = usize::from(rest.starts_with('!') || rest.starts_with('^'));
                    let skip = skip + usize::from(rest[skip..].starts_with(']'));
                    let length = rest[skip..]
                        .find(']')
                        .ok_or("`[` needs its `]`: write [0-9] or [01-12]")?;
                    let inner = &rest[..skip + length];
                    rest = &rest[skip + length + 1..];
                    parse_brackets(inner)?
                }
                c => Token::Literal(c),
            });
        }
        Ok(Self(tokens))
    }

    /// Whether it matches one text only.
    pub(super) fn is_literal(&self) -> bool {
        self.0.iter().all(|token| matches!(token, Token::Literal(_)))
    }

    /// The text that it matches, if there is only one.
    pub fn literal(&self) -> Option<String> {
        self.is_literal().then(|| self.literals().collect())
    }

    /// The literal characters.
    pub(super) fn literals(&self) -> impl Iterator<Item = char> + '_ {
        self.0.iter().filter_map(|token| match token {
            Token::Literal(c) => Some(*c),
            Token::AnyRun | Token::AnyOne | Token::Class { .. } | Token::NumberRanges(_) => None,
        })
    }

    /// Whether the pattern matches the whole text.
    pub fn matches(&self, text: &str) -> bool {
        // Most names differ in their first characters, and gateways match thousands of times a second: the literal
        // prefix is compared without allocating.
        let (mut text, mut tokens) = (text.chars(), self.0.as_slice());
        while let [Token::Literal(wanted), rest @ ..] = tokens {
            if text.next() != Some(*wanted) {
                return false;
            }
            tokens = rest;
        }
        if tokens.is_empty() {
            return text.next().is_none();
        }
        let text: Vec<char> = text.collect();
        let mut reached = vec![false; text.len() + 1];
        reached[0] = true;
        for token in tokens {
            let mut next = vec![false; text.len() + 1];
            for at in 0..reached.len() {
                if reached[at] {
                    token.advance(&text[at..], &mut next[at..]);
                }
                if matches!(token, Token::AnyRun) && reached[at] {
                    break;
                }
            }
            reached = next;
        }
        reached[text.len()]
    }
}

impl Token {
    /// Marks in `next` the numbers of characters of `text` that this token may match.
    fn advance(&self, text: &[char], next: &mut [bool]) {
        let one = |good: &dyn Fn(char) -> bool, next: &mut [bool]| {
            if text.first().is_some_and(|c| good(*c)) {
                next[1] = true;
            }
        };
        match self {
            Self::Literal(wanted) => one(&|c| c == *wanted, next),
            Self::AnyOne => one(&|_| true, next),
            Self::AnyRun => next.fill(true),
            Self::Class { negated, ranges } => {
                let listed = |c: char| ranges.iter().any(|(from, to)| (*from..=*to).contains(&c));
                one(&|c| listed(c) != *negated, next);
            }
            Self::NumberRanges(list) => {
                let mut value = 0;
                for (index, c) in text.iter().take(NUMBER_DIGITS_MAX).enumerate() {
                    let Some(digit) = c.to_digit(10) else { return };
                    value = value * 10 + u64::from(digit);
                    let padded = index > 0 && text[0] == '0';
                    if list.iter().any(|range| range.contains(value, index + 1, padded)) {
                        next[index + 1] = true;
                    }
                }
            }
        }
    }
}

impl NumberRange {
    fn contains(self, value: u64, digits: usize, padded: bool) -> bool {
        let wide_enough = self.width.map_or(!padded, |width| width == digits);
        wide_enough && (self.from..=self.to).contains(&value)
    }

    fn parse(part: &str) -> Result<Self, String> {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            if digits && text.len() <= NUMBER_DIGITS_MAX {
                text.parse::<u64>().ok()
            } else {
                None
            }
        };
        let (Some(first), Some(last)) = (number(from), number(to)) else {
            return Err(format!(
                "[{part}] is not a range of numbers of at most {NUMBER_DIGITS_MAX} digits: write [01-12]"
            ));
        };
        if first > last {
            return Err(format!("[{part}] runs backwards: write the smaller number first"));
        }
        let padded = |text: &str| text.len() > 1 && text.starts_with('0');
        if from.len() != to.len() && (padded(from) || padded(to)) {
            return Err(format!("[{part}] pads its two ends differently: write [01-12]"));
        }
        Ok(Self {
            from: first,
            to: last,
            width: (from.len() == to.len()).then_some(from.len()),
        })
    }
}

/// `[01-12,15]` if it can only be a list of numbers; otherwise a class of characters.
fn parse_brackets(inner: &str) -> Result<Token, String> {
    let numeric = inner
        .bytes()
        .all(|b| b.is_ascii_digit() || b == b'-' || b == b',');
    let long = inner.split([',', '-']).any(|number| number.len() > 1);
    if numeric && (long || inner.contains(',')) {
        let list = inner
            .split(',')
            .map(NumberRange::parse)
            .collect::<Result<_, _>>()?;
        return Ok(Token::NumberRanges(list));
    }
    let (negated, listed) = match inner.strip_prefix(['!', '^']) {
        Some(rest) => (true, rest),
        None => (false, inner),
    };
    let characters: Vec<char> = listed.chars().collect();
    let mut ranges = Vec::new();
    let mut rest = &characters[..];
    while let [first, tail @ ..] = rest {
        if let ['-', last, tail @ ..] = tail {
            if first > last {
                return Err(format!("[{inner}] runs backwards: write the smaller end first"));
            }
            ranges.push((*first, *last));
            rest = tail;
        } else {
            ranges.push((*first, *first));
            rest = tail;
        }
    }
    Ok(Token::Class { negated, ranges })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn globs_match_whole_texts() {
        for (pattern, yes, no) in [
            ("drone-*", "drone-", "drone"),
            ("*-07", "drone-07", "drone-07x"),
            ("d?one", "drone", "done"),
            ("d[a-c]", "db", "dd"),
            ("d[!a-c]", "dd", "db"),
            ("d[^a-c]", "d-", "da"),
            ("d[]]", "d]", "d["),
            ("d[a-]", "d-", "db"),
            ("d[0-9]", "d7", "d07"),
            ("d[01-12]", "d07", "d7"),
            ("d[01-12]", "d12", "d13"),
            ("d[9-12]", "d10", "d010"),
            ("d[1,3]", "d3", "d2"),
            ("d[01-03,05]", "d05", "d04"),
            ("*a*b*c*", "xaxbxcx", "xaxcxbx"),
            ("", "", "x"),
        ] {
            let glob = Glob::parse(pattern).expect(pattern);
            assert!(glob.matches(yes), "{pattern} {yes}");
            assert!(!glob.matches(no), "{pattern} {no}");
        }
    }

    #[test]
    fn malformed_glob_error_states_the_rule() {
        for (pattern, rule) in [
            ("d[1", "needs its `]`"),
            ("d[]", "needs its `]`"),
            ("d[b-a]", "backwards"),
            ("d[12-01]", "backwards"),
            ("d[1-012]", "differently"),
            ("d[01-]", "not a range of numbers"),
            ("d[1234567890123456789]", "at most 18 digits"),
        ] {
            let error = Glob::parse(pattern).expect_err(pattern);
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn many_stars_match_in_bounded_time() {
        let glob = Glob::parse(&"*a".repeat(60)).expect("a pattern");
        assert!(!glob.matches(&"a".repeat(59)));
        assert!(glob.matches(&"a".repeat(63)));
    }

    proptest! {
        #[test]
        fn arbitrary_glob_text_never_panics(pattern in "[]\\[*?!^,a-c0-9-]{0,12}", text in ".{0,8}") {
            if let Ok(glob) = Glob::parse(&pattern) {
                glob.matches(&text);
            }
        }

        #[test]
        fn literal_glob_matches_itself_and_prefix_star(text in "[a-z0-9-]{0,20}", cut in 0_usize..20) {
            prop_assert!(Glob::parse(&text).expect("literal").matches(&text));
            let prefix = format!("{}*", &text[..cut.min(text.len())]);
            prop_assert!(Glob::parse(&prefix).expect("prefix").matches(&text));
        }
    }
}
