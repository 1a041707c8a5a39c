//! The node as a drone of a clever-show server.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | gateway | the connection, the files that wait, the throttle of its log | at shutdown |
//! | one for each action, request and file under way | its outcome | with the outcome, or with the gateway |
//!
//! The protocol is plain text without authentication: any program at the server's address, or on the path to it, is
//! accepted as the server; with `server = "auto"`, any program that announces itself. So the server may read, and may run
//! what `allow` names as far as `role` permits; anything else is refused at once. Commands run in the order of their
//! arrival, by the priorities of the node's executor: landing actions first, then flight actions, then the rest. What
//! arrives after a pushed file starts once that is stored, landing actions excepted (`file_queue`). A refused or failed
//! action has no answer in the protocol, as with the real program; the log reports it.
//!
//! Invariant: the gateway's task never waits for a disk.

mod file_queue;
mod log;
mod task;
#[cfg(test)]
mod tests;
mod transfers;
mod translate;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use swarm_shared::net::clever_show::{
    Client, ConnectionManager, Event, Options, ReceivedEvent, ReconnectPolicy, ResponseBody, get_ip_address,
};
use swarm_shared::net::roots::Roots;
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::net::sync::Mutex;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::foreign::clever_show::FILE_TRANSFER;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::gate::{ActionClass, Permission, classify, missing_role};
use swarm_shared::proto::wire::CONTENT_BYTES_MAX;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::file_queue::{FileQueue, PushedFile};
use self::log::ThrottledLog;
use self::task::{Limits, PendingRequest, Reservation, Task, TaskKind, TaskWork};
use crate::actions::Actions;
use crate::config::{CleverShow, Server};
use crate::links::local_commands::{LocalCommands, LocalRequest};
use crate::node::Node;
use crate::status::{ServerState, ServerView, Status};

/// The request for the directory of the drone's programs.
const CLOVER_DIR: &str = "clover_dir";
/// The action that a ground station sends to clever-show's drones for an emergency stop, by default.
const STOP_ACTION: &str = "emergency_land";
/// The action that sends readings.
const TELEMETRY: &str = "telemetry";

#[derive(Clone)]
struct CleverShowGateway {
    config: Arc<CleverShow>,
    connection: ConnectionManager,
    actions: Actions,
    local_commands: LocalCommands,
    roots: Roots,
    clover_dir: Option<String>,
    /// Held while a file is read or written: each is in memory as a whole.
    file_lock: Arc<Semaphore>,
    /// When the present connection was made; `None` without one.
    connected_since: Arc<Mutex<Option<Instant>>>,
    limits: Limits,
    log: Arc<ThrottledLog>,
    status: Status,
}

/// Starts the gateway; it ends when the node shuts down.
pub(super) fn open(config: CleverShow, node: &Node, local_commands: LocalCommands) {
    log_warnings(&config, node.actions.is_configured(STOP_ACTION));
    let keepalive = &node.config.keepalive;
    let keepalive = KeepaliveConfig::new(keepalive.idle, keepalive.interval, keepalive.probes);
    let client = match config.server {
        Server::At(addr) => Client::for_server(addr),
        Server::Auto => Client::for_announcements(None, config.announce_port),
    };
    // The start of the links has checked these numbers.
    let client = client.with_keepalive(keepalive.unwrap_or_default());
    let (gateway, incoming) = new_gateway(config, node, local_commands);
    node.tasks
        .spawn(gateway.run(client, incoming, node.shutdown.clone()));
}

fn new_gateway(
    config: CleverShow,
    node: &Node,
    local_commands: LocalCommands,
) -> (CleverShowGateway, mpsc::Receiver<ReceivedEvent>) {
    let (connection, incoming) = ConnectionManager::new(Options {
        // What waited for one server must not reach the next one.
        reconnect: ReconnectPolicy::default(),
        content_bytes_max: config.file_bytes.max(CONTENT_BYTES_MAX),
        rate: config.rate,
        ..Options::default()
    });
    let roots = Roots::new(node.config.root_map());
    let first_root = roots.iter().next().map(|(name, _)| name.to_owned());
    let clover_dir = config.clover_dir.clone().or(first_root);
    let gateway = CleverShowGateway {
        config: Arc::new(config),
        connection,
        actions: node.actions.clone(),
        local_commands,
        roots,
        clover_dir,
        file_lock: Arc::new(Semaphore::new(1)),
        connected_since: Arc::default(),
        limits: Limits::default(),
        log: Arc::new(ThrottledLog::default()),
        status: node.status.clone(),
    };
    (gateway, incoming)
}

fn log_warnings(config: &CleverShow, has_stop: bool) {
    let allow = config.allow.len();
    match config.server {
        Server::At(server) => tracing::warn!(
            target: "gateway", %server, allow, role = %config.role,
            "Clever-show server configured: any program at that address, or on the path to it, can command this node"
        ),
        Server::Auto => tracing::warn!(
            target: "gateway", port = config.announce_port, allow, role = %config.role,
            "Clever-show server configured as \"auto\": any program on this network can announce itself and command this node"
        ),
    }
    if let Some(why) = ignored_stop_reason(config, has_stop) {
        tracing::warn!(
            target: "gateway", why,
            "Emergency stop ineffective: a ground station's stop, which arrives by clever-show as {STOP_ACTION:?}, has no effect on this node"
        );
    }
}

/// Why an emergency stop by clever-show has no effect on this node, and what to do about each reason.
fn ignored_stop_reason(config: &CleverShow, has_stop: bool) -> Option<String> {
    let barred = check_access(config, STOP_ACTION, &Arguments::default()).err();
    // The actions of plug-ins are not known yet at the start.
    let missing = (!has_stop).then(|| {
        format!(
            "the owner has no action of that name: give it a command in [actions.{STOP_ACTION}], unless a plug-in brings it"
        )
    });
    let why: Vec<String> = barred.into_iter().chain(missing).collect();
    (!why.is_empty()).then(|| why.join("; "))
}

/// Checks an action against `role` and `allow` of the configuration.
///
/// # Errors
/// What forbids it, and the key to change.
fn check_access(config: &CleverShow, action: &str, arguments: &Arguments) -> Result<(), String> {
    let class = classify(action, arguments);
    if let Some(lack) = missing_role(config.role, &Permission::Command(class)) {
        // The owner's configuration decides this, not a grant of the fleet.
        return Err(format!("{lack}; see `role` in [gateways.clever_show]"));
    }
    if class == ActionClass::Read || config.allow.iter().any(|glob| glob.matches(action)) {
        return Ok(());
    }
    Err(format!(
        "{action:?} is not allowed; name it in `allow` of [gateways.clever_show]"
    ))
}

impl CleverShowGateway {
    async fn run(self, client: Client, incoming: mpsc::Receiver<ReceivedEvent>, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = self.stay_connected(client) => {}
            () = self.send_readings() => {}
            () = self.serve(incoming) => {}
        }
    }

    async fn stay_connected(&self, mut client: Client) {
        let update_status = |state, addr| {
            let view = ServerView::new(state, addr);
            self.status.update(|facts| facts.clever_show = Some(view));
        };
        update_status(
            ServerState::Looking,
            match self.config.server {
                Server::At(addr) => Some(addr),
                Server::Auto => None,
            },
        );
        loop {
            let (stream, server) = self.next_connection(&mut client).await;
            tracing::info!(target: "gateway", %server, "Clever-show server connected");
            let since = |now| {
                *self.connected_since.lock() = now;
            };
            since(Some(clock::now()));
            update_status(ServerState::Joined, Some(server));
            let ended = self.connection.connect(stream).await;
            since(None);
            update_status(ServerState::Lost, Some(server));
            tracing::info!(target: "gateway", %server, why = %ended, "Clever-show server disconnected");
        }
    }

    /// Waits for the next connection; until then the status says why there is none.
    async fn next_connection(&self, client: &mut Client) -> (TcpStream, SocketAddr) {
        let mut problem = client.last_error();
        let mut connected = std::pin::pin!(client.next_connection());
        loop {
            tokio::select! {
                biased;
                connected = &mut connected => return connected,
                Ok(()) = problem.changed() => {
                    let why = problem.borrow_and_update().clone();
                    if let Some(why) = &why {
                        tracing::warn!(target: "gateway", why, "Clever-show server not reached; retrying");
                    }
                    self.status.update(|facts| {
                        if let Some(view) = &mut facts.clever_show {
                            view.problem = why;
                        }
                    });
                }
            }
        }
    }

    /// Sends readings at the configured interval. A reading that still waits is replaced by the next one.
    async fn send_readings(&self) {
        if !self.config.telemetry {
            return std::future::pending().await;
        }
        let mut ticks = tokio::time::interval(self.config.telemetry_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.send_reading().await;
        }
    }

    async fn send_reading(&self) {
        let connected = || *self.connected_since.lock();
        let Some(before) = connected() else { return };
        let value = translate::readings(self.actions.telemetry_sample().await, unix_time_s());
        // A sample may take long, as from a slow disk. If the connection has changed, the reading would go to the next
        // server. It cannot change between this check and the send: the same task drives it.
        if connected() != Some(before) {
            return;
        }
        let mut arguments = Arguments::default();
        arguments.kwargs.insert("value".to_owned(), Value::Object(value));
        if let Err(error) = self.connection.send_latest(TELEMETRY, arguments) {
            self.log
                .record(self.server(), "message", TELEMETRY, Err(error.to_string()));
        }
    }

    async fn serve(&self, mut incoming: mpsc::Receiver<ReceivedEvent>) {
        let mut files = FileQueue::new(self.config.file_bytes);
        let mut tasks = JoinSet::new();
        loop {
            if let Some(file) = files.next() {
                files.store(self.clone().store_file(file));
            }
            let received = tokio::select! {
                biased;
                Some(_ended) = tasks.join_next() => continue,
                end = files.next_end() => {
                    self.local_commands.file_ended(end.file, end.failed).await;
                    continue;
                }
                received = incoming.recv(), if files.has_capacity() => received,
            };
            let Some(ReceivedEvent {
                event,
                earliest_arrival,
            }) = received
            else {
                return;
            };
            match self.receive(event, earliest_arrival) {
                Some(Received::File(file)) => files.push(file),
                Some(Received::Task(task)) => {
                    self.start(task, earliest_arrival, &files, &mut tasks).await;
                }
                None => {}
            }
        }
    }

    /// What to do for an event. Requests that are answered at once and events that are refused are handled here.
    fn receive(&self, event: Event, arrived_at: Instant) -> Option<Received> {
        let (what, name, work) = match event {
            Event::Action { action, arguments } => {
                let work = self.command("action", &action, arguments, None);
                ("action", action, work)
            }
            Event::Request { value, id, arguments } if value == FILE_TRANSFER => {
                let path = arguments.kwargs.get("filepath").and_then(Value::as_str);
                let allowed = self.check_access(FILE_TRANSFER, &Arguments::default());
                let work = allowed.map(|()| (TaskKind::Fetch, TaskWork::Fetch { id }));
                ("file requested", path.unwrap_or_default().to_owned(), work)
            }
            Event::Request { value, id, .. } if value == CLOVER_DIR => {
                let dir = self.clover_dir.clone().map_or(Value::Null, Value::String);
                let answered = self.respond((&value, &id), ResponseBody::Value(dir), arrived_at);
                let answered = answered.map(|()| "done".to_owned());
                self.log.record(self.server(), "request", &value, answered);
                return None;
            }
            Event::Request { value, id, arguments } => {
                let with_spec = translate::wants_spec(&arguments);
                let work = self.command(
                    "request",
                    &value,
                    arguments,
                    Some(PendingRequest { id, with_spec }),
                );
                ("request", value, work)
            }
            // `store_file` checks the permission: a flight after a refused file is refused too.
            Event::File { filepath, bytes } => {
                return Some(Received::File(PushedFile {
                    what: "file pushed",
                    path: filepath,
                    content: Ok(bytes),
                }));
            }
            Event::TooLong { bytes, max } => {
                return Some(Received::File(PushedFile {
                    what: "message",
                    path: "too long".to_owned(),
                    content: Err(format!("{bytes} bytes are more than the {max} allowed; skipped")),
                }));
            }
            Event::InvalidMessage(error) => ("message", "invalid".to_owned(), Err(error.to_string())),
            Event::UnexpectedResponse { value, .. } => {
                ("response", value, Err("no request is open for it".to_owned()))
            }
            // The gateway sends no requests.
            Event::Response { .. } | Event::RequestFailed { .. } => return None,
        };
        match work {
            Ok((kind, work)) => Some(Received::Task(Task {
                kind,
                what,
                name,
                work,
            })),
            Err(reason) => {
                self.log.record(self.server(), what, &name, Err(reason));
                None
            }
        }
    }

    /// The node's command for an action or request of the server.
    ///
    /// # Errors
    /// Why there is none, or why it is not allowed.
    fn command(
        &self,
        what: &str,
        name: &str,
        arguments: Arguments,
        request: Option<PendingRequest>,
    ) -> Result<(TaskKind, TaskWork), String> {
        let own = |name: &str| self.actions.is_configured(name);
        let names = translate::NameSources {
            address: get_ip_address,
            number: || random::jitter() % 10_000,
        };
        let (action, arguments) = match what {
            "request" => translate::request(name, arguments, own, &names),
            _ => translate::action(name, arguments, own, &names),
        }?;
        self.check_access(&action, &arguments)?;
        let kind = TaskKind::for_action(&action, &arguments, self.actions.properties(&action));
        let work = TaskWork::Command {
            action,
            arguments,
            request,
        };
        Ok((kind, work))
    }

    /// Starts a task, or logs why it is not done. Commands are submitted here, in the order of their arrival.
    async fn start(&self, task: Task, arrived_at: Instant, files: &FileQueue, tasks: &mut JoinSet<()>) {
        let (kind, what, name) = (task.kind, task.what, task.name.clone());
        let after_file = files.last_unfinished();
        let without_file = match (kind, after_file) {
            (TaskKind::Flight, None) => files.failure_after(arrived_at),
            _ => None,
        };
        let reserved = match without_file {
            Some(failure) => Err(format!(
                "a file that was pushed before it could not be stored: {failure}"
            )),
            None => self.limits.reserve(&task),
        };
        let reservation = match reserved {
            Ok(reservation) => reservation,
            Err(reason) => {
                if kind == TaskKind::Landing {
                    // Two of this name run: flights from before this one must not start after it all the same.
                    self.local_commands.cancel_waiting_flights().await;
                }
                return self.log.record(self.server(), what, &name, Err(reason));
            }
        };
        let mut pending = PendingTask {
            gateway: self.clone(),
            server: self.server(),
            arrived_at,
            kind,
            what,
            name,
            last_file: files.last_ended(),
            after_file,
            _reservation: reservation,
        };
        let local_commands = self.local_commands.clone();
        match task.work {
            TaskWork::Fetch { id } => {
                tasks.spawn(async move {
                    let _slot = pending.wait_for_turn().await;
                    let result = pending.gateway.send_file(&id, &pending.name, arrived_at).await;
                    pending.log(result);
                });
            }
            TaskWork::Command {
                action,
                arguments,
                request,
            } => {
                let command = LocalRequest {
                    role: self.config.role,
                    action,
                    arguments,
                    arrived_at,
                    // A late action that moves a drone is worse than none; a late landing action is not.
                    is_flight: kind == TaskKind::Flight,
                    after_file: after_file.filter(|_| kind != TaskKind::Landing),
                };
                if kind == TaskKind::Query {
                    tasks.spawn(async move {
                        let _slot = pending.wait_for_turn().await;
                        let outcome = local_commands.submit(command).await;
                        pending.finish(outcome, request).await;
                    });
                } else {
                    let outcome = local_commands.submit(command).await;
                    tasks.spawn(async move { pending.finish(outcome, request).await });
                }
            }
        }
    }

    fn respond(&self, (value, id): (&str, &str), answer: ResponseBody, asked: Instant) -> Result<(), String> {
        self.connection
            .respond_to(value, id, answer, asked)
            .map_err(|error| error.to_string())
    }

    fn check_access(&self, action: &str, arguments: &Arguments) -> Result<(), String> {
        check_access(&self.config, action, arguments)
    }

    fn server(&self) -> Option<SocketAddr> {
        self.connection.addr()
    }
}

/// What the gateway has to do for an event.
enum Received {
    File(PushedFile),
    Task(Task),
}

/// A task of the server's that has been accepted, until its outcome is logged.
struct PendingTask {
    gateway: CleverShowGateway,
    /// The server's address, for the log.
    server: Option<SocketAddr>,
    arrived_at: Instant,
    kind: TaskKind,
    what: &'static str,
    name: String,
    last_file: watch::Receiver<u64>,
    after_file: Option<u64>,
    _reservation: Reservation,
}

impl PendingTask {
    /// Waits for the file before it, and for one of the limited slots.
    async fn wait_for_turn(&mut self) -> Option<OwnedSemaphorePermit> {
        if let Some(file) = self.after_file {
            // This task ends with the gateway, and so before the sender of this channel does.
            drop(self.last_file.wait_for(|ended| *ended >= file).await);
        }
        self.gateway.limits.acquire_slot(self.kind).await
    }

    /// Answers the request, if there is one, with the outcome of its command.
    async fn finish(self, outcome: oneshot::Receiver<Reply>, request: Option<PendingRequest>) {
        let reply = wait_for_reply(outcome).await;
        let mut result = self::outcome(&reply);
        if let Some(PendingRequest { id, with_spec }) = request
            && let Some(value) = translate::response_value(&self.name, &reply, with_spec, unix_time_s())
        {
            let request = (self.name.as_str(), id.as_str());
            let responded = self
                .gateway
                .respond(request, ResponseBody::Value(value), self.arrived_at);
            result = responded.and(result);
        }
        self.log(result);
    }

    fn log(&self, result: Result<String, String>) {
        self.gateway
            .log
            .record(self.server, self.what, &self.name, result);
    }
}

async fn wait_for_reply(outcome: oneshot::Receiver<Reply>) -> Reply {
    let lost = |_: oneshot::error::RecvError| Reply::failed("the node is shutting down");
    outcome.await.unwrap_or_else(lost)
}

/// What the log says about a reply.
fn outcome(reply: &Reply) -> Result<String, String> {
    match (reply.state, &reply.error) {
        (Outcome::Done, _) => Ok(reply.state.to_string()),
        (state, Some(error)) => Err(format!("{state}: {error}")),
        (state, None) => Err(state.to_string()),
    }
}

/// Seconds since 1970, as clever-show counts time.
fn unix_time_s() -> f64 {
    Duration::from_millis(clock::unix_time_ms()).as_secs_f64()
}

/// A drone's readings by name.
type Readings = Map<String, Value>;
