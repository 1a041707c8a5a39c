//! A read on many nodes: encoded once, sent to all linked ones, not stored; one outcome for each target.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;
use swarm_shared::net::clock;
use swarm_shared::net::peer::{CompletedRequest, PeerLink, ReplyTo, Request, RequestResult};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, Frame, Kind, Lane, MessageType, WireError};
use tokio::sync::mpsc;

use crate::engine::SharedContext;
use crate::engine::registry::{SelfCheckResult, Target};
use crate::engine::reporter::Reporter;
use crate::engine::transport::Query;
use swarm_shared::api::{Batch, Check, Event, Failure};

/// How long a session remembers a request beyond all that its caller waits for.
const REQUEST_RETENTION: Duration = Duration::from_secs(600);
/// Replies that are taken from the links in one go.
const REPLIES_PER_BATCH_MAX: usize = 256;
/// How long after the time-out the gateway of a bridged device may take to say why there is no reply.
const GATEWAY_GRACE: Duration = Duration::from_millis(500);
/// How long a self-check may take.
const SELF_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// An action with its arguments and times.
#[derive(Debug)]
pub(in crate::engine) struct Command {
    pub(in crate::engine) action: String,
    pub(in crate::engine) arguments: Arguments,
    pub(in crate::engine) lane: Lane,
    /// How long it may wait to start.
    pub(in crate::engine) ttl: Duration,
    /// Whether the user chose the time to live.
    pub(in crate::engine) ttl_given: bool,
    /// How long to wait for outcomes.
    pub(in crate::engine) timeout: Duration,
    pub(in crate::engine) batch: Option<Batch>,
}

/// The frame of a command.
pub(in crate::engine) fn command_frame(
    shared: &SharedContext,
    action: &str,
    arguments: &Arguments,
    lane: Lane,
) -> Frame {
    let mut frame = Frame::json(Kind::Command, arguments);
    frame.header.message_type = MessageType::Request;
    frame.header.action = Some(action.to_owned());
    frame.header.lane = Some(lane);
    frame.header.id = Some(shared.next_id.fetch_add(1, Ordering::Relaxed));
    frame.header.epoch = Some(shared.epoch);
    frame
}

/// Sends the command to its targets and reports the outcome of each, until all have ended or the time-out has passed.
pub(in crate::engine) async fn run(
    shared: SharedContext,
    targets: Vec<Target>,
    command: Command,
    reporter: Reporter,
) {
    let started = reporter.started();
    let frame = command_frame(&shared, &command.action, &command.arguments, command.lane);
    let (id, parcel) = match (frame.header.id, EncodedFrame::new(&frame)) {
        (Some(id), Ok(parcel)) if frame.content.len() <= CONTENT_BYTES_MAX => (id, parcel),
        (_, Err(error)) => return send_encode_failure(&reporter, &error).await,
        (_, Ok(_)) => {
            let (bytes, max) = (frame.content.len() as u64, CONTENT_BYTES_MAX);
            return send_encode_failure(&reporter, &WireError::ContentTooLong { bytes, max }).await;
        }
    };
    let named = Event::Targets {
        targets: targets.iter().map(|target| target.node.clone()).collect(),
    };
    if reporter.send(named).await.is_err() {
        return;
    }
    let (reply_to, mut ends) = mpsc::channel(targets.len());
    let mut waiting: BTreeMap<PeerId, Target> = BTreeMap::new();
    let deadline = started + command.ttl;
    let until = deadline.max(started + command.timeout) + REQUEST_RETENTION;
    for target in targets {
        let query = Query {
            id,
            action: &command.action,
            arguments: &command.arguments,
            frame: &parcel,
            lane: command.lane,
            requested_at: started,
            start_by: deadline,
            respond_by: clock::now() + command.timeout,
            retained_until: until,
        };
        match target.transport().try_query(&query, &reply_to) {
            Ok(()) => drop(waiting.insert(target.node.id, target)),
            Err(error) => {
                let refused = reporter.delivery(target.node, Reply::refused(error));
                if reporter.send(refused).await.is_err() {
                    return;
                }
            }
        }
    }
    drop(reply_to);
    // The gateway of a device explains a missing reply, right after the time-out.
    let any_bridged = waiting.values().any(|target| target.bridged().is_some());
    let grace = if any_bridged {
        GATEWAY_GRACE
    } else {
        Duration::ZERO
    };
    // One timer for all, and one wait for all replies that arrive together.
    let mut batch = Vec::new();
    let mut timed_out = pin!(clock::sleep_until(started + command.timeout + grace));
    while !waiting.is_empty() {
        let received = tokio::select! {
            biased;
            () = reporter.caller().closed() => return,
            received = ends.recv_many(&mut batch, REPLIES_PER_BATCH_MAX) => received,
            () = &mut timed_out => break,
        };
        if received == 0 {
            break;
        }
        for end in batch.drain(..) {
            let Some(target) = waiting.remove(&end.peer) else {
                continue;
            };
            let delivery = reporter.delivery(target.node, to_reply(end.result));
            if reporter.send(delivery).await.is_err() {
                return;
            }
        }
    }
    for target in waiting.into_values() {
        let reply = no_answer(&target, command.timeout);
        let delivery = reporter.delivery(target.node, reply);
        if reporter.send(delivery).await.is_err() {
            return;
        }
    }
    reporter.send(Event::End).await.ok();
}

pub(in crate::engine) async fn send_encode_failure(reporter: &Reporter, error: &WireError) {
    let message = format!("the command cannot be sent: {error}; make its arguments shorter, or send a file");
    reporter.send(Event::failed(Failure::Usage, message)).await.ok();
}

/// The outcome of a read without a reply: it is not sent to a node that links later.
fn no_answer(target: &Target, waited: Duration) -> Reply {
    let Some(node) = target.own_node() else {
        let error = "no answer in time, and no reason from its gateway";
        return Reply::ended(Outcome::NoAnswer, error);
    };
    let error = if *node.online.borrow() {
        no_answer_text(waited)
    } else {
        match waited.as_secs_f64() {
            0.0 => "offline".to_owned(),
            waited => format!("offline for the {waited} s that were waited"),
        }
    };
    Reply::ended(Outcome::NoAnswer, error)
}

/// Error text for a linked node that has not answered.
pub(in crate::engine) fn no_answer_text(waited: Duration) -> String {
    match waited.as_secs_f64() {
        0.0 => "not waited for (a time-out of 0); it may still be at work".to_owned(),
        waited => format!("no answer within {waited} s; it may still be at work"),
    }
}

/// The reply of a request that has ended.
pub(in crate::engine) fn to_reply(ended: RequestResult) -> Reply {
    match ended {
        RequestResult::Reply(content) => serde_json::from_slice(&content)
            .unwrap_or_else(|error| Reply::failed(format!("the node's reply is unreadable: {error}"))),
        RequestResult::Expired => Reply::ended(
            Outcome::Expired,
            "its time to live passed before it could be sent",
        ),
        RequestResult::Lost => Reply::ended(
            Outcome::Unknown,
            "the node restarted midway: it may have run, or not; check before you repeat it",
        ),
        RequestResult::TimedOut => Reply::ended(Outcome::NoAnswer, "no answer"),
        RequestResult::NotSent(why) => Reply::refused(why),
    }
}

/// Runs the self-check of a node that has just linked. A result is always sent, without checks if there was no reply.
pub(in crate::engine) async fn self_check(
    shared: SharedContext,
    link: PeerLink,
    results: mpsc::Sender<SelfCheckResult>,
) {
    let id = link.id();
    let checks = request_self_check(&shared, &link).await.unwrap_or_default();
    results.send(SelfCheckResult { id, checks }).await.ok();
}

async fn request_self_check(shared: &SharedContext, link: &PeerLink) -> Option<Vec<Check>> {
    let ended = query_node(shared, link, "selfcheck", SELF_CHECK_TIMEOUT).await?;
    to_reply(ended)
        .value?
        .as_array()?
        .iter()
        .map(parse_check)
        .collect()
}

/// Sends a node a read without arguments for the station itself. `None` if it could not be sent.
pub(in crate::engine) async fn query_node(
    shared: &SharedContext,
    link: &PeerLink,
    action: &str,
    timeout: Duration,
) -> Option<RequestResult> {
    let frame = command_frame(shared, action, &Arguments::default(), Lane::Control);
    let until = clock::now() + timeout;
    let mut ends = send_request(link, &frame, until, until).ok()?;
    ends.recv().await.map(|end| end.result)
}

/// Sends a request to a node; its end comes back. It may start until `start_by`, and is waited for until `timeout_at`. Never
/// blocks.
///
/// # Errors
/// Why it was not sent, for people.
pub(in crate::engine) fn send_request(
    link: &PeerLink,
    frame: &Frame,
    start_by: Instant,
    timeout_at: Instant,
) -> Result<mpsc::Receiver<CompletedRequest>, String> {
    let (reply_to, ends) = mpsc::channel(1);
    let outgoing = Outgoing {
        frame: EncodedFrame::new(frame).map_err(|error| error.to_string())?,
        lane: frame.header.lane.unwrap_or(Lane::Control),
        deadline: Some(start_by),
    };
    let request = Request {
        id: frame.header.id.unwrap_or_default(),
        timeout_at,
        reply_to: ReplyTo(reply_to),
    };
    link.try_request(outgoing, request)
        .map_err(|error| error.to_string())?;
    Ok(ends)
}

/// One point of a self-check: `{"check","ok","detail"}`.
fn parse_check(value: &Value) -> Option<Check> {
    Some(Check {
        name: value.get("check")?.as_str()?.to_owned(),
        ok: value.get("ok")?.as_bool()?,
        text: value.get("detail").and_then(Value::as_str).map(str::to_owned),
    })
}
