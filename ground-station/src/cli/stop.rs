//! `stop`: the emergency stop. It waits for nobody: until the links are there, it goes out by datagrams ([`backup`]).

mod datagram_fallback;

use std::borrow::Cow;

use datagram_fallback::Backup;
use swarm_shared::net::clock;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;

use super::Common;
use super::connect::Connection;
use super::request::{self, Ended};
use super::screen::{CliError, EXIT_FAILED, Screen};
use crate::duration::to_ms;
use crate::fleet::{Delivery, Event, Failure, Fleet, Request};
use crate::view::deliveries::Report;
use crate::view::stop::Acknowledged;

/// Emergency stop: at once, by every way, until all have answered
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A stopped node runs its own [emergency_stop] command, kills what runs, and refuses every
action that is not marked while_stopped, also after a restart, until `release`.
It goes on until every node has answered or Ctrl-C; --timeout, if given, ends it too.

Examples:
  ground-station stop
  ground-station stop 'drone-[01-12]'")]
pub(super) struct Args {
    /// Which nodes
    #[arg(default_value = "all")]
    selector: Selector,
}

pub(super) async fn run(args: Args, common: &Common, screen: &mut Screen) -> Result<u8, CliError> {
    let started = clock::now();
    let mut backup = Some(Backup::start(common, &args.selector)?);
    loop {
        let connection = match &mut backup {
            Some(waiting) => match waiting.connect(common, &args.selector, screen).await? {
                Some(connection) => connection,
                None => return waiting.given_up(screen),
            },
            None => Connection::open_to_stop(common, &args.selector, screen).await?,
        };
        let left = common.timeout.saturating_sub(clock::since(started));
        let request = Request::Stop {
            selector: args.selector.clone(),
            timeout_ms: common.timeout_given.then(|| to_ms(left)),
            beside: false,
        };
        let status = follow(&connection.fleet, request, &mut backup, screen).await;
        connection.close().await;
        if let Some(status) = status? {
            return Ok(status);
        }
    }
}

/// The exit status; `None` if whoever has the links has said nothing, while datagrams go out.
async fn follow(
    fleet: &Fleet,
    request: Request,
    backup: &mut Option<Backup>,
    screen: &mut Screen,
) -> Result<Option<u8>, CliError> {
    let started = clock::now();
    let (mut report, mut acknowledged) = (Report::default(), Acknowledged::default());
    let ended = request::follow(fleet, request, screen, |event, screen| {
        if let Some(event) = event {
            report.add(&in_short(event));
            acknowledged.add(event);
            // The engine sends before it says anything.
            if let Some(backup) = backup.take() {
                backup.end();
            }
        }
        if let Some(backup) = backup {
            backup.say(screen);
        }
        match event {
            Some(_) => acknowledged.all_in().iter().for_each(|line| screen.note(line)),
            None => {
                let missing = acknowledged.missing(clock::since(started));
                missing.iter().for_each(|line| screen.warning(line));
            }
        }
        Ok(())
    })
    .await?;
    if let Some(waiting) = backup.as_mut().filter(|backup| backup.is_out()) {
        match &ended {
            Ended::Interrupted => return waiting.given_up(screen).map(Some),
            Ended::Failed(Failure::Stopped, why) => {
                waiting.failed(why);
                return Ok(None);
            }
            Ended::Whole | Ended::Failed(..) => {}
        }
    }
    let (why, cause) = match &ended {
        Ended::Whole => (None, Some("the time is up")),
        Ended::Interrupted => (
            Some("NO ANSWER when it was interrupted: it is not known to be stopped"),
            Some("interrupted"),
        ),
        Ended::Failed(Failure::Stopped, _) => (
            Some("NO ANSWER when the station that gave the stop ended: it is not known to be stopped"),
            Some("the station that gave this stop has ended, or does not answer"),
        ),
        Ended::Failed(_, why) => (Some(why.as_str()), None),
    };
    if let Some(cause) = cause
        && acknowledged.some_missing(!matches!(ended, Ended::Whole))
    {
        let text = format!(
            "{cause}: THE STOP IS NOT REPEATED ANY MORE; whoever has not answered may go on: type `ground-station stop` \
             again, which needs no `serve`"
        );
        if matches!(ended, Ended::Failed(..)) {
            screen.fault(&CliError::request(Failure::Stopped, text));
        } else {
            screen.warning(&text);
        }
    }
    if let Some(why) = why {
        let ms = clock::since(started).as_secs_f64() * 1_000.0;
        // Nobody vanishes from a report.
        for target in report.unanswered() {
            let reply = Reply::ended(Outcome::NoAnswer, why);
            let lost = Event::Delivery(Delivery::new(target, reply, ms));
            screen.event(&lost)?;
            report.add(&lost);
        }
    }
    let begun = report.counts().1 > 0;
    if !screen.json && begun {
        screen.result(&report.groups(screen.style))?;
        let summary = report.summary(clock::since(started), screen.style);
        screen.result(&format!("\n{summary}"))?;
    }
    match ended {
        // Said above, with what to do.
        Ended::Failed(Failure::Stopped, _) if !begun => Ok(Some(EXIT_FAILED)),
        Ended::Failed(failure, message) if !begun => {
            Ok(Some(screen.fault(&CliError::request(failure, message))))
        }
        Ended::Whole | Ended::Interrupted | Ended::Failed(..) => Ok(Some(report.exit_status())),
    }
}

/// Without the particulars that JSON has, such as the moment of each acknowledgement: nodes that ended alike are one
/// group.
fn in_short(event: &Event) -> Cow<'_, Event> {
    if let Event::Delivery(delivery) = event {
        return Cow::Owned(Event::Delivery(Delivery {
            value: None,
            ..delivery.clone()
        }));
    }
    Cow::Borrowed(event)
}
