//! What a drone tells of itself unasked.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Most readings of one drone.
pub const READINGS_MAX: usize = 64;
/// Longest reading, in bytes of JSON.
pub const READING_BYTES_MAX: usize = 512;

/// By name; bounded in number and in length.
#[derive(Debug, Default)]
pub(super) struct Readings(BTreeMap<String, Value>);

impl Readings {
    pub(super) fn all(&self) -> &BTreeMap<String, Value> {
        &self.0
    }

    /// Takes in what `telemetry` says: its `value` holds an object of readings; some programs leave that out. What was
    /// passed over, if anything.
    pub(super) fn take(&mut self, mut kwargs: Map<String, Value>) -> Option<String> {
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
            let room = self.0.contains_key(&name) || self.0.len() < READINGS_MAX;
            let short = name.len() <= READING_BYTES_MAX && value.to_string().len() <= READING_BYTES_MAX;
            if room && short {
                self.0.insert(name, value);
            } else {
                left_out += 1;
            }
        }
        let rule = format!("beyond {READINGS_MAX}, or longer than {READING_BYTES_MAX} bytes");
        (left_out > 0).then(|| format!("{left_out} readings {rule}"))
    }
}
