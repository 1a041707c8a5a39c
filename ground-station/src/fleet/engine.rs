//! The engine: one task that answers [`Call`]s from what the store knows.

use std::path::PathBuf;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerKind;
use swarm_shared::proto::selector::{Selector, Target};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Call, Event, Failure, Fleet, MemberView, NodeState, NodeView, PendingView, Request};
use crate::config::Config;
use crate::store::{MemberRow, Store, StoreError};

/// How long the engine may take to stop.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// Where keys and members are kept; this process owns it.
    pub state_dir: PathBuf,
    /// Whether it stays up (`serve`, `nodes --watch`) or goes after one request.
    pub stays: bool,
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    fleet: Fleet,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Engine {
    /// Starts the engine.
    ///
    /// # Errors
    /// [`EngineError`]; then nothing runs.
    pub async fn start(settings: Settings) -> Result<Self, EngineError> {
        let store = Store::open(&settings.state_dir).await?;
        let (fleet, calls) = Fleet::local();
        let stop = CancellationToken::new();
        let task = tokio::spawn(stop.clone().run_until_cancelled_owned(work(store, calls)));
        Ok(Self {
            fleet,
            stop,
            task: tokio::spawn(async move { task.await.map_or((), |_ended| ()) }),
        })
    }

    /// To ask it.
    pub fn fleet(&self) -> Fleet {
        self.fleet.clone()
    }

    /// Stops it, within [`SHUTDOWN_GRACE`].
    pub async fn stop(self) {
        self.stop.cancel();
        if tokio::time::timeout(SHUTDOWN_GRACE, self.task).await.is_err() {
            tracing::warn!(grace = ?SHUTDOWN_GRACE, "the engine outlived shutdown");
        }
    }
}

async fn work(store: Store, mut calls: mpsc::Receiver<Call>) {
    while let Some(Call { request, events }) = calls.recv().await {
        let last = match answer(&store, request, &events).await {
            Ok(last) => last,
            Err(error) => Event::failed(Failure::Failed, error.to_string()),
        };
        // A caller that is gone misses nothing.
        events.send(last).await.ok();
    }
}

async fn answer(store: &Store, request: Request, events: &mpsc::Sender<Event>) -> Result<Event, StoreError> {
    let shown = match request {
        Request::Nodes { selector, .. } | Request::Watch { selector } => nodes(store, &selector).await?,
        Request::Members => store.members().await?.into_iter().map(member).collect(),
        Request::Pending => pending(store).await?,
        Request::Command { selector, .. }
        | Request::SendFiles { selector, .. }
        | Request::Fetch { selector, .. } => {
            let text = format!("no node matches {selector}; see `ground-station nodes`");
            return Ok(Event::failed(Failure::NobodyMatched, text));
        }
        Request::Init
        | Request::Invite { .. }
        | Request::Join { .. }
        | Request::Accept { .. }
        | Request::Revoke { .. } => return Ok(Event::failed(Failure::Failed, "this station has no links")),
    };
    for event in shown {
        if events.send(event).await.is_err() {
            break;
        }
    }
    Ok(Event::End)
}

async fn nodes(store: &Store, selector: &Selector) -> Result<Vec<Event>, StoreError> {
    let members = store.members().await?;
    let wanted = |member: &MemberRow| {
        let target = Target {
            name: &member.name,
            id: &member.key.id(),
            tags: &member.tags,
        };
        member.kind == PeerKind::Node && !member.revoked && selector.matches(&target)
    };
    Ok(members.into_iter().filter(wanted).map(offline).collect())
}

fn offline(member: MemberRow) -> Event {
    Event::Node(NodeView {
        id: member.key.id(),
        state: NodeState::Offline,
        kind: member.kind,
        address: member.address,
        last_heard_ms: heard(member.last_seen_ms),
        tags: member.tags,
        software: None,
        warnings: Vec::new(),
        checks: Vec::new(),
        node: member.name,
    })
}

fn member(member: MemberRow) -> Event {
    Event::Member(MemberView {
        id: member.key.id(),
        kind: member.kind,
        role: member.role,
        revoked: member.revoked,
        address: member.address,
        last_heard_ms: heard(member.last_seen_ms),
        node: member.name,
    })
}

async fn pending(store: &Store) -> Result<Vec<Event>, StoreError> {
    let view = |row: crate::store::PendingRow| {
        Event::Pending(PendingView {
            id: row.key.id(),
            address: row.address,
            waiting_ms: clock::unix_time_ms().saturating_sub(row.first_seen_ms),
            node: row.name,
        })
    };
    Ok(store.pending().await?.into_iter().map(view).collect())
}

fn heard(at_ms: u64) -> Option<u64> {
    (at_ms > 0).then(|| clock::unix_time_ms().saturating_sub(at_ms))
}
