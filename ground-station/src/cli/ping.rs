//! `ping`: is everybody there, and how fast.

use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Selector;

use super::screen::{CliError, Screen};
use super::{CommonOptions, request};

/// Ask nodes for a sign of life, and see how long each takes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which nodes
    #[arg(default_value = "all")]
    selector: Selector,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let request = request::command_request(args.selector, "ping", Arguments::default(), common);
    request::run_request("ping", request, common, screen).await
}
