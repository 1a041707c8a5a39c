//! The end of an emergency stop: each node is released from the stop that is in force there.

use std::pin::pin;
use std::time::{Duration, Instant};

use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::{Arguments, StopStatus};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;
use tokio::task::JoinSet;

use super::coordinator::history_record;
use crate::duration::to_ms;
use crate::engine::SharedContext;
use crate::engine::delivery::{history_writer, query};
use crate::engine::registry::{Device, NodeDevice, Target};
use crate::engine::reporter::{Reporter, given_up};
use crate::engine::transport::bridge::{BridgedDevices, BridgedTransport, DeviceOperation, await_reply};
use crate::store::Origin;
use swarm_shared::api::{CommandKind, Event, Failure, NodeRef};

/// How long a release may still take effect.
const RELEASE_TTL: Duration = Duration::from_secs(2);
/// How long a node's word of its stop may come behind its link.
const STOP_REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked for.
const STOP_REPORT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How long a release waits.
#[derive(Clone, Copy, Debug)]
struct ReleaseDeadlines {
    /// For a link: a process that has just started finds its nodes until then; after that, an absent node is absent.
    link_deadline: Instant,
    /// For a reply.
    reply_deadline: Instant,
}

/// What is asked of [`run`].
pub(in crate::engine) struct ReleaseRequest {
    pub(in crate::engine) selector: Selector,
    /// Error text if nothing matches.
    pub(in crate::engine) no_match_text: String,
    /// Note for the caller.
    pub(in crate::engine) note: Option<String>,
    pub(in crate::engine) timeout: Duration,
    /// Number of latched stops when the release was requested: later stops stay in force.
    pub(in crate::engine) stop_count: u64,
    pub(in crate::engine) origin: Origin,
}

/// Releases the nodes among the targets, each from the stop that is in force there, and ends the latched stops of bridged
/// devices, also of those that are not registered now. Devices are told when that is stored: one that is in the air is not to
/// be told to land again by a station that has started again.
pub(in crate::engine) async fn run(
    shared: SharedContext,
    devices: BridgedDevices,
    targets: Vec<Target>,
    request: ReleaseRequest,
    reporter: Reporter,
) {
    let started = reporter.started();
    let ReleaseRequest {
        selector,
        no_match_text,
        note,
        timeout,
        stop_count,
        origin,
    } = request;
    let nodes: Vec<NodeRef> = targets.iter().map(|target| target.node.clone()).collect();
    if nodes.is_empty() {
        let lifted = lift(&devices, &selector, stop_count, timeout).await;
        let (outcome, more) = match &lifted {
            Ok(None) => (
                "of drones that come".to_owned(),
                "; a drone that comes and is meant is not stopped any more".to_owned(),
            ),
            Ok(Some(note)) => ("of drones that come".to_owned(), format!("; {note}")),
            Err(why) => (
                format!("not done: {why}"),
                format!("; drones that come stay stopped: {why}"),
            ),
        };
        let detail = selector.as_str();
        history_writer::write_audit_entry(&shared.store, &origin.user, "release", detail, &outcome).await;
        let failed = Event::failed(Failure::NoMatch, format!("{no_match_text}{more}"));
        reporter.send(failed).await.ok();
        return;
    }
    let record = history_record(CommandKind::Release, &selector, &nodes, to_ms(timeout), origin);
    reporter.open_history(record, given_up, false);
    let deadlines = ReleaseDeadlines {
        link_deadline: shared.started + timeout,
        reply_deadline: started + timeout,
    };
    let mut at_work = JoinSet::new();
    let mut bridged = Vec::new();
    for target in targets {
        let shared = shared.clone();
        match target.device {
            Device::Node(node) => drop(at_work.spawn(async move {
                let reply = release_one(&shared, target.node.id, &node, deadlines).await;
                (target.node, reply)
            })),
            Device::Bridged(device) => bridged.push((target.node, device)),
        }
    }
    let first = note
        .map(Event::note)
        .into_iter()
        .chain([Event::Targets { targets: nodes }]);
    for event in first {
        if reporter.send(event).await.is_err() {
            return;
        }
    }
    let lifting = lift(&devices, &selector, stop_count, timeout);
    let mut lifting = pin!(lifting);
    let mut is_lifting = true;
    while is_lifting || !at_work.is_empty() {
        let ended = tokio::select! {
            biased;
            // What is released is told to its device also if the caller is gone.
            lifted = &mut lifting, if is_lifting => {
                is_lifting = false;
                let note = match &lifted {
                    Ok(note) => note.clone(),
                    Err(why) if bridged.is_empty() => Some(format!("drones that come stay stopped: {why}")),
                    Err(_) => None,
                };
                for (node, device) in std::mem::take(&mut bridged) {
                    let lifted = lifted.as_ref().map(|_| ()).map_err(Clone::clone);
                    at_work.spawn(async move { (node, release_device(&device, lifted, timeout).await) });
                }
                match note {
                    Some(note) => Event::note(note),
                    None => continue,
                }
            }
            () = reporter.caller().closed(), if !is_lifting => return,
            Some(ended) = at_work.join_next() => match ended {
                Ok((node, reply)) => reporter.record_end(node, reply),
                Err(error) => {
                    tracing::error!(%error, "Release task panicked");
                    continue;
                }
            },
        };
        if reporter.send(ended).await.is_err() && !is_lifting {
            return;
        }
    }
    reporter.send(Event::End).await.ok();
}

/// Ends latched stops. Returns a note if that is not stored in time: it is in force all the same.
///
/// # Errors
/// Why the stops stay in force.
async fn lift(
    devices: &BridgedDevices,
    selector: &Selector,
    stop_count: u64,
    timeout: Duration,
) -> Result<Option<String>, String> {
    let latches = devices.latches();
    let released = latches.release(selector, stop_count);
    devices.mark_all_changed();
    let Some(version) = released.map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let why = match tokio::time::timeout(timeout, latches.persisted().wait_stored(version)).await {
        Ok(Ok(())) => return Ok(None),
        Ok(Err(why)) => why,
        Err(_elapsed) => "the disk takes long".to_owned(),
    };
    Ok(Some(format!(
        "drones are released, but that is not stored yet: should this station start again before it is, they are \
         stopped again ({why})"
    )))
}

async fn release_device(device: &BridgedTransport, lifted: Result<(), String>, timeout: Duration) -> Reply {
    if let Err(why) = lifted {
        return Reply::refused(why);
    }
    let now = clock::now();
    let until = now + timeout;
    await_reply(device.try_send(DeviceOperation::Release, now, until, until)).await
}

/// An unconfirmed stop ends whatever the node replies: the operator has released the node.
async fn release_one(
    shared: &SharedContext,
    id: PeerId,
    node: &NodeDevice,
    deadlines: ReleaseDeadlines,
) -> Reply {
    let was_unconfirmed = shared.stops.unconfirmed.clear(id);
    let reply = release_linked(shared, id, node, deadlines).await;
    match &reply.error {
        Some(why) if was_unconfirmed && reply.state == Outcome::NoAnswer => {
            Reply::ended(Outcome::NoAnswer, format!("{why}; commands go to it again"))
        }
        Some(_) | None => reply,
    }
}

async fn release_linked(
    shared: &SharedContext,
    id: PeerId,
    node: &NodeDevice,
    deadlines: ReleaseDeadlines,
) -> Reply {
    let ReleaseDeadlines {
        link_deadline,
        reply_deadline,
    } = deadlines;
    if !node.wait_online_until(link_deadline.min(reply_deadline)).await {
        return Reply::ended(
            Outcome::NoAnswer,
            "not linked: if it is stopped, it stays stopped until it is released",
        );
    }
    let asked = clock::now();
    let known = shared.stops.latest_report(id);
    let reply = request_release(shared, node, known.as_ref(), reply_deadline).await;
    if known.is_some() || reply.state != Outcome::Refused {
        return reply;
    }
    // It is stopped, then, and its word of that comes behind the link.
    let report_deadline = reply_deadline.min(asked + STOP_REPORT_TIMEOUT);
    let report = loop {
        match shared.stops.latest_report(id) {
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
    request_release(shared, node, Some(&report), reply_deadline).await
}

async fn request_release(
    shared: &SharedContext,
    node: &NodeDevice,
    stop: Option<&StopStatus>,
    reply_deadline: Instant,
) -> Reply {
    let mut arguments = Arguments::default();
    let fields = &mut arguments.kwargs;
    fields.insert("number".to_owned(), json!(stop.map_or(0, |stop| stop.number)));
    fields.extend(stop.map(|stop| ("issuer".to_owned(), json!(stop.issuer))));
    let frame = query::command_frame(shared, "release", &arguments, Lane::Emergency);
    let start_by = clock::now() + RELEASE_TTL;
    let sent = query::send_request(&node.link, &frame, start_by, reply_deadline.max(start_by));
    let mut ends = match sent {
        Ok(ends) => ends,
        Err(error) => return Reply::refused(error),
    };
    match clock::timeout_at(reply_deadline, ends.recv()).await {
        Ok(Some(end)) => query::to_reply(end.result),
        Ok(None) | Err(_) => Reply::ended(
            Outcome::NoAnswer,
            "no answer; `nodes` says whether it is still stopped",
        ),
    }
}
