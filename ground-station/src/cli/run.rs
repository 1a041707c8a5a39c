//! `run`: runs a program on nodes.

use serde_json::json;
use swarm_shared::proto::selector::Selector;

use super::rolling::{self, RollingOptions};
use super::screen::{CliError, Screen};
use super::{CommonOptions, request};

/// Run a program on nodes that allow it, and show its output
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "ground-station run [OPTIONS] <SELECTOR> -- <PROGRAM> [ARG]...",
    after_help = "\
No shell is involved: the program gets exactly these arguments. Nodes refuse unless their
configuration says [execute] allowed = true and this station is an admin.

Examples:
  ground-station run all -- systemctl is-active chrony
  ground-station run tag:row=3 -- sh -c 'df -h | head'"
)]
pub(super) struct Args {
    #[command(flatten)]
    rolling: RollingOptions,
    /// The nodes: a selector
    selector: Selector,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let Some((program, rest)) = args.program.split_first() else {
        return Err(CliError::usage(
            "name a program after --, such as: ground-station run all -- uptime",
        ));
    };
    let arguments = request::keyword_arguments([("program", json!(program)), ("args", json!(rest))]);
    let request = request::command_request(args.selector, "execute", arguments, common);
    rolling::run_command("run", request, args.rolling, common, screen).await
}
