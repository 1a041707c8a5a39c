//! `ping`: asks nodes for an answer and measures the time.

use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Selector;

use super::screen::{CliError, Screen};
use super::{CommonOptions, request};

/// Ask nodes for an answer, and show how long each one takes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The nodes: a selector
    #[arg(default_value = "all")]
    selector: Selector,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let request = request::command_request(args.selector, "ping", Arguments::default(), common);
    request::run_request("ping", request, common, screen).await
}
