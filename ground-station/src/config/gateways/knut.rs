//! `[gateways.knut]`: Knut's clients.
//!
//! ```toml
//! [gateways.knut]
//! temperature = "cpu_temperature"   # the reading that is shown; a path with dots: plugins.lamp.heat.value
//! history = 1440                    # how many past readings are kept of each node
//! history_every = "1m"              # time between them
//! ```

use std::time::Duration;

use serde::Deserializer;
use swarm_shared::config::value;

use super::CommonOptions;

gateway_config! {
    /// The keys of `[gateways.knut]`.
    KnutConfig "knut", common CommonOptions::at(8080);
    /// The path of the temperature in a node's telemetry, outermost name first.
    #[serde(deserialize_with = "path")]
    temperature: Vec<String> = vec!["cpu_temperature".to_owned()],
    /// How many past readings are kept of each node: 1 to 100000.
    #[serde(deserialize_with = "value::ranged::<_, _, 1, 100_000>")]
    history: usize = 1_440,
    /// Time between kept readings.
    #[serde(deserialize_with = "value::duration")]
    history_every: Duration = Duration::from_secs(60),
}

fn path<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    value::text(from, |text| {
        let names: Vec<String> = text.split('.').map(str::to_owned).collect();
        if names.iter().any(String::is_empty) {
            return Err(format!(
                "{text:?} is not a reading: write a name, or names with dots between them"
            ));
        }
        Ok(names)
    })
}
