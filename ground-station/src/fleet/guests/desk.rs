//! The desk before the engine: who is asked, and one answer of it.
//!
//! | request | own nodes | guests |
//! |---|---|---|
//! | nodes, watch, follow, targets | the engine | their views |
//! | command | the engine | their doors; what acts is in the history as an entry of its own |
//! | the same, a few at a time | the engine, first | then they, in batches of the same size |
//! | stop | the engine | at the same moment |
//! | release, send, fetch | the engine | their doors |
//! | all others; and whatever means no guest | the engine, directly | |

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::merge::{Gone, Own};
use super::work::{self, Copy, History, Job, Terms};
use super::{Guests, Meant, Work, files};
use crate::fleet::engine::recorder;
use crate::fleet::files as paths;
use crate::fleet::{
    Batch, Call, CommandKind, EVENTS_MAX, Event, Failure, FilesToSend, Fleet, NodeRef, NodeView, Request,
};
use crate::store::deliveries::{Record, RecordTo};
use crate::store::{Origin, Store};

/// Shortest time between two looks at what has changed, for whoever watches.
const WATCH_PAUSE: Duration = Duration::from_millis(100);
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

/// Puts a desk before an engine: the fleet to ask from now on, and the guests' book for the doors.
pub fn front(engine: Fleet, store: Store) -> (Fleet, Guests, Desk) {
    let (fleet, mut calls) = Fleet::local();
    let guests = Guests::default();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let counter = Counter {
        engine,
        guests: guests.clone(),
        store,
        tasks: tasks.clone(),
    };
    let stopped = stop.clone();
    tasks.spawn(async move {
        while let Some(Some(call)) = stopped.run_until_cancelled(calls.recv()).await {
            counter.take(call).await;
        }
    });
    (fleet, guests, Desk { stop, tasks })
}

impl Desk {
    /// Ends; its guests' doors are closed already, so that all has ended that was asked of them.
    pub async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "requests of guests outlived shutdown");
        }
    }
}

#[derive(Clone, Debug)]
struct Counter {
    engine: Fleet,
    guests: Guests,
    store: Store,
    tasks: TaskTracker,
}

impl Counter {
    async fn take(&self, call: Call) {
        let meant = match &call.request {
            Request::Watch { .. } | Request::Follow { .. } => {
                let counter = self.clone();
                self.tasks.spawn(async move {
                    let _gone = counter.watch(call).await;
                });
                return;
            }
            Request::Nodes { selector, .. }
            | Request::Targets { selector }
            | Request::Command { selector, .. }
            | Request::Stop { selector, .. }
            | Request::Release { selector, .. }
            | Request::SendFiles { selector, .. }
            | Request::Fetch { selector, .. } => self.guests.meant(selector),
            Request::Init
            | Request::Invite { .. }
            | Request::Join { .. }
            | Request::Pending
            | Request::Accept { .. }
            | Request::Revoke { .. }
            | Request::Members
            | Request::History { .. }
            | Request::Audit { .. }
            | Request::Peers { .. }
            | Request::Tell { .. }
            | Request::Retry { .. } => Vec::new(),
        };
        if meant.is_empty() {
            return self.engine.pass(call).await;
        }
        let counter = self.clone();
        if let Request::Stop { .. } = call.request {
            // Its orders go out here, not when a task gets its turn.
            let stopping = counter.begin_stop(meant, &call);
            self.tasks.spawn(async move {
                let _gone = counter.stop(stopping, call).await;
            });
            return;
        }
        self.tasks.spawn(async move {
            let _gone = counter.answer(meant, call).await;
        });
    }

    /// The selector without what means guests alone, so that the engine does not tell that it knows nobody of that
    /// name.
    async fn for_engine(&self, selector: &Selector) -> Selector {
        let terms: Vec<Selector> = selector.terms().collect();
        if terms.len() < 2 {
            return selector.clone();
        }
        let mut strange = BTreeSet::new();
        for term in terms {
            if self.guests.meant(&term).is_empty() {
                continue;
            }
            let request = Request::Targets {
                selector: term.clone(),
            };
            let mut events = self.engine.perform(request).await;
            while let Some(event) = events.recv().await {
                if let Event::Failed {
                    failure: Failure::NobodyMatched,
                    ..
                } = event
                {
                    strange.insert(term.as_str().to_owned());
                }
            }
        }
        let rest = selector.without(|term| strange.contains(term.as_str()));
        rest.unwrap_or_else(|| selector.clone())
    }

    /// What to tell whoever named somebody who does not exist beside guests, where the engine knows nobody at all.
    fn strangers(&self, asked: &Request) -> Option<String> {
        let (Request::Nodes { selector, .. }
        | Request::Targets { selector }
        | Request::Command { selector, .. }
        | Request::Release { selector, .. }
        | Request::SendFiles { selector, .. }
        | Request::Fetch { selector, .. }) = asked
        else {
            return None;
        };
        let strange = selector.terms().filter(|term| self.guests.meant(term).is_empty());
        let strange: Vec<String> = strange
            .take(TERMS_SHOWN)
            .map(|term| format!("{:?}", term.as_str()))
            .collect();
        (!strange.is_empty()).then(|| format!("no node matches {}", strange.join(", ")))
    }

    async fn answer(&self, meant: Vec<Meant>, call: Call) -> Result<(), Gone> {
        let Call {
            mut request,
            events,
            who,
        } = call;
        let asked = request.clone();
        if let Request::Nodes { selector, .. }
        | Request::Targets { selector }
        | Request::Command { selector, .. }
        | Request::Release { selector, .. }
        | Request::SendFiles { selector, .. }
        | Request::Fetch { selector, .. } = &mut request
        {
            *selector = self.for_engine(selector).await;
        }
        let mut own = Own::begin(&self.engine, request, who.clone(), &events).await?;
        if own.forgive(false)
            && let Some(note) = self.strangers(&asked)
        {
            events.send(Event::note(note)).await.map_err(|_gone| Gone)?;
        }
        let to_name: Vec<NodeRef> = meant.iter().map(|guest| guest.node.clone()).collect();
        let (to, told) = mpsc::channel(EVENTS_MAX);
        if let Request::Nodes { selector, .. } = &asked {
            for view in self.guests.views(selector) {
                events.send(Event::Node(view)).await.map_err(|_gone| Gone)?;
            }
            drop(to);
            return own.join(told, &events).await;
        }
        let parts = if let Request::SendFiles {
            files: FilesToSend::Same { files },
            ..
        } = &asked
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
        match asked {
            Request::Command {
                selector,
                action,
                arguments,
                lane,
                ttl_ms,
                timeout_ms,
                batch,
            } => {
                let (ttl, timeout) = (Duration::from_millis(ttl_ms), Duration::from_millis(timeout_ms));
                if batch.is_some() {
                    own.rest(&events).await?;
                }
                let origin = Origin {
                    batch: batch.map(|batch| batch.size.to_string()),
                    ..Origin::of(who)
                };
                let record = Record {
                    origin,
                    action: action.clone(),
                    arguments: json!(arguments).to_string(),
                    lane,
                    selector: selector.as_str().to_owned(),
                    life_ms: ttl_ms,
                    deliveries: Vec::new(),
                };
                let terms = Terms {
                    started: clock::now(),
                    begin: ttl,
                    answer: timeout,
                    patience: Some(timeout),
                    batch,
                };
                let withheld = batch.is_some_and(|batch: Batch| !batch.keep_going) && !own.done;
                let command = Command {
                    action,
                    arguments,
                    withheld,
                };
                self.command(meant, command, record, terms, to).await;
            }
            Request::Release { selector, timeout_ms } => {
                let origin = Origin {
                    kind: CommandKind::Release,
                    ..Origin::of(who)
                };
                let record = Record {
                    origin,
                    action: CommandKind::Release.as_str().to_owned(),
                    arguments: "null".to_owned(),
                    lane: Lane::Emergency,
                    selector: selector.as_str().to_owned(),
                    life_ms: timeout_ms,
                    deliveries: Vec::new(),
                };
                let timeout = Duration::from_millis(timeout_ms);
                let jobs = meant.into_iter().map(|guest| job(guest, 0, Ok(Work::Release)));
                self.hand_out(jobs.collect(), record, waiting(timeout, timeout), to)
                    .await;
            }
            Request::SendFiles {
                selector,
                files,
                ttl_ms,
                timeout_ms,
            } => {
                let record = Record {
                    origin: Origin {
                        kind: CommandKind::Send,
                        ..Origin::of(who)
                    },
                    action: shown(&files),
                    arguments: json!(files).to_string(),
                    lane: Lane::Bulk,
                    selector: selector.as_str().to_owned(),
                    life_ms: ttl_ms,
                    deliveries: Vec::new(),
                };
                let begin = Duration::from_millis(ttl_ms.min(timeout_ms));
                let jobs = sending(meant, files).await;
                self.hand_out(jobs, record, waiting(begin, FILE_ANSWER), to).await;
            }
            Request::Fetch {
                selector,
                path,
                dir,
                timeout_ms,
            } => {
                let record = Record {
                    origin: Origin {
                        kind: CommandKind::Fetch,
                        ..Origin::of(who)
                    },
                    action: path.clone(),
                    arguments: json!({ "path": path, "dir": dir }).to_string(),
                    lane: Lane::Bulk,
                    selector: selector.as_str().to_owned(),
                    life_ms: timeout_ms,
                    deliveries: Vec::new(),
                };
                let jobs = fetching(meant, &own.targets, &path, &dir).await;
                let timeout = Duration::from_millis(timeout_ms);
                self.hand_out(jobs, record, waiting(timeout, timeout), to).await;
            }
            // Only whom it means was asked, or it is answered elsewhere.
            Request::Targets { .. }
            | Request::Nodes { .. }
            | Request::Watch { .. }
            | Request::Stop { .. }
            | Request::Init
            | Request::Invite { .. }
            | Request::Join { .. }
            | Request::Pending
            | Request::Accept { .. }
            | Request::Revoke { .. }
            | Request::Members
            | Request::History { .. }
            | Request::Audit { .. }
            | Request::Follow { .. }
            | Request::Peers { .. }
            | Request::Tell { .. }
            | Request::Retry { .. } => drop(to),
        }
        own.join(told, &events).await
    }

    async fn command(
        &self,
        meant: Vec<Meant>,
        command: Command,
        record: Record,
        terms: Terms,
        to: mpsc::Sender<Event>,
    ) {
        let Command {
            action,
            arguments,
            withheld,
        } = command;
        let reads = meant.iter().all(|guest| guest.reads(&action, &arguments));
        let jobs = meant.into_iter().map(|guest| {
            let work = if withheld {
                Err(Reply::refused("not sent: an earlier batch failed"))
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
        } else {
            self.hand_out(jobs, record, terms, to).await;
        }
    }

    /// Stores what is to be done, and only then has it done.
    async fn hand_out(&self, mut jobs: Vec<Job>, mut record: Record, terms: Terms, to: mpsc::Sender<Event>) {
        record.deliveries = jobs.iter().map(noted).collect();
        let history = match self.store.record(record).await {
            Ok(number) => Some(History {
                store: self.store.clone(),
                number,
                tasks: self.tasks.clone(),
            }),
            Err(error) => {
                for job in &mut jobs {
                    job.work = Err(Reply::failed(format!("nothing was sent: {error}")));
                }
                None
            }
        };
        self.tasks.spawn(work::run(jobs, terms, history, to));
    }

    fn begin_stop(&self, meant: Vec<Meant>, call: &Call) -> Stopping {
        let Request::Stop { selector, timeout_ms } = &call.request else {
            return Stopping::default();
        };
        let record = Record {
            origin: Origin {
                kind: CommandKind::Stop,
                ..Origin::of(call.who.clone())
            },
            action: CommandKind::Stop.as_str().to_owned(),
            arguments: "null".to_owned(),
            lane: Lane::Emergency,
            selector: selector.as_str().to_owned(),
            life_ms: timeout_ms.unwrap_or(0),
            deliveries: meant
                .iter()
                .map(|guest| noted(&job(guest.clone(), 0, Ok(Work::Stop))))
                .collect(),
        };
        let targets = meant.iter().map(|guest| guest.node.clone()).collect();
        let over = CancellationToken::new();
        let (to, told) = mpsc::channel(EVENTS_MAX);
        let stopping = work::Stop {
            timeout: timeout_ms.map(Duration::from_millis),
            over: over.clone(),
            events: to,
            tasks: self.tasks.clone(),
        };
        // No disk is waited for.
        work::stop(meant, stopping, |given_up| {
            recorder::beside(&self.tasks, self.store.clone(), record, given_up)
        });
        Stopping {
            targets,
            told: Some(told),
            over,
        }
    }

    async fn stop(&self, stopping: Stopping, call: Call) -> Result<(), Gone> {
        let Call { request, events, who } = call;
        let Stopping { targets, told, over } = stopping;
        let _over = over.drop_guard();
        let Some(told) = told else { return Ok(()) };
        let Request::Stop { selector, .. } = &request else {
            return Ok(());
        };
        let known = Request::Targets {
            selector: selector.clone(),
        };
        let mut own = Own::begin(&self.engine, request, who, &events).await?;
        // A station without a fleet stops nobody, and that is no fault if nobody but guests is meant.
        let nobody = {
            let mut asked = self.engine.perform(known).await;
            let mut nobody = false;
            while let Some(event) = asked.recv().await {
                nobody |= matches!(event, Event::Failed { .. });
            }
            nobody
        };
        own.forgive(nobody);
        let targets = own.targets.iter().cloned().chain(targets).collect();
        let targets = Event::Targets { targets };
        events.send(targets).await.map_err(|_gone| Gone)?;
        own.join(told, &events).await
    }

    /// Every node, and each change, until whoever asked goes.
    async fn watch(&self, call: Call) -> Result<(), Gone> {
        let Call { request, events, who } = call;
        let (selector, telemetry) = if let Request::Watch { selector } = &request {
            (selector.clone(), false)
        } else if let Request::Follow { telemetry } = &request {
            (Selector::all(), *telemetry)
        } else {
            return Ok(());
        };
        let mut changes = self.guests.changes();
        let mut own = self.engine.perform_as(request, who).await;
        let mut shown: BTreeMap<PeerId, NodeView> = BTreeMap::new();
        loop {
            let views = self.guests.views(&selector);
            let gone = shown.keys().filter(|id| views.iter().all(|view| view.id != **id));
            let gone: Vec<PeerId> = gone.copied().collect();
            for id in gone {
                shown.remove(&id);
            }
            for view in views {
                let same = shown.get(&view.id).is_some_and(|old| {
                    let old = NodeView {
                        last_heard_ms: view.last_heard_ms,
                        ..old.clone()
                    };
                    old == view
                });
                if !same {
                    let before = shown.insert(view.id, view.clone());
                    let readings = telemetry.then(|| new_readings(before.as_ref(), &view)).flatten();
                    for event in std::iter::once(Event::Node(view)).chain(readings) {
                        events.send(event).await.map_err(|_gone| Gone)?;
                    }
                }
            }
            let pause = tokio::time::sleep(WATCH_PAUSE);
            tokio::pin!(pause);
            let mut changed = false;
            while !(changed && pause.is_elapsed()) {
                tokio::select! {
                    biased;
                    () = events.closed() => return Err(Gone),
                    event = own.recv() => match event {
                        Some(event) => {
                            let is_last = matches!(event, Event::End | Event::Failed { .. });
                            events.send(event).await.map_err(|_gone| Gone)?;
                            if is_last {
                                return Ok(());
                            }
                        }
                        None => return Ok(()),
                    },
                    () = &mut pause, if !pause.is_elapsed() => {}
                    // The book outlives this.
                    _still_there = changes.changed(), if !changed => changed = true,
                }
            }
        }
    }
}

/// What has changed of a guest's readings, if anything; null for what is there no longer.
fn new_readings(before: Option<&NodeView>, now: &NodeView) -> Option<Event> {
    let before = before.map(|view| &view.telemetry);
    let known = |name: &String| before.and_then(|before| before.get(name));
    let new = now
        .telemetry
        .iter()
        .filter(|(name, value)| known(name) != Some(value));
    let new = new.map(|(name, value)| (name.clone(), value.clone()));
    let gone = before
        .into_iter()
        .flat_map(|before| before.keys())
        .filter(|name| !now.telemetry.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let values: Map<String, Value> = gone.chain(new).collect();
    let node = NodeRef {
        node: now.node.clone(),
        id: now.id,
    };
    (!values.is_empty()).then_some(Event::Telemetry { node, values })
}

/// What guests are asked to do.
struct Command {
    action: String,
    arguments: Arguments,
    /// Because own nodes that came first did not do it.
    withheld: bool,
}

/// A stop that is on its way to guests.
#[derive(Default)]
struct Stopping {
    targets: Vec<NodeRef>,
    told: Option<mpsc::Receiver<Event>>,
    over: CancellationToken,
}

fn job(guest: Meant, part: u32, work: Result<Work, Reply>) -> Job {
    Job {
        guest,
        part,
        work,
        about: None,
        copy: None,
    }
}

fn noted(job: &Job) -> RecordTo {
    RecordTo {
        node: job.guest.node.clone(),
        part: job.part,
        about: job.about.clone(),
    }
}

/// Whoever asked waits for the end.
fn waiting(begin: Duration, answer: Duration) -> Terms {
    Terms {
        started: clock::now(),
        begin,
        answer,
        patience: None,
        batch: None,
    }
}

fn shown(files: &FilesToSend) -> String {
    match files {
        FilesToSend::Same { files } => {
            let dests: Vec<&str> = files.iter().map(|file| file.dest.as_str()).collect();
            dests.join(" ")
        }
        FilesToSend::PerNode { dir, dest } => format!("--per-node {} {dest}", dir.display()),
    }
}

async fn sending(meant: Vec<Meant>, files: FilesToSend) -> Vec<Job> {
    let mut jobs = Vec::new();
    match files {
        FilesToSend::Same { files } => {
            let most = meant.iter().map(|guest| guest.file_bytes_max).max().unwrap_or(0);
            for (part, file) in (0..).zip(files) {
                // Once for all: its bytes are shared.
                let content = files::read(file.source, most).await;
                for guest in &meant {
                    let content = content.clone();
                    let content = content.and_then(|content| fitting(content, guest.file_bytes_max));
                    let work = content.map(|content| Work::Push {
                        path: file.dest.clone(),
                        content,
                    });
                    jobs.push(Job {
                        about: Some(file.dest.clone()),
                        ..job(guest.clone(), part, work)
                    });
                }
            }
        }
        FilesToSend::PerNode { dir, dest } => {
            for guest in meant {
                let (dir, node) = (dir.clone(), guest.node.node.clone());
                let found = tokio::task::spawn_blocking(move || paths::per_node(&dir, &node)).await;
                let found = match found {
                    Ok(Ok(source)) => paths::destination(&dest, &source, false).map(|dest| (source, dest)),
                    Ok(Err(error)) => Err(error),
                    Err(error) => {
                        jobs.push(job(guest, 0, Err(Reply::failed(error.to_string()))));
                        continue;
                    }
                };
                let work = match found {
                    Ok((source, path)) => files::read(source, guest.file_bytes_max)
                        .await
                        .map(|content| Work::Push { path, content }),
                    Err(error) => Err(Reply::failed(error.to_string())),
                };
                jobs.push(Job {
                    about: Some(dest.clone()),
                    ..job(guest, 0, work)
                });
            }
        }
    }
    jobs
}

fn fitting(content: bytes::Bytes, most: u64) -> Result<bytes::Bytes, Reply> {
    if content.len() as u64 <= most {
        return Ok(content);
    }
    Err(Reply::failed(format!(
        "it is longer than the {most} bytes that this drone is sent; see `file_bytes` of its door"
    )))
}

async fn fetching(meant: Vec<Meant>, own: &[NodeRef], path: &str, dir: &Path) -> Vec<Job> {
    let roots = files::open_dir(dir.to_owned()).await;
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for node in own.iter().chain(meant.iter().map(|guest| &guest.node)) {
        *names.entry(node.node.to_string()).or_default() += 1;
    }
    let jobs = meant.into_iter().map(|guest| {
        let NodeRef { node, id } = &guest.node;
        let unique = names.get(node.as_str()) == Some(&1);
        let name = paths::copy_name(node, id, unique, path);
        match (roots.clone(), name) {
            (Ok(roots), Ok(name)) => Job {
                copy: Some(Copy {
                    roots,
                    dir: dir.to_owned(),
                    name,
                }),
                ..job(
                    guest,
                    0,
                    Ok(Work::Fetch {
                        path: path.to_owned(),
                    }),
                )
            },
            (Err(error), _) => job(guest, 0, Err(Reply::failed(error))),
            (_, Err(error)) => job(guest, 0, Err(Reply::failed(error.to_string()))),
        }
    });
    jobs.collect()
}
