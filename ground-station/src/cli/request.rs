//! Sends a request and follows its events, for all verbs.

use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;

use super::CommonOptions;
use super::connect::Connection;
use super::screen::{CliError, EXIT_INTERRUPTED, Screen};
use crate::duration::to_ms;
use crate::view::deliveries::DeliveryReport;
use swarm_shared::api::{ActRequest, Event, Failure, Request};
use swarm_shared::client::Fleet;

/// Interval of progress updates; a shorter request shows none.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// How a request ended.
pub(super) enum RequestEnd {
    /// Its answer is complete.
    Complete,
    /// It failed.
    Failed(Failure, String),
    /// It was cancelled by Ctrl-C.
    Interrupted,
}

impl RequestEnd {
    /// Turns every end but a complete answer into the error that the verb ends with.
    pub(super) fn into_result(self) -> Result<(), CliError> {
        match self {
            Self::Complete => Ok(()),
            Self::Failed(failure, message) => Err(CliError::from_failure(failure, message)),
            Self::Interrupted => Err(CliError::interrupted()),
        }
    }
}

/// Follows a request to its end. Prints notes and JSON lines; `on` gets every event, and at intervals
/// `None`, to show progress.
pub(super) async fn follow(
    fleet: &Fleet,
    request: impl Into<Request>,
    screen: &mut Screen,
    mut on: impl FnMut(Option<&Event>, &mut Screen) -> Result<(), CliError>,
) -> Result<RequestEnd, CliError> {
    let mut events = fleet.perform(request).await;
    let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
    progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    progress.reset();
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        let event = tokio::select! {
            biased;
            _ = &mut interrupt => return Ok(RequestEnd::Interrupted),
            _ = progress.tick() => {
                on(None, screen)?;
                continue;
            }
            event = events.next() => event,
        };
        match event {
            Ok(None) => return Ok(RequestEnd::Complete),
            Err(error) => return Ok(RequestEnd::Failed(error.failure(), error.to_string())),
            Ok(Some(event)) => {
                if let Event::Note { text } = &event {
                    screen.print_note(text);
                }
                screen.print_event(&event)?;
                on(Some(&event), screen)?;
            }
        }
    }
}

/// Opens the fleet, follows a request that ends in deliveries, prints the report, and returns the exit status.
pub(super) async fn run_request(
    verb: &str,
    request: impl Into<Request>,
    common: &CommonOptions,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    let connection = Connection::open(common, verb, screen).await?;
    let outcome = run_and_report(&connection.fleet, request, screen).await;
    connection.close().await;
    outcome
}

async fn run_and_report(
    fleet: &Fleet,
    request: impl Into<Request>,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    let started = clock::now();
    let mut report = DeliveryReport::default();
    let mut issued = Vec::new();
    let ended = follow(fleet, request, screen, |event, screen| {
        if let Some(Event::Issued { number }) = event {
            issued.push(*number);
        }
        match event {
            Some(event) => report.on_event(event),
            None => screen.show_progress(&report),
        }
        Ok(())
    })
    .await?;
    let took = clock::since(started);
    if let RequestEnd::Failed(Failure::ShutDown, why) = &ended {
        screen.report_no_answer(&mut report, why, took)?;
    }
    let begun = report.counts().1 > 0;
    if begun {
        let with_summary = !screen.quiet || matches!(ended, RequestEnd::Interrupted);
        screen.print_report(&report, with_summary.then_some(took))?;
    }
    match ended {
        RequestEnd::Complete => Ok(report.exit_status()),
        RequestEnd::Interrupted => {
            if screen.json || !begun {
                let summary = report.summary(took, screen.style);
                screen.print_note(&format!("interrupted: {summary}"));
            }
            for number in issued {
                screen.print_note(&format!(
                    "it goes on as command {number}: see `ground-station history {number}`, or cancel what is not sent yet with \
                     `ground-station cancel {number}` (drones of other programs need a stop)"
                ));
            }
            Ok(EXIT_INTERRUPTED)
        }
        RequestEnd::Failed(failure, message) => {
            let status = screen.print_error(&CliError::from_failure(failure, message));
            Ok(if begun && report.exit_status() != 0 {
                report.exit_status()
            } else {
                status
            })
        }
    }
}

/// A request for one action on many nodes.
pub(super) fn command_request(
    selector: Selector,
    action: &str,
    arguments: Arguments,
    common: &CommonOptions,
) -> ActRequest {
    ActRequest::Command {
        selector,
        action: action.to_owned(),
        arguments,
        lane: Lane::Control,
        ttl_ms: to_ms(common.ttl),
        ttl_given: common.ttl_given,
        timeout_ms: to_ms(common.timeout),
        batch: None,
    }
}

/// Arguments by name, without positional ones.
pub(super) fn keyword_arguments<const N: usize>(fields: [(&str, serde_json::Value); N]) -> Arguments {
    Arguments {
        args: Vec::new(),
        kwargs: fields
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}
