//! The desk before the engine: who is asked, and one answer of it.
//!
//! | request | own nodes | guests |
//! |---|---|---|
//! | nodes, watch, follow, targets | the engine | their views |
//! | command | the engine | their gateways; what acts is in the history as an entry of its own |
//! | the same, a few at a time | the engine, first | then they, in batches of the same size |
//! | stop, release | the engine | their gateways, and whoever comes: see `stops` |
//! | send, fetch | the engine | their gateways |
//! | retry | the engine, where it went to own nodes | their gateways, where it went to guests: see `again` |
//! | all others; and whatever means no guest | the engine, directly | |

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::files::Room;
use super::follow::{Subject, TOLD_MAX};
use super::jobs::{fetching, job, noted, sending, shown, waiting};
use super::merge::{Gone, Own};
use super::standing::Standing;
use super::work::{self, Ends, History, Job, Terms};
use super::{Guests, Meant, Work};
use crate::fleet::{
    ActRequest, Batch, CommandKind, EVENTS_MAX, Event, Failure, FilesToSend, Fleet, HistoryRequest, NodeRef,
    NodesRequest, Request, RequestEnvelope,
};
use crate::store::deliveries::Record;
use crate::store::{Origin, Store, StoreError};

/// A file that has begun may take as long as it moves on.
const FILE_ANSWER: Duration = Duration::from_secs(60 * 60);
/// How many terms that mean nobody are named in a note.
const TERMS_SHOWN: usize = 8;
/// How long what still runs may take to notice that the station stops.
const GRACE: Duration = Duration::from_secs(1);

/// What runs before an engine.
#[derive(Debug)]
pub struct Desk {
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Puts a desk before an engine: the fleet to ask from now on, and the guests' book for the gateways.
///
/// # Errors
/// [`StoreError`]: it is not known which guests are stopped.
pub async fn front(engine: Fleet, store: Store) -> Result<(Fleet, Guests, Desk), StoreError> {
    let (fleet, mut calls) = Fleet::local();
    let guests = Guests::new(Standing::load(&store).await?);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let counter = Counter {
        engine,
        guests: guests.clone(),
        store,
        tasks: tasks.clone(),
        room: Room::default(),
        told: broadcast::Sender::new(TOLD_MAX),
    };
    let (learner, over) = (counter.clone(), stop.clone());
    tasks.spawn(async move {
        let _stopped = over.run_until_cancelled(learner.learn_names()).await;
    });
    let (keeper, over) = (counter.clone(), stop.clone());
    tasks.spawn(async move { keeper.guests.standing().keep(&keeper.store, &over).await });
    let stopped = stop.clone();
    tasks.spawn(async move {
        while let Some(Some(call)) = stopped.run_until_cancelled(calls.recv()).await {
            counter.take(call).await;
        }
    });
    Ok((fleet, guests, Desk { stop, tasks }))
}

impl Desk {
    /// Ends; its guests' gateways are closed already, so that all has ended that was asked of them.
    pub async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "requests of guests outlived shutdown");
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Counter {
    pub(super) engine: Fleet,
    pub(super) guests: Guests,
    pub(super) store: Store,
    pub(super) tasks: TaskTracker,
    /// For files that are sent to guests.
    room: Room,
    /// What becomes of guests' orders, for followers.
    pub(super) told: broadcast::Sender<Event>,
}

/// Whom a request means, where the engine minds terms that mean nobody.
fn selector(request: &mut Request) -> Option<&mut Selector> {
    (!is_watch_or_stop(request)).then_some(())?;
    request.selector_mut()
}

fn is_watch_or_stop(request: &Request) -> bool {
    matches!(
        request,
        Request::Nodes(NodesRequest::Watch { .. }) | Request::Act(ActRequest::Stop { .. })
    )
}

impl Counter {
    async fn take(&self, call: RequestEnvelope) {
        // Before it is looked who is here: whoever comes in between is stopped as it comes.
        let stopped = if let Request::Act(ActRequest::Stop { selector, .. }) = &call.request {
            Some(self.guests.stop(selector))
        } else {
            None
        };
        if self.is_for_own(&call.request) {
            return self.engine.forward(call).await;
        }
        let (typed_at, asked_at) = (self.guests.standing().version(), clock::now());
        let meant = match &call.request {
            Request::Act(ActRequest::Stop { selector, .. }) => {
                self.guests.meant(stopped.as_ref().unwrap_or(selector))
            }
            Request::Nodes(NodesRequest::Watch { .. } | NodesRequest::Follow { .. }) => {
                let counter = self.clone();
                self.tasks.spawn(async move {
                    let _gone = counter.watch(call).await;
                });
                return;
            }
            Request::History(HistoryRequest::Retry { .. }) => {
                // Before the history is read: a stop in between counts.
                let known = self.guests.meant(&Selector::all());
                let counter = self.clone();
                self.tasks.spawn(async move {
                    let _gone = counter.again((known, asked_at), call).await;
                });
                return;
            }
            Request::Nodes(_)
            | Request::Act(_)
            | Request::Fleet(_)
            | Request::History(_)
            | Request::Admin(_) => {
                let selector = call.request.selector();
                selector.map_or_else(Vec::new, |selector| self.guests.meant(selector))
            }
        };
        let counter = self.clone();
        if let Request::Act(ActRequest::Release { .. }) = call.request
            && (!meant.is_empty() || counter.guests.standing().stands())
        {
            self.tasks.spawn(async move {
                let _gone = counter.release(meant, call, typed_at).await;
            });
            return;
        }
        let shows = matches!(call.request, Request::Nodes(NodesRequest::List { .. }));
        if let (true, Request::Act(ActRequest::Stop { .. })) = (meant.is_empty(), &call.request) {
            return self.engine.forward(self.stop_those_that_come(call)).await;
        }
        if meant.is_empty() && !(shows && self.guests.has_anything_to_tell()) {
            return self.pass(call).await;
        }
        if let Some(stopped) = &stopped {
            // Its orders go out here, not when a task gets its turn.
            let stopping = counter.begin_stop(meant, stopped, &call);
            self.tasks.spawn(async move {
                let _gone = counter.stop(stopping, call).await;
            });
            return;
        }
        self.tasks.spawn(async move {
            let _gone = counter.answer((meant, asked_at), call, None).await;
        });
    }

    /// Whether it names nodes of the fleet and no guest: the quick way, for programs at gateways that ask thousands of times
    /// a second.
    fn is_for_own(&self, request: &Request) -> bool {
        let is_release = matches!(request, Request::Act(ActRequest::Release { .. }));
        let selector = request
            .selector()
            .filter(|_| !is_release && !is_watch_or_stop(request));
        let Some(selector) = selector else { return false };
        let shows_stops =
            matches!(request, Request::Nodes(NodesRequest::List { .. })) && self.guests.standing().stands();
        !shows_stops && self.guests.are_none_of(selector)
    }

    /// Hands on what means no guest. One that is taken away is nobody whom the engine knows.
    async fn pass(&self, mut call: RequestEnvelope) {
        if selector(&mut call.request).is_some() && !self.guests.is_empty() {
            call = self.amended(call, |_event| {});
        }
        let names_guests = |selector: &mut Selector| selector.exclusions().any(|term| self.guests.any(&term));
        if !selector(&mut call.request).is_some_and(names_guests) {
            return self.engine.forward(call).await;
        }
        let counter = self.clone();
        self.tasks.spawn(async move {
            if let Some(selector) = selector(&mut call.request) {
                *selector = counter.for_engine(selector).await;
            }
            counter.engine.forward(call).await;
        });
    }

    /// The selector without what means guests alone, so that the engine does not tell that it knows nobody of that
    /// name.
    pub(super) async fn for_engine(&self, selector: &Selector) -> Selector {
        let terms: Vec<Selector> = selector.terms().chain(selector.exclusions()).collect();
        if terms.len() < 2 && selector.exclusions().next().is_none() {
            return selector.clone();
        }
        let mut strange = BTreeSet::new();
        for term in terms {
            // `all` is nobody's name, so the engine is not asked about it.
            if term == Selector::all() || !self.guests.any(&term) {
                continue;
            }
            let request = NodesRequest::Targets {
                selector: term.clone(),
            };
            let mut events = self.engine.perform(request).await;
            while let Some(event) = events.recv().await {
                if let Event::Failed {
                    failure: Failure::NoMatch,
                    ..
                } = event
                {
                    strange.insert(term.as_str().to_owned());
                }
            }
        }
        let rest = selector.without(|term| strange.contains(term.as_str()));
        // Guests alone are meant: a term of theirs, of which the engine says that it means nobody.
        rest.or_else(|| selector.terms().next())
            .unwrap_or_else(|| selector.clone())
    }

    /// What to tell whoever named somebody who does not exist beside guests, where the engine knows nobody at all.
    pub(super) fn strangers(&self, asked: &Request) -> Option<String> {
        let selector = asked.selector().filter(|_| !is_watch_or_stop(asked))?;
        let strange = selector.terms().filter(|term| !self.guests.any(term));
        let strange: Vec<String> = strange
            .take(TERMS_SHOWN)
            .map(|term| format!("{:?}", term.as_str()))
            .collect();
        (!strange.is_empty()).then(|| format!("no node matches {}", strange.join(", ")))
    }

    /// Asks both. What has an `origin` already is for guests alone.
    pub(super) async fn answer(
        &self,
        (meant, asked_at): (Vec<Meant>, Instant),
        call: RequestEnvelope,
        origin: Option<Origin>,
    ) -> Result<(), Gone> {
        let RequestEnvelope {
            mut request,
            events,
            user: who,
        } = call;
        let asked = request.clone();
        let mut own = if origin.is_some() {
            Own::none(&self.guests)
        } else {
            if let Some(selector) = selector(&mut request) {
                *selector = self.for_engine(selector).await;
            }
            Own::begin((&self.engine, &self.guests), request, who.clone(), &events).await?
        };
        let origin = origin.unwrap_or_else(|| Origin::command_by(who.clone()));
        if let Some(refusal) = own.refusal() {
            // Guests are not to do by half what was asked by a slip, or of a station that stops.
            return events.send(refusal).await.map_err(|_gone| Gone);
        }
        own.alone = meant.is_empty();
        if own.forgive(false)
            && let Some(note) = self.strangers(&asked)
        {
            events.send(Event::note(note)).await.map_err(|_gone| Gone)?;
        }
        let to_name: Vec<NodeRef> = meant.iter().map(|guest| guest.node.clone()).collect();
        let (to, told) = mpsc::channel(EVENTS_MAX);
        if let Request::Nodes(NodesRequest::List { selector, .. }) = &asked {
            if let Some(note) = self.standing_stops() {
                events.send(Event::note(note)).await.map_err(|_gone| Gone)?;
            }
            for view in self.guests.views(selector) {
                events.send(Event::Node(view)).await.map_err(|_gone| Gone)?;
            }
            drop(to);
            return own.join(told, &events).await;
        }
        if let Some(note) = self.ambiguous(&own.targets, &to_name) {
            events.send(Event::note(note)).await.map_err(|_gone| Gone)?;
        }
        let parts = if let Request::Act(ActRequest::SendFiles {
            files: FilesToSend::Same { files },
            ..
        }) = &asked
        {
            files.len()
        } else {
            1
        };
        let guests = to_name
            .iter()
            .flat_map(|node| std::iter::repeat_n(node.clone(), parts));
        let targets = own.targets.iter().cloned().chain(guests).collect();
        let targets = Event::Targets { targets };
        events.send(targets).await.map_err(|_gone| Gone)?;
        let (kind, what, number) = match asked {
            Request::Act(ActRequest::Command {
                selector,
                action,
                arguments,
                lane,
                ttl_ms,
                timeout_ms,
                batch,
                ..
            }) => {
                let (ttl, timeout) = (Duration::from_millis(ttl_ms), Duration::from_millis(timeout_ms));
                let mut started = asked_at;
                if batch.is_some() {
                    own.rest(&events).await?;
                    started = clock::now();
                }
                let origin = Origin {
                    batch: batch.map(|batch| batch.size.to_string()),
                    ..origin.clone()
                };
                let record = Record {
                    origin,
                    action: action.clone(),
                    arguments: json!(arguments).to_string(),
                    lane,
                    selector: selector.as_str().to_owned(),
                    ttl_ms,
                    deliveries: Vec::new(),
                };
                let terms = Terms {
                    started,
                    begin: ttl,
                    answer: timeout,
                    room: ttl,
                    patience: Some(timeout),
                    batch,
                };
                let what = action.clone();
                let withheld = batch.is_some_and(|batch: Batch| !batch.keep_going) && !own.done;
                let command = Command {
                    action,
                    arguments,
                    withheld,
                };
                let number = self.command(meant, command, record, terms, to).await;
                (CommandKind::Command, what, number)
            }
            Request::Act(ActRequest::SendFiles {
                selector,
                files,
                ttl_ms,
                timeout_ms,
            }) => {
                let record = Record {
                    origin: Origin {
                        kind: CommandKind::Send,
                        ..origin.clone()
                    },
                    action: shown(&files),
                    arguments: json!(files).to_string(),
                    lane: Lane::Bulk,
                    selector: selector.as_str().to_owned(),
                    ttl_ms,
                    deliveries: Vec::new(),
                };
                let begin = Duration::from_millis(ttl_ms.min(timeout_ms));
                let jobs = sending(meant, files, &self.room).await;
                let terms = Terms {
                    room: Duration::from_millis(ttl_ms),
                    ..waiting(begin, FILE_ANSWER)
                };
                let number = self.hand_out(jobs, record, terms, to).await;
                (CommandKind::Send, CommandKind::Send.as_str().to_owned(), number)
            }
            Request::Act(ActRequest::Fetch {
                selector,
                path,
                dir,
                timeout_ms,
            }) => {
                let record = Record {
                    origin: Origin {
                        kind: CommandKind::Fetch,
                        ..origin.clone()
                    },
                    action: path.clone(),
                    arguments: json!({ "path": path, "dir": dir }).to_string(),
                    lane: Lane::Bulk,
                    selector: selector.as_str().to_owned(),
                    ttl_ms: timeout_ms,
                    deliveries: Vec::new(),
                };
                let jobs = fetching(meant, &own.targets, &path, &dir).await;
                let timeout = Duration::from_millis(timeout_ms);
                let terms = waiting(timeout, timeout);
                let number = self.hand_out(jobs, record, terms, to).await;
                (CommandKind::Fetch, CommandKind::Fetch.as_str().to_owned(), number)
            }
            // Only whom it means was asked, or it is answered elsewhere.
            Request::Act(ActRequest::Stop { .. } | ActRequest::Release { .. })
            | Request::Nodes(_)
            | Request::Fleet(_)
            | Request::History(_)
            | Request::Admin(_) => {
                drop(to);
                return own.join(told, &events).await;
            }
        };
        let subject = Subject {
            kind,
            what,
            who,
            number,
        };
        let told = self.overhear(subject, to_name, told);
        own.join(told, &events).await
    }

    async fn command(
        &self,
        meant: Vec<Meant>,
        command: Command,
        record: Record,
        terms: Terms,
        to: mpsc::Sender<Event>,
    ) -> Option<u64> {
        let Command {
            action,
            arguments,
            withheld,
        } = command;
        let reads = meant.iter().all(|guest| guest.reads(&action, &arguments));
        let jobs = meant.into_iter().map(|guest| {
            let work = if withheld {
                Err(Reply::refused(work::BATCH_FAILED))
            } else {
                Ok(Work::Command {
                    action: action.clone(),
                    arguments: arguments.clone(),
                })
            };
            job(guest, 0, work)
        });
        let jobs: Vec<Job> = jobs.collect();
        if reads {
            // What only reads has nothing to survive.
            self.tasks.spawn(work::run(jobs, terms, None, to));
            None
        } else {
            self.hand_out(jobs, record, terms, to).await
        }
    }

    /// Stores what is to be done, and only then has it done.
    pub(super) async fn hand_out(
        &self,
        mut jobs: Vec<Job>,
        mut record: Record,
        terms: Terms,
        to: mpsc::Sender<Event>,
    ) -> Option<u64> {
        record.deliveries = jobs.iter().map(noted).collect();
        let number = match self.store.record(record).await {
            Ok(number) => Some(number),
            Err(error) => {
                for job in &mut jobs {
                    job.work = Err(Reply::refused(format!("nothing was sent: {error}")));
                }
                None
            }
        };
        let history = number.map(|number| History {
            ends: Ends::Of {
                store: self.store.clone(),
                number,
            },
            tasks: self.tasks.clone(),
        });
        if let Some(number) = number {
            // The first of its events: there is room.
            let _caller_gone = to.try_send(Event::Issued { number });
        }
        self.tasks.spawn(work::run(jobs, terms, history, to));
        number
    }
}

/// What guests are asked to do.
struct Command {
    action: String,
    arguments: Arguments,
    /// Because own nodes that came first did not do it.
    withheld: bool,
}
