//! Calls an action on the matching nodes of a running station, and prints how each delivery ended.
//!
//! `cargo run --example call -- STATE_DIR SELECTOR ACTION [KEY=VALUE…]`, for instance
//! `cargo run --example call -- ~/.local/state/ground-station 'drone-*' ping`

#![expect(clippy::print_stdout, reason = "the output is for the terminal")]

use std::error::Error;
use std::time::Duration;

use serde_json::Value;
use swarm_shared::client::Station;
use swarm_shared::proto::message::Arguments;

const USAGE: &str = "usage: call STATE_DIR SELECTOR ACTION [KEY=VALUE…]";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [state_dir, selector, action, pairs @ ..] = words.as_slice() else {
        return Err(USAGE.into());
    };
    let mut arguments = Arguments::default();
    for pair in pairs {
        let (key, value) = pair.split_once('=').ok_or(USAGE)?;
        // Anything that is not JSON is a string.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        arguments.kwargs.insert(key.to_owned(), value);
    }
    let station = Station::connect(state_dir).await?;
    let station = station.with_timeout(Duration::from_secs(5));
    for delivery in station.call(selector, action, arguments).await? {
        let result = delivery.value.map(|value| value.to_string()).or(delivery.error);
        println!(
            "{}: {} {}",
            delivery.node,
            delivery.state,
            result.unwrap_or_default()
        );
    }
    Ok(())
}
