//! Starts each request: selects its targets and gives it a task of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Weak;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::selector::Selector;
use tokio::sync::mpsc;

use super::context::SharedContext;
use super::delivery::{cancel, durable_command, history_writer, query, retry};
use super::files::{fetch, send};
use super::membership::task::MembershipRequest;
use super::membership::users;
use super::observe::observed_request::RequestBroadcast;
use super::observe::offline_history;
use super::registry::{Device, SharedNodeRegistry, Target};
use super::reporter::{AuditedRequest, Reporter, given_up};
use super::stop::{devices, release, run};
use super::task::NodesCall;
use super::transport::gateway_peers::GatewayPeers;
use crate::store::Origin;
use swarm_shared::api::{
    ActRequest, AdminRequest, Event, Failure, HistoryRequest, NodesRequest, PeerView, Request,
};
use swarm_shared::client::{Backend, BackendFuture, EventStream};

/// Note on a stop that exceeds the limit of stops in force.
const ALL_STOPPED: &str = "too many stops are in force to remember each: all drones of other programs are stopped, also \
                           those that come, until `release all`";
/// How a request fails while the station shuts down.
const SHUTTING_DOWN: &str = "the station is shutting down; ask again";

/// Starts requests, each in its caller's task, and waits for nothing. The engine owns it and drops it at shutdown.
#[derive(Clone)]
pub(super) struct Dispatcher {
    pub(super) shared: SharedContext,
    pub(super) registry: SharedNodeRegistry,
    pub(super) membership_requests: mpsc::Sender<MembershipRequest>,
    /// To the engine's own task.
    pub(super) node_requests: mpsc::Sender<NodesCall>,
    pub(super) broadcast: RequestBroadcast,
    pub(super) state_dir: PathBuf,
    pub(super) bridges_devices: bool,
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").finish_non_exhaustive()
    }
}

/// Takes requests as long as the engine runs. A [`Fleet`](swarm_shared::client::Fleet) may outlive the engine, and must not
/// keep its store open.
#[derive(Debug)]
pub(super) struct EngineBackend(pub(super) Weak<Dispatcher>);

impl Backend for EngineBackend {
    fn send(&self, request: Request, user: String) -> BackendFuture<'_> {
        let (events, stream) = EventStream::channel();
        if let Some(dispatcher) = self.0.upgrade() {
            dispatcher.on_request(request, user, events);
        } else {
            // The first event: there is room.
            events
                .try_send(Event::failed(Failure::ShutDown, SHUTTING_DOWN))
                .ok();
        }
        Box::pin(std::future::ready(stream))
    }
}

/// A request with its user, its time and its caller.
struct RequestContext {
    request: Request,
    caller: mpsc::Sender<Event>,
    origin: Origin,
    requested_at: Instant,
    /// Of a retry: the names of the nodes by the terms of its selector.
    retried: BTreeMap<String, NodeName>,
}

impl Dispatcher {
    fn on_request(&self, request: Request, user: String, caller: mpsc::Sender<Event>) {
        let mut context = RequestContext {
            request,
            caller,
            origin: Origin::command_by(user),
            requested_at: clock::now(),
            retried: BTreeMap::new(),
        };
        let Request::History(HistoryRequest::Retry {
            number,
            ttl_ms,
            timeout_ms,
        }) = context.request
        else {
            return self.dispatch(context);
        };
        // It becomes the request that it repeats, which is in the history: the disk may take seconds.
        let this = self.clone();
        self.shared.tasks.spawn(async move {
            match retry::plan(&this.state_dir, number, ttl_ms, timeout_ms).await {
                Ok(plan) => {
                    // The first event: there is room.
                    let note = plan.note.map(Event::note);
                    note.into_iter().for_each(|note| {
                        context.caller.try_send(note).ok();
                    });
                    context.request = plan.request;
                    context.origin.retry_of = Some(number);
                    context.origin.shown_selector = Some(plan.shown);
                    context.retried = plan.terms;
                    this.dispatch(context);
                }
                Err(retry::RetryError(failure, message)) => {
                    context.caller.try_send(Event::failed(failure, message)).ok();
                }
            }
        });
    }

    fn dispatch(&self, context: RequestContext) {
        let RequestContext {
            request,
            caller,
            mut origin,
            requested_at,
            retried,
        } = context;
        // Before anything else, so that devices that register from now on are stopped, too.
        let mut stopped = None;
        if let Request::Act(ActRequest::Stop { selector, .. }) = &request
            && self.bridges_devices
        {
            stopped = Some(self.registry.lock().devices().stop(selector));
        }
        let shared = self.shared.clone();
        let tasks = &self.shared.tasks;
        let observed = self.broadcast.observe(tasks, &request, &origin);
        let audited = history_writer::audit_entry(&request)
            .map(|entry| AuditedRequest::new(origin.user.clone(), entry));
        let reporter = Reporter::new(
            (tasks, &self.shared.store),
            caller,
            requested_at,
            observed,
            audited,
        );
        match request {
            Request::Nodes(NodesRequest::Targets { selector }) => {
                let Some(targets) = self.resolve_targets(&selector, (&origin, &retried), &reporter) else {
                    return;
                };
                let targets = targets.into_iter().map(|target| target.node).collect();
                reporter.spawn_finish(Ok(vec![Event::Targets { targets }]));
            }
            Request::Nodes(request) => {
                let node_requests = self.node_requests.clone();
                tasks.spawn(async move {
                    if let Err(mpsc::error::SendError(call)) =
                        node_requests.send(NodesCall { request, reporter }).await
                    {
                        send_shut_down(&call.reporter);
                    }
                });
            }
            Request::Admin(AdminRequest::Peers { gateway }) => {
                let peers = self.shared.gateway_peers.get(&gateway).map(|peers| peers.list());
                reporter.spawn_finish(peer_events(peers));
            }
            Request::Admin(AdminRequest::SendToPeers {
                gateway,
                peer,
                message,
            }) => {
                tasks.spawn(async move {
                    let sent =
                        send_to_peers(&shared.gateway_peers, &gateway, peer.as_deref(), &message).await;
                    reporter.finish(peer_events(sent)).await;
                });
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
                let Some(targets) = self.resolve_targets(&selector, (&origin, &retried), &reporter) else {
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
                // A read has nothing that must survive; in batches it goes the same way as an action.
                let only_reads = |target: &Target| {
                    let properties = target.transport().properties();
                    properties.only_reads(&command.action, &command.arguments)
                };
                if batch.is_none() && targets.iter().all(only_reads) {
                    tasks.spawn(query::run(shared, targets, command, reporter));
                } else {
                    origin.batch = batch.map(|batch| batch.size.to_string());
                    let durable = durable_command::DurableCommand {
                        selector: selector.as_str().to_owned(),
                        origin,
                        command,
                    };
                    tasks.spawn(durable_command::run(shared, targets, durable, reporter));
                }
            }
            Request::Act(ActRequest::Stop { selector, timeout_ms }) => {
                let mut devices = Vec::new();
                let registry = self.registry.lock();
                let mut notes: Vec<String> =
                    registry.unmatched_note(&selector, &retried).into_iter().collect();
                if let Some(stopped) = &stopped {
                    devices = registry.devices().targets(stopped);
                    devices.sort_by(|(a, _), (b, _)| a.cmp(b));
                    notes.extend((*stopped != selector).then(|| ALL_STOPPED.to_owned()));
                }
                let targets = registry.targets(&selector);
                let no_match_text = registry.no_match_text(&selector);
                drop(registry);
                let timeout = timeout_ms.map(Duration::from_millis);
                let stop_request = run::StopRequest {
                    no_match_text,
                    notes,
                    timeout,
                    selector,
                    latched: stopped.is_some(),
                    // They are sent here, not when a task gets its turn.
                    devices: devices::stop_devices(&self.shared, devices, timeout),
                    origin,
                };
                let nodes = targets
                    .into_iter()
                    .filter_map(|target| match target.device {
                        Device::Node(node) => Some((target.node, node)),
                        Device::Bridged(_) => None,
                    })
                    .collect();
                tasks.spawn(run::run(shared, nodes, stop_request, reporter));
            }
            Request::Act(ActRequest::Release { selector, timeout_ms }) => {
                // A stop of devices that are not registered now can be released, too.
                let any_latched = self.registry.lock().devices().latches().any_in_force();
                let targets = if any_latched {
                    if !self.check_exclusions(&selector, &reporter) {
                        return;
                    }
                    self.registry.lock().targets(&selector)
                } else {
                    match self.resolve_targets(&selector, (&origin, &retried), &reporter) {
                        Some(targets) => targets,
                        None => return,
                    }
                };
                let registry = self.registry.lock();
                let release_request = release::ReleaseRequest {
                    no_match_text: registry.no_match_text(&selector),
                    note: registry
                        .unmatched_note(&selector, &retried)
                        .filter(|_| any_latched && !targets.is_empty()),
                    selector,
                    timeout: Duration::from_millis(timeout_ms),
                    stop_count: registry.devices().latches().stop_count(),
                    origin,
                };
                let devices = registry.devices().clone();
                drop(registry);
                tasks.spawn(release::run(shared, devices, targets, release_request, reporter));
            }
            Request::Act(ActRequest::SendFiles {
                selector,
                files,
                ttl_ms,
                timeout_ms,
            }) => {
                let Some(targets) = self.resolve_targets(&selector, (&origin, &retried), &reporter) else {
                    return;
                };
                let record = send::history_record(&selector, &targets, &files, ttl_ms, origin);
                let goes_on = targets.iter().any(|target| target.bridged().is_some());
                reporter.open_history(record, given_up, goes_on);
                let timeouts = send::TransferTimeouts {
                    ttl: Duration::from_millis(ttl_ms),
                    stall_timeout: Duration::from_millis(timeout_ms),
                };
                tasks.spawn(send::run(shared, targets, files, timeouts, reporter));
            }
            Request::Act(ActRequest::Fetch {
                selector,
                path,
                dir,
                timeout_ms,
            }) => {
                let Some(targets) = self.resolve_targets(&selector, (&origin, &retried), &reporter) else {
                    return;
                };
                let record = fetch::history_record(&selector, &targets, &path, &dir, origin);
                let goes_on = targets.iter().any(|target| target.bridged().is_some());
                reporter.open_history(record, given_up, goes_on);
                let stall_timeout = Duration::from_millis(timeout_ms);
                tasks.spawn(fetch::run(shared, targets, path, dir, stall_timeout, reporter));
            }
            Request::Fleet(request) => {
                let membership_requests = self.membership_requests.clone();
                tasks.spawn(async move {
                    let request = MembershipRequest { request, reporter };
                    if let Err(mpsc::error::SendError(request)) = membership_requests.send(request).await {
                        send_shut_down(&request.reporter);
                    }
                });
            }
            Request::History(HistoryRequest::Commands { query }) => {
                let state_dir = self.state_dir.clone();
                tasks.spawn(async move {
                    let answer = offline_history::commands(&state_dir, query).await;
                    reporter.finish(answer).await;
                });
            }
            Request::History(HistoryRequest::Audit { query }) => {
                let state_dir = self.state_dir.clone();
                tasks.spawn(async move {
                    let answer = offline_history::audit(&state_dir, query).await;
                    reporter.finish(answer).await;
                });
            }
            Request::History(HistoryRequest::Cancel { number, timeout_ms }) => {
                let cancel_request = cancel::CancelRequest {
                    number,
                    timeout: Duration::from_millis(timeout_ms),
                    user: origin.user,
                };
                let state_dir = self.state_dir.clone();
                tasks.spawn(async move {
                    let SharedContext {
                        deliveries, store, ..
                    } = &shared;
                    cancel::run(deliveries, store, &state_dir, cancel_request, reporter.caller()).await;
                });
            }
            Request::Admin(AdminRequest::Users(request)) => {
                tasks.spawn(users::respond(shared.store, request, reporter));
            }
            // `Retry` has become the request that it repeats; others are of a later version.
            Request::History(HistoryRequest::Retry { .. }) | _ => {
                let message = "this version of the station does not know this request".to_owned();
                reporter.spawn_finish(Err((Failure::Usage, message)));
            }
        }
    }

    /// The nodes and devices that a selector matches. `None` if there are none, or an exclusion is mistaken: the error has
    /// been sent.
    fn resolve_targets(
        &self,
        selector: &Selector,
        (origin, retried): (&Origin, &BTreeMap<String, NodeName>),
        reporter: &Reporter,
    ) -> Option<Vec<Target>> {
        if !self.check_exclusions(selector, reporter) {
            return None;
        }
        let registry = self.registry.lock();
        let targets = registry.targets(selector);
        // The first events of this request: there is room.
        if targets.is_empty() {
            let text = match (origin.retry_of, &origin.shown_selector) {
                (Some(number), Some(shown)) => format!(
                    "nothing of command {number} is repeated: {shown} is not known here now; drones of other programs \
                     are known once they have connected"
                ),
                _ => registry.no_match_text(selector),
            };
            reporter.try_send(Event::failed(Failure::NoMatch, text));
            return None;
        }
        let notes = [
            registry.unmatched_note(selector, retried),
            registry.shared_names_note(&targets),
        ];
        for note in notes.into_iter().flatten() {
            reporter.try_send(Event::note(note));
        }
        Some(targets)
    }

    /// Fails the request and returns false if an exclusion is most likely misspelt.
    fn check_exclusions(&self, selector: &Selector, reporter: &Reporter) -> bool {
        let registry = self.registry.lock();
        let Some(term) = registry.unmatched_exact_exclusion(selector) else {
            return true;
        };
        let known = registry
            .known_names()
            .map_or(String::new(), |known| format!("; {known}"));
        let text = format!("nothing was done: the exclusion \"!{term}\" matches no node{known}");
        reporter.try_send(Event::failed(Failure::Usage, text));
        false
    }
}

fn send_shut_down(reporter: &Reporter) {
    reporter.try_send(Event::failed(Failure::ShutDown, SHUTTING_DOWN));
}

/// Sends a message in base64 to peers at a gateway.
async fn send_to_peers(
    gateways: &GatewayPeers,
    gateway: &str,
    peer: Option<&str>,
    message: &str,
) -> Result<Vec<PeerView>, (Failure, String)> {
    let peers = gateways.get(gateway)?;
    let message = data_encoding::BASE64.decode(message.as_bytes());
    let message = message.map_err(|error| (Failure::Usage, format!("the message is not base64: {error}")))?;
    peers.send(peer, message.into()).await
}

fn peer_events(peers: Result<Vec<PeerView>, (Failure, String)>) -> Result<Vec<Event>, (Failure, String)> {
    Ok(peers?.into_iter().map(Event::Peer).collect())
}
