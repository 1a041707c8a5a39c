//! Sends a file to the matching nodes and prints the progress.
//!
//! `cargo run --example send_file -- STATE_DIR FILE SELECTOR ROOT/PATH`, for instance
//! `cargo run --example send_file -- ~/.local/state/ground-station take1.csv 'drone-*' shows/take1.csv`

#![expect(clippy::print_stdout, reason = "the output is for the terminal")]

use std::error::Error;

use swarm_shared::api::Event;
use swarm_shared::client::Station;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [state_dir, file, selector, dest] = words.as_slice() else {
        return Err("usage: send_file STATE_DIR FILE SELECTOR ROOT/PATH".into());
    };
    // The station may have another working directory.
    let file = std::path::absolute(file)?;
    let station = Station::connect(state_dir).await?;
    let mut events = station.send_file(file, selector, dest).await?;
    while let Some(event) = events.next().await? {
        if let Event::Progress { node, bytes, total } = event {
            println!("{}: {bytes} of {total} bytes", node.node);
        } else if let Event::Delivery(delivery) = event {
            let error = delivery.error.unwrap_or_default();
            println!("{}: {} {error}", delivery.node, delivery.state);
        }
    }
    Ok(())
}
