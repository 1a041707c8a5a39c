//! `fetch`: copies one path from many nodes.

use std::path::PathBuf;

use swarm_shared::proto::selector::Selector;

use super::screen::{CliError, Screen};
use super::send::absolute;
use super::{CommonOptions, request};
use crate::duration::to_ms;
use crate::engine::files::names;
use swarm_shared::api::ActRequest;

/// Copy a file from nodes; each copy is named after its node
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  ground-station fetch 'drone-*:logs/flight.log' ./collected
                                           makes collected/drone-07-flight.log, and so on")]
pub(super) struct Args {
    /// The nodes and the file: ROOT/PATH, below one of the roots that nodes configure
    #[arg(value_name = "SELECTOR:PATH")]
    from: String,
    /// Directory for the copies, which is made if it is absent
    dir: PathBuf,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let (selector, path) = Selector::split_path(&args.from)?;
    names::check_path(path)?;
    std::fs::create_dir_all(&args.dir)
        .map_err(|error| CliError::usage(format!("cannot make {:?}: {error}", args.dir)))?;
    let request = ActRequest::Fetch {
        selector,
        path: path.to_owned(),
        dir: absolute(&args.dir)?,
        timeout_ms: to_ms(common.timeout),
    };
    request::run_request("fetch", request, common, screen).await
}
