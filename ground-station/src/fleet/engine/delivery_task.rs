//! Carries out what the book of deliveries decides: one task owns the book, writes its changes to the store and hands
//! its commands to the links.
//!
//! While one write is under way, further changes gather; they become one transaction. What a verb is told has been
//! stored before. Deliveries go on whether or not a verb still waits for them, and after a restart.
//!
//! A stop's withdrawal is put where the book looks before it does anything else, and wakes it later: the stop itself is
//! sent in between, and nothing that waits is sent after the stop was ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::net::peer::PeerLink;
use swarm_shared::proto::delivery::tracker::{
    Addressee, Book, Change, Effect, Issue, Order, TakenBack, Ticket,
};
use swarm_shared::proto::delivery::{CommandId, Stage};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::wire::Lane;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::store::deliveries::Origin;
use crate::store::{Store, StoreError};

/// Words that wait for the book.
const WORDS_MAX: usize = 1_024;
/// Most changes that become one transaction.
const CHANGES_AT_ONCE: usize = 4_096;
/// How long the last writes may take when the station stops.
const LAST_WRITES_MAX: Duration = Duration::from_secs(2);
/// What one target may be told of: its stages and its end.
const TOLD_PER_TARGET: usize = 5;

/// A command to be issued, and who wants to know of it.
pub(super) struct NewCommand {
    pub(super) action: String,
    pub(super) arguments: String,
    pub(super) lane: Lane,
    pub(super) ttl: Duration,
    /// When it was asked for: its time to live counts from then.
    pub(super) asked: Instant,
    pub(super) selector: String,
    pub(super) targets: Vec<Addressee>,
    pub(super) origin: Origin,
}

/// What whoever issued a command is told.
#[derive(Debug)]
pub(super) enum Told {
    /// It is stored, as this command of the history.
    Issued { id: CommandId, number: u64 },
    /// It was not issued to anybody.
    NotIssued(String),
    /// A node has acknowledged a stage.
    Stage { to: PeerId, stage: Stage },
    /// A delivery has ended, and that is stored.
    Ended { to: PeerId, reply: Reply },
}

/// Word for the book.
pub(super) enum Word {
    Issue(Box<NewCommand>, mpsc::Sender<Told>),
    Release {
        id: CommandId,
        targets: Vec<PeerId>,
        ttl: Duration,
    },
    Withhold {
        id: CommandId,
        why: String,
    },
    TakeBack {
        id: CommandId,
        why: String,
        taken: oneshot::Sender<Taken>,
    },
    Up {
        link: PeerLink,
        resumed: bool,
    },
    Down(PeerId),
    /// There is a withdrawal.
    Withdrawn,
    PutOut(PeerId),
    Stage {
        from: PeerId,
        id: CommandId,
        stage: Stage,
    },
    Reply {
        from: PeerId,
        id: CommandId,
        reply: Reply,
    },
}

/// What waits for these nodes is not to be sent.
#[derive(Debug)]
struct Withdrawal {
    targets: Vec<PeerId>,
    why: String,
    at: Instant,
    /// Is told how many deliveries that were.
    told: oneshot::Sender<usize>,
}

type Withdrawals = Arc<Mutex<Vec<Withdrawal>>>;

/// What came of taking a command back.
pub(super) struct Taken {
    /// These will not be sent.
    pub(super) taken_back: Vec<PeerId>,
    /// These may have it.
    pub(super) sent: Vec<PeerId>,
    /// Said when the ends of those that were taken back are stored.
    pub(super) stored: oneshot::Receiver<()>,
}

/// A handle on the book.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    words: mpsc::Sender<Word>,
    withdrawals: Withdrawals,
}

/// What the handles say.
#[derive(Debug)]
pub(super) struct Words {
    words: mpsc::Receiver<Word>,
    withdrawals: Withdrawals,
}

/// With the book goes whoever waits to hear how many deliveries were withdrawn: nobody would tell.
impl Drop for Words {
    fn drop(&mut self) {
        // First: what is ordered after this is told by `say` that nobody listens.
        self.words.close();
        forget(&self.withdrawals);
    }
}

fn forget(withdrawals: &Withdrawals) {
    withdrawals.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

impl Keeper {
    /// From now on nothing that waits for these nodes is sent. The book sees to it with the next word that it hears,
    /// such as [`Word::Withdrawn`]; how many deliveries that were comes back. It waits for nothing and wakes nobody.
    pub(super) fn withdraw(&self, targets: Vec<PeerId>, why: String) -> oneshot::Receiver<usize> {
        let (told, count) = oneshot::channel();
        let at = clock::now();
        let withdrawal = Withdrawal {
            targets,
            why,
            at,
            told,
        };
        let mut all = self.withdrawals.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(withdrawal);
        count
    }

    /// Says something to the book.
    pub(super) async fn say(&self, word: Word) {
        if self.words.send(word).await.is_err() {
            tracing::debug!("the book of deliveries is closed: the station stops");
            forget(&self.withdrawals);
        }
    }

    /// Issues a command; what becomes of it comes back.
    pub(super) async fn issue(&self, command: NewCommand) -> mpsc::Receiver<Told> {
        let (told, news) = mpsc::channel(command.targets.len() * TOLD_PER_TARGET + 1);
        self.say(Word::Issue(Box::new(command), told)).await;
        news
    }

    /// Takes back what has not been sent of a command; `None` if the station stops.
    pub(super) async fn take_back(&self, id: CommandId, why: String) -> Option<Taken> {
        let (taken, answer) = oneshot::channel();
        self.say(Word::TakeBack { id, why, taken }).await;
        answer.await.ok()
    }
}

/// What comes next.
enum Next {
    Written(Result<Vec<u64>, StoreError>),
    Word(Word),
    Due,
}

/// A write under way: what it is about, and its end.
type Writing = Pin<Box<dyn Future<Output = Result<Vec<u64>, StoreError>> + Send>>;

/// See the module.
pub(super) struct Task {
    book: Book,
    store: Store,
    issuer: PeerId,
    next_id: Arc<std::sync::atomic::AtomicU64>,
    links: BTreeMap<PeerId, PeerLink>,
    listeners: BTreeMap<CommandId, Listener>,
    taking_back: Vec<TakingBack>,
    /// When each node was stopped last, and what to say of that.
    stopped: BTreeMap<PeerId, (Instant, String)>,
    waiting: Vec<(Ticket, Vec<Change>)>,
    /// The tickets of the write under way, and the commands that it begins.
    written: (Vec<Ticket>, Vec<CommandId>),
    writing: Option<Writing>,
}

struct Listener {
    told: mpsc::Sender<Told>,
    origin: Option<Origin>,
    open: usize,
}

/// What has been taken back, and whose end is not stored yet.
struct TakingBack {
    id: CommandId,
    open: BTreeSet<PeerId>,
    stored: oneshot::Sender<()>,
}

impl Task {
    /// Reads what is open from the store.
    pub(super) async fn open(
        store: Store,
        issuer: PeerId,
        next_id: Arc<std::sync::atomic::AtomicU64>,
    ) -> Result<Self, StoreError> {
        let open = store.recover(issuer).await?;
        if !open.is_empty() {
            let deliveries: usize = open.iter().map(|command| command.deliveries.len()).sum();
            tracing::info!(commands = open.len(), deliveries, "going on with what is open");
        }
        Ok(Self {
            book: Book::restore(open),
            store,
            issuer,
            next_id,
            links: BTreeMap::new(),
            listeners: BTreeMap::new(),
            taking_back: Vec::new(),
            stopped: BTreeMap::new(),
            waiting: Vec::new(),
            written: (Vec::new(), Vec::new()),
            writing: None,
        })
    }

    /// The handle, and what it says.
    pub(super) fn channel() -> (Keeper, Words) {
        let (words, receiver) = mpsc::channel(WORDS_MAX);
        let withdrawals = Withdrawals::default();
        let keeper = Keeper {
            words,
            withdrawals: Arc::clone(&withdrawals),
        };
        let words = Words {
            words: receiver,
            withdrawals,
        };
        (keeper, words)
    }

    /// Runs until `stop`; what waits to be written then is written.
    pub(super) async fn run(mut self, mut words: Words, stop: CancellationToken) {
        loop {
            self.carry_out();
            let due = self.book.poll_timeout();
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                done = written(&mut self.writing) => Next::Written(done),
                Some(word) = words.words.recv() => Next::Word(word),
                () = until(due) => Next::Due,
            };
            self.withdraw(&words.withdrawals);
            match next {
                Next::Written(done) => self.take_written(done),
                Next::Word(word) => self.take(word),
                Next::Due => self.book.handle_timeout(clock::now()),
            }
        }
        self.withdraw(&words.withdrawals);
        let last = async {
            self.carry_out();
            while self.writing.is_some() {
                let done = written(&mut self.writing).await;
                self.withdraw(&words.withdrawals);
                self.take_written(done);
                self.carry_out();
            }
        };
        if tokio::time::timeout(LAST_WRITES_MAX, last).await.is_err() {
            tracing::warn!(
                "the last changes of deliveries are not stored; the next start asks the nodes again"
            );
        }
    }

    fn withdraw(&mut self, ordered: &Withdrawals) {
        let ordered = std::mem::take(&mut *ordered.lock().unwrap_or_else(PoisonError::into_inner));
        for Withdrawal {
            targets,
            why,
            at,
            told,
        } in ordered
        {
            let count = self.book.withdraw(&targets, &why, clock::now());
            let stopped = targets.into_iter().map(|target| (target, (at, why.clone())));
            self.stopped.extend(stopped);
            if count > 0 {
                tracing::info!(count, why, "withdrawn");
            }
            let _nobody_waits = told.send(count);
        }
    }

    fn take(&mut self, word: Word) {
        let now = clock::now();
        match word {
            Word::Issue(command, told) => self.issue(*command, told),
            Word::Release { id, targets, ttl } => self.book.release(id, &targets, now + ttl, now),
            Word::Withhold { id, why } => self.book.withhold(id, &why),
            Word::TakeBack { id, why, taken } => self.take_back(id, &why, taken, now),
            Word::Up { link, resumed } => {
                let id = link.id();
                self.links.insert(id, link);
                self.book.up(id, resumed, now);
            }
            Word::Down(id) => {
                self.links.remove(&id);
                self.book.down(id);
            }
            // Before every word.
            Word::Withdrawn => {}
            Word::PutOut(id) => {
                self.links.remove(&id);
                self.book.put_out(id, now);
            }
            Word::Stage { from, id, stage } => self.book.stage(from, id, stage, now),
            Word::Reply { from, id, reply } => self.book.reply(from, id, reply, now),
        }
    }

    fn issue(&mut self, command: NewCommand, told: mpsc::Sender<Told>) {
        // Numbered here, so that the order of issue is that of the numbers.
        let seq = self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = CommandId {
            issuer: self.issuer,
            epoch: self.store.epoch(),
            seq,
        };
        let listener = Listener {
            told,
            origin: Some(command.origin),
            open: command.targets.len(),
        };
        self.listeners.insert(id, listener);
        // It may have been asked for before a stop, and have waited since.
        let stopped = command.targets.iter().filter_map(|target| {
            let (at, why) = self.stopped.get(&target.to)?;
            (*at >= command.asked).then(|| (target.to, why.clone()))
        });
        let stopped: Vec<(PeerId, String)> = stopped.collect();
        self.book.issue(Issue {
            order: Order {
                id,
                action: command.action,
                arguments: command.arguments,
                lane: command.lane,
                life_ms: u64::try_from(command.ttl.as_millis()).unwrap_or(u64::MAX),
            },
            selector: command.selector,
            deadline: command.asked + command.ttl,
            targets: command.targets,
        });
        for (node, why) in stopped {
            self.book
                .take_back(|which, to| *which == id && *to == node, &why, clock::now());
        }
    }

    fn take_back(&mut self, id: CommandId, why: &str, taken: oneshot::Sender<Taken>, now: Instant) {
        let TakenBack { taken_back, sent } = self.book.take_back(|which, _| *which == id, why, now);
        let nodes = |all: Vec<(PeerId, CommandId)>| all.into_iter().map(|(to, _)| to).collect();
        let (taken_back, sent): (Vec<PeerId>, Vec<PeerId>) = (nodes(taken_back), nodes(sent));
        let (stored, when_stored) = oneshot::channel();
        self.taking_back.push(TakingBack {
            id,
            open: taken_back.iter().copied().collect(),
            stored,
        });
        let _gone = taken.send(Taken {
            taken_back,
            sent,
            stored: when_stored,
        });
        self.say_stored();
    }

    /// Tells whoever has taken something back, once all of that is stored.
    fn say_stored(&mut self) {
        let (open, stored): (Vec<_>, Vec<_>) = std::mem::take(&mut self.taking_back)
            .into_iter()
            .partition(|one| !one.open.is_empty() && !one.stored.is_closed());
        self.taking_back = open;
        for one in stored {
            let _gone = one.stored.send(());
        }
    }

    fn carry_out(&mut self) {
        loop {
            let effects = self.book.take_effects();
            if effects.is_empty() {
                break;
            }
            // Nothing overtakes what found no room.
            let mut full = BTreeSet::new();
            for effect in effects {
                match effect {
                    Effect::Store { ticket, changes } => self.waiting.push((ticket, changes)),
                    Effect::Send {
                        to,
                        id,
                        parcel,
                        lane,
                        deadline,
                    } => {
                        let outgoing = Outgoing {
                            parcel,
                            lane,
                            deadline,
                        };
                        let link = self.links.get(&to).filter(|_| !full.contains(&to));
                        if link.is_none_or(|link| link.try_send(outgoing).is_err()) {
                            full.insert(to);
                            self.book.not_sent(to, id, clock::now());
                        }
                    }
                    Effect::Stage { to, id, stage } => self.tell(id, Told::Stage { to, stage }),
                    Effect::Ended { to, id, reply } => {
                        for one in self.taking_back.iter_mut().filter(|one| one.id == id) {
                            one.open.remove(&to);
                        }
                        self.say_stored();
                        self.tell(id, Told::Ended { to, reply });
                        if let Some(listener) = self.listeners.get_mut(&id) {
                            listener.open = listener.open.saturating_sub(1);
                            if listener.open == 0 {
                                self.listeners.remove(&id);
                            }
                        }
                    }
                    Effect::NotIssued { id, why } => {
                        // It was not to be taken back: it never was.
                        for one in self.taking_back.iter_mut().filter(|one| one.id == id) {
                            one.open.clear();
                        }
                        self.say_stored();
                        self.tell(id, Told::NotIssued(why));
                        self.listeners.remove(&id);
                    }
                }
            }
        }
        self.begin_write();
    }

    /// The channel has room for all that a command can ever be told; whoever has gone wants to know no more.
    fn tell(&self, id: CommandId, told: Told) {
        if let Some(listener) = self.listeners.get(&id) {
            let _gone = listener.told.try_send(told);
        }
    }

    fn begin_write(&mut self) {
        if self.writing.is_some() || self.waiting.is_empty() {
            return;
        }
        let (mut tickets, mut all) = (Vec::new(), Vec::new());
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        for (ticket, mut changes) in waiting.by_ref() {
            tickets.push(ticket);
            all.append(&mut changes);
            if all.len() >= CHANGES_AT_ONCE {
                break;
            }
        }
        self.waiting = waiting.collect();
        let (mut begun, mut origins) = (Vec::new(), BTreeMap::new());
        for change in &all {
            if let Change::Issued(issued) = change {
                let id = issued.order.id;
                begun.push(id);
                let origin = self
                    .listeners
                    .get_mut(&id)
                    .and_then(|listener| listener.origin.take());
                origins.extend(origin.map(|origin| (id, origin)));
            }
        }
        self.written = (tickets, begun);
        let store = self.store.clone();
        self.writing = Some(Box::pin(async move { store.keep(all, origins).await }));
    }

    fn take_written(&mut self, done: Result<Vec<u64>, StoreError>) {
        self.writing = None;
        let now = clock::now();
        let (tickets, begun) = std::mem::take(&mut self.written);
        match done {
            Ok(numbers) => {
                for (id, number) in begun.into_iter().zip(numbers) {
                    self.tell(id, Told::Issued { id, number });
                }
                for ticket in tickets {
                    self.book.stored(ticket, now);
                }
            }
            Err(error) => {
                tracing::error!(%error, "deliveries are not stored");
                for ticket in tickets {
                    self.book.store_failed(ticket, &error.to_string(), now);
                }
            }
        }
    }
}

async fn written(writing: &mut Option<Writing>) -> Result<Vec<u64>, StoreError> {
    match writing {
        Some(writing) => writing.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => clock::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
