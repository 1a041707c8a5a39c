//! `notify`: shows a text at nodes.

use serde_json::json;
use swarm_shared::proto::selector::Selector;

use super::rolling::{self, RollingOptions};
use super::screen::{CliError, Screen};
use super::{CommonOptions, request};

/// Show a text on nodes, by the command that each has configured for it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    rolling: RollingOptions,
    /// The nodes: a selector
    selector: Selector,
    /// The text
    text: String,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let arguments = request::keyword_arguments([("text", json!(args.text))]);
    let request = request::command_request(args.selector, "notify", arguments, common);
    rolling::run_command("notify", request, args.rolling, common, screen).await
}
