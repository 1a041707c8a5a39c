//! `demo`: a fleet on this machine.

use super::Common;
use super::screen::{CliError, Screen};

/// See it work on this machine: a station and a few nodes, no set-up
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=100))]
    nodes: u16,
    /// Keep it up for playing, until Ctrl-C
    #[arg(long)]
    stay: bool,
}

#[expect(clippy::unused_async, reason = "the demo's steps wait for processes")]
pub(super) async fn run(args: Args, _common: &Common, _screen: &mut Screen) -> Result<u8, CliError> {
    let Args { nodes, stay } = args;
    Err(CliError::failed(format!(
        "the demo of {nodes} nodes (stay: {stay}) has no engine to run on"
    )))
}
