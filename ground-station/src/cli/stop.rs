//! `stop`: the emergency stop. Until the links are up it goes out by datagrams ([`datagram_fallback`]).

mod datagram_fallback;

use std::borrow::Cow;

use datagram_fallback::DatagramFallback;
use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;

use super::CommonOptions;
use super::connect::Connection;
use super::request::{self, RequestEnd};
use super::screen::{CliError, EXIT_FAILED, Screen};
use crate::duration::to_ms;
use crate::view::deliveries::DeliveryReport;
use crate::view::stop::StopProgress;
use swarm_shared::api::{ActRequest, Delivery, Event, Failure, Request};
use swarm_shared::client::Fleet;

/// Emergency stop: by link and datagram at once, until all nodes have answered
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A stopped node runs its own [emergency_stop] command, kills what runs, and refuses every
action that is not marked while_stopped, also after a restart, until `release`.
It goes on until every node has answered or Ctrl-C; --timeout, if given, ends it too.

Examples:
  ground-station stop
  ground-station stop 'drone-[01-12]'")]
pub(super) struct Args {
    /// The nodes: a selector
    #[arg(default_value = "all")]
    selector: Selector,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let started = clock::now();
    let mut fallback = Some(DatagramFallback::start(common, &args.selector)?);
    loop {
        let connection = match &mut fallback {
            Some(fallback) => match fallback.connect(common, &args.selector, screen).await? {
                Some(connection) => connection,
                None => return fallback.report_unacknowledged(screen),
            },
            None => Connection::open_for_stop(common, &args.selector, screen).await?,
        };
        let left = common.timeout.saturating_sub(clock::since(started));
        let request = ActRequest::Stop {
            selector: args.selector.clone(),
            timeout_ms: common.timeout_given.then(|| to_ms(left)),
        };
        let status = follow(&connection.fleet, request, &mut fallback, screen).await;
        connection.close().await;
        if let Some(status) = status? {
            return Ok(status);
        }
    }
}

/// The exit status; `None` if the process with the links has sent nothing while datagrams go out.
async fn follow(
    fleet: &Fleet,
    request: impl Into<Request>,
    fallback: &mut Option<DatagramFallback>,
    screen: &mut Screen,
) -> Result<Option<u8>, CliError> {
    let started = clock::now();
    let (mut report, mut progress) = (DeliveryReport::default(), StopProgress::default());
    let ended = request::follow(fleet, request, screen, |event, screen| {
        if let Some(event) = event {
            report.on_event(&without_value(event));
            progress.on_event(event);
            // The engine sends the stop before its first event.
            if let Some(fallback) = fallback.take() {
                fallback.finish();
            }
        }
        if let Some(fallback) = fallback {
            fallback.report_state(screen);
        }
        match event {
            Some(_) => progress
                .completion_line()
                .iter()
                .for_each(|line| screen.print_note(line)),
            None => {
                let missing = progress.unanswered_line(clock::since(started));
                missing.iter().for_each(|line| screen.print_warning(line));
            }
        }
        Ok(())
    })
    .await?;
    if let Some(fallback) = fallback.as_mut().filter(|fallback| fallback.is_sending()) {
        match &ended {
            RequestEnd::Interrupted => return fallback.report_unacknowledged(screen).map(Some),
            RequestEnd::Failed(Failure::ShutDown, why) => {
                fallback.on_start_failure(why);
                return Ok(None);
            }
            RequestEnd::Complete | RequestEnd::Failed(..) => {}
        }
    }
    let (no_answer_reason, cause) = match &ended {
        RequestEnd::Complete => (None, Some("the time is up")),
        RequestEnd::Interrupted => (
            Some("NO ANSWER when it was interrupted: it is not known to be stopped"),
            Some("interrupted"),
        ),
        RequestEnd::Failed(Failure::ShutDown, _) => (
            Some("NO ANSWER when the station that gave the stop ended: it is not known to be stopped"),
            Some("the station that gave this stop has ended, or does not answer"),
        ),
        RequestEnd::Failed(_, why) => (Some(why.as_str()), None),
    };
    if let Some(cause) = cause
        && progress.has_unanswered(!matches!(ended, RequestEnd::Complete))
    {
        let text = format!(
            "{cause}: THE STOP IS NOT REPEATED ANY MORE; nodes that have not answered may go on: type `ground-station stop` \
             again, which needs no `serve`"
        );
        if matches!(ended, RequestEnd::Failed(..)) {
            screen.print_error(&CliError::from_failure(Failure::ShutDown, text));
        } else {
            screen.print_warning(&text);
        }
    }
    if let Some(why) = no_answer_reason {
        screen.report_no_answer(&mut report, why, clock::since(started))?;
    }
    let begun = report.counts().1 > 0;
    if begun {
        screen.print_report(&report, Some(clock::since(started)))?;
    }
    match ended {
        // Reported above, with a remedy.
        RequestEnd::Failed(Failure::ShutDown, _) if !begun => Ok(Some(EXIT_FAILED)),
        RequestEnd::Failed(failure, message) if !begun => Ok(Some(
            screen.print_error(&CliError::from_failure(failure, message)),
        )),
        RequestEnd::Complete | RequestEnd::Interrupted | RequestEnd::Failed(..) => {
            Ok(Some(report.exit_status()))
        }
    }
}

/// Without details that JSON has, such as the time of each acknowledgement: nodes with equal outcomes are one
/// group.
fn without_value(event: &Event) -> Cow<'_, Event> {
    if let Event::Delivery(delivery) = event {
        return Cow::Owned(Event::Delivery(Delivery {
            value: None,
            ..delivery.clone()
        }));
    }
    Cow::Borrowed(event)
}
