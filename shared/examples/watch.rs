//! Prints the state of each matching node, and each change from then on, until it is interrupted.
//!
//! `cargo run --example watch -- STATE_DIR SELECTOR`

#![expect(clippy::print_stdout, reason = "the output is for the terminal")]

use std::error::Error;

use swarm_shared::api::Event;
use swarm_shared::client::Station;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [state_dir, selector] = words.as_slice() else {
        return Err("usage: watch STATE_DIR SELECTOR".into());
    };
    let station = Station::connect(state_dir).await?;
    let mut events = station.watch(selector).await?;
    while let Some(event) = events.next().await? {
        if let Event::Node(node) = event {
            println!("{} {}", node.node, node.state.as_str());
            for warning in &node.warnings {
                println!("{}: {warning}", node.node);
            }
        }
    }
    Ok(())
}
