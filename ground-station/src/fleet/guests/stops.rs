//! Emergency stops of guests, and their end.
//!
//! A stop is in force at once, for guests that are here and for those that come; a release once nothing that is slow
//! stands against it. Whoever knows no guest of that name may stop it, and release it, all the same.

use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::desk::Counter;
use super::follow::Subject;
use super::jobs::{job, noted, waiting};
use super::merge::{Gone, Own};
use super::work::{self, Ends, History, Job, Terms};
use super::{Meant, Work};
use crate::fleet::engine::history_writer;
use crate::fleet::{
    ActRequest, CommandKind, EVENTS_MAX, Event, NodeRef, NodesRequest, Request, RequestEnvelope,
};
use crate::store::Origin;
use crate::store::deliveries::Record;

/// How many of the stops that stand are told in one note.
const STOPS_SHOWN: usize = 4;
/// What to tell whoever gives a stop that is one too many.
const ALL_STOPPED: &str = "too many stops stand to remember each: all drones of other programs are stopped, also those \
                           that come, until `release all`";

impl Counter {
    /// `stopped`: whom the stop is for now; more than was asked for, if it is one too many.
    pub(super) fn begin_stop(
        &self,
        meant: Vec<Meant>,
        stopped: &Selector,
        call: &RequestEnvelope,
    ) -> Stopping {
        let Request::Act(ActRequest::Stop {
            selector, timeout_ms, ..
        }) = &call.request
        else {
            return Stopping::default();
        };
        let record = Record {
            origin: Origin {
                kind: CommandKind::Stop,
                ..Origin::command_by(call.user.clone())
            },
            action: CommandKind::Stop.as_str().to_owned(),
            arguments: "null".to_owned(),
            lane: Lane::Emergency,
            selector: selector.as_str().to_owned(),
            ttl_ms: timeout_ms.unwrap_or(0),
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
            history_writer::record_in_background(&self.tasks, self.store.clone(), record, given_up)
        });
        Stopping {
            targets,
            told: Some(told),
            over,
            note: (stopped != selector).then_some(ALL_STOPPED),
        }
    }

    pub(super) async fn stop(&self, stopping: Stopping, call: RequestEnvelope) -> Result<(), Gone> {
        let RequestEnvelope {
            mut request,
            events,
            user: who,
        } = call;
        let Stopping {
            targets,
            told,
            over,
            note,
        } = stopping;
        let _over = over.drop_guard();
        let Some(told) = told else { return Ok(()) };
        let Request::Act(ActRequest::Stop {
            selector,
            also_bridged: beside,
            ..
        }) = &mut request
        else {
            return Ok(());
        };
        *beside = true;
        let known = NodesRequest::Targets {
            selector: selector.clone(),
        };
        let subject = Subject {
            kind: CommandKind::Stop,
            what: CommandKind::Stop.as_str().to_owned(),
            who: who.clone(),
            number: None,
        };
        let told = self.overhear(subject, targets.clone(), told);
        let mut own = Own::begin((&self.engine, &self.guests), request, who, &events).await?;
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
        if let Some(note) = note {
            events.send(Event::note(note)).await.map_err(|_gone| Gone)?;
        }
        let targets = own.targets.iter().cloned().chain(targets).collect();
        let targets = Event::Targets { targets };
        events.send(targets).await.map_err(|_gone| Gone)?;
        own.join(told, &events).await
    }

    /// Ends stops, as they were in force when this was typed. It is on the disk before guests are told: one that is in
    /// the air is not to be told to land by a station that has started again.
    pub(super) async fn release(
        &self,
        meant: Vec<Meant>,
        call: RequestEnvelope,
        typed_at: u64,
    ) -> Result<(), Gone> {
        let RequestEnvelope {
            request,
            events,
            user: who,
        } = call;
        let Request::Act(ActRequest::Release { selector, timeout_ms }) = &request else {
            return Ok(());
        };
        let timeout = Duration::from_millis(*timeout_ms);
        let engines = ActRequest::Release {
            selector: self.for_engine(selector).await,
            timeout_ms: *timeout_ms,
        };
        let mut own = Own::begin((&self.engine, &self.guests), engines, who.clone(), &events).await?;
        if let Some(refusal) = own.refusal() {
            return events.send(refusal).await.map_err(|_gone| Gone);
        }
        let lifted = self.lift(selector, typed_at, timeout).await;
        own.alone = meant.is_empty();
        if own.alone {
            if own.targets.is_empty() {
                // Nobody has a delivery of it, which would be noted.
                self.note_release(&who, selector, &lifted);
            }
            match &lifted {
                Ok(None) => own.amend("a drone that comes and is meant is not stopped any more"),
                Ok(Some(note)) => own.amend(note),
                Err(why) => events
                    .send(Event::note(format!("drones that come stay stopped: {why}")))
                    .await
                    .map_err(|_gone| Gone)?,
            }
        } else {
            let strangers = own.forgive(false).then(|| self.strangers(&request)).flatten();
            let note = lifted.as_ref().ok().cloned().flatten();
            for note in strangers.into_iter().chain(note) {
                events.send(Event::note(note)).await.map_err(|_gone| Gone)?;
            }
        }
        let guests: Vec<NodeRef> = meant.iter().map(|guest| guest.node.clone()).collect();
        let targets: Vec<NodeRef> = own.targets.iter().chain(&guests).cloned().collect();
        if !targets.is_empty() {
            let targets = Event::Targets { targets };
            events.send(targets).await.map_err(|_gone| Gone)?;
        }
        let (to, told) = mpsc::channel(EVENTS_MAX);
        if guests.is_empty() {
            drop(to);
            return own.join(told, &events).await;
        }
        let record = Record {
            origin: Origin {
                kind: CommandKind::Release,
                ..Origin::command_by(who.clone())
            },
            action: CommandKind::Release.as_str().to_owned(),
            arguments: "null".to_owned(),
            lane: Lane::Emergency,
            selector: selector.as_str().to_owned(),
            ttl_ms: *timeout_ms,
            deliveries: Vec::new(),
        };
        let work = lifted.map(|_noted| Work::Release).map_err(Reply::refused);
        let jobs = meant.into_iter().map(|guest| job(guest, 0, work.clone()));
        let terms = waiting(timeout, timeout);
        let number = self.hand_out_release(jobs.collect(), record, terms, to).await;
        let subject = Subject {
            kind: CommandKind::Release,
            what: CommandKind::Release.as_str().to_owned(),
            who,
            number,
        };
        let told = self.overhear(subject, guests, told);
        own.join(told, &events).await
    }

    fn note_release(&self, who: &str, selector: &Selector, lifted: &Result<Option<String>, String>) {
        let outcome = match lifted {
            Ok(_note) => "of drones that come".to_owned(),
            Err(why) => format!("not done: {why}"),
        };
        let (store, who, selector) = (self.store.clone(), who.to_owned(), selector.as_str().to_owned());
        self.tasks.spawn(async move {
            history_writer::write_audit_entry(&store, &who, "release", &selector, &outcome).await;
        });
    }

    /// Unlike what acts, it goes out whatever becomes of the history: a full disk is no reason to keep drones stopped.
    async fn hand_out_release(
        &self,
        jobs: Vec<Job>,
        mut record: Record,
        terms: Terms,
        to: mpsc::Sender<Event>,
    ) -> Option<u64> {
        record.deliveries = jobs.iter().map(noted).collect();
        let what = record.action.clone();
        let nodes = jobs.iter().map(|job| job.guest.node.id).collect();
        let mut recording = {
            let store = self.store.clone();
            Box::pin(async move { store.record(record).await })
        };
        let store = self.store.clone();
        let (number, ends) = match tokio::time::timeout(terms.begin, &mut recording).await {
            Ok(Ok(number)) => (Some(number), Some(Ends::Of { store, number })),
            Ok(Err(error)) => {
                tracing::error!(%error, "a release of drones is not in the history");
                (None, None)
            }
            Err(_elapsed) => {
                tracing::error!("a release of drones does not wait for the history any longer");
                let given_up = Reply::ended(Outcome::Unknown, "this station stopped midway");
                let ends = history_writer::record_ends_in_background(
                    &self.tasks,
                    store,
                    (what, nodes),
                    recording,
                    given_up,
                );
                (None, Some(Ends::Later(ends)))
            }
        };
        let tasks = self.tasks.clone();
        let history = ends.map(|ends| History { ends, tasks });
        // Not before it is handed out, that it may wait for its turn.
        let terms = Terms {
            started: clock::now(),
            ..terms
        };
        self.tasks.spawn(work::run(jobs, terms, history, to));
        number
    }

    /// A stop that means no guest who is here: whoever asked is told that it is in force all the same, should it fail.
    pub(super) fn stop_those_that_come(&self, call: RequestEnvelope) -> RequestEnvelope {
        self.amended(call, |event| {
            if let Event::Failed { message, .. } = event {
                message.push_str("; a drone that comes and is meant is stopped");
            }
        })
    }

    /// A call of which the engine says that somebody is not known: whoever asked is told which guests are, and that.
    pub(super) fn amended(
        &self,
        call: RequestEnvelope,
        amend: impl Fn(&mut Event) + Send + 'static,
    ) -> RequestEnvelope {
        let RequestEnvelope {
            request,
            events,
            user: who,
        } = call;
        let (to, mut from) = mpsc::channel(EVENTS_MAX);
        let guests = self.guests.clone();
        self.tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    biased;
                    () = events.closed() => return,
                    event = from.recv() => event,
                };
                let Some(mut event) = event else { return };
                guests.name_in(&mut event);
                amend(&mut event);
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        let events = to;
        RequestEnvelope {
            request,
            events,
            user: who,
        }
    }

    /// What to tell of stops that stand.
    pub(super) fn standing_stops(&self) -> Option<String> {
        let stops = self.guests.standing().stops();
        let shown: Vec<String> = stops
            .iter()
            .take(STOPS_SHOWN)
            .map(|stop| format!("{stop:?}"))
            .collect();
        (!stops.is_empty()).then(|| {
            format!(
                "a stop of {} is in force for drones of other programs, also for those that come; `release` ends it",
                shown.join(" and of ")
            )
        })
    }

    /// What to tell of a release that has taken effect; or why it has not.
    async fn lift(
        &self,
        selector: &Selector,
        typed_at: u64,
        timeout: Duration,
    ) -> Result<Option<String>, String> {
        let standing = self.guests.standing();
        let lifted = self.guests.release(selector, typed_at);
        let Some(version) = lifted.map_err(|not| not.to_string())? else {
            return Ok(None);
        };
        let why = match tokio::time::timeout(timeout, standing.stored(version)).await {
            Ok(Ok(())) => return Ok(None),
            Ok(Err(why)) => why,
            Err(_elapsed) => "the disk takes long".to_owned(),
        };
        Ok(Some(format!(
            "drones are released, but that is not stored yet: should this station start again before it is, they \
             are stopped again ({why})"
        )))
    }
}

/// A stop that is on its way to guests.
#[derive(Default)]
pub(super) struct Stopping {
    targets: Vec<NodeRef>,
    told: Option<mpsc::Receiver<Event>>,
    over: CancellationToken,
    note: Option<&'static str>,
}
