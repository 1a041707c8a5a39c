//! `release`: the end of an emergency stop.

use swarm_shared::proto::selector::Selector;

use super::screen::{CliError, Screen};
use super::{CommonOptions, request};
use crate::duration::to_ms;
use swarm_shared::api::ActRequest;

/// End an emergency stop: each node from the stop that is in force there now
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which nodes
    selector: Selector,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let request = ActRequest::Release {
        selector: args.selector,
        timeout_ms: to_ms(common.timeout),
    };
    request::run_request("release", request, common, screen).await
}
