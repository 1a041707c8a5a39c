//! The engine's own task: events of links, watchers and subscribers, upkeep of the registry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::notice_throttle::NoticeThrottle;
use swarm_shared::net::endpoint::{self, Events, Notice};
use swarm_shared::net::peer::PeerEvent;
use swarm_shared::proto::id::{PeerId, PeerKind};
use swarm_shared::proto::message::StopStatus;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::Membership;
use swarm_shared::proto::wire::{Frame, Kind};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::context::SharedContext;
use super::delivery::handle::DeliveryCommand;
use super::delivery::query;
use super::files::fetch;
use super::observe::subscribers::Subscribers;
use super::observe::watchers::Watchers;
use super::registry::{SelfCheckResult, SharedNodeRegistry};
use super::reporter::Reporter;
use super::stop::coordinator;
use super::stop::unconfirmed::Debounce;
use crate::store::{MemberRow, Store};
use swarm_shared::api::{Event, Failure, NodesRequest, Warning};

/// How often changed members are stored, and watchers are sent events that found no room before.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait before members that the disk refused are stored again.
const SAVE_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How often a waiting `nodes` request is tried again.
const NODES_QUERY_INTERVAL: Duration = Duration::from_millis(20);
/// Shortest time between two notifications of changes of bridged devices.
const DEVICE_CHANGES_INTERVAL: Duration = Duration::from_millis(100);

/// A `nodes` request that waits until the nodes of a process that has just started are linked.
struct NodesQuery {
    selector: Selector,
    deadline: Instant,
    reporter: Reporter,
}

/// A request about nodes that this task answers.
#[derive(Debug)]
pub(super) struct NodesCall {
    pub(super) request: NodesRequest,
    pub(super) reporter: Reporter,
}

/// The engine's own task. It waits neither for a peer nor for the disk.
pub(super) struct EngineTask {
    shared: SharedContext,
    registry: SharedNodeRegistry,
    watchers: Watchers,
    subscribers: Subscribers,
    nodes_queries: Vec<NodesQuery>,
    notice_throttle: NoticeThrottle,
    shutdown: CancellationToken,
    /// The write of members that is under way.
    saving: Option<JoinHandle<()>>,
    unconfirmed_debounce: Debounce,
}

impl EngineTask {
    pub(super) fn new(
        shared: SharedContext,
        registry: SharedNodeRegistry,
        subscribers: Subscribers,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            shared,
            registry,
            watchers: Watchers::default(),
            subscribers,
            nodes_queries: Vec::new(),
            notice_throttle: NoticeThrottle::default(),
            shutdown,
            saving: None,
            unconfirmed_debounce: Debounce::default(),
        }
    }

    /// Runs until shutdown; then changes of members that are not stored yet are stored.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<NodesCall>,
        mut events: Events,
        mut membership: watch::Receiver<Option<Arc<Membership>>>,
    ) {
        let mut upkeep = tokio::time::interval(MAINTENANCE_INTERVAL);
        let (checks, mut checked) = mpsc::channel(endpoint::EVENTS_MAX);
        let (readings, mut read) = mpsc::channel(endpoint::EVENTS_MAX);
        let mut device_changes = self.registry.lock().devices().changes();
        // When changes of bridged devices are handled next, if there are any.
        let (mut devices_due, mut devices_changed) = (clock::now(), false);
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(event) = events.peers.recv() => self.on_peer_event(event, &checks).await,
                Some(notice) = events.notices.recv() => self.on_notice(&notice),
                Some(checked) = checked.recv() => {
                    let id = checked.id;
                    self.registry.lock().set_self_check(checked);
                    self.watchers.notify(&self.registry.lock(), id);
                }
                Ok(()) = membership.changed() => {
                    let now = membership.borrow_and_update().clone();
                    self.on_membership_change(now).await;
                }
                Some(call) = requests.recv() => self.on_request(call),
                Some(reading) = read.recv() => self.subscribers.on_reply(reading),
                Ok(()) = device_changes.changed(), if !devices_changed => devices_changed = true,
                () = clock::sleep_until(devices_due), if devices_changed => {
                    devices_changed = false;
                    devices_due = clock::now() + DEVICE_CHANGES_INTERVAL;
                    self.on_devices_changed();
                }
                () = clock::sleep_until(self.subscribers.next_query_at()), if self.subscribers.wants_telemetry() => {
                    let targets = self.registry.lock().targets(&Selector::all());
                    self.subscribers.query_telemetry(&self.shared, &self.shared.tasks, targets, &readings);
                    let devices = self.registry.lock().devices().targets(&Selector::all());
                    devices.iter().for_each(|(node, _)| self.report_readings(node.id));
                }
                _tick = upkeep.tick() => self.run_maintenance(),
                () = tokio::time::sleep(NODES_QUERY_INTERVAL), if !self.nodes_queries.is_empty() => self.answer_nodes_queries(),
            }
        }
        if let Some(saving) = self.saving.take() {
            // It logs its own errors.
            saving.await.ok();
        }
        self.run_maintenance();
    }

    /// Notifies watchers and subscribers of changes of bridged devices.
    fn on_devices_changed(&mut self) {
        let changed = self.registry.lock().devices().take_changed();
        for id in changed {
            self.watchers.notify(&self.registry.lock(), id);
            if self.subscribers.wants_telemetry() {
                self.report_readings(id);
            }
        }
    }

    fn report_readings(&mut self, id: PeerId) {
        let readings = self.registry.lock().devices().readings(id);
        if let Some((node, values)) = readings {
            self.subscribers.on_readings(&node, values);
        }
    }

    fn on_request(&mut self, call: NodesCall) {
        let NodesCall { request, reporter } = call;
        if let NodesRequest::List { selector, timeout_ms } = request {
            let deadline = self.shared.started + Duration::from_millis(timeout_ms);
            self.nodes_queries.push(NodesQuery {
                selector,
                deadline,
                reporter,
            });
            self.answer_nodes_queries();
        } else if let NodesRequest::Watch { selector } = request {
            let events = reporter.caller().clone();
            self.watchers.subscribe(&self.registry.lock(), selector, events);
        } else if let NodesRequest::Follow { telemetry } = request {
            let events = reporter.caller().clone();
            self.watchers
                .subscribe(&self.registry.lock(), Selector::all(), events.clone());
            self.subscribers
                .subscribe(telemetry, &self.shared.tasks, &self.shutdown, events);
        }
    }

    /// Answers the `nodes` requests whose nodes are all linked and checked, and those that have waited long enough.
    fn answer_nodes_queries(&mut self) {
        let now = clock::now();
        for query in std::mem::take(&mut self.nodes_queries) {
            if query.reporter.caller().is_closed() {
                continue;
            }
            if now < query.deadline && !self.registry.lock().is_ready(&query.selector) {
                self.nodes_queries.push(query);
                continue;
            }
            let registry = self.registry.lock();
            let views = registry.views(&query.selector);
            let stops = registry.latched_stops_note();
            let unmatched = registry.unmatched_note(&query.selector, &BTreeMap::new());
            let unmatched = unmatched.filter(|_| !views.is_empty());
            for note in stops.into_iter().chain(unmatched) {
                query.reporter.try_send(Event::note(note));
            }
            let answer = if views.is_empty() && query.selector != Selector::all() {
                Err((Failure::NoMatch, registry.no_match_text(&query.selector)))
            } else {
                Ok(views.into_iter().map(Event::Node).collect())
            };
            query.reporter.spawn_finish(answer);
        }
    }

    async fn on_peer_event(&mut self, event: PeerEvent, checks: &mpsc::Sender<SelfCheckResult>) {
        let changed = match event {
            PeerEvent::Connected { peer, .. } => {
                tracing::info!(peer = %peer.name, id = %peer.id.short(), addr = %peer.addr, "Link is up");
                let namesakes = self.registry.lock().same_name_nodes(peer.id);
                let mut link = self.registry.lock().on_connected(&peer);
                if link.is_none() {
                    // Another station admitted it: this station hears of it for the first time.
                    self.registry.open_sessions(&self.shared.endpoint).await;
                    link = self.registry.lock().on_connected(&peer);
                }
                if let Some(link) = link
                    && peer.kind == PeerKind::Node
                {
                    coordinator::on_linked(&self.shared, &link);
                    self.shared
                        .tasks
                        .spawn(query::self_check(self.shared.clone(), link, checks.clone()));
                }
                // Its name may have changed.
                for id in namesakes {
                    self.watchers.notify(&self.registry.lock(), id);
                }
                peer.id
            }
            PeerEvent::Silent(id) => {
                self.registry.lock().set_silent(id, true);
                id
            }
            PeerEvent::Responsive(id) => {
                self.registry.lock().set_silent(id, false);
                id
            }
            PeerEvent::Disconnected { id, reason: why } => {
                tracing::info!(peer = %self.registry.lock().display_name(id), why, "Link is lost");
                self.registry.lock().on_disconnected(id);
                self.shared.stops.unconfirmed.on_link_changed(id, false);
                id
            }
            PeerEvent::BulkOpened { events, .. } => {
                self.shared
                    .tasks
                    .spawn(fetch::route_chunks(events, self.shared.chunk_routes.clone()));
                return;
            }
            PeerEvent::Frame { peer, frame, .. } if frame.header.kind == Some(Kind::Stopped) => {
                match frame.parse_content::<StopStatus>() {
                    Ok(report) => {
                        let released = self.registry.lock().set_stop_report(peer.id, &report);
                        if let Some(link) = released {
                            self.shared.tasks.spawn(query::self_check(
                                self.shared.clone(),
                                link,
                                checks.clone(),
                            ));
                        }
                        self.shared.stops.on_report(peer.id, report);
                    }
                    Err(error) => {
                        tracing::warn!(peer = %peer.name, %error, "Report of a stop is unreadable");
                        return;
                    }
                }
                peer.id
            }
            PeerEvent::Frame { peer, frame, .. } => {
                self.on_frame(peer.id, &frame);
                return;
            }
        };
        self.watchers.notify(&self.registry.lock(), changed);
    }

    /// A node has sent the list of its actions. Stages and replies go to the delivery task.
    fn on_frame(&mut self, from: PeerId, frame: &Frame) {
        if frame.header.kind != Some(Kind::Offer) {
            let kind = frame.header.kind;
            return tracing::debug!(peer = %from.short(), ?kind, "Unexpected frame ignored");
        }
        match frame.parse_content() {
            Ok(catalog) => self.registry.lock().set_action_catalog(from, catalog),
            Err(error) => tracing::debug!(peer = %from.short(), %error, "List of actions is unreadable"),
        }
    }

    fn on_notice(&mut self, notice: &Notice) {
        let text = notice.to_string();
        match notice {
            Notice::Renamed { .. } => tracing::info!("{text}"),
            Notice::Refused { .. } | Notice::ClonedKey { .. } | Notice::OwnKeyRevoked => {
                if self.notice_throttle.should_report(notice, clock::now()) {
                    tracing::warn!("{text}");
                } else {
                    tracing::debug!("again: {text}");
                }
            }
        }
        let about = match notice {
            Notice::Renamed { id, new: name, .. } => {
                let namesakes = self.registry.lock().same_name_nodes(*id);
                self.registry.lock().rename(*id, name.clone());
                for id in namesakes {
                    self.watchers.notify(&self.registry.lock(), id);
                }
                *id
            }
            Notice::ClonedKey { id, linked, other } => {
                let warning = Warning::ClonedKey {
                    id: *id,
                    linked: linked.clone(),
                    refused: other.clone(),
                };
                self.registry.lock().set_warning(*id, warning);
                *id
            }
            Notice::Refused { .. } | Notice::OwnKeyRevoked => return,
        };
        self.watchers.notify(&self.registry.lock(), about);
    }

    /// Revoked members are sent nothing from now on; the membership task stores the revocation.
    async fn on_membership_change(&mut self, membership: Option<Arc<Membership>>) {
        let Some(membership) = membership else { return };
        let revoked = self.registry.lock().revoke(&membership);
        for key in &revoked {
            self.shared
                .deliveries
                .send(DeliveryCommand::Revoked(key.id()))
                .await;
            // The link of an absent one does not end.
            self.watchers.notify_revoked(&self.registry.lock(), key.id());
        }
    }

    fn run_maintenance(&mut self) {
        // In a task of its own, one at a time: a disk may take seconds.
        if self.saving.as_ref().is_none_or(JoinHandle::is_finished) {
            let changed = self.registry.lock().take_unsaved();
            if !changed.is_empty() {
                self.saving = Some(self.shared.tasks.spawn(save_members(
                    changed,
                    self.shared.store.clone(),
                    self.registry.clone(),
                    self.shutdown.clone(),
                )));
            }
        }
        self.shared.stops.unconfirmed.expire_awaited(clock::now());
        for id in self.unconfirmed_debounce.changes(&self.shared.stops.unconfirmed) {
            self.watchers.notify(&self.registry.lock(), id);
        }
        self.watchers.flush(&self.registry.lock());
        self.subscribers.flush();
        // Links that come up without a pause leave no time for the shorter interval.
        self.answer_nodes_queries();
    }
}

/// Stores changes of members. If that fails they are marked as unsaved, and stored later.
async fn save_members(
    changed: Vec<MemberRow>,
    store: Store,
    registry: SharedNodeRegistry,
    shutdown: CancellationToken,
) {
    let ids: Vec<PeerId> = changed.iter().map(|row| row.key.id()).collect();
    if let Err(error) = store.put_members(changed).await {
        tracing::error!(%error, "Members are not stored; they are stored later");
        registry.lock().mark_unsaved(&ids);
        shutdown
            .run_until_cancelled(tokio::time::sleep(SAVE_RETRY_INTERVAL))
            .await;
    }
}
