//! The keys of a configuration, as its serde type declares them.
//!
//! A derived `Deserialize` tells its deserializer what it expects: a struct with these fields, a string, a map.
//! [`Probe`] records the first such call below a path and then fails, so that one run for each key finds them all,
//! and no list of keys has to be kept beside the type.

use std::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor};

use super::suggest::{any_of, nearest};

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string, or a value that is written as one.
    Text,
    /// A list.
    List,
    /// A number or a boolean; also a list that is not to be split at commas, such as a program with its arguments:
    /// a newtype is not looked into.
    Value,
    /// A table with fixed keys.
    Table(Vec<(&'static str, Self)>),
    /// A table whose keys the owner chooses, each with a value of this kind.
    Map(Box<Self>),
    /// Anything.
    Any,
}

impl Kind {
    /// The keys of `T`.
    pub fn of<T: DeserializeOwned>() -> Self {
        probe::<T>(&mut Vec::new())
    }

    /// What the key at `path` holds; `None` if there is no such key.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |kind, name| match kind {
            Self::Table(keys) => keys.iter().find(|(key, _)| key == name).map(|(_, kind)| kind),
            Self::Map(each) => Some(each.as_ref()),
            Self::Any => Some(kind),
            Self::Text | Self::List | Self::Value => None,
        })
    }

    /// The path of every key that has an environment variable, with its kind. A table whose keys the owner chooses has
    /// one variable as a whole.
    pub fn leaves(&self) -> Vec<(Vec<&'static str>, &Self)> {
        let Self::Table(keys) = self else {
            return vec![(Vec::new(), self)];
        };
        let below = keys.iter().flat_map(|(key, kind)| {
            kind.leaves().into_iter().map(move |(mut path, kind)| {
                path.insert(0, *key);
                (path, kind)
            })
        });
        below.collect()
    }

    /// The names of a table's fixed keys; none for other kinds.
    pub fn names(&self) -> Vec<&'static str> {
        match self {
            Self::Table(keys) => keys.iter().map(|(key, _)| *key).collect(),
            Self::Map(_) | Self::Any | Self::Text | Self::List | Self::Value => Vec::new(),
        }
    }

    /// The message for a path whose last part is not a key.
    pub fn unknown_key(&self, path: &[&str]) -> String {
        let (name, table) = path.split_last().unwrap_or((&"", &[]));
        let known = self.at(table).map(Self::names).unwrap_or_default();
        let near = nearest(name, &known)
            .iter()
            .map(|near| format!("`{near}`"))
            .collect();
        let hint = if let Some(near) = any_of(near) {
            format!("did you mean {near}?")
        } else if let Some(tables) = any_of(self.tables_with(name)) {
            format!("it is a key of {tables}")
        } else {
            format!("known here: {}", known.join(", "))
        };
        format!("unknown key `{}`; {hint}", path.join("."))
    }

    /// The tables that have this key, as `[a.b]`.
    fn tables_with(&self, name: &str) -> Vec<String> {
        let above = |path: Vec<&str>| match path.as_slice() {
            [table @ .., last] if *last == name && !table.is_empty() => {
                Some(format!("[{}]", table.join(".")))
            }
            _ => None,
        };
        self.leaves()
            .into_iter()
            .filter_map(|(path, _)| above(path))
            .collect()
    }
}

fn probe<T: DeserializeOwned>(path: &mut Vec<&'static str>) -> Kind {
    let mut found = Found::Any;
    let _always_fails = T::deserialize(Probe {
        path,
        found: &mut found,
    });
    let mut below = |key| {
        path.push(key);
        let kind = probe::<T>(path);
        path.pop();
        kind
    };
    match found {
        Found::Text => Kind::Text,
        Found::List => Kind::List,
        Found::Value => Kind::Value,
        Found::Any => Kind::Any,
        Found::Map => Kind::Map(Box::new(below("key"))),
        Found::Fields(keys) => Kind::Table(keys.iter().map(|key| (*key, below(key))).collect()),
    }
}

/// A deserializer that walks down `path`, records what is expected there, and fails.
struct Probe<'a> {
    path: &'a [&'static str],
    found: &'a mut Found,
}

#[derive(Clone, Copy)]
enum Found {
    Text,
    List,
    Value,
    Any,
    Map,
    Fields(&'static [&'static str]),
}

/// How a [`Probe`] always ends.
#[derive(Debug)]
struct Probed;

impl Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("probed")
    }
}

impl std::error::Error for Probed {}

impl serde::de::Error for Probed {
    fn custom<T: Display>(_text: T) -> Self {
        Self
    }
}

impl Probe<'_> {
    fn record<T>(self, found: Found) -> Result<T, Probed> {
        *self.found = found;
        Err(Probed)
    }

    fn descend<'de, V: Visitor<'de>>(self, visitor: V, found: Found) -> Result<V::Value, Probed> {
        if self.path.is_empty() {
            return self.record(found);
        }
        visitor.visit_map(self)
    }
}

impl<'de> MapAccess<'de> for Probe<'_> {
    type Error = Probed;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Probed> {
        let key = self.path.first().copied().unwrap_or_default();
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Probed> {
        let path = self.path.get(1..).unwrap_or_default();
        seed.deserialize(Probe {
            path,
            found: &mut *self.found,
        })
    }
}

/// Methods of a deserializer that record one thing.
macro_rules! record {
    ($($found:ident: $($method:ident($($arg:ty),*))*;)*) => {$($(
        fn $method<V: Visitor<'de>>(self, $(_: $arg,)* _: V) -> Result<V::Value, Probed> {
            self.record(Found::$found)
        }
    )*)*};
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Probed;

    record! {
        Text: deserialize_str() deserialize_string() deserialize_char() deserialize_identifier()
            deserialize_enum(&'static str, &'static [&'static str]);
        List: deserialize_seq() deserialize_tuple(usize) deserialize_tuple_struct(&'static str, usize);
        Value: deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
            deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_f32() deserialize_f64()
            deserialize_bytes() deserialize_byte_buf() deserialize_unit() deserialize_unit_struct(&'static str)
            deserialize_newtype_struct(&'static str);
        Any: deserialize_any() deserialize_ignored_any();
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Probed> {
        visitor.visit_some(self)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Probed> {
        self.descend(visitor, Found::Map)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Probed> {
        self.descend(visitor, Found::Fields(fields))
    }
}
