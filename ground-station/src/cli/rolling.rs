//! Rolling runs (`--batch` and its options), and `--dry-run`.

use std::time::Duration;

use serde_json::json;

use super::CommonOptions;
use super::connect::Connection;
use super::request;
use super::screen::{CliError, Screen};
use crate::duration::{self, to_ms};
use swarm_shared::api::{ActRequest, Batch, BatchSize, Event, NodesRequest};

/// Options of verbs that make many nodes act.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct RollingOptions {
    /// Nodes at a time, in order of names: 4 or 25%; stops after a batch that is not done everywhere
    #[arg(long, value_name = "N|N%", allow_hyphen_values = true, value_parser = str::parse::<BatchSize>)]
    batch: Option<BatchSize>,
    /// How long to wait between two batches
    #[arg(long, value_name = "TIME", default_value = "5s", requires = "batch", value_parser = duration::parse)]
    batch_wait: Duration,
    /// Go on with the next batch after a failure
    #[arg(long, requires = "batch")]
    keep_going: bool,
    /// List the matching nodes, and send nothing
    #[arg(long)]
    dry_run: bool,
}

/// Carries out a command as these options say.
pub(super) async fn run_command(
    verb: &str,
    mut request: ActRequest,
    rolling: RollingOptions,
    common: &CommonOptions,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    if let ActRequest::Command { selector, batch, .. } = &mut request {
        if rolling.dry_run {
            let selector = selector.clone();
            return list_targets(verb, NodesRequest::Targets { selector }, common, screen).await;
        }
        *batch = rolling.batch.map(|size| Batch {
            size,
            wait_ms: to_ms(rolling.batch_wait),
            keep_going: rolling.keep_going,
        });
    }
    request::run_request(verb, request, common, screen).await
}

async fn list_targets(
    verb: &str,
    request: NodesRequest,
    common: &CommonOptions,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    let connection = Connection::open(common, verb, screen).await?;
    let ended = request::follow(&connection.fleet, request, screen, |event, screen| {
        if let Some(Event::Targets { targets }) = event {
            for target in targets {
                let line = if screen.json {
                    json!(target).to_string()
                } else {
                    format!("{}  {}", target.node, target.id.short())
                };
                screen.print_result(&line)?;
            }
        }
        Ok(())
    })
    .await;
    connection.close().await;
    ended?.into_result()?;
    Ok(0)
}
