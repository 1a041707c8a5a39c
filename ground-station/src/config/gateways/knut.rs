//! `[gateways.knut]`: Knut's clients.
//!
//! ```toml
//! [gateways.knut]
//! temperature = "cpu_temperature"   # the reading that is shown; parts of a path: plugins.lamp.heat.value
//! history = 1440                    # how many past readings are kept of each node
//! history_every = "1m"              # how far apart they are
//! ```

use std::time::Duration;

use super::{CommonOptions, GatewayConfig, RawValue, ValueKind, in_range, parse_duration};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnutConfig {
    /// What every gateway has.
    pub common: CommonOptions,
    /// Where a node's telemetry has its temperature: names, from the outside in.
    pub temperature: Vec<String>,
    /// How many past readings are kept of each node.
    pub history: usize,
    /// How far apart they are.
    pub history_every: Duration,
}

/// Its usual port.
const PORT: u16 = 8080;

impl GatewayConfig for KnutConfig {
    const NAME: &'static str = "knut";
    const KEYS: &'static [(&'static str, ValueKind)] = &[
        ("temperature", ValueKind::Text),
        ("history", ValueKind::Number),
        ("history_every", ValueKind::Text),
    ];

    fn with_defaults() -> Self {
        Self {
            common: CommonOptions::at(PORT),
            temperature: vec!["cpu_temperature".to_owned()],
            history: 1_440,
            history_every: Duration::from_secs(60),
        }
    }

    fn common(&mut self) -> &mut CommonOptions {
        &mut self.common
    }

    fn set(&mut self, key: &str, value: &RawValue<'_>) -> Result<(), String> {
        match (key, value) {
            ("temperature", RawValue::Text(text)) => {
                let names: Vec<String> = text.split('.').map(str::to_owned).collect();
                if names.iter().any(String::is_empty) {
                    return Err(format!(
                        "{text:?} is no reading: write a name, or names with points between them"
                    ));
                }
                self.temperature = names;
            }
            ("history", RawValue::Number(number)) => self.history = in_range(key, *number, 1, 100_000)?,
            ("history_every", RawValue::Text(text)) => self.history_every = parse_duration(text)?,
            _ => return Err(format!("{key} has no meaning here")),
        }
        Ok(())
    }
}
