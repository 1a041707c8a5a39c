//! The end of an emergency stop: each node is released from the stop that is in force there.

use std::time::{Duration, Instant};

use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::net::peer::{ReplyTo, Request};
use swarm_shared::proto::message::{Arguments, StopStatus};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::Lane;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::registry::Target;
use super::{SharedContext, query};
use crate::fleet::Event;

/// How long a release may still take effect.
const RELEASE_TTL: Duration = Duration::from_secs(2);
/// How long a node's word of its stop may come behind its link.
const STOP_REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked for.
const STOP_REPORT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How long a release waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReleaseDeadlines {
    /// For a link: a process that has just started finds its nodes until then; after that, who is away is away.
    pub(super) link_deadline: Instant,
    /// For an answer.
    pub(super) reply_deadline: Instant,
}

/// Releases the targets, each from the stop that is in force there.
pub(super) async fn run(
    shared: SharedContext,
    targets: Vec<Target>,
    deadlines: ReleaseDeadlines,
    events: mpsc::Sender<Event>,
) {
    let started = clock::now();
    let named = Event::Targets {
        targets: targets.iter().map(|target| target.node.clone()).collect(),
    };
    if events.send(named).await.is_err() {
        return;
    }
    let mut at_work = JoinSet::new();
    for target in targets {
        let shared = shared.clone();
        at_work.spawn(async move {
            let reply = release_one(&shared, &target, deadlines).await;
            query::delivery_event(&target.node, reply, started)
        });
    }
    loop {
        let ended = tokio::select! {
            biased;
            () = events.closed() => return,
            ended = at_work.join_next() => ended,
        };
        match ended {
            Some(Ok(event)) => {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            Some(Err(error)) => tracing::error!(%error, "a release fell over"),
            None => break,
        }
    }
    let _caller_gone = events.send(Event::End).await;
}

/// Whatever comes of it: whoever releases a node that has not confirmed a stop answers for it.
async fn release_one(shared: &SharedContext, target: &Target, deadlines: ReleaseDeadlines) -> Reply {
    let was_unconfirmed = shared.stops.unconfirmed.clear(target.node.id);
    let reply = release_linked(shared, target, deadlines).await;
    match &reply.error {
        Some(why) if was_unconfirmed && reply.state == Outcome::NoAnswer => {
            Reply::ended(Outcome::NoAnswer, format!("{why}; commands go to it again"))
        }
        Some(_) | None => reply,
    }
}

async fn release_linked(shared: &SharedContext, target: &Target, deadlines: ReleaseDeadlines) -> Reply {
    let ReleaseDeadlines {
        link_deadline,
        reply_deadline,
    } = deadlines;
    if !target.wait_online_until(link_deadline.min(reply_deadline)).await {
        return Reply::ended(
            Outcome::NoAnswer,
            "not linked: if it is stopped, it stays stopped until it is released",
        );
    }
    let asked = clock::now();
    let known = shared.stops.latest_report(target.node.id);
    let reply = request_release(shared, target, known.as_ref(), reply_deadline).await;
    if known.is_some() || reply.state != Outcome::Refused {
        return reply;
    }
    // It is stopped, then, and its word of that comes behind the link.
    let report_deadline = reply_deadline.min(asked + STOP_REPORT_TIMEOUT);
    let report = loop {
        match shared.stops.latest_report(target.node.id) {
            Some(told) => break told,
            None if clock::now() >= report_deadline => return reply,
            None => tokio::time::sleep(STOP_REPORT_POLL_INTERVAL).await,
        }
    };
    let since_asked = clock::since(asked).as_millis();
    if u128::from(report.since_ms) < since_asked {
        return Reply::refused(
            "it was stopped again after this release was typed; type it again if that stop is meant, too",
        );
    }
    request_release(shared, target, Some(&report), reply_deadline).await
}

async fn request_release(
    shared: &SharedContext,
    target: &Target,
    stop: Option<&StopStatus>,
    reply_deadline: Instant,
) -> Reply {
    let mut arguments = Arguments::default();
    let fields = &mut arguments.kwargs;
    fields.insert("number".to_owned(), json!(stop.map_or(0, |stop| stop.number)));
    fields.extend(stop.map(|stop| ("issuer".to_owned(), json!(stop.issuer))));
    let lane = Lane::Emergency;
    let frame = query::command_frame(shared, "release", &arguments, lane);
    let (Some(id), Ok(parcel)) = (frame.header.id, EncodedFrame::new(&frame)) else {
        return Reply::failed("the release does not encode");
    };
    let (reply_to, mut ends) = mpsc::channel(1);
    let outgoing = Outgoing {
        frame: parcel,
        lane,
        deadline: Some(clock::now() + RELEASE_TTL),
    };
    let request = Request {
        id,
        timeout_at: reply_deadline.max(clock::now() + RELEASE_TTL),
        reply_to: ReplyTo(reply_to),
    };
    if let Err(error) = target.link.try_request(outgoing, request) {
        return Reply::refused(error.to_string());
    }
    match clock::timeout_at(reply_deadline, ends.recv()).await {
        Ok(Some(end)) => query::to_reply(end.result),
        Ok(None) | Err(_) => Reply::ended(
            Outcome::NoAnswer,
            "no answer; `nodes` says whether it is still stopped",
        ),
    }
}
