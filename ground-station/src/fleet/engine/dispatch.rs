//! Requests as they come to the engine: each is answered at once, or given a task of its own.

use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::sync::mpsc;

use super::registry::Target;
use super::respond::{respond, send_events, send_events_or_spawn};
use super::{
    EngineTask, NodesQuery, cancel, durable_command, fetch, history_writer, membership_task, query, release,
    retry, send_files, stop, users,
};
use crate::fleet::gateway_peers::GatewayPeers;
use crate::fleet::{
    ActRequest, AdminRequest, CommandKind, Event, Failure, HistoryRequest, NodesRequest, PeerView, Request,
    RequestEnvelope, offline_history,
};
use crate::store::Origin;

/// What to tell whoever means somebody in a fleet without nodes.
pub(in crate::fleet) const NO_NODES: &str = "this fleet has no nodes yet: type `ground-station fleet invite` here and \
                                             `swarm-node join CODE` on a device";
/// What is wrong with a `!term` that means nobody.
pub(in crate::fleet) const EXCLUDES_NO_NODE: &str = "takes nobody away";
/// How many terms that mean nobody are named in a note.
const UNMATCHED_SHOWN_MAX: usize = 8;

/// A request, who asks, and when.
pub(super) struct RequestContext {
    pub(super) request: Request,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) user: String,
    pub(super) origin: Origin,
    pub(super) requested_at: Instant,
}

fn send_shut_down(events: &mpsc::Sender<Event>) {
    let stopped = Event::failed(Failure::ShutDown, "the station is shutting down; ask again");
    // Without room nobody reads.
    let _caller_gone = events.try_send(stopped);
}

impl EngineTask {
    pub(super) fn on_request(&mut self, envelope: RequestEnvelope) {
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
            };
            if let Err(mpsc::error::SendError(again)) = planned.send(retry_context).await {
                send_shut_down(&again.events);
            }
        });
    }

    /// Begins what is asked. It waits for nothing.
    pub(super) fn dispatch(&mut self, context: RequestContext) {
        let RequestContext {
            request,
            events,
            user,
            mut origin,
            requested_at,
        } = context;
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
                let Some(targets) = self.resolve_targets(&selector, &events) else {
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
                let Some(targets) = self.resolve_targets(&selector, &events) else {
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
                if batch.is_none() && classify(&command.action, &command.arguments) == ActionClass::Read {
                    self.tasks
                        .spawn(query::run(self.shared.clone(), targets, command, events));
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
            Request::Act(ActRequest::Stop {
                selector,
                timeout_ms,
                also_bridged,
            }) => {
                let targets = self.registry.lock().targets(&selector);
                let stop_request = stop::StopRequest {
                    no_match_text: self.no_match_text(&selector),
                    note: self.unmatched_note(&selector),
                    timeout: timeout_ms.map(Duration::from_millis),
                    selector,
                    also_bridged,
                    origin,
                };
                self.tasks
                    .spawn(stop::run(self.shared.clone(), targets, stop_request, events));
            }
            Request::Act(ActRequest::Release { selector, timeout_ms }) => {
                let Some(targets) = self.resolve_targets(&selector, &events) else {
                    return;
                };
                let record =
                    stop::history_record(CommandKind::Release, &selector, &targets, timeout_ms, origin);
                let events = history_writer::record_stream(&self.tasks, self.store.clone(), record, events);
                let timeout = Duration::from_millis(timeout_ms);
                let deadlines = release::ReleaseDeadlines {
                    link_deadline: self.shared.started + timeout,
                    reply_deadline: clock::now() + timeout,
                };
                self.tasks
                    .spawn(release::run(self.shared.clone(), targets, deadlines, events));
            }
            Request::Act(ActRequest::SendFiles {
                selector,
                files,
                ttl_ms,
                timeout_ms,
            }) => {
                let Some(targets) = self.resolve_targets(&selector, &events) else {
                    return;
                };
                let record = send_files::history_record(&selector, &targets, &files, ttl_ms, origin);
                let events = history_writer::record_stream(&self.tasks, self.store.clone(), record, events);
                let timeouts = send_files::TransferTimeouts {
                    ttl: Duration::from_millis(ttl_ms),
                    stall_timeout: Duration::from_millis(timeout_ms),
                };
                self.tasks.spawn(send_files::run(
                    self.shared.clone(),
                    targets,
                    files,
                    timeouts,
                    events,
                ));
            }
            Request::Act(ActRequest::Fetch {
                selector,
                path,
                dir,
                timeout_ms,
            }) => {
                let Some(targets) = self.resolve_targets(&selector, &events) else {
                    return;
                };
                let record = fetch::history_record(&selector, &targets, &path, &dir, origin);
                let events = history_writer::record_stream(&self.tasks, self.store.clone(), record, events);
                let stall_timeout = Duration::from_millis(timeout_ms);
                self.tasks.spawn(fetch::run(
                    self.shared.clone(),
                    targets,
                    path,
                    dir,
                    stall_timeout,
                    events,
                ));
            }
            Request::Fleet(request) => {
                let (membership_requests, membership_request) = (
                    self.membership_requests.clone(),
                    membership_task::MembershipRequest { request, events },
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
            // Has become what it repeats, above.
            Request::History(HistoryRequest::Retry { .. }) => {}
        }
    }

    /// The nodes that a selector means; an error has been sent if there are none.
    fn resolve_targets(&self, selector: &Selector, events: &mpsc::Sender<Event>) -> Option<Vec<Target>> {
        // Not locked any longer: the names are asked for next.
        let unmatched_exclusion = self.registry.lock().unmatched_exact_exclusion(selector);
        if let Some(term) = unmatched_exclusion {
            let known = self
                .known_names()
                .map_or(String::new(), |known| format!("; {known}"));
            let why = format!("nothing was done: \"!{term}\" {EXCLUDES_NO_NODE}{known}");
            // The first event of this request: there is room.
            let _caller_gone = events.try_send(Event::failed(Failure::Usage, why));
            return None;
        }
        let targets = self.registry.lock().targets(selector);
        if targets.is_empty() {
            // The first event of this request: there is room.
            let _caller_gone = events.try_send(Event::failed(Failure::NoMatch, self.no_match_text(selector)));
            return None;
        }
        if let Some(note) = self.unmatched_note(selector) {
            let _caller_gone = events.try_send(Event::note(note));
        }
        Some(targets)
    }

    /// What to tell whoever named somebody who does not exist, beside others who do.
    fn unmatched_note(&self, selector: &Selector) -> Option<String> {
        let unmatched = self.registry.lock().unmatched_terms(selector);
        let shown: Vec<String> = unmatched
            .iter()
            .take(UNMATCHED_SHOWN_MAX)
            .map(|term| format!("{term:?}"))
            .collect();
        let more = match unmatched.len().saturating_sub(UNMATCHED_SHOWN_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!unmatched.is_empty()).then(|| format!("no node matches {}{more}", shown.join(", ")))
    }

    fn no_match_text(&self, selector: &Selector) -> String {
        match self.known_names() {
            Some(known) => format!("no node matches {:?}; {known}", selector.as_str()),
            None => NO_NODES.to_owned(),
        }
    }

    /// The names that there are.
    fn known_names(&self) -> Option<String> {
        let known: Vec<String> = self.registry.lock().node_names();
        let shown = known
            .iter()
            .take(8)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let more = if known.len() > 8 {
            format!(" and {} more", known.len() - 8)
        } else {
            String::new()
        };
        (!known.is_empty()).then(|| format!("known are {shown}{more}"))
    }

    /// Answers who is there, to whoever has waited long enough: a process that has just started first lets the
    /// members that it knows link and check themselves.
    pub(super) fn answer_nodes_queries(&mut self) {
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
            let found = if views.is_empty() && look.selector != Selector::all() {
                vec![Event::failed(
                    Failure::NoMatch,
                    self.no_match_text(&look.selector),
                )]
            } else {
                let note = self.unmatched_note(&look.selector).filter(|_| !views.is_empty());
                let note = note.map(Event::note).into_iter();
                note.chain(views.into_iter().map(Event::Node))
                    .chain([Event::End])
                    .collect()
            };
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
