//! `history`: lists commands with their outcomes, the audit, and repeats a command.

use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;

use super::CommonOptions;
use super::connect::Connection;
use super::request::{follow, run_request};
use super::screen::{CliError, Screen};
use crate::duration::{self, to_ms};
use crate::view::history::HistoryReport;
use swarm_shared::api::{Failure, HistoryQuery, HistoryRequest, HistoryState};

/// List commands and their outcomes, or the audit; repeat a command where it was not done
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ground-station history                            the newest commands
  ground-station history 12                         one, with each delivery and its times
  ground-station history --state failed --since 2h
  ground-station history --node drone-07 --action led
  ground-station history 12 --retry                 again, to those that did not end in done
  ground-station history --audit                    who did what to the fleet

With NUMBER the exit status is that of its deliveries; one that is open counts as one that gave
no answer. What matches nothing ends with 3, but that nothing is open is no fault.")]
pub(super) struct Args {
    /// The command's number; without it, the newest commands
    #[arg(value_parser = number)]
    number: Option<u64>,
    /// Only what went to these nodes: names, globs or id:PREFIX
    #[arg(long, value_name = "SELECTOR")]
    node: Option<Selector>,
    /// Only this action
    #[arg(long)]
    action: Option<String>,
    /// Only what has a delivery in this state: open, done, failed, refused, expired, unknown, no-answer
    #[arg(long, value_parser = state)]
    state: Option<HistoryState>,
    /// Only what was sent within this time
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    since: Option<Duration>,
    /// Most commands or entries to list
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// List the audit: who changed what, and when
    #[arg(long, conflicts_with_all = ["number", "node", "action", "state", "retry"])]
    audit: bool,
    /// Send the command again to the nodes where it was not done; --ttl is the command's own unless given
    #[arg(long, requires = "number", conflicts_with_all = ["node", "action", "state", "since", "limit"])]
    retry: bool,
}

/// Parses the number of a command.
pub(super) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_not_a_number: std::num::ParseIntError| {
        "commands have numbers: `ground-station history` shows them".to_owned()
    })
}

fn state(text: &str) -> Result<HistoryState, String> {
    HistoryState::parse(text).ok_or_else(|| {
        let words: Vec<&str> = HistoryState::ALL.iter().map(|state| state.as_str()).collect();
        format!("use one of {}", words.join(", "))
    })
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    if let (true, Some(number)) = (args.retry, args.number) {
        let request = HistoryRequest::Retry {
            number,
            ttl_ms: common.ttl_given.then(|| to_ms(common.ttl)),
            timeout_ms: to_ms(common.timeout),
        };
        return run_request("history", request, common, screen).await;
    }
    if let Some(nodes) = &args.node
        && nodes.has_tags()
    {
        let text = "the history does not keep tags: give names, globs or id:PREFIX to --node";
        return Err(CliError::usage(text));
    }
    let has_filter = args.node.is_some() || args.action.is_some() || args.since.is_some();
    let query = HistoryQuery {
        number: args.number,
        nodes: args.node,
        action: args.action,
        state: args.state,
        within_ms: args.since.map(to_ms),
        limit: args.limit,
    };
    let request = if args.audit {
        HistoryRequest::Audit { query }
    } else {
        HistoryRequest::Commands { query }
    };
    let connection = Connection::open_history(common).await?;
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
    if args.state == Some(HistoryState::Open) && is_empty_result(&report, args.number) {
        // Nothing left to repeat is a success.
        screen.print_note(match (args.number, has_filter) {
            (Some(_), _) => "nothing of that command is open: each delivery has ended",
            (None, false) => "nothing is open: each delivery has ended",
            (None, true) => "nothing that matches is open",
        });
        return Ok(0);
    }
    print_history(&report, args.number, args.audit, screen)
}

fn is_empty_result(past: &HistoryReport, number: Option<u64>) -> bool {
    past.is_empty() || (number.is_some() && past.has_no_deliveries())
}

fn print_history(
    past: &HistoryReport,
    number: Option<u64>,
    audit: bool,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    let one = number.is_some();
    if is_empty_result(past, number) {
        let text = match (one, audit) {
            (true, _) => "no delivery of that command matches",
            (false, true) => "nothing is noted, or nothing that matches",
            (false, false) => "nothing was sent from here yet, or nothing that matches",
        };
        return Ok(screen.print_error(&CliError::from_failure(Failure::NoMatch, text)));
    }
    if !screen.json {
        let now_ms = clock::unix_time_ms();
        let text = match (one, audit) {
            (true, _) => past.command_details(now_ms, screen.style),
            (false, true) => past.audit_table(now_ms, screen.style).join("\n"),
            (false, false) => past.commands_table(now_ms, screen.style).join("\n"),
        };
        screen.print_result(&text)?;
    }
    Ok(if one { past.exit_status() } else { 0 })
}
