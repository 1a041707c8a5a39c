//! Guests: drones that run other systems' programs, shown and commanded beside our own nodes.
//!
//! A door that such drones come to takes a [`Seat`] for each, tells through it how the drone is, and carries out the
//! [`Order`]s that come for it. A [desk](desk::front) stands before the engine: what is asked of nodes goes to the
//! engine, to the guests that are meant, or to both, and comes back as one answer.
//!
//! Invariants: a guest keeps its seat until its door gives it up, connected or not, unless all seats are taken: then the
//! one that has been gone longest loses it, of those that nothing waits for; whether a guest is stopped is remembered
//! apart from its seat ([`Seat::stopped`]); every order ends, at the latest when its door drops it; nothing here knows
//! any door's language.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;
use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::id::{NodeName, PeerId, PeerKind};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::{NodeAttributes, Selector};
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::sync::{mpsc, oneshot, watch};

use super::{NodeRef, NodeState, NodeView, Warning};
use crate::duration::to_ms;

mod again;
pub mod desk;
mod files;
mod follow;
mod jobs;
mod merge;
mod names;
mod standing;
mod stops;
#[cfg(test)]
mod tests;
mod work;

pub use desk::{Desk, front};
use names::{Called, OwnNames};
use standing::{NotLifted, Standing};

/// Most guests. Whoever comes when all seats are taken, and nobody is to be forgotten, is turned away.
pub const GUESTS_MAX: usize = 1_024;
/// Most orders that wait to be taken by a guest's door; more are answered `busy`.
pub const ORDERS_MAX: usize = 256;
/// The same of stops, which go before them.
const STOPS_MAX: usize = 16;
/// [`NodeView::stop_unconfirmed`] of a guest that is stopped: stops of guests have no numbers.
const STOP_NUMBER: u64 = 1;

/// What does not change while a guest has its seat.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Who: unique among guests and nodes.
    pub node: NodeRef,
    /// For selectors.
    pub tags: BTreeMap<String, String>,
    /// What it runs.
    pub software: Option<String>,
    /// Actions that only read, beside those that read on every node.
    pub reads: Arc<BTreeSet<String>>,
    /// Longest file that it can be sent, in bytes.
    pub file_bytes_max: u64,
}

/// How a guest is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Presence {
    /// Whether it is connected, and since when nothing was heard of it if so.
    pub online: bool,
    /// Whether something of it is late.
    pub silent: bool,
    /// When it was heard last.
    pub heard: Option<Instant>,
    /// Whether something waits for it: it is not to be forgotten, however long it is gone.
    pub kept: bool,
    /// Where it is, or was.
    pub address: Option<SocketAddr>,
    /// What it tells of itself.
    pub telemetry: BTreeMap<String, Value>,
}

/// What a guest is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// An action, or a question.
    Command {
        /// Which.
        action: String,
        /// With what.
        arguments: Arguments,
    },
    /// Take this file.
    Push {
        /// ROOT/RELATIVE, as for every node.
        path: String,
        /// All of it.
        content: Bytes,
    },
    /// Give this file: answered with [`Answer::File`].
    Fetch {
        /// ROOT/RELATIVE.
        path: String,
    },
    /// Emergency stop.
    Stop,
    /// Its end.
    Release,
}

/// Something for a guest to do.
#[derive(Debug)]
pub struct Order {
    /// What.
    pub work: Work,
    /// When it was asked for. What ages badly counts from then, however long a disk took in between.
    pub issued: Instant,
    /// It must not begin after this.
    pub begin: Instant,
    /// Nobody waits for an answer after this.
    pub answer: Instant,
    /// How it ended. Dropped on the other side when nobody wants to know any more.
    pub reply: oneshot::Sender<Answer>,
}

/// How an order ended.
#[derive(Debug)]
pub enum Answer {
    /// So.
    Reply(Reply),
    /// With the file that was asked for.
    File(Bytes),
}

#[derive(Debug)]
struct Guest {
    /// The same as its seat's.
    place: Arc<()>,
    profile: Profile,
    presence: Presence,
    orders: mpsc::Sender<Order>,
    stops: mpsc::Sender<Order>,
    /// How often it was stopped.
    stopped: watch::Sender<u64>,
}

/// All guests. Cheap to clone; its lock is held for a look-up and no longer.
#[derive(Clone, Debug)]
pub struct Guests(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    book: Mutex<Book>,
    changed: watch::Sender<u64>,
    standing: Standing,
    /// How the fleet's own nodes are called.
    own: Mutex<OwnNames>,
}

#[derive(Debug, Default)]
struct Book {
    guests: BTreeMap<PeerId, Guest>,
    called: Called,
}

impl Book {
    fn add(&mut self, guest: Guest) {
        let node = guest.profile.node.clone();
        self.called.add(&node.node);
        self.guests.insert(node.id, guest);
    }

    fn remove(&mut self, id: PeerId) {
        if let Some(guest) = self.guests.remove(&id) {
            self.called.remove(&guest.profile.node.node);
        }
    }
}

/// Why there is no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSeat {
    /// All are taken.
    #[error(
        "{GUESTS_MAX} guests are known, and none can be forgotten: each is here, or something waits for it"
    )]
    Full,
    /// Somebody has this very seat.
    #[error("a guest with this id has its seat already")]
    Taken,
}

/// A guest's place. Dropping it makes the station forget the guest. Once it [is lost](Self::is_lost) it is of no use: who
/// gives orders does not find the guest any more, though orders of before may still come.
#[derive(Debug)]
pub struct Seat {
    guests: Guests,
    profile: Profile,
    place: Arc<()>,
    /// What it is to do.
    pub orders: mpsc::Receiver<Order>,
    /// Stops: to be looked at first.
    pub stops: mpsc::Receiver<Order>,
}

impl Seat {
    /// The stop that is in force for the guest, whether it was here when that was given or not.
    pub fn stopped(&self) -> Option<Selector> {
        let profile = &self.profile;
        self.guests.0.standing.stopped(&profile.target())
    }

    /// Whether the guest is forgotten already: another one needed the place.
    pub fn is_lost(&self) -> bool {
        let book = self.guests.book();
        let here = book.guests.get(&self.profile.node.id);
        !here.is_some_and(|guest| Arc::ptr_eq(&guest.place, &self.place))
    }

    /// Tells how the guest is.
    pub fn tell(&self, presence: Presence) {
        let mut book = self.guests.book();
        let mine = |guest: &&mut Guest| Arc::ptr_eq(&guest.place, &self.place);
        let Some(guest) = book.guests.get_mut(&self.profile.node.id).filter(mine) else {
            return;
        };
        // That it was heard again is looked up by whoever asks; watchers are not woken for each of its words.
        let changed = guest.presence
            != Presence {
                heard: guest.presence.heard,
                ..presence.clone()
            };
        guest.presence = presence;
        drop(book);
        if changed {
            self.guests.0.changed.send_modify(|version| *version += 1);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // What its door has not even read, it has not sent.
        for queue in [&mut self.orders, &mut self.stops] {
            queue.close();
            while let Ok(order) = queue.try_recv() {
                let _nobody_waits = order.reply.send(Answer::Reply(work::closed()));
            }
        }
        let mut book = self.guests.book();
        let id = self.profile.node.id;
        let here = book.guests.get(&id);
        if !here.is_some_and(|guest| Arc::ptr_eq(&guest.place, &self.place)) {
            return;
        }
        book.remove(id);
        drop(book);
        self.guests.0.changed.send_modify(|version| *version += 1);
    }
}

/// A guest that something is meant for.
#[derive(Clone, Debug)]
struct Meant {
    node: NodeRef,
    reads: Arc<BTreeSet<String>>,
    file_bytes_max: u64,
    orders: mpsc::Sender<Order>,
    stops: mpsc::Sender<Order>,
    /// How often it was stopped: now, and when it was asked who is meant.
    stopped: watch::Receiver<u64>,
    stopped_before: u64,
}

impl Meant {
    /// Why this is not to go out any more: what was asked before a stop does not outlive it, released or not.
    fn overtaken(&self, work: &Work) -> Option<Reply> {
        let acts = match work {
            Work::Command { action, arguments } => !self.reads(action, arguments),
            Work::Push { .. } => true,
            // It is told apart from later stops by what is in force.
            Work::Fetch { .. } | Work::Stop | Work::Release => false,
        };
        let overtaken = acts && *self.stopped.borrow() != self.stopped_before;
        overtaken.then(work::withdrawn)
    }

    /// Returns when it is stopped, if it was not since it was asked who is meant.
    async fn is_stopped_anew(&self) {
        let before = self.stopped_before;
        let mut stopped = self.stopped.clone();
        if stopped.wait_for(|count| *count != before).await.is_err() {
            // It has lost its seat: nothing reaches it.
            std::future::pending::<()>().await;
        }
    }

    /// Whether an action only reads there.
    fn reads(&self, action: &str, arguments: &Arguments) -> bool {
        classify(action, arguments) == ActionClass::Read || self.reads.contains(action)
    }
}

impl Profile {
    fn target(&self) -> NodeAttributes<'_> {
        NodeAttributes {
            name: &self.node.node,
            id: &self.node.id,
            tags: &self.tags,
        }
    }
}

impl Default for Guests {
    fn default() -> Self {
        Self::new(Standing::default())
    }
}

impl Guests {
    fn new(standing: Standing) -> Self {
        Self(Arc::new(Inner {
            book: Mutex::default(),
            changed: watch::Sender::new(0),
            standing,
            own: Mutex::default(),
        }))
    }

    fn standing(&self) -> &Standing {
        &self.0.standing
    }

    /// Gives a guest its seat.
    ///
    /// # Errors
    /// [`NoSeat`].
    pub fn seat(&self, profile: Profile) -> Result<Seat, NoSeat> {
        let id = profile.node.id;
        let (orders, orders_in) = mpsc::channel(ORDERS_MAX);
        let (stops, stops_in) = mpsc::channel(STOPS_MAX);
        let mut book = self.book();
        if book.guests.contains_key(&id) {
            return Err(NoSeat::Taken);
        }
        if book.guests.len() >= GUESTS_MAX {
            let gone = book.guests.iter().filter(|(_, guest)| guest.is_gone());
            let longest = gone.min_by_key(|(_, guest)| guest.presence.heard);
            let longest = *longest.ok_or(NoSeat::Full)?.0;
            book.remove(longest);
        }
        let place = Arc::new(());
        let guest = Guest {
            place: Arc::clone(&place),
            profile: profile.clone(),
            presence: Presence::default(),
            orders,
            stops,
            stopped: watch::Sender::default(),
        };
        book.add(guest);
        drop(book);
        Ok(Seat {
            guests: self.clone(),
            profile,
            place,
            orders: orders_in,
            stops: stops_in,
        })
    }

    /// Whether there is more to tell of own nodes than the engine knows.
    fn has_anything_to_tell(&self) -> bool {
        !self.is_empty() || self.standing().stands()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.book().guests.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.book().guests.is_empty()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock()
    }

    /// Whether it means any of them.
    fn any(&self, selector: &Selector) -> bool {
        self.book().guests.values().any(|guest| guest.matches(selector))
    }

    /// Stops whoever is meant, now and later. Nothing that was asked before is begun from now on. Whom it stops: all, if
    /// too many stops stand to remember one more.
    fn stop(&self, selector: &Selector) -> Selector {
        let stopped = self.standing().stop(selector.clone());
        let book = self.book();
        for guest in book.guests.values().filter(|guest| guest.matches(&stopped)) {
            guest.stopped.send_modify(|count| *count += 1);
        }
        drop(book);
        self.0.changed.send_modify(|version| *version += 1);
        stopped
    }

    /// Ends stops that were in force at this version; see [`Standing::release`].
    fn release(&self, selector: &Selector, typed_at: u64) -> Result<Option<u64>, NotLifted> {
        let lifted = self.standing().release(selector, typed_at);
        self.0.changed.send_modify(|version| *version += 1);
        lifted
    }

    fn meant(&self, selector: &Selector) -> Vec<Meant> {
        let book = self.book();
        let meant = book.guests.values().filter(|guest| guest.matches(selector));
        let mut meant: Vec<Meant> = meant
            .map(|guest| Meant {
                node: guest.profile.node.clone(),
                reads: Arc::clone(&guest.profile.reads),
                file_bytes_max: guest.profile.file_bytes_max,
                orders: guest.orders.clone(),
                stops: guest.stops.clone(),
                stopped: guest.stopped.subscribe(),
                stopped_before: *guest.stopped.borrow(),
            })
            .collect();
        meant.sort_by(|a, b| a.node.cmp(&b.node));
        meant
    }

    fn views(&self, selector: &Selector) -> Vec<NodeView> {
        let now = clock::now();
        let book = self.book();
        let meant = book.guests.values().filter(|guest| guest.matches(selector));
        let mut views: Vec<NodeView> = meant.map(|guest| guest.view(self.standing(), now)).collect();
        drop(book);
        views.sort_by(|a, b| (&a.node, a.id).cmp(&(&b.node, b.id)));
        self.warn_guests(&mut views);
        views
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }
}

#[cfg(test)]
impl Guests {
    /// Gives a guest an order, as the desk does.
    pub(crate) async fn order(&self, name: &str, work: Work) -> oneshot::Receiver<Answer> {
        self.order_of(name, work, clock::now()).await
    }

    /// Whether a guest of this name has a seat.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.any(&Selector::parse(name).expect("a name"))
    }

    /// Keeps what whoever asks something of a guest keeps, until it has ended.
    pub(crate) fn hold(&self, name: &str) -> impl Send + use<> {
        self.meant(&Selector::parse(name).expect("a name"))
    }

    /// Has a stop stand, or ends it, and tells no guest.
    pub(crate) fn stand(&self, selector: &str, stop: bool) {
        let (selector, standing) = (Selector::parse(selector).expect("a selector"), self.standing());
        if stop {
            standing.stop(selector);
        } else {
            standing.release(&selector, standing.version()).expect("fits");
        }
    }

    /// The same, asked for then.
    pub(crate) async fn order_of(
        &self,
        name: &str,
        work: Work,
        issued: Instant,
    ) -> oneshot::Receiver<Answer> {
        let selector = Selector::parse(name).expect("a name");
        let guest = self.meant(&selector).pop().expect("a guest");
        let until = clock::now() + std::time::Duration::from_secs(60);
        let (reply, ended) = oneshot::channel();
        let queue = match work {
            Work::Stop => {
                self.standing().stop(selector);
                guest.stops
            }
            Work::Command { .. } | Work::Push { .. } | Work::Fetch { .. } | Work::Release => guest.orders,
        };
        let order = Order {
            work,
            issued,
            begin: until,
            answer: until,
            reply,
        };
        queue.send(order).await.expect("its door is open");
        ended
    }
}

impl Guest {
    /// Whether it has been here, is not, and is nobody's business now.
    fn is_gone(&self) -> bool {
        let presence = &self.presence;
        presence.heard.is_some() && !presence.online && !presence.kept
    }

    fn matches(&self, selector: &Selector) -> bool {
        selector.matches(&self.profile.target())
    }

    fn view(&self, standing: &Standing, now: Instant) -> NodeView {
        let presence = &self.presence;
        let state = match (presence.online, presence.silent) {
            (true, false) => NodeState::Online,
            (true, true) => NodeState::Silent,
            (false, _) => NodeState::Offline,
        };
        let stopped = standing.stopped(&self.profile.target()).is_some();
        NodeView {
            node: self.profile.node.node.clone(),
            id: self.profile.node.id,
            state,
            kind: PeerKind::Node,
            address: presence.address,
            last_heard_ms: presence
                .heard
                .map(|heard| to_ms(now.saturating_duration_since(heard))),
            tags: self.profile.tags.clone(),
            software: self.profile.software.clone(),
            warnings: stopped
                .then_some(Warning::DeviceStopUnconfirmed)
                .into_iter()
                .collect(),
            stopped: None,
            stop_unconfirmed: stopped.then_some(STOP_NUMBER),
            checks: Vec::new(),
            telemetry: presence.telemetry.clone(),
        }
    }
}

/// The id of a guest, from what its system calls it: nobody can have a key with this id.
pub fn guest_id(system: &str, id: &str) -> PeerId {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{system}:{id}").as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    PeerId(bytes)
}

/// Its name: the nearest to what its system calls it.
pub fn guest_name(id: &str) -> NodeName {
    NodeName::from_host(id)
}
