//! The readings that a drone reports, within bounds.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Most readings of one drone.
pub const READINGS_MAX: usize = 64;
/// Longest reading, in bytes of JSON.
pub const READING_BYTES_MAX: usize = 512;
/// Most memory of all readings of one drone, in bytes, estimated: JSON takes many times its length.
pub const READINGS_MEMORY_MAX: usize = 64 * 1024;
/// What a node of a map of values takes, and how many values it holds at least.
const MAP_NODE: (usize, usize) = (640, 5);
/// Longest path of a drone's programs, in bytes: the longest that Linux accepts.
pub const CLOVER_DIR_BYTES_MAX: usize = 4_096;

/// The directory of a drone's programs.
#[derive(Debug, Default)]
pub(super) enum CloverDir {
    /// Not requested, or not answered yet.
    #[default]
    NotReported,
    /// The drone's answer was not a path.
    Unknown,
    Path(String),
}

impl CloverDir {
    pub(super) fn from_response(answer: Value) -> Self {
        match answer {
            Value::String(path) if path.len() <= CLOVER_DIR_BYTES_MAX => Self::Path(path),
            Value::String(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => Self::Unknown,
        }
    }

    pub(super) fn path(&self) -> Option<&str> {
        match self {
            Self::Path(path) => Some(path),
            Self::NotReported | Self::Unknown => None,
        }
    }
}

/// Readings by name, bounded in number, length and memory.
#[derive(Debug, Default)]
pub(super) struct Readings {
    all: BTreeMap<String, Value>,
    memory: usize,
}

/// Estimated memory of a value, in bytes.
fn memory(value: &Value) -> usize {
    let within = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(memory).sum(),
        Value::Object(values) => {
            let (node, held) = MAP_NODE;
            let texts: usize = values
                .iter()
                .map(|(name, value)| name.len() + memory(value))
                .sum();
            values.len().div_ceil(held) * node + texts
        }
    };
    size_of::<Value>() + within
}

impl Readings {
    pub(super) fn all(&self) -> &BTreeMap<String, Value> {
        &self.all
    }

    /// Stores the readings of a `telemetry` message: an object in `value`, or the arguments themselves, as some
    /// programs send them. Returns a note about readings that exceed the bounds.
    pub(super) fn update(&mut self, mut kwargs: Map<String, Value>) -> Option<String> {
        let readings = match kwargs.remove("value") {
            Some(Value::Object(readings)) => readings,
            Some(value) => {
                kwargs.insert("value".to_owned(), value);
                kwargs
            }
            None => kwargs,
        };
        let mut left_out = 0;
        for (name, value) in readings {
            let old = self.all.get(&name);
            let memory = self.memory - old.map_or(0, memory) + memory(&value);
            let room = old.is_some() || self.all.len() < READINGS_MAX;
            let short = name.len() <= READING_BYTES_MAX && value.to_string().len() <= READING_BYTES_MAX;
            if room && short && memory <= READINGS_MEMORY_MAX {
                self.memory = memory;
                self.all.insert(name, value);
            } else {
                left_out += 1;
            }
        }
        let rule = format!(
            "beyond {READINGS_MAX}, longer than {READING_BYTES_MAX} bytes, or nested so that all take more than \
             {READINGS_MEMORY_MAX} bytes"
        );
        (left_out > 0).then(|| format!("{left_out} readings {rule}"))
    }
}
