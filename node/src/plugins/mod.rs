//! Plug-ins: programs on this device that add actions, requests and readings, over `plugin.sock`.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | listener ([`serve`]) | the socket | at shutdown |
//! | one for each plug-in | its connection, its open calls, its entry in the table | with the connection, or at shutdown |
//!
//! [`swarm_shared::proto::foreign::plugin`] decides what a message means; this module carries it out. A plug-in never
//! delays the node: queues are bounded, a full one is `busy` at once, and a plug-in that does not read is
//! disconnected.
//!
//! Invariants: a name belongs to one action at a time, and built-in actions and the owner's actions take precedence
//! over plug-ins; a plug-in is in the table exactly as long as its connection lives; a call whose caller has stopped
//! waiting is cancelled.

mod connection;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::{Map, Value, json};
use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::foreign::plugin::{
    Call, Callable, CallableKind, PLUGINS_MAX, Registration, register_error,
};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{BUILT_IN_ACTIONS, Config};
use crate::status::{self, PluginView};

/// Calls of one plug-in that wait for its task; one more is refused as busy.
const CALL_QUEUE_MAX: usize = 32;
/// Time to send the refusal of a plug-in above the limit.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(200);

/// The connected plug-ins. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plugins {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Names of the owner's actions.
    configured_actions: BTreeSet<String>,
    table: Mutex<BTreeMap<String, Plugin>>,
    changes: watch::Sender<u64>,
    last_call_number: AtomicU64,
}

#[derive(Debug)]
struct Plugin {
    registration: Registration,
    calls: CallSender,
    pid: Option<i32>,
    since: Instant,
    readings: BTreeMap<String, (Value, Instant)>,
}

/// Sends calls to the task of a plug-in.
#[derive(Clone, Debug)]
struct CallSender {
    queue: mpsc::Sender<CallRequest>,
    /// Notified when a caller stops waiting; the task then finds the closed calls.
    abandoned: Arc<Notify>,
}

/// A call for the task of a plug-in. Its caller has stopped waiting once `done` is closed.
#[derive(Debug)]
struct CallRequest {
    call: Call,
    reply: oneshot::Sender<Reply>,
}

/// An action or a request of a plug-in, ready to be called.
#[derive(Clone, Debug)]
pub struct PluginAction {
    /// Name of the action or request.
    pub name: String,
    /// Name of the plug-in.
    pub plugin: String,
    /// Properties, time-out and argument rules from the registration.
    pub entry: Callable,
    calls: CallSender,
    number: u64,
}

impl Plugins {
    /// No plug-ins. Names that `config` uses are refused to plug-ins.
    pub fn new(config: &Config) -> Self {
        Self {
            inner: Arc::new(Inner {
                configured_actions: config
                    .actions
                    .keys()
                    .map(|name| name.as_str().to_owned())
                    .collect(),
                table: Mutex::default(),
                changes: watch::Sender::new(0),
                last_call_number: AtomicU64::new(0),
            }),
        }
    }

    /// The action or request of this name.
    pub fn find(&self, name: &str) -> Option<PluginAction> {
        let table = self.table();
        let mut all = table.iter();
        all.find_map(|(plugin, entry)| {
            Some(self.action(plugin, entry, name, entry.registration.callables.get(name)?))
        })
    }

    /// All actions and requests, sorted by name.
    pub fn actions(&self) -> Vec<PluginAction> {
        let table = self.table();
        let of = |(plugin, at): (&String, &Plugin)| -> Vec<PluginAction> {
            let all = at.registration.callables.iter();
            all.map(|(name, entry)| self.action(plugin, at, name, entry))
                .collect()
        };
        let mut all: Vec<PluginAction> = table.iter().flat_map(of).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn action(&self, plugin: &str, at: &Plugin, name: &str, entry: &Callable) -> PluginAction {
        PluginAction {
            name: name.to_owned(),
            plugin: plugin.to_owned(),
            entry: entry.clone(),
            calls: at.calls.clone(),
            number: self.inner.last_call_number.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// Changes whenever a plug-in registers or disconnects.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The newest readings by plug-in and field; `None` without readings.
    pub fn readings(&self, now: Instant) -> Option<Value> {
        let table = self.table();
        let mut all = Map::new();
        for (name, plugin) in table.iter().filter(|(_, plugin)| !plugin.readings.is_empty()) {
            let mut fields = Map::new();
            for (field, (value, at)) in &plugin.readings {
                let age = now.saturating_duration_since(*at).as_millis();
                let seconds = u32::try_from(age).map_or(f64::from(u32::MAX), f64::from) / 1000.0;
                let mut told = json!({ "value": value, "age_s": seconds });
                let unit = plugin
                    .registration
                    .fields
                    .get(field)
                    .filter(|unit| !unit.is_empty());
                if let (Some(unit), Some(told)) = (unit, told.as_object_mut()) {
                    told.insert("unit".to_owned(), unit.as_str().into());
                }
                fields.insert(field.clone(), told);
            }
            all.insert(name.clone(), Value::Object(fields));
        }
        (!all.is_empty()).then_some(Value::Object(all))
    }

    /// The plug-ins as `status` shows them.
    pub fn views(&self) -> Vec<PluginView> {
        let names = |plugin: &Plugin, kind: CallableKind| {
            let entries = plugin.registration.callables.iter();
            entries
                .filter(|(_, entry)| entry.kind == kind)
                .map(|(name, _)| name.clone())
                .collect()
        };
        let view = |(name, plugin): (&String, &Plugin)| PluginView {
            name: name.clone(),
            pid: plugin.pid,
            actions: names(plugin, CallableKind::Action),
            requests: names(plugin, CallableKind::Request),
            telemetry: plugin.registration.fields.keys().cloned().collect(),
            up_s: 0,
            since: Some(plugin.since),
        };
        self.table().iter().map(view).collect()
    }

    /// Registers a plug-in until the returned guard is dropped.
    fn register(
        &self,
        registration: Registration,
        calls: CallSender,
        pid: Option<i32>,
    ) -> Result<PluginGuard, String> {
        let name = registration.name.clone();
        let mut table = self.table();
        if let Some(other) = table.get(&name) {
            let pid = other
                .pid
                .map_or_else(String::new, |pid| format!(", process {pid}"));
            return Err(format!(
                "a plug-in called {name:?} is connected already{pid}; choose another name"
            ));
        }
        for action in registration.callables.keys() {
            let taken = if BUILT_IN_ACTIONS.contains(&action.as_str()) {
                Some("a built-in action".to_owned())
            } else if self.inner.configured_actions.contains(action) {
                Some("an action of the node's configuration".to_owned())
            } else {
                let of = |(name, other): (&String, &Plugin)| {
                    other
                        .registration
                        .callables
                        .contains_key(action)
                        .then(|| format!("the plug-in {name:?}"))
                };
                table.iter().find_map(of)
            };
            if let Some(taken) = taken {
                return Err(format!("{action:?} is the name of {taken}; choose another"));
            }
        }
        let plugin = Plugin {
            registration,
            calls,
            pid,
            since: clock::now(),
            readings: BTreeMap::new(),
        };
        table.insert(name.clone(), plugin);
        drop(table);
        self.notify_changed();
        Ok(PluginGuard {
            plugins: self.clone(),
            name,
        })
    }

    fn notify_changed(&self) {
        self.inner
            .changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Plugin>> {
        self.inner.table.lock()
    }
}

/// An entry in the table. Dropping it removes everything that the plug-in offers.
#[derive(Debug)]
struct PluginGuard {
    plugins: Plugins,
    name: String,
}

impl PluginGuard {
    /// Stores the newest value of each field.
    fn record_readings(&self, fields: Vec<(String, Value)>, now: Instant) {
        if let Some(plugin) = self.plugins.table().get_mut(&self.name) {
            plugin
                .readings
                .extend(fields.into_iter().map(|(name, value)| (name, (value, now))));
        }
    }
}

impl Drop for PluginGuard {
    fn drop(&mut self) {
        self.plugins.table().remove(&self.name);
        self.plugins.notify_changed();
    }
}

impl PluginAction {
    /// Calls the plug-in. Dropping the future cancels the call.
    pub async fn call(self, arguments: Arguments, deadline: Option<Instant>) -> Reply {
        let (name, plugin) = (self.name, self.plugin);
        let call = Call {
            number: self.number,
            name: name.clone(),
            arguments,
            deadline,
        };
        let (done, reply) = oneshot::channel();
        match self.calls.queue.try_send(CallRequest { call, reply: done }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Reply::refused(format!(
                    "busy: {CALL_QUEUE_MAX} calls wait for the plug-in {plugin}; try again"
                ));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Reply::refused(format!("the plug-in {plugin} went away before {name} began"));
            }
        }
        let mut waiting = ReplyWaiter {
            reply,
            abandoned: self.calls.abandoned,
        };
        let reply = (&mut waiting.reply).await;
        reply
            .unwrap_or_else(|_gone| Reply::failed(format!("the plug-in {plugin} went away while {name} ran")))
    }
}

/// Cancels the call when its caller is dropped.
struct ReplyWaiter {
    reply: oneshot::Receiver<Reply>,
    abandoned: Arc<Notify>,
}

impl Drop for ReplyWaiter {
    fn drop(&mut self) {
        // In this order, so that the task sees the closed call when it wakes.
        self.reply.close();
        self.abandoned.notify_one();
    }
}

/// Accepts plug-ins until `shutdown`. `welcome` is the response to a registration.
pub async fn serve(
    listener: UnixListener,
    plugins: Plugins,
    welcome: impl Fn() -> Value,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(PLUGINS_MAX));
    loop {
        let Some(stream) = status::accept(&listener, "plug-ins", &shutdown).await else {
            return;
        };
        match slots.clone().try_acquire_owned() {
            Ok(slot) => {
                let serve = connection::serve(stream, plugins.clone(), welcome(), shutdown.clone());
                tasks.spawn(async move {
                    serve.await;
                    drop(slot);
                });
            }
            Err(_full) => reject(stream).await,
        }
    }
}

async fn reject(mut stream: UnixStream) {
    let why = format!("busy: {PLUGINS_MAX} plug-ins are connected; end one first");
    tracing::warn!(why, "Plug-in refused: too many are connected");
    let mut bytes = BytesMut::new();
    if register_error(&why).encode(&mut bytes).is_ok() {
        // A new socket has buffer space; a closed one needs no answer.
        let _told = tokio::time::timeout(REFUSAL_TIMEOUT, stream.write_all(&bytes)).await;
    }
}
