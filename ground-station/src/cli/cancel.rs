//! `cancel`: cancels the deliveries of a command that have not been sent.

use swarm_shared::net::clock;

use super::CommonOptions;
use super::connect::Connection;
use super::history::number;
use super::request::follow;
use super::screen::{CliError, EXIT_FAILED, Screen};
use crate::duration::to_ms;
use crate::view::history::HistoryReport;
use swarm_shared::api::HistoryRequest;

/// Cancel a command: deliveries that have not been sent yet never are
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Deliveries that wait for their node, or for their batch, end as refused. What was sent already
is named, and goes on: only a stop ends it. What has ended keeps its outcome.

Examples:
  ground-station history --state open               what waits
  ground-station cancel 12

Exit status: 0 if nothing of it is open any more, 1 if some was sent already, 3 if there is no
such command.")]
pub(super) struct Args {
    /// Its number, as in `history`
    #[arg(value_parser = number)]
    number: u64,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let request = HistoryRequest::Cancel {
        number: args.number,
        timeout_ms: to_ms(common.timeout),
    };
    let connection = Connection::open_store(common, "cancel", screen).await?;
    let mut report = HistoryReport::default();
    let ended = follow(&connection.fleet, request, screen, |event, _screen| {
        if let Some(event) = event {
            report.on_event(event);
        }
        Ok(())
    })
    .await;
    connection.close().await;
    ended?.into_result()?;
    if !screen.json {
        screen.print_result(&report.command_details(clock::unix_time_ms(), screen.style))?;
    }
    Ok(if report.has_open_deliveries() {
        EXIT_FAILED
    } else {
        0
    })
}
