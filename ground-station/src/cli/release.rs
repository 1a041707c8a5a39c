//! `release`: ends an emergency stop.

use swarm_shared::proto::selector::Selector;

use super::screen::{CliError, Screen};
use super::{CommonOptions, request};
use crate::duration::to_ms;
use swarm_shared::api::ActRequest;

/// End the emergency stop that is in force at each node now
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The nodes: a selector
    selector: Selector,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let request = ActRequest::Release {
        selector: args.selector,
        timeout_ms: to_ms(common.timeout),
    };
    request::run_request("release", request, common, screen).await
}
