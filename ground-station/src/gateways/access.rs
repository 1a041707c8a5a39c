//! What may pass a door, and in whose name.

mod audit_aggregator;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::{Glob, Selector};
use swarm_shared::proto::trust::Role;
use swarm_shared::proto::trust::gate::{self, ActionClass, Wish};
use swarm_shared::proto::wire::{Kind, Lane};
use tokio::task::JoinSet;

use super::House;
use crate::config::gateways::Common;
use crate::config::nearest::{any_of, nearest};
use crate::duration;
use crate::fleet::{Delivery, Event, Failure, NodeView, Request};
use crate::store::audit::Entry;
use crate::view::count;
use audit_aggregator::Often;

/// How often it is looked whether something counted is to be noted.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Most terms of a selector that a visitor names: each is looked for among all nodes, and a stop waits for that.
const TERMS_MAX: usize = 64;
/// What every node has that only reads, some of it as long as no arguments say otherwise.
const READS: [&str; 6] = ["config", "id", "ping", "selfcheck", "telemetry", "time"];
/// How a use ended that nobody waited for.
const CUT_OFF: &str = "cut off: the visitor left, or the station stopped, before it was over";

/// Somebody at a door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// Where from.
    pub from: IpAddr,
    /// Who, where the protocol says so and it was checked.
    pub user: Option<String>,
}

/// One door's guard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    door: &'static str,
    role: Role,
    allow: Vec<Glob>,
    house: House,
    often: Mutex<Often>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Errand {
    /// By whom.
    pub selector: Selector,
    /// What.
    pub action: String,
    /// With what.
    pub arguments: Arguments,
    /// How long it may still start.
    pub ttl: Duration,
    /// How long to wait for outcomes.
    pub timeout: Duration,
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// This door does not let it pass.
    #[error("{0}")]
    NotAllowed(String),
    /// The request is at fault.
    #[error("{0}")]
    Usage(String),
    /// No node is meant.
    #[error("{0}")]
    NobodyMatched(String),
    /// It was tried and did not work, or the station is shutting down.
    #[error("{0}")]
    Failed(String),
}

/// Reads whom a visitor means.
///
/// # Errors
/// [`NotDone::Usage`].
pub fn selector(text: &str) -> Result<Selector, NotDone> {
    let selector = Selector::parse(text).map_err(|error| NotDone::Usage(error.to_string()))?;
    if selector.term_count() > TERMS_MAX {
        return Err(NotDone::Usage(format!(
            "a selector has at most {TERMS_MAX} terms at a door: use a glob such as drone-*, or a tag"
        )));
    }
    Ok(selector)
}

impl Guard {
    /// Of the door that the configuration calls so.
    pub fn new(door: &'static str, common: &Common, house: &House) -> Self {
        let guard = Self(Arc::new(Inner {
            door,
            role: common.role,
            allow: common.allow.clone(),
            house: house.clone(),
            often: Mutex::default(),
        }));
        house.tasks.spawn(guard.clone().keep());
        guard
    }

    /// Notes what was only counted, for as long as the door is open.
    async fn keep(self) {
        loop {
            let look = clock::sleep_until(clock::now() + LOOK_EVERY);
            let over = self.0.house.stop.run_until_cancelled(look).await.is_none();
            let due = if over {
                self.often().close()
            } else {
                self.often().due(self.0.door, clock::now())
            };
            // All at once, so that the store makes one flush of them: one by one, each would be a flush of its own, and
            // a slow disk would outlast what a closing station waits for.
            let mut writes = JoinSet::new();
            for entry in due {
                writes.spawn(self.clone().write(entry));
            }
            while let Some(written) = writes.join_next().await {
                if let Err(error) = written {
                    tracing::error!(door = self.0.door, %error, "uses of the door may not be in the audit");
                }
            }
            if over {
                return;
            }
        }
    }

    fn often(&self) -> MutexGuard<'_, Often> {
        self.0.often.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an action may pass.
    ///
    /// # Errors
    /// Why not, and what to change.
    pub fn permit(&self, action: &str, arguments: &Arguments) -> Result<(), NotDone> {
        let class = gate::classify(action, arguments);
        let named = class == ActionClass::Read || self.allows(action);
        let door = self.0.door;
        self.may(&Wish::Command(class)).map_err(|lack| {
            let list = if named { "" } else { ", and name it in `allow`" };
            NotDone::NotAllowed(format!("{lack}{list}"))
        })?;
        if named {
            return Ok(());
        }
        let reads = if READS.contains(&action) {
            "with these arguments it does not only read"
        } else {
            "it is not known to read"
        };
        let meant = match self.near(action) {
            Some(meant) => format!(", or did you mean {meant}?"),
            None => String::new(),
        };
        Err(NotDone::NotAllowed(format!(
            "action {action:?} may not pass this door: {reads}, and no name in `allow` means it; \
             name it in `allow` of [doors.{door}]{meant}"
        )))
    }

    /// What may pass that is called nearly so.
    fn near(&self, action: &str) -> Option<String> {
        let named: Vec<String> = self.0.allow.iter().filter_map(Glob::literal).collect();
        let mut known: Vec<&str> = READS
            .into_iter()
            .chain(named.iter().map(String::as_str))
            .collect();
        known.retain(|name| *name != action);
        any_of(
            nearest(action, &known)
                .iter()
                .map(|name| format!("{name:?}"))
                .collect(),
        )
    }

    /// Whether something that is no action may pass: the door's list names it, and its role may wish for it.
    ///
    /// # Errors
    /// Why not, and what to change.
    pub fn permit_named(&self, name: &str, wish: &Wish) -> Result<(), NotDone> {
        self.may(wish).map_err(NotDone::NotAllowed)?;
        if self.allows(name) {
            return Ok(());
        }
        let door = self.0.door;
        Err(NotDone::NotAllowed(format!(
            "{name} may not pass this door; name it in `allow` of [doors.{door}]"
        )))
    }

    /// Whether a question may pass that the door knows for one.
    ///
    /// # Errors
    /// Why not, and what to change.
    pub fn permit_question(&self, what: &str) -> Result<(), NotDone> {
        self.may(&Wish::Command(ActionClass::Read))
            .map_err(|why| NotDone::NotAllowed(format!("{what:?}: {why}")))
    }

    /// Whether an emergency stop may pass. No list has to name it.
    ///
    /// # Errors
    /// Why not, and what to change.
    pub fn permit_stop(&self) -> Result<(), NotDone> {
        self.may(&Wish::Frame(Kind::Stop)).map_err(NotDone::NotAllowed)
    }

    fn may(&self, wish: &Wish) -> Result<(), String> {
        let door = self.0.door;
        match gate::lack(self.0.role, wish) {
            Some(lack) => Err(format!("{lack}; see `role` in [doors.{door}]")),
            None => Ok(()),
        }
    }

    /// Whether the door's list names it.
    pub fn allows(&self, action: &str) -> bool {
        self.0.allow.iter().any(|glob| glob.matches(action))
    }

    /// Has nodes do something, if it may pass, and waits for all outcomes.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn command(&self, visitor: &Visitor, errand: Errand) -> Result<Vec<Delivery>, NotDone> {
        let permitted = self.permit(&errand.action, &errand.arguments);
        let begun = self.begin(visitor, &errand.action, errand.selector.as_str());
        let reads = gate::classify(&errand.action, &errand.arguments) == ActionClass::Read;
        let begun = begun.often_if(reads || permitted.is_err());
        let done = match permitted {
            Ok(()) => self.carry_out(visitor, errand).await,
            Err(refused) => Err(refused),
        };
        let outcome = match &done {
            Ok(deliveries) => summary(deliveries),
            Err(why) => format!("not done: {why}"),
        };
        let nothing_begun = matches!(
            done,
            Err(NotDone::NotAllowed(_) | NotDone::Usage(_) | NotDone::NobodyMatched(_))
        );
        // Whoever asks for what nobody can do has nothing done, however often.
        begun.often_if(reads || nothing_begun).end(outcome).await;
        done
    }

    async fn carry_out(&self, visitor: &Visitor, errand: Errand) -> Result<Vec<Delivery>, NotDone> {
        let request = Request::Command {
            selector: errand.selector,
            action: errand.action,
            arguments: errand.arguments,
            lane: Lane::Control,
            ttl_ms: duration::to_ms(errand.ttl),
            ttl_given: false,
            timeout_ms: duration::to_ms(errand.timeout),
            batch: None,
        };
        let mut deliveries = Vec::new();
        self.ask(visitor, request, |event| {
            if let Event::Delivery(delivery) = event {
                deliveries.push(delivery);
            }
        })
        .await?;
        Ok(deliveries)
    }

    /// Who is there.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn nodes(&self, visitor: &Visitor, selector: Selector) -> Result<Vec<NodeView>, NotDone> {
        let begun = self.begin(visitor, "nodes", selector.as_str()).often_if(true);
        let mut nodes = Vec::new();
        let request = Request::Nodes {
            selector,
            timeout_ms: 0,
        };
        let done = self.ask(visitor, request, |event| {
            if let Event::Node(node) = event {
                nodes.push(node);
            }
        });
        let done = done.await;
        let outcome = match &done {
            Ok(()) => count(nodes.len(), "node"),
            Err(why) => format!("not done: {why}"),
        };
        begun.end(outcome).await;
        done.map(|()| nodes)
    }

    /// Asks the fleet in a visitor's name. What it asks has to be permitted already.
    ///
    /// # Errors
    /// [`NotDone`].
    pub async fn ask(
        &self,
        visitor: &Visitor,
        request: Request,
        mut take: impl FnMut(Event),
    ) -> Result<(), NotDone> {
        let mut events = self.0.house.fleet.perform_as(request, self.who(visitor)).await;
        while let Some(event) = events.recv().await {
            if event == Event::End {
                return Ok(());
            }
            if let Event::Failed { failure, message } = event {
                return Err(match failure {
                    Failure::Usage => NotDone::Usage(message),
                    Failure::NobodyMatched => NotDone::NobodyMatched(message),
                    Failure::Failed | Failure::Stopped => NotDone::Failed(message),
                });
            }
            take(event);
        }
        Err(NotDone::Failed(
            "the station is shutting down; ask again".to_owned(),
        ))
    }

    /// Puts a use of the door into the audit that did nothing; repeats are counted, and noted as one.
    pub async fn note(&self, visitor: &Visitor, what: &str, detail: &str, outcome: String) {
        let begun = self.begin(visitor, what, detail);
        begun.often_if(true).end(outcome).await;
    }

    /// Puts a message into the audit that was wrong in itself.
    pub async fn note_wrong(&self, visitor: &Visitor, fault: &str) {
        self.note(visitor, "message", "", format!("not done: {fault}"))
            .await;
    }

    /// A use of the door that takes its time: it gets into the audit however it ends.
    pub fn begin(&self, visitor: &Visitor, what: &str, detail: &str) -> Use {
        Use {
            guard: self.clone(),
            often: false,
            open: Some(Entry {
                at_ms: 0,
                who: self.who(visitor),
                what: what.to_owned(),
                detail: detail.to_owned(),
                outcome: CUT_OFF.to_owned(),
            }),
        }
    }

    /// Counts an entry, or gives it back if it is to be noted.
    fn count(&self, mut entry: Entry, often: bool) -> Option<Entry> {
        entry.at_ms = clock::unix_time_ms();
        if often {
            self.often().take(self.0.door, entry, clock::now())
        } else {
            Some(entry)
        }
    }

    async fn write(self, entry: Entry) {
        if let Err(error) = self.0.house.store.audit(entry).await {
            tracing::error!(door = self.0.door, %error, "a use of the door is not in the audit");
        }
    }

    /// As the history and the audit call a visitor.
    pub fn who(&self, visitor: &Visitor) -> String {
        let Inner { door, .. } = &*self.0;
        let from = visitor.from;
        match &visitor.user {
            Some(user) => format!("{user} at {door} from {from}"),
            None => format!("{door} from {from}"),
        }
    }
}

/// A use of a door that is not over. One that is dropped instead of ended, as happens to whoever serves a visitor that
/// leaves, is in the audit as cut off: what it asked for may have been done.
#[derive(Debug)]
#[must_use = "a use that is dropped counts as cut off"]
pub struct Use {
    guard: Guard,
    /// Whether repeats may be counted instead.
    often: bool,
    open: Option<Entry>,
}

impl Use {
    /// Whether repeats may be counted instead of noted one by one: what does nothing.
    pub fn often_if(mut self, often: bool) -> Self {
        self.often = often;
        self
    }

    /// It is over; returns when that is in the audit.
    pub async fn end(mut self, outcome: String) {
        let entry = self.open.take().map(|entry| Entry { outcome, ..entry });
        let Some(entry) = entry.and_then(|entry| self.guard.count(entry, self.often)) else {
            return;
        };
        let Inner { door, house, .. } = &*self.guard.0;
        // In a task of its own: the visitor may leave even now.
        let written = house.tasks.spawn(self.guard.clone().write(entry));
        if let Err(error) = written.await {
            tracing::error!(door, %error, "a use of the door may not be in the audit");
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let counted = self.open.take();
        let Some(entry) = counted.and_then(|entry| self.guard.count(entry, self.often)) else {
            return;
        };
        let Inner { door, house, .. } = &*self.guard.0;
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                house.tasks.spawn_on(self.guard.clone().write(entry), &runtime);
            }
            Err(_over) => tracing::error!(
                door,
                who = entry.who,
                what = entry.what,
                "the station is gone: this use of the door is not in the audit"
            ),
        }
    }
}

/// How many ended how: `3 done, 1 expired`.
fn summary(deliveries: &[Delivery]) -> String {
    let count = |state: Outcome| {
        deliveries
            .iter()
            .filter(|delivery| delivery.state == state)
            .count()
    };
    let all = [
        Outcome::Done,
        Outcome::Failed,
        Outcome::Refused,
        Outcome::Expired,
        Outcome::Unknown,
        Outcome::NoAnswer,
    ];
    let counts = all.map(|state| (count(state), state.as_str()));
    let told: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| format!("{count} {state}"))
        .collect();
    told.join(", ")
}

#[cfg(test)]
mod tests;
