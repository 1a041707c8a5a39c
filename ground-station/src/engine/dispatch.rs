//! Requests as they come to the engine: each is answered at once, or given a task of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::selector::Selector;
use tokio::sync::mpsc;

use super::{EngineTask, NodesQuery};
use crate::engine::delivery::{cancel, durable_command, history_writer, query, retry};
use crate::engine::files::{fetch, send};
use crate::engine::membership::task::MembershipRequest;
use crate::engine::membership::users;
use crate::engine::observe::offline_history;
use crate::engine::registry::{Device, Target};
use crate::engine::respond::{respond, send_events, send_events_or_spawn};
use crate::engine::stop::{coordinator, release};
use crate::engine::transport::gateway_peers::GatewayPeers;
use crate::store::Origin;
use crate::text::fold;
use swarm_shared::api::{
    ActRequest, AdminRequest, Event, Failure, HistoryRequest, NodesRequest, PeerView, Request,
};
use swarm_shared::client::RequestEnvelope;

/// Error text of a selector in a fleet without nodes.
const NO_NODES: &str = "this fleet has no nodes yet: type `ground-station fleet invite` here and \
                        `swarm-node join CODE` on a device";
/// Most unmatched terms that a note names.
const UNMATCHED_SHOWN_MAX: usize = 8;
/// Note on a stop that exceeds the limit of stops in force.
const ALL_STOPPED: &str = "too many stops are in force to remember each: all drones of other programs are stopped, also \
                           those that come, until `release all`";

/// Most stops in force that a note names.
const STOPS_SHOWN_MAX: usize = 4;

/// A request, its user, and its time.
pub(in crate::engine) struct RequestContext {
    pub(in crate::engine) request: Request,
    pub(in crate::engine) events: mpsc::Sender<Event>,
    pub(in crate::engine) user: String,
    pub(in crate::engine) origin: Origin,
    pub(in crate::engine) requested_at: Instant,
    /// Of a retry: the names of the nodes by the terms of its selector.
    pub(in crate::engine) retried: BTreeMap<String, NodeName>,
}

/// The error of a request has been sent.
struct Failed;

fn send_shut_down(events: &mpsc::Sender<Event>) {
    let stopped = Event::failed(Failure::ShutDown, "the station is shutting down; ask again");
    // A full channel means that the caller does not read.
    let _caller_gone = events.try_send(stopped);
}

impl EngineTask {
    pub(in crate::engine) fn on_request(&mut self, envelope: RequestEnvelope) {
        let RequestEnvelope {
            request,
            events,
            user,
        } = envelope;
        let (requested_at, origin) = (clock::now(), Origin::command_by(user.clone()));
        let Request::History(HistoryRequest::Retry {
            number,
            ttl_ms,
            timeout_ms,
        }) = request
        else {
            return self.dispatch(RequestContext {
                request,
                events,
                user,
                origin,
                requested_at,
                retried: BTreeMap::new(),
            });
        };
        // It reads the history: a disk may take seconds, and an emergency stop is not to wait for it.
        let (state_dir, planned) = (self.state_dir.clone(), self.planned_retries.clone());
        self.tasks.spawn(async move {
            let plan = match retry::plan(&state_dir, number, ttl_ms, timeout_ms).await {
                Ok(plan) => plan,
                Err(retry::RetryError(failure, message)) => {
                    let _caller_gone = events.send(Event::failed(failure, message)).await;
                    return;
                }
            };
            if let Some(note) = plan.note {
                // The first event of this request: there is room.
                let _caller_gone = events.try_send(Event::note(note));
            }
            let retry_context = RequestContext {
                request: plan.request,
                events,
                user,
                origin: Origin {
                    retry_of: Some(number),
                    shown_selector: Some(plan.shown),
                    ..origin
                },
                requested_at,
                retried: plan.terms,
            };
            if let Err(mpsc::error::SendError(again)) = planned.send(retry_context).await {
                send_shut_down(&again.events);
            }
        });
    }

    /// Begins what is asked. It waits for nothing.
    pub(in crate::engine) fn dispatch(&mut self, context: RequestContext) {
        let RequestContext {
            request,
            events,
            user,
            mut origin,
            requested_at,
            retried,
        } = context;
        // First of all: devices that register from now on are stopped, too.
        let mut stopped = None;
        if let Request::Act(ActRequest::Stop { selector, .. }) = &request
            && self.bridges_devices
        {
            stopped = Some(self.registry.lock().devices().stop(selector));
        }
        let events = match history_writer::audit_entry(&request) {
            Some(what) => {
                history_writer::audit_stream(&self.tasks, self.store.clone(), user.clone(), what, events)
            }
            None => events,
        };
        let events = self.subscribers.tap(&self.tasks, &request, &origin, events);
        match request {
            Request::Nodes(NodesRequest::List { selector, timeout_ms }) => {
                let deadline = self.shared.started + Duration::from_millis(timeout_ms);
                self.nodes_queries.push(NodesQuery {
                    selector,
                    deadline,
                    events,
                });
                self.answer_nodes_queries();
            }
            Request::Nodes(NodesRequest::Watch { selector }) => {
                self.watchers.subscribe(&self.registry.lock(), selector, events);
            }
            Request::Nodes(NodesRequest::Follow { telemetry }) => {
                self.watchers
                    .subscribe(&self.registry.lock(), Selector::all(), events.clone());
                self.subscribers
                    .subscribe(telemetry, &self.tasks, &self.shutdown, events);
            }
            Request::Admin(AdminRequest::Peers { gateway }) => {
                let peers = self.shared.gateway_peers.get(&gateway).map(|peers| peers.list());
                send_events_or_spawn(&self.tasks, events, peer_events(peers));
            }
            Request::Admin(AdminRequest::SendToPeers {
                gateway,
                peer,
                message,
            }) => {
                let gateway_peers = self.shared.gateway_peers.clone();
                self.tasks.spawn(async move {
                    let sent = send_to_peers(&gateway_peers, &gateway, peer.as_deref(), &message).await;
                    send_events(&events, peer_events(sent)).await;
                });
            }
            Request::Nodes(NodesRequest::Targets { selector }) => {
                let Some(targets) = self.resolve_targets(&selector, (&origin, &retried), &events) else {
                    return;
                };
                let targets = targets.into_iter().map(|target| target.node).collect();
                respond(&self.tasks, events, Ok(vec![Event::Targets { targets }]));
            }
            Request::Act(ActRequest::Command {
                selector,
                action,
                arguments,
                lane,
                ttl_ms,
                ttl_given,
                timeout_ms,
                batch,
            }) => {
                let Some(targets) = self.resolve_targets(&selector, (&origin, &retried), &events) else {
                    return;
                };
                let command = query::Command {
                    action,
                    arguments,
                    lane,
                    ttl: Duration::from_millis(ttl_ms),
                    ttl_given,
                    timeout: Duration::from_millis(timeout_ms),
                    batch,
                };
                // What only reads has nothing to survive; in batches it goes the same way as the rest.
                let only_reads = |target: &Target| {
                    let properties = target.transport().properties();
                    properties.only_reads(&command.action, &command.arguments)
                };
                if batch.is_none() && targets.iter().all(only_reads) {
                    let shared = self.shared.clone();
                    self.tasks
                        .spawn(query::run(shared, targets, command, requested_at, events));
                } else {
                    origin.batch = batch.map(|batch| batch.size.to_string());
                    let durable = durable_command::DurableCommand {
                        selector: selector.as_str().to_owned(),
                        origin,
                        requested_at,
                        command,
                    };
                    self.tasks.spawn(durable_command::run(
                        self.shared.clone(),
                        targets,
                        durable,
                        events,
                    ));
                }
            }
            Request::Act(ActRequest::Stop { selector, timeout_ms }) => {
                let targets = self.registry.lock().targets(&selector);
                let mut devices = Vec::new();
                let mut notes: Vec<String> = self.unmatched_note(&selector, &retried).into_iter().collect();
                if let Some(stopped) = &stopped {
                    devices = self.registry.lock().devices().targets(stopped);
                    devices.sort_by(|(a, _), (b, _)| a.cmp(b));
                    notes.extend((*stopped != selector).then(|| ALL_STOPPED.to_owned()));
                }
                let timeout = timeout_ms.map(Duration::from_millis);
                let stop_request = coordinator::StopRequest {
                    no_match_text: self.no_match_text(&selector),
                    notes,
                    timeout,
                    selector,
                    latched: stopped.is_some(),
                    // They are sent here, not when a task gets its turn.
                    devices: coordinator::stop_devices(&self.shared, devices, timeout),
                    origin,
                };
                let nodes = targets
                    .into_iter()
                    .filter_map(|target| match target.device {
                        Device::Node(node) => Some((target.node, node)),
                        Device::Bridged(_) => None,
                    })
                    .collect();
                self.tasks
                    .spawn(coordinator::run(self.shared.clone(), nodes, stop_request, events));
            }
            Request::Act(ActRequest::Release { selector, timeout_ms }) => {
                // A stop of devices that are not registered now can be released, too.
                let any_latched = self.registry.lock().devices().latches().any_in_force();
                let targets = if any_latched {
                    match self.check_exclusions(&selector, &events) {
                        Ok(()) => self.registry.lock().targets(&selector),
                        Err(Failed) => return,
                    }
                } else {
                    match self.resolve_targets(&selector, (&origin, &retried), &events) {
                        Some(targets) => targets,
                        None => return,
                    }
                };
                let release_request = release::ReleaseRequest {
                    no_match_text: self.no_match_text(&selector),
                    note: self
                        .unmatched_note(&selector, &retried)
                        .filter(|_| any_latched && !targets.is_empty()),
                    selector,
                    timeout: Duration::from_millis(timeout_ms),
                    requested_version: self.registry.lock().devices().latches().version(),
                    origin,
                };
                let (shared, devices) = (self.shared.clone(), self.registry.lock().devices().clone());
                self.tasks
                    .spawn(release::run(shared, devices, targets, release_request, events));
            }
            Request::Act(ActRequest::SendFiles {
                selector,
                files,
                ttl_ms,
                timeout_ms,
            }) => {
                let Some(targets) = self.resolve_targets(&selector, (&origin, &retried), &events) else {
                    return;
                };
                let record = send::history_record(&selector, &targets, &files, ttl_ms, origin);
                let goes_on = targets.iter().any(|target| target.bridged().is_some());
                let reporter = self.shared.report(events, record, requested_at, goes_on);
                let timeouts = send::TransferTimeouts {
                    ttl: Duration::from_millis(ttl_ms),
                    stall_timeout: Duration::from_millis(timeout_ms),
                };
                self.tasks
                    .spawn(send::run(self.shared.clone(), targets, files, timeouts, reporter));
            }
            Request::Act(ActRequest::Fetch {
                selector,
                path,
                dir,
                timeout_ms,
            }) => {
                let Some(targets) = self.resolve_targets(&selector, (&origin, &retried), &events) else {
                    return;
                };
                let record = fetch::history_record(&selector, &targets, &path, &dir, origin);
                let goes_on = targets.iter().any(|target| target.bridged().is_some());
                let reporter = self.shared.report(events, record, requested_at, goes_on);
                let stall_timeout = Duration::from_millis(timeout_ms);
                self.tasks.spawn(fetch::run(
                    self.shared.clone(),
                    targets,
                    path,
                    dir,
                    stall_timeout,
                    reporter,
                ));
            }
            Request::Fleet(request) => {
                let (membership_requests, membership_request) = (
                    self.membership_requests.clone(),
                    MembershipRequest { request, events },
                );
                self.tasks.spawn(async move {
                    if let Err(mpsc::error::SendError(form)) =
                        membership_requests.send(membership_request).await
                    {
                        send_shut_down(&form.events);
                    }
                });
            }
            Request::History(HistoryRequest::Commands { query }) => {
                let state_dir = self.state_dir.clone();
                self.tasks
                    .spawn(async move { offline_history::respond_history(&state_dir, query, events).await });
            }
            Request::History(HistoryRequest::Audit { query }) => {
                let state_dir = self.state_dir.clone();
                self.tasks
                    .spawn(async move { offline_history::respond_audit(&state_dir, query, events).await });
            }
            Request::Admin(AdminRequest::Users(user_request)) => {
                let store = self.store.clone();
                self.tasks.spawn(users::respond(store, user_request, events));
            }
            Request::History(HistoryRequest::Cancel { number, timeout_ms }) => {
                let timeout = Duration::from_millis(timeout_ms);
                let cancel_request = cancel::CancelRequest {
                    number,
                    timeout,
                    user,
                };
                let (deliveries, store) = (self.shared.deliveries.clone(), self.store.clone());
                let state_dir = self.state_dir.clone();
                self.tasks.spawn(async move {
                    cancel::run(&deliveries, &store, &state_dir, cancel_request, &events).await;
                });
            }
            // `Retry` has become what it repeats, above. Others are of a later version.
            Request::History(HistoryRequest::Retry { .. }) | _ => {}
        }
    }

    /// The nodes and devices that a selector matches. If there are none, or an exclusion is mistaken, the error has been sent.
    fn resolve_targets(
        &self,
        selector: &Selector,
        (origin, retried): (&Origin, &BTreeMap<String, NodeName>),
        events: &mpsc::Sender<Event>,
    ) -> Option<Vec<Target>> {
        self.check_exclusions(selector, events).ok()?;
        let registry = self.registry.lock();
        let targets = registry.targets(selector);
        let shared_names = registry.shared_names_note(&targets);
        drop(registry);
        if targets.is_empty() {
            let text = match (origin.retry_of, &origin.shown_selector) {
                (Some(number), Some(shown)) => format!(
                    "nothing of command {number} is repeated: {shown} is not known here now; drones of other programs \
                     are known once they have connected"
                ),
                _ => self.no_match_text(selector),
            };
            // The first event of this request: there is room.
            events.try_send(Event::failed(Failure::NoMatch, text)).ok();
            return None;
        }
        let notes = self
            .unmatched_note(selector, retried)
            .into_iter()
            .chain(shared_names);
        for note in notes {
            events.try_send(Event::note(note)).ok();
        }
        Some(targets)
    }

    /// Fails the request if an exclusion is most likely misspelt.
    fn check_exclusions(&self, selector: &Selector, events: &mpsc::Sender<Event>) -> Result<(), Failed> {
        let registry = self.registry.lock();
        let Some(term) = registry.unmatched_exact_exclusion(selector) else {
            return Ok(());
        };
        let known = registry
            .known_names()
            .map_or(String::new(), |known| format!("; {known}"));
        let why = format!("nothing was done: \"!{term}\" takes nobody away{known}");
        // The first event of this request: there is room.
        events.try_send(Event::failed(Failure::Usage, why)).ok();
        Err(Failed)
    }

    /// Names the terms that match nothing, beside others that match; `retried` has the names of nodes by their terms.
    fn unmatched_note(&self, selector: &Selector, retried: &BTreeMap<String, NodeName>) -> Option<String> {
        let unmatched = self.registry.lock().unmatched_terms(selector);
        if unmatched.is_empty() {
            return None;
        }
        let names: BTreeSet<&NodeName> = unmatched.iter().filter_map(|term| retried.get(term)).collect();
        if !names.is_empty() {
            return Some(format!(
                "no node matches {}, so nothing is repeated there; drones of other programs are known once they have \
                 connected",
                fold(names)
            ));
        }
        let shown = unmatched.iter().take(UNMATCHED_SHOWN_MAX);
        let shown: Vec<String> = shown.map(|term| format!("{term:?}")).collect();
        let more = match unmatched.len().saturating_sub(UNMATCHED_SHOWN_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!("no node matches {}{more}", shown.join(", ")))
    }

    fn no_match_text(&self, selector: &Selector) -> String {
        match self.registry.lock().known_names() {
            Some(known) => format!("no node matches {:?}; {known}", selector.as_str()),
            None => NO_NODES.to_owned(),
        }
    }

    /// Names the stops that are in force for bridged devices.
    fn latched_stops_note(&self) -> Option<String> {
        let stops = self.registry.lock().devices().latches().stops();
        let shown = stops.iter().take(STOPS_SHOWN_MAX);
        let shown: Vec<String> = shown.map(|stop| format!("{stop:?}")).collect();
        (!stops.is_empty()).then(|| {
            format!(
                "a stop of {} is in force for drones of other programs, also for those that come; `release` ends it",
                shown.join(" and of ")
            )
        })
    }

    /// Answers who is there, to whoever has waited long enough: a process that has just started first lets the
    /// members that it knows link and check themselves.
    pub(in crate::engine) fn answer_nodes_queries(&mut self) {
        let now = clock::now();
        let looks = std::mem::take(&mut self.nodes_queries);
        for look in looks {
            if look.events.is_closed() {
                continue;
            }
            if now < look.deadline && !self.registry.lock().is_ready(&look.selector) {
                self.nodes_queries.push(look);
                continue;
            }
            let views = self.registry.lock().views(&look.selector);
            let stops = self.latched_stops_note().map(Event::note);
            let mut found: Vec<Event> = stops.into_iter().collect();
            if views.is_empty() && look.selector != Selector::all() {
                let text = self.no_match_text(&look.selector);
                found.push(Event::failed(Failure::NoMatch, text));
            } else {
                let note = self.unmatched_note(&look.selector, &BTreeMap::new());
                found.extend(note.filter(|_| !views.is_empty()).map(Event::note));
                found.extend(views.into_iter().map(Event::Node));
                found.push(Event::End);
            }
            send_events_or_spawn(&self.tasks, look.events, found);
        }
    }
}

/// Sends a message in base64 to peers at a gateway.
async fn send_to_peers(
    posts: &GatewayPeers,
    gateway: &str,
    peer: Option<&str>,
    message: &str,
) -> Result<Vec<PeerView>, (Failure, String)> {
    let peers = posts.get(gateway)?;
    let message = data_encoding::BASE64.decode(message.as_bytes());
    let message = message.map_err(|error| (Failure::Usage, format!("the message is not base64: {error}")))?;
    peers.send(peer, message.into()).await
}

fn peer_events(peers: Result<Vec<PeerView>, (Failure, String)>) -> Vec<Event> {
    match peers {
        Ok(peers) => peers.into_iter().map(Event::Peer).chain([Event::End]).collect(),
        Err((failure, text)) => vec![Event::failed(failure, text)],
    }
}
