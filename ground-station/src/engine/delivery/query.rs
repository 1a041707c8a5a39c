//! One action on many nodes: encoded once, sent to all, each target ending in one outcome.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;
use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerLink, ReplyTo, Request, RequestResult};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, Frame, Kind, Lane, MessageType, WireError};
use tokio::sync::mpsc;

use crate::engine::SharedContext;
use crate::engine::registry::{SelfCheckResult, Target};
use crate::engine::transport::Query;
use swarm_shared::api::{Batch, Check, Delivery, Event, Failure, NodeRef, round_to_microsecond};

/// How long a session remembers a request beyond all that its caller waits for.
const REQUEST_RETENTION: Duration = Duration::from_secs(600);
/// Replies that are taken from the links in one go.
const REPLIES_PER_BATCH_MAX: usize = 256;
/// How long after the time-out the gateway of a bridged device may take to say why there is no reply.
const GATEWAY_GRACE: Duration = Duration::from_millis(500);
/// How long a self-check may take.
const SELF_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Debug)]
pub(in crate::engine) struct Command {
    pub(in crate::engine) action: String,
    pub(in crate::engine) arguments: Arguments,
    pub(in crate::engine) lane: Lane,
    /// How long it may still start.
    pub(in crate::engine) ttl: Duration,
    /// Whether somebody said so.
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

/// Sends a command to its targets and reports how each ended, until all have or the time is up.
pub(in crate::engine) async fn run(
    shared: SharedContext,
    targets: Vec<Target>,
    command: Command,
    requested_at: Instant,
    events: mpsc::Sender<Event>,
) {
    let started = clock::now();
    let frame = command_frame(&shared, &command.action, &command.arguments, command.lane);
    let (id, parcel) = match (frame.header.id, EncodedFrame::new(&frame)) {
        (Some(id), Ok(parcel)) if frame.content.len() <= CONTENT_BYTES_MAX => (id, parcel),
        (_, Err(error)) => return send_encode_failure(&events, &error).await,
        (_, Ok(_)) => {
            let (bytes, max) = (frame.content.len() as u64, CONTENT_BYTES_MAX);
            return send_encode_failure(&events, &WireError::ContentTooLong { bytes, max }).await;
        }
    };
    let named = Event::Targets {
        targets: targets.iter().map(|target| target.node.clone()).collect(),
    };
    if events.send(named).await.is_err() {
        return;
    }
    let (reply_to, mut ends) = mpsc::channel(targets.len());
    let mut waiting: BTreeMap<PeerId, Target> = BTreeMap::new();
    let deadline = requested_at + command.ttl;
    let until = deadline.max(started + command.timeout) + REQUEST_RETENTION;
    for target in targets {
        let query = Query {
            id,
            action: &command.action,
            arguments: &command.arguments,
            frame: &parcel,
            lane: command.lane,
            requested_at,
            start_by: deadline,
            respond_by: clock::now() + command.timeout,
            retained_until: until,
        };
        match target.transport().try_query(&query, &reply_to) {
            Ok(()) => drop(waiting.insert(target.node.id, target)),
            Err(error) => {
                let reply = Reply::refused(error);
                let delivery = Delivery::new(target.node, reply, elapsed_ms(started));
                if events.send(Event::Delivery(delivery)).await.is_err() {
                    return;
                }
            }
        }
    }
    drop(reply_to);
    // A gateway knows best why there is no reply, and says it when the time is up.
    let any_bridged = waiting.values().any(|target| target.bridged().is_some());
    let grace = if any_bridged {
        GATEWAY_GRACE
    } else {
        Duration::ZERO
    };
    // One timer and one wait for all replies that come together.
    let mut batch = Vec::new();
    let mut timed_out = pin!(clock::sleep_until(started + command.timeout + grace));
    while !waiting.is_empty() {
        let received = tokio::select! {
            biased;
            () = events.closed() => return,
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
            let delivery = Delivery::new(target.node, to_reply(end.result), elapsed_ms(started));
            if events.send(Event::Delivery(delivery)).await.is_err() {
                return;
            }
        }
    }
    for target in waiting.into_values() {
        let reply = no_answer(&target, command.timeout);
        let delivery = Delivery::new(target.node, reply, elapsed_ms(started));
        if events.send(Event::Delivery(delivery)).await.is_err() {
            return;
        }
    }
    let _caller_gone = events.send(Event::End).await;
}

pub(in crate::engine) async fn send_encode_failure(events: &mpsc::Sender<Event>, error: &WireError) {
    let message = format!("the command cannot be sent: {error}; make its arguments shorter, or send a file");
    let _caller_gone = events.send(Event::failed(Failure::Usage, message)).await;
}

/// Unlike a command that acts, a question does not go out to a node that comes back later.
fn no_answer(target: &Target, waited: Duration) -> Reply {
    let Some(node) = target.own_node() else {
        let error = "no answer to it in time, and its gateway does not say why";
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

/// Of whoever is linked and has not answered.
pub(in crate::engine) fn no_answer_text(waited: Duration) -> String {
    match waited.as_secs_f64() {
        0.0 => "not waited for (a time-out of 0); it may still be at work".to_owned(),
        waited => format!("no answer within {waited} s; it may still be at work"),
    }
}

pub(in crate::engine) fn elapsed_ms(since: Instant) -> f64 {
    round_to_microsecond(clock::since(since).as_secs_f64() * 1_000.0)
}

/// The reply that a request's end amounts to.
pub(in crate::engine) fn to_reply(ended: RequestResult) -> Reply {
    match ended {
        RequestResult::Reply(content) => serde_json::from_slice(&content)
            .unwrap_or_else(|error| Reply::failed(format!("the node's reply is unreadable: {error}"))),
        RequestResult::Expired => Reply::ended(
            Outcome::Expired,
            "its time to live ran out before it could be sent",
        ),
        RequestResult::Lost => Reply::ended(
            Outcome::Unknown,
            "the node restarted midway: it may have run, or not; look before you repeat",
        ),
        RequestResult::TimedOut => Reply::ended(Outcome::NoAnswer, "no answer"),
        RequestResult::NotSent(why) => Reply::refused(why),
    }
}

/// Asks a node that has just been linked how it is. However that ends, the answer is told.
pub(in crate::engine) async fn self_check(
    shared: SharedContext,
    link: PeerLink,
    results: mpsc::Sender<SelfCheckResult>,
) {
    let id = link.id();
    let checks = request_self_check(&shared, &link).await.unwrap_or_default();
    let _stopping = results.send(SelfCheckResult { id, checks }).await;
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

/// Asks a node something that takes no arguments and only reads, for ourselves. `None` if it could not be sent.
pub(in crate::engine) async fn query_node(
    shared: &SharedContext,
    link: &PeerLink,
    action: &str,
    timeout: Duration,
) -> Option<RequestResult> {
    let frame = command_frame(shared, action, &Arguments::default(), Lane::Control);
    let (id, parcel) = (frame.header.id?, EncodedFrame::new(&frame).ok()?);
    let until = clock::now() + timeout;
    let (reply_to, mut ends) = mpsc::channel(1);
    let outgoing = Outgoing {
        frame: parcel,
        lane: Lane::Control,
        deadline: Some(until),
    };
    link.try_request(
        outgoing,
        Request {
            id,
            timeout_at: until,
            reply_to: ReplyTo(reply_to),
        },
    )
    .ok()?;
    ends.recv().await.map(|end| end.result)
}

/// One point of a self-check: `{"check","ok","detail"}`.
fn parse_check(value: &Value) -> Option<Check> {
    Some(Check {
        name: value.get("check")?.as_str()?.to_owned(),
        ok: value.get("ok")?.as_bool()?,
        text: value.get("detail").and_then(Value::as_str).map(str::to_owned),
    })
}

/// How a delivery that never came to anything is told.
pub(in crate::engine) fn delivery_event(node: &NodeRef, reply: Reply, started: Instant) -> Event {
    Event::Delivery(Delivery::new(node.clone(), reply, elapsed_ms(started)))
}
