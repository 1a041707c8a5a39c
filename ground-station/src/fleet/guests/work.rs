//! Orders to guests, and how each ends: told to whoever asked, and kept in the history if it acts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::roots::Roots;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::{Outcome, Reply};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Answer, Meant, Order, Work, files};
use crate::fleet::engine::history_writer;
use crate::fleet::{Batch, Delivery, Event, NodeRef};
use crate::store::{DeliveryEnd, Store};

/// How often a guest is told once more to stop, while whoever asked for it waits for others.
const STOP_EVERY: Duration = Duration::from_secs(1);
/// How long the door of a guest may take to say that a question has no answer.
const ANSWER_GRACE: Duration = Duration::from_millis(500);
/// Why a later batch is not sent.
pub(super) const BATCH_FAILED: &str = "not sent: an earlier batch failed";
pub(super) const ASKER_GONE: &str = "not sent: whoever asked for it went away";
/// Longer than anybody waits.
const FOREVER: Duration = Duration::from_secs(24 * 60 * 60);

/// One delivery.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) guest: Meant,
    /// Tells several for one guest apart.
    pub(super) part: u32,
    /// What it is about, for the history.
    pub(super) about: Option<String>,
    /// What; or how it ends without being tried.
    pub(super) work: Result<Work, Reply>,
    /// Which file it sends: it is read when its turn comes.
    pub(super) file: Option<Arc<files::Source>>,
    /// Where a file goes.
    pub(super) copy: Option<Copy>,
}

/// Where a fetched file goes.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) roots: Roots,
    pub(super) dir: PathBuf,
    pub(super) name: String,
}

/// Until when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// From then, milliseconds count.
    pub(super) started: Instant,
    /// It must not begin later.
    pub(super) begin: Duration,
    /// An answer is not waited for longer, once it has its turn.
    pub(super) answer: Duration,
    /// A file waits no longer for room in memory, counted from its turn and from when some became free last.
    pub(super) room: Duration,
    /// Whoever asked waits no longer, though it goes on.
    pub(super) patience: Option<Duration>,
    pub(super) batch: Option<Batch>,
}

/// Where ends are kept.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// Of what.
    pub(super) ends: Ends,
    /// For what goes on though nobody waits for it any more.
    pub(super) tasks: TaskTracker,
}

/// What ends are of.
#[derive(Clone, Debug)]
pub(super) enum Ends {
    /// Of what is stored, under this number.
    Of { store: Store, number: u64 },
    /// Of what is still on its way to the disk: see [`recorder::ends_of`].
    Later(mpsc::Sender<DeliveryEnd>),
}

impl History {
    pub(super) async fn keep(&self, node: &NodeRef, part: u32, reply: Reply) {
        let end = DeliveryEnd {
            node: node.id,
            part,
            reply,
        };
        match &self.ends {
            Ends::Of { store, number } => {
                history_writer::store_ends(&self.tasks, store, Some(*number), vec![end]).await;
            }
            Ends::Later(ends) => {
                // There is room for each, unless nothing of it could be stored.
                let _not_kept = ends.try_send(end);
            }
        }
    }
}

/// How what never left its queue ends.
pub(super) fn closed() -> Reply {
    Reply::ended(Outcome::NoAnswer, "its door is closed: nothing was sent")
}

/// How what was asked for before a stop ends.
pub(super) fn withdrawn() -> Reply {
    Reply::refused("withdrawn by an emergency stop: give it again after the release")
}

/// Hands out all orders, a batch at a time, and tells how each ended. What is for one guest goes one after the other.
pub(super) async fn run(jobs: Vec<Job>, terms: Terms, history: Option<History>, events: mpsc::Sender<Event>) {
    let size = terms
        .batch
        .map_or(jobs.len(), |batch| batch.size.node_count(jobs.len()));
    let mut withheld = None;
    for (place, batch) in jobs.chunks(size.max(1)).enumerate() {
        if place > 0 && withheld.is_none() {
            let wait = terms.batch.map_or(0, |batch| batch.wait_ms);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            // Nobody sees to later batches any more.
            withheld = events.is_closed().then_some(ASKER_GONE);
        }
        // The first counts from when it was asked for: it may have waited for a disk since.
        let issued = if place == 0 { terms.started } else { clock::now() };
        let mut ends = JoinSet::new();
        for mut parts in by_guest(batch) {
            if let Some(why) = withheld {
                for job in &mut parts {
                    job.work = Err(Reply::refused(why));
                }
            }
            ends.spawn(carry_all(parts, (terms, issued), history.clone(), events.clone()));
        }
        let mut done = true;
        while let Some(end) = ends.join_next().await {
            done &= end.is_ok_and(|all_done| all_done);
        }
        if withheld.is_none() && events.is_closed() {
            // Whether it would have been done, nobody has waited to see.
            withheld = Some(ASKER_GONE);
        } else if withheld.is_none() && !done && !terms.batch.is_some_and(|batch| batch.keep_going) {
            withheld = Some(BATCH_FAILED);
        }
    }
}

/// What is for one guest together, in its order.
fn by_guest(jobs: &[Job]) -> Vec<Vec<Job>> {
    let mut places: BTreeMap<PeerId, usize> = BTreeMap::new();
    let mut all: Vec<Vec<Job>> = Vec::new();
    for job in jobs {
        let place = *places.entry(job.guest.node.id).or_insert(all.len());
        match all.get_mut(place) {
            Some(parts) => parts.push(job.clone()),
            None => all.push(vec![job.clone()]),
        }
    }
    all
}

/// All that is for one guest, one after the other; whether all is done.
async fn carry_all(
    parts: Vec<Job>,
    (terms, mut issued): (Terms, Instant),
    history: Option<History>,
    events: mpsc::Sender<Event>,
) -> bool {
    let (mut done, mut left, mut turn) = (true, parts.len(), clock::now());
    for job in parts {
        left -= 1;
        let times = (terms, issued, turn);
        let Carried { mut state, rest } = carry(job, times, history.clone(), events.clone()).await;
        done &= state == Outcome::Done;
        if left == 0 {
            break;
        }
        if let Some(rest) = rest {
            state = rest.await.unwrap_or(Outcome::Unknown);
        }
        // What it took counts for the next one if the guest takes nothing.
        if state == Outcome::Done {
            issued = clock::now();
            turn = issued;
        }
    }
    done
}

/// What has become of a delivery.
struct Carried {
    /// As far as whoever asked is told.
    state: Outcome,
    /// Its end, if that is still to come.
    rest: Option<JoinHandle<Outcome>>,
}

impl From<Outcome> for Carried {
    fn from(state: Outcome) -> Self {
        Self { state, rest: None }
    }
}

/// One delivery, to its end. What acts goes on though nobody waits for it any more.
async fn carry(
    job: Job,
    (terms, mut issued, turn): (Terms, Instant, Instant),
    history: Option<History>,
    events: mpsc::Sender<Event>,
) -> Carried {
    let Job {
        guest,
        part,
        about: _,
        mut work,
        file,
        copy,
    } = job;
    let mut held = None;
    if let (Ok(Work::Push { content, .. }), Some(file)) = (&mut work, file) {
        let before = clock::now();
        let wait = files::Wait {
            since: turn,
            longest: terms.room,
            asker: &events,
        };
        let read = tokio::select! {
            biased;
            () = guest.is_stopped_anew() => Err(withdrawn()),
            read = file.read(guest.file_bytes_max, wait) => read,
        };
        match read {
            Ok(read) => {
                *content = read.content.clone();
                held = Some(read);
            }
            Err(why) => work = Err(why),
        }
        // Others' files that went out before it do not use up its time.
        issued += clock::since(before);
    }
    let now = clock::now();
    let placed = work.and_then(|work| {
        let times = Times {
            issued,
            begin: issued + terms.begin,
            answer: now + terms.answer,
        };
        match guest.overtaken(&work) {
            Some(why) => Err(why),
            None => place(&guest.orders, work, times),
        }
    });
    let mut reply = match placed {
        Ok(reply) => reply,
        Err(reply) => {
            if let Some(history) = &history {
                history.keep(&guest.node, part, reply.clone()).await;
            }
            return tell(&events, guest.node, reply, terms.started).await.into();
        }
    };
    // A question's door knows best why there is no answer, and says it when its time is up.
    let grace = if history.is_none() {
        ANSWER_GRACE
    } else {
        Duration::ZERO
    };
    let give_up = now + terms.patience.unwrap_or(FOREVER) + grace;
    let first = tokio::select! {
        biased;
        answer = &mut reply => Some(answer),
        () = events.closed() => None,
        () = clock::sleep_until(give_up) => None,
    };
    let (Some(history), None) = (&history, &first) else {
        let reply = match first {
            Some(answer) => ended(answer, copy).await,
            None => Reply::ended(
                Outcome::NoAnswer,
                "no answer to it in time, and its door does not say why",
            ),
        };
        if let Some(history) = &history {
            history.keep(&guest.node, part, reply.clone()).await;
        }
        return tell(&events, guest.node, reply, terms.started).await.into();
    };
    let state = tell(
        &events,
        guest.node.clone(),
        no_answer(terms.patience),
        terms.started,
    )
    .await;
    // Whoever asked is not kept from its end meanwhile.
    drop(events);
    let history = history.clone();
    let rest = history.tasks.clone().spawn(async move {
        let end = ended(reply.await, copy).await;
        drop(held);
        let state = end.state;
        history.keep(&guest.node, part, end).await;
        state
    });
    Carried {
        state,
        rest: Some(rest),
    }
}

fn no_answer(patience: Option<Duration>) -> Reply {
    let waited = patience.unwrap_or(FOREVER).as_secs_f64();
    let text = format!("no word of it within {waited} s; it may still go out: see `ground-station history`");
    Reply::ended(Outcome::NoAnswer, text)
}

async fn ended(answer: Result<Answer, oneshot::error::RecvError>, copy: Option<Copy>) -> Reply {
    match (answer, copy) {
        (Ok(Answer::Reply(reply)), _) => reply,
        (Ok(Answer::File(content)), Some(copy)) => files::write(content, copy).await,
        (Ok(Answer::File(_)), None) => Reply::failed("it answered with a file that nobody asked for"),
        (Err(_dropped), _) => Reply::ended(Outcome::Unknown, "this station stopped midway"),
    }
}

async fn tell(events: &mpsc::Sender<Event>, node: NodeRef, reply: Reply, started: Instant) -> Outcome {
    let state = reply.state;
    let ms = clock::since(started).as_secs_f64() * 1_000.0;
    let _caller_gone = events.send(Event::Delivery(Delivery::new(node, reply, ms))).await;
    state
}

/// Of one order.
#[derive(Clone, Copy, Debug)]
struct Times {
    issued: Instant,
    begin: Instant,
    answer: Instant,
}

fn place(orders: &mpsc::Sender<Order>, work: Work, times: Times) -> Result<oneshot::Receiver<Answer>, Reply> {
    let Times {
        issued,
        begin,
        answer,
    } = times;
    let (reply, told) = oneshot::channel();
    let order = Order {
        work,
        issued,
        begin,
        answer,
        reply,
    };
    match orders.try_send(order) {
        Ok(()) => Ok(told),
        Err(mpsc::error::TrySendError::Full(_)) => {
            Err(Reply::refused("busy: too much waits for this drone; try again"))
        }
        Err(mpsc::error::TrySendError::Closed(_)) => Err(closed()),
    }
}

/// How a stop is given.
pub(super) struct Stop {
    pub(super) timeout: Option<Duration>,
    /// When nobody waits for it any more.
    pub(super) over: CancellationToken,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) tasks: TaskTracker,
}

/// Stops guests: each is told at once, or as soon as it is back, and then again and again until it is over. `history`
/// is asked where ends are noted, once the orders are out.
pub(super) fn stop(guests: Vec<Meant>, stop: Stop, history: impl FnOnce(Reply) -> mpsc::Sender<DeliveryEnd>) {
    let Stop {
        timeout,
        over,
        events,
        tasks,
    } = stop;
    let started = clock::now();
    let give_up = started + timeout.unwrap_or(FOREVER);
    let placed: Vec<_> = guests
        .into_iter()
        .map(|guest| {
            let times = Times {
                issued: started,
                begin: give_up,
                answer: give_up,
            };
            (place(&guest.stops, Work::Stop, times), guest)
        })
        .collect();
    let given_up = Reply::ended(
        Outcome::NoAnswer,
        "not told yet, and whoever asked for it went away: it is told when it is back",
    );
    let ends = history(given_up);
    for (placed, guest) in placed {
        let (ends, over, events) = (ends.clone(), over.clone(), events.clone());
        tasks.spawn(async move {
            let reply = match placed {
                Ok(answer) => tokio::select! {
                    biased;
                    answer = answer => ended(answer, None).await,
                    () = over.cancelled() => return,
                },
                Err(reply) => reply,
            };
            let sent = reply.state == Outcome::Done;
            let reply = if sent {
                Reply::ended(Outcome::Unknown, "sent; this drone cannot confirm a stop")
            } else {
                reply
            };
            let end = DeliveryEnd {
                node: guest.node.id,
                part: 0,
                reply: reply.clone(),
            };
            // There is room for each guest's.
            let _not_kept = ends.try_send(end);
            drop(ends);
            tell(&events, guest.node.clone(), reply, started).await;
            drop(events);
            while sent
                && over
                    .run_until_cancelled(tokio::time::sleep(STOP_EVERY))
                    .await
                    .is_some()
            {
                let issued = clock::now();
                let times = Times {
                    issued,
                    begin: issued + STOP_EVERY,
                    answer: issued + STOP_EVERY,
                };
                if let Ok(answer) = place(&guest.stops, Work::Stop, times) {
                    let _however = over.run_until_cancelled(answer).await;
                }
            }
        });
    }
}
