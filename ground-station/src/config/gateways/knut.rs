//! `[doors.knut]`: Knut's clients.
//!
//! ```toml
//! [doors.knut]
//! temperature = "cpu_temperature"   # the reading that is shown; parts of a path: plugins.lamp.heat.value
//! history = 1440                    # how many past readings are kept of each node
//! history_every = "1m"              # how far apart they are
//! ```

use std::time::Duration;

use super::{Common, Door, Kind, Raw, time, within};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knut {
    /// What every door has.
    pub common: Common,
    /// Where a node's telemetry has its temperature: names, from the outside in.
    pub temperature: Vec<String>,
    /// How many past readings are kept of each node.
    pub history: usize,
    /// How far apart they are.
    pub history_every: Duration,
}

/// Its usual port.
const PORT: u16 = 8080;

impl Door for Knut {
    const NAME: &'static str = "knut";
    const KEYS: &'static [(&'static str, Kind)] = &[
        ("temperature", Kind::Text),
        ("history", Kind::Number),
        ("history_every", Kind::Text),
    ];

    fn open() -> Self {
        Self {
            common: Common::at(PORT),
            temperature: vec!["cpu_temperature".to_owned()],
            history: 1_440,
            history_every: Duration::from_secs(60),
        }
    }

    fn common(&mut self) -> &mut Common {
        &mut self.common
    }

    fn set(&mut self, key: &str, value: &Raw<'_>) -> Result<(), String> {
        match (key, value) {
            ("temperature", Raw::Text(text)) => {
                let names: Vec<String> = text.split('.').map(str::to_owned).collect();
                if names.iter().any(String::is_empty) {
                    return Err(format!(
                        "{text:?} is no reading: write a name, or names with points between them"
                    ));
                }
                self.temperature = names;
            }
            ("history", Raw::Number(number)) => self.history = within(key, *number, 1, 100_000)?,
            ("history_every", Raw::Text(text)) => self.history_every = time(text)?,
            _ => return Err(format!("{key} has no meaning here")),
        }
        Ok(())
    }
}
