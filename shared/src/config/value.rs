//! Deserializers of common values, for `#[serde(deserialize_with = "…")]`.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::duration;
use crate::proto::selector::Glob;
use crate::proto::trust::Role;

/// Reads a string and parses it.
///
/// # Errors
/// What `parse` says.
pub fn text<'de, D: Deserializer<'de>, T, E: Display>(
    from: D,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    parse(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// Reads a list of strings and parses each.
///
/// # Errors
/// The first that `parse` refuses.
pub fn texts<'de, D: Deserializer<'de>, T, E: Display, C: FromIterator<T>>(
    from: D,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<C, D::Error> {
    let texts: Vec<String> = Vec::deserialize(from)?;
    let parsed = texts.iter().map(|text| parse(text).map_err(D::Error::custom));
    parsed.collect()
}

/// Parses `ADDR:PORT`.
///
/// # Errors
/// The text and the rule.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let rule = "is not ADDR:PORT, such as 192.168.1.10:7420";
    text.parse().map_err(|_syntax| format!("{text:?} {rule}"))
}

/// Reads `ADDR:PORT`.
///
/// # Errors
/// The text and the rule.
pub fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    text(from, parse_address)
}

/// Reads a list of `ADDR:PORT`.
///
/// # Errors
/// The first wrong text and the rule.
pub fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    texts(from, parse_address)
}

/// Reads a duration that is not zero.
///
/// # Errors
/// The text and the rule.
pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    text(from, duration::parse_nonzero)
}

/// Reads a whole number from `MIN` to `MAX`.
///
/// # Errors
/// The number and the range.
pub fn ranged<'de, D: Deserializer<'de>, T: TryFrom<i64>, const MIN: i64, const MAX: i64>(
    from: D,
) -> Result<T, D::Error> {
    let number = i64::deserialize(from)?;
    let in_range = (MIN..=MAX).contains(&number);
    let fits = T::try_from(number).ok().filter(|_| in_range);
    fits.ok_or_else(|| D::Error::custom(format!("{number} is not from {MIN} to {MAX}")))
}

/// Reads a list of names of actions, each of which may be a glob.
///
/// # Errors
/// The first wrong one and the rule.
pub fn globs<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Glob>, D::Error> {
    texts(from, |text| match text {
        "" => Err("\"\" names no action: write the name of one, or take it out".to_owned()),
        text => Glob::parse(text).map_err(|rule| format!("{text:?}: {rule}")),
    })
}

/// Reads a role that a gateway may have: `observer`, `operator` or `admin`.
///
/// # Errors
/// The text and the rule.
pub fn gateway_role<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
    let roles = [Role::Observer, Role::Operator, Role::Admin];
    text(from, |text| {
        let found = roles.into_iter().find(|role| role.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is not observer, operator or admin"))
    })
}
