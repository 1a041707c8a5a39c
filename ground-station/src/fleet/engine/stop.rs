//! The emergency stop, from the station: sent first, written down later, until all have answered. Its end is in
//! [`super::release`].
//!
//! What goes out when is [`StopCall`]'s to say. An order goes over the link of every target that has one, and as a
//! datagram on every interface and to where each target was seen last, because a link may be down, jammed or not there
//! yet.
//!
//! What waits in the book for the targets is withdrawn with it: a stop may be given up before an absent node is back, and
//! nothing that was asked before is to run there then.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use swarm_shared::net::clock;
use swarm_shared::net::discovery::interfaces::Interfaces;
use swarm_shared::net::discovery::pings::Shouter;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::encoded::Parcel;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Stopped;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::stop::{IDS_PER_ORDER, NOBODY, Round, StopCall, Verdict, next_number, selectors};
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use super::delivery_task::Word;
use super::registry::Target;
use super::unconfirmed_stops::Unconfirmed;
use super::{Shared, history_writer, query};
use crate::duration::to_ms;
use crate::fleet::{CommandKind, Delivery, Event, Failure, stop_broadcast};
use crate::store::deliveries::{Record, RecordTo};
use crate::store::{Origin, PartEnd, Store};

/// News that wait for one stop; one that falls behind asks again every second anyway.
const NEWS_MAX: usize = 4_096;
/// How long a stop over a link may wait for its socket: it is sent again every second.
const LINK_PATIENCE: Duration = Duration::from_secs(2);

/// What stops share.
#[derive(Debug)]
pub(super) struct Stops {
    /// The highest number given so far.
    given: AtomicU64,
    store: Store,
    news: broadcast::Sender<News>,
    /// The newest report of each node that is stopped, and linked since.
    reports: Mutex<BTreeMap<PeerId, Stopped>>,
    datagrams: Option<(watch::Receiver<Interfaces>, u16)>,
    /// How many deliveries were withdrawn before the stop could be asked for.
    withdrawn_early: Mutex<Option<oneshot::Receiver<usize>>>,
    /// Who has not said that it is stopped.
    pub(super) unconfirmed: Unconfirmed,
    /// What is written down later, and waited for at shutdown.
    tasks: TaskTracker,
}

#[derive(Clone, Debug)]
enum News {
    Up(PeerId),
    Report(PeerId, Box<Stopped>),
}

impl Stops {
    /// `given`: the highest number that the store remembers. `datagrams`: where they go out, unless they are off.
    pub(super) fn new(
        given: u64,
        unconfirmed: Unconfirmed,
        store: Store,
        datagrams: Option<(watch::Receiver<Interfaces>, u16)>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            given: AtomicU64::new(given),
            store,
            news: broadcast::Sender::new(NEWS_MAX),
            reports: Mutex::default(),
            datagrams,
            withdrawn_early: Mutex::default(),
            unconfirmed,
            tasks,
        }
    }

    /// A node says how its stop stands.
    pub(super) fn reported(&self, id: PeerId, report: Stopped) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        if report.stopped {
            // From now on it refuses by itself.
            self.unconfirmed.settle(id);
            reports.insert(id, report.clone());
        } else {
            reports.remove(&id);
        }
        drop(reports);
        // Nobody listens while nothing is being stopped.
        let _listeners = self.news.send(News::Report(id, Box::new(report)));
    }

    pub(super) fn report_of(&self, id: PeerId) -> Option<Stopped> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.get(&id).cloned()
    }

    fn given(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }

    /// As many numbers as there are orders; the first of them.
    fn take_numbers(&self, count: usize) -> u64 {
        let more = u64::try_from(count).unwrap_or(u64::MAX).saturating_sub(1);
        let now = clock::unix_time_ms();
        let mut first = 0;
        let take = |given| {
            first = next_number(given, now);
            Some(first.saturating_add(more))
        };
        let _always = self.given.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        first
    }
}

/// For an engine that has been started for a stop of these: see [`Stopper::withdraw`], which counts them too.
pub(super) fn withdraw_early(shared: &Shared, targets: &[Target]) {
    let ids = targets.iter().map(|target| target.node.id).collect();
    let count = shared.keeper.withdraw(ids, why_withdrawn(None));
    let mut early = shared
        .stops
        .withdrawn_early
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    *early = Some(count);
}

fn why_withdrawn(number: Option<u64>) -> String {
    let minutes = clock::unix_time_ms() / 60_000;
    let number = number.map_or(String::new(), |number| format!(" (number {number})"));
    format!(
        "withdrawn by the emergency stop of {:02}:{:02}Z{number}: give it again after the release",
        minutes / 60 % 24,
        minutes % 60,
    )
}

/// A node is linked: it may not know yet how far this station has counted, and whatever stop is being given goes to it.
pub(super) fn linked(shared: &Shared, link: &PeerLink) {
    let stops = &shared.stops;
    stops
        .reports
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&link.id());
    // Before it is looked who listens: a stop that begins in between listens too late to be counted, and with its number
    // the node would take the order for one that it has heard.
    let given = stops.given();
    let listeners = stops.news.send(News::Up(link.id())).unwrap_or(0);
    // While a stop is being given, the order itself says so.
    if given == 0 || listeners > 0 {
        return;
    }
    let counted = Selector::parse(NOBODY)
        .map_err(|error| error.to_string())
        .and_then(|nobody| datagram(shared, given, nobody));
    match counted {
        Ok(bytes) => send(link, &bytes),
        Err(error) => tracing::debug!(error, "it is not told how far this station has counted"),
    }
}

/// An order, signed.
fn datagram(shared: &Shared, number: u64, selector: Selector) -> Result<Bytes, String> {
    let membership = shared.endpoint.membership().borrow().clone();
    let membership = membership.ok_or(stop_broadcast::NO_FLEET)?;
    let key = &shared.endpoint.local().identity.key;
    stop_broadcast::order(key, &membership, number, selector)
}

fn send(link: &PeerLink, order: &Bytes) {
    let sent = Parcel::new(&Frame::binary(Kind::Stop, order.clone()))
        .map_err(|error| error.to_string())
        .and_then(|parcel| {
            let outgoing = Outgoing {
                parcel,
                lane: Lane::Emergency,
                deadline: Some(clock::now() + LINK_PATIENCE),
            };
            link.try_send(outgoing).map_err(|error| error.to_string())
        });
    if let Err(error) = sent {
        tracing::warn!(peer = %link.id().short(), error, "a stop is not sent over its link");
    }
}

/// What to say of deliveries that are withdrawn.
fn withdrawn_note(count: usize) -> Option<Event> {
    let text = match count {
        0 => return None,
        1 => {
            "1 delivery that waited for these nodes is withdrawn: give it again after the release".to_owned()
        }
        count => {
            format!(
                "{count} deliveries that waited for these nodes are withdrawn: give them again after the release"
            )
        }
    };
    Some(Event::note(text))
}

struct Stopper {
    shared: Shared,
    targets: BTreeMap<PeerId, (usize, Target)>,
    selectors: Vec<Selector>,
    orders: Vec<Bytes>,
    call: StopCall,
    shouter: Shouter,
    started: Instant,
    acknowledged: BTreeMap<PeerId, f64>,
    /// The history, once the first orders are out.
    history: Option<mpsc::Sender<PartEnd>>,
}

/// What is asked of [`run`].
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) selector: Selector,
    /// What to say if it means nobody who is known.
    pub(super) nobody: String,
    /// What to say first.
    pub(super) note: Option<String>,
    pub(super) timeout: Option<Duration>,
    /// See [`crate::fleet::Request::Stop`].
    pub(super) beside: bool,
    pub(super) origin: Origin,
}

/// What the history keeps of a stop, or of a release.
pub(super) fn record(
    kind: CommandKind,
    selector: &Selector,
    targets: &[Target],
    life_ms: u64,
    origin: Origin,
) -> Record {
    let deliveries = targets.iter().map(|target| RecordTo {
        node: target.node.clone(),
        part: 0,
        about: None,
    });
    Record {
        origin: Origin { kind, ..origin },
        action: kind.as_str().to_owned(),
        arguments: "null".to_owned(),
        lane: Lane::Emergency,
        selector: selector.as_str().to_owned(),
        life_ms,
        deliveries: deliveries.collect(),
    }
}

/// Stops the targets, and whoever else the selector means and a datagram reaches.
pub(super) async fn run(shared: Shared, targets: Vec<Target>, asked: Asked, events: mpsc::Sender<Event>) {
    let started = clock::now();
    let Asked {
        selector,
        nobody,
        note,
        timeout,
        beside,
        origin,
    } = asked;
    // Before anything is sent, so that no answer is missed.
    let mut news = shared.stops.news.subscribe();
    let ids: Vec<PeerId> = targets.iter().map(|target| target.node.id).collect();
    let refuse = |message: String| Event::failed(Failure::Failed, message);
    let selectors = match selectors(&selector, &ids) {
        Ok(selectors) => selectors,
        Err(error) => return drop(events.send(refuse(error.to_string())).await),
    };
    let who = origin.who.clone();
    let life_ms = timeout.map_or(0, to_ms);
    let record = record(CommandKind::Stop, &selector, &targets, life_ms, origin);
    let several = selectors.len() > 1;
    let named = Event::Targets {
        targets: targets.iter().map(|target| target.node.clone()).collect(),
    };
    let place = |at: usize| if several { at / IDS_PER_ORDER } else { 0 };
    let mut stopper = Stopper {
        call: StopCall::new(0, ids, started),
        targets: targets
            .into_iter()
            .enumerate()
            .map(|(at, target)| (target.node.id, (place(at), target)))
            .collect(),
        shared,
        selectors,
        orders: Vec::new(),
        shouter: Shouter::default(),
        started,
        acknowledged: BTreeMap::new(),
        history: None,
    };
    let nobody_known = stopper.targets.is_empty();
    if let Err(error) = stopper.give() {
        if !(beside && nobody_known) {
            let store = &stopper.shared.stops.store;
            history_writer::note(store, &who, "stop", selector.as_str(), &error).await;
        }
        return drop(events.send(refuse(error)).await);
    }
    // Before what waits is withdrawn: what is asked for later than that finds it here, however long the datagrams take.
    let stops = &stopper.shared.stops;
    stops
        .unconfirmed
        .ordered(stopper.targets.keys().copied(), stops.given());
    let mut withdrawn = pin!(stopper.withdraw());
    stopper.go_out().await;
    stopper.shared.keeper.say(Word::Withdrawn).await;
    stopper.keep_number();
    // Whoever does not read what is told does not hold up what is sent.
    let mut untold = VecDeque::new();
    if nobody_known && beside {
        tracing::debug!("no node is meant by a stop of others");
    } else if nobody_known {
        stopper.note_unknown(who, selector.as_str());
    } else {
        stopper.keep_history(record);
        untold.extend(note.map(Event::note));
        untold.push_back(named);
    }
    let give_up = timeout.map(|timeout| started + timeout);
    let mut counted = false;
    while !(counted && stopper.call.is_over() && stopper.call.poll_timeout().is_none()) {
        let next = stopper.call.poll_timeout();
        let told = tokio::select! {
            biased;
            () = events.closed() => return,
            Ok(place) = events.reserve(), if !untold.is_empty() => {
                if let Some(event) = untold.pop_front() {
                    place.send(event);
                }
                None
            }
            heard = news.recv() => match heard {
                Ok(heard) => stopper.take(heard),
                Err(broadcast::error::RecvError::Lagged(_)) => None,
                Err(broadcast::error::RecvError::Closed) => break,
            },
            count = &mut withdrawn, if !counted => {
                counted = true;
                withdrawn_note(count)
            }
            () = clock::sleep_until(next.unwrap_or(started)), if next.is_some() => None,
            () = clock::sleep_until(give_up.unwrap_or(started)), if give_up.is_some() => break,
        };
        untold.extend(told);
        stopper.go_out().await;
    }
    if nobody_known {
        let message = format!("{nobody}; the stop went out by datagram all the same");
        return drop(events.send(Event::failed(Failure::NobodyMatched, message)).await);
    }
    for event in untold.into_iter().chain(stopper.left()) {
        if events.send(event).await.is_err() {
            return;
        }
    }
    let _caller_gone = events.send(Event::End).await;
}

impl Stopper {
    /// Gives the orders, with new numbers.
    fn give(&mut self) -> Result<(), String> {
        let first = self.shared.stops.take_numbers(self.selectors.len());
        let numbered = (first..).zip(&self.selectors);
        let orders = numbered.map(|(number, selector)| datagram(&self.shared, number, selector.clone()));
        self.orders = orders.collect::<Result<_, _>>()?;
        self.call.give_anew(first, clock::now());
        Ok(())
    }

    /// Nothing that waits for the targets is sent from now on; how many deliveries that ends comes back.
    fn withdraw(&self) -> impl Future<Output = usize> + use<> {
        let stops = &self.shared.stops;
        let early = stops
            .withdrawn_early
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let targets = self.targets.keys().copied().collect();
        let why = why_withdrawn(Some(stops.given()));
        let now = self.shared.keeper.withdraw(targets, why);
        async move {
            let early = match early {
                // No count comes of a book that has ended.
                Some(early) => early.await.unwrap_or(0),
                None => 0,
            };
            early + now.await.unwrap_or(0)
        }
    }

    fn keep_number(&self) {
        let stops = &self.shared.stops;
        let (store, given) = (stops.store.clone(), stops.given());
        stops.tasks.spawn(async move {
            if let Err(error) = store.keep_stop_number(given).await {
                tracing::error!(%error, "the number of the stop is not stored");
            }
        });
    }

    fn keep_history(&mut self, record: Record) {
        let stops = &self.shared.stops;
        let given_up = "NO ANSWER when whoever asked gave up; the stop has gone out to it";
        let given_up = Reply::ended(Outcome::NoAnswer, given_up);
        let history = history_writer::beside(&stops.tasks, stops.store.clone(), record, given_up);
        self.history = Some(history);
    }

    /// A stop by datagram only, of nodes that this station does not know, has no deliveries.
    fn note_unknown(&self, who: String, selector: &str) {
        let (store, selector) = (self.shared.stops.store.clone(), selector.to_owned());
        self.shared.stops.tasks.spawn(async move {
            history_writer::note(
                &store,
                &who,
                "stop",
                &selector,
                "sent by datagram; no node matches",
            )
            .await;
        });
    }

    /// Sends what is due.
    async fn go_out(&mut self) {
        while let Some(Round { to, links }) = self.call.handle_timeout(clock::now()) {
            if links {
                to.iter().for_each(|id| self.send_to(id));
            }
            let Some((interfaces, port)) = &self.shared.stops.datagrams else {
                continue;
            };
            let present = interfaces.borrow().clone();
            for (place, order) in self.orders.iter().enumerate() {
                let meant = to.iter().filter_map(|id| self.targets.get(id));
                let meant = meant.filter(|(of, _)| *of == place);
                let also: Vec<SocketAddr> = meant
                    .filter_map(|(_, target)| Some(SocketAddr::new(target.address?.ip(), *port)))
                    .collect();
                self.shouter.shout(&present, *port, order, &also).await;
            }
        }
    }

    fn send_to(&self, id: &PeerId) {
        if let Some((place, target)) = self.targets.get(id)
            && *target.online.borrow()
            && let Some(order) = self.orders.get(*place)
        {
            send(&target.link, order);
        }
    }

    fn take(&mut self, news: News) -> Option<Event> {
        let (id, report) = match news {
            News::Up(id) => {
                if self.call.up(&id) {
                    self.send_to(&id);
                }
                return None;
            }
            News::Report(id, report) => (id, report),
        };
        let given = self.shared.stops.given();
        let node = self.targets.get(&id)?.1.node.clone();
        match self.call.report(&id, &report, given, clock::now()) {
            Verdict::Nothing => None,
            Verdict::Stopped => {
                self.shared.stops.unconfirmed.settle(id);
                let ms = query::elapsed_ms(self.started);
                self.acknowledged.insert(id, ms);
                Some(Event::Acknowledged { node, ms })
            }
            Verdict::Ended(reply) => {
                self.shared.stops.unconfirmed.settle(id);
                Some(self.ended(id, reply))
            }
            Verdict::CountOn(seen) => {
                self.shared.stops.given.fetch_max(seen, Ordering::SeqCst);
                match self.give() {
                    Ok(()) => self.keep_number(),
                    Err(error) => tracing::error!(error, "the stop cannot be given anew"),
                }
                let text = format!(
                    "{} has heard a later stop of this station than this station knows: the stop is given anew",
                    node.node
                );
                Some(Event::note(text))
            }
        }
    }

    fn ended(&self, id: PeerId, mut reply: Reply) -> Event {
        let ms = query::elapsed_ms(self.started);
        let acknowledged = self.acknowledged.get(&id).copied().unwrap_or(ms);
        if let Some(Value::Object(fields)) = &mut reply.value {
            fields.insert("acknowledged_ms".to_owned(), json!(acknowledged));
        }
        if let Some(history) = &self.history {
            let end = PartEnd {
                node: id,
                part: 0,
                reply: reply.clone(),
            };
            // There is room for every target's, and each ends once.
            // Else the station shuts down, or the stop itself is not in the history, which the log says.
            let _kept = history.try_send(end);
        }
        let node = self.targets[&id].1.node.clone();
        Event::Delivery(Delivery::new(node, reply, ms))
    }

    /// Those who have not said all when time is up.
    fn left(&self) -> Vec<Event> {
        let no_answer = |error: &str| Reply::ended(Outcome::NoAnswer, error);
        let missing = self.call.unanswered().map(|id| {
            self.ended(
                id,
                no_answer("NO ANSWER: it is not known to be stopped; the stop has gone out to it"),
            )
        });
        let at_work = self.call.at_work().map(|id| {
            self.ended(
                id,
                no_answer("stopped; its own command, or its journal, is still at work"),
            )
        });
        missing.chain(at_work).collect()
    }
}

#[cfg(test)]
mod tests;
