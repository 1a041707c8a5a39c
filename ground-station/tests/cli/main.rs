//! What people and scripts meet: help, errors, JSON, exit statuses. The real program runs; behind its control socket
//! stands a scripted station, so that every ending can be played.

use swarm_shared::api::{Delivery, Event};
use swarm_shared::proto::outcome::Reply;

mod deliveries;
mod fleet;
mod help;
mod history;
mod scripted_station;
mod start;

use scripted_station::{ProgramOutput, command, target, wait_for_output};

/// The program alone, in an empty state directory.
fn run_without_station(arguments: &[&str]) -> ProgramOutput {
    let dir = tempfile::tempdir().expect("a directory");
    wait_for_output(
        command(dir.path()).args(arguments).spawn().expect("starts"),
        dir.path(),
    )
}

fn targets(numbers: impl IntoIterator<Item = u8>) -> Event {
    Event::Targets {
        targets: numbers.into_iter().map(target).collect(),
    }
}

fn delivery(number: u8, reply: Reply) -> Event {
    Event::Delivery(Delivery::new(target(number), reply, 1.5))
}
