//! The node as a drone of a clever-show server.
//!
//! | task | owns | ends |
//! |---|---|---|
//! | door | the connection, how often it is told of in the log | at stop |
//! | one for each action or request at work | its end | with it |
//!
//! The protocol is plain text and proves nothing: whoever is at the server's address, or on the way there, is the
//! server; with `server = "auto"` whoever says so in a datagram. So it may look, and do what `allow` names, as far as
//! `role` reaches; what may not pass is refused at once. The rest is done in the order in which it arrives, in lines:
//! actions of flight go past what is slow. What comes after a pushed file begins when that is in its place, but for what
//! ends a flight (`turns`). What is refused or fails gets no answer, as from the real program, for the protocol has none;
//! the log says it.
//!
//! Invariant: the task that hears the server waits for no disk.

mod log;
mod queue;
mod scheduler;
mod task;
#[cfg(test)]
mod tests;
mod translate;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Map, Value};
use swarm_shared::net::clever_show::{
    Client, ConnectionManager, Event, Options, ReceivedEvent, ReconnectPolicy, ResponseBody, files,
    get_ip_address,
};
use swarm_shared::net::roots::{FileError, Roots};
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::net::sync::Mutex;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::foreign::clever_show::FILE_TRANSFER;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::trust::gate::{ActionClass, Permission, classify, missing_role};
use swarm_shared::proto::wire::CONTENT_BYTES_MAX;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::log::ThrottledLog;
use self::queue::{TaskKind, TaskResult};
use self::scheduler::Scheduler;
use self::task::{PendingRequest, Task, TaskWork};
use crate::actions::Actions;
use crate::config::{CleverShow, Server};
use crate::links::local_commands::LocalCommands;
use crate::node::Node;
use crate::status::{ServerState, ServerView, Status};

/// The question for the directory of programs.
const CLOVER_DIR: &str = "clover_dir";
/// What a ground station tells clever-show's drones for an emergency stop, unless its owner says otherwise.
const STOP_ACTION: &str = "emergency_land";
/// The action that brings readings.
const TELEMETRY: &str = "telemetry";

#[derive(Clone)]
struct CleverShowGateway {
    config: Arc<CleverShow>,
    connection: ConnectionManager,
    actions: Actions,
    local_commands: LocalCommands,
    roots: Roots,
    clover_dir: Option<String>,
    /// For one file at a time, as each is held in memory.
    file_lock: Arc<Semaphore>,
    /// Since when there is the connection that there is, if any.
    connected_since: Arc<Mutex<Option<Instant>>>,
    log: Arc<ThrottledLog>,
    status: Status,
}

/// Opens the door; it closes when the node stops.
pub(super) fn open(config: CleverShow, node: &Node, local_commands: LocalCommands) {
    log_warnings(&config, node.actions.is_configured(STOP_ACTION));
    let keepalive = &node.config.keepalive;
    let keepalive = KeepaliveConfig::new(keepalive.idle, keepalive.interval, u32::from(keepalive.probes));
    let client = match config.server {
        Server::At(addr) => Client::for_server(addr),
        Server::Auto => Client::for_announcements(None, config.announce_port),
    };
    // It has been checked where links were started.
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
        // What was for one server is not for the next, which it may be after a while.
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
        log: Arc::new(ThrottledLog::default()),
        status: node.status.clone(),
    };
    (gateway, incoming)
}

fn log_warnings(config: &CleverShow, has_stop: bool) {
    let allow = config.allow.len();
    match config.server {
        Server::At(server) => tracing::warn!(
            target: "door", %server, allow, role = %config.role,
            "this node works for a clever-show server: whoever is at that address, or on the way there, commands it"
        ),
        Server::Auto => tracing::warn!(
            target: "door", port = config.announce_port, allow, role = %config.role,
            "this node works for any clever-show server that announces itself: anybody on this network can"
        ),
    }
    if let Some(why) = ignored_stop_reason(config, has_stop) {
        tracing::warn!(
            target: "door", why,
            "a ground station's emergency stop, which comes by clever-show as {STOP_ACTION:?}, does nothing on this node"
        );
    }
}

/// Why an emergency stop does nothing here, if it does not, and all that is to be done about it.
fn ignored_stop_reason(config: &CleverShow, has_stop: bool) -> Option<String> {
    let barred = check_access(config, STOP_ACTION, &Arguments::default()).err();
    // A plug-in's come later, if at all.
    let missing = (!has_stop).then(|| {
        format!(
            "the owner has no action of that name: give it a command in [actions.{STOP_ACTION}], unless a plug-in brings it"
        )
    });
    let why: Vec<String> = barred.into_iter().chain(missing).collect();
    (!why.is_empty()).then(|| why.join("; "))
}

/// Whether a door so configured lets it pass: by the gate for its role, and by its list.
fn check_access(config: &CleverShow, action: &str, arguments: &Arguments) -> Result<(), String> {
    let class = classify(action, arguments);
    if let Some(lack) = missing_role(config.role, &Permission::Command(class)) {
        // The fleet's admin cannot help here: what a server may do is the owner's word.
        return Err(format!("{lack}; see `role` in [gateways.clever_show]"));
    }
    if class == ActionClass::Read || config.allow.iter().any(|glob| glob.matches(action)) {
        return Ok(());
    }
    Err(format!(
        "{action:?} may not pass; name it in `allow` of [gateways.clever_show]"
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
            tracing::info!(target: "door", %server, "connected with a clever-show server");
            let since = |now| {
                *self.connected_since.lock() = now;
            };
            since(Some(clock::now()));
            update_status(ServerState::Joined, Some(server));
            let ended = self.connection.connect(stream).await;
            since(None);
            update_status(ServerState::Lost, Some(server));
            tracing::info!(target: "door", %server, why = %ended, "the clever-show server is gone");
        }
    }

    /// The next connection; until there is one, the status says why there is none.
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
                        tracing::warn!(target: "door", why, "no clever-show server; it is tried again and again");
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

    /// Readings, while there is somebody to read them. One that still waits is replaced by the next.
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
        // It takes a while, as of a disk that does not answer: what would wait now, the next server would get. Nothing
        // comes between this look and the sending, since the connection is driven by the task that runs this.
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
        let mut scheduler = Scheduler::new(self.config.file_bytes);
        loop {
            while let Some(job) = scheduler.next() {
                let at_work = job.running();
                scheduler.spawn(at_work, self.start_task(job).await);
            }
            for (job, why) in scheduler.take_rejected() {
                self.log.record(self.server(), job.what, &job.name, Err(why));
            }
            let has_room = scheduler.has_capacity();
            let heard = tokio::select! {
                biased;
                () = scheduler.wait_for_change() => continue,
                heard = incoming.recv(), if has_room => heard,
            };
            let Some(ReceivedEvent {
                event,
                earliest_arrival: since,
            }) = heard
            else {
                return;
            };
            if let Some(job) = self.task(event, since) {
                scheduler.submit(job);
            }
        }
    }

    /// What is to be done for it. If there is nothing, or it may not pass, that is told here, at once.
    fn task(&self, event: Event, since: Instant) -> Option<Task> {
        let (what, name, wanted) = match event {
            Event::Action { action, arguments } => {
                let wanted = self.local_command("action", &action, arguments, None);
                ("action", action, wanted)
            }
            Event::Request { value, id, arguments } if value == FILE_TRANSFER => {
                let path = arguments.kwargs.get("filepath").and_then(Value::as_str);
                let wanted = self.check_access(FILE_TRANSFER, &Arguments::default());
                let wanted = wanted.map(|()| (TaskKind::Fetch, TaskWork::Fetch { id }));
                ("file asked for", path.unwrap_or_default().to_owned(), wanted)
            }
            Event::Request { value, id, .. } if value == CLOVER_DIR => {
                let dir = self.clover_dir.clone().map_or(Value::Null, Value::String);
                let answered = self.respond((&value, &id), ResponseBody::Value(dir), since);
                let answered = answered.map(|()| "done".to_owned());
                self.log.record(self.server(), "request", &value, answered);
                return None;
            }
            Event::Request { value, id, arguments } => {
                let with_spec = translate::wants_spec(&arguments);
                let wanted = self.local_command(
                    "request",
                    &value,
                    arguments,
                    Some(PendingRequest { id, with_spec }),
                );
                ("request", value, wanted)
            }
            // Whether it may be kept is asked when it has its turn: what comes after it is to know.
            Event::File { filepath, bytes } => {
                let push = (TaskKind::File, TaskWork::Push { bytes });
                ("file pushed", filepath, Ok(push))
            }
            Event::TooLong { bytes, max } => {
                let passed_over = (TaskKind::File, TaskWork::Oversized { bytes, max });
                ("message", "too long".to_owned(), Ok(passed_over))
            }
            Event::InvalidMessage(error) => {
                let why = error.to_string();
                ("message", "unreadable".to_owned(), Err(why))
            }
            Event::UnexpectedResponse { value, .. } => {
                ("response", value, Err("it answers nothing".to_owned()))
            }
            // This door asks nothing.
            Event::Response { .. } | Event::RequestFailed { .. } => return None,
        };
        match wanted {
            Ok((kind, todo)) => Some(Task {
                kind,
                what,
                name,
                since,
                work: todo,
            }),
            Err(why) => {
                self.log.record(self.server(), what, &name, Err(why));
                None
            }
        }
    }

    /// What the node is to do for a word of the server's, if it may.
    fn local_command(
        &self,
        what: &str,
        name: &str,
        arguments: Arguments,
        asked: Option<PendingRequest>,
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
        let errand = TaskWork::LocalCommand {
            action,
            arguments,
            request: asked,
        };
        Ok((kind, errand))
    }

    /// Begins what has its turn; what is left of it waits for nobody else.
    async fn start_task(&self, job: Task) -> TaskFuture {
        let Task {
            kind,
            what,
            name,
            since,
            work: todo,
        } = job;
        let (server, gateway) = (self.server(), self.clone());
        let of = name.clone();
        let ended: Pin<Box<dyn Future<Output = Result<String, String>> + Send>> = match todo {
            TaskWork::LocalCommand {
                action,
                arguments,
                request: asked,
            } => {
                let role = self.config.role;
                // Late, what moves a drone is worse than not at all. What ends a flight is not.
                let is_flight = kind == TaskKind::Flight;
                let end = self
                    .local_commands
                    .submit(role, action, arguments, since, is_flight);
                let end = end.await;
                Box::pin(async move {
                    let reply = wait_for_reply(end).await;
                    if let Some(PendingRequest { id, with_spec }) = asked
                        && let Some(answer) = translate::response_value(&of, &reply, with_spec, unix_time_s())
                    {
                        gateway.respond((&of, &id), ResponseBody::Value(answer), since)?;
                    }
                    outcome(&reply)
                })
            }
            TaskWork::Fetch { id } => Box::pin(async move { gateway.send_file(&id, &of, since).await }),
            TaskWork::Push { bytes } => Box::pin(async move { gateway.save_file(&of, bytes).await }),
            TaskWork::Oversized { bytes, max } => Box::pin(async move {
                Err(format!(
                    "{bytes} bytes are more than the {max} allowed; passed over"
                ))
            }),
        };
        let log = self.log.clone();
        Box::pin(async move {
            let ended = ended.await;
            let result = ended.as_ref().map(drop).map_err(String::clone);
            log.record(server, what, &name, ended);
            result
        })
    }

    fn respond(&self, (value, id): (&str, &str), answer: ResponseBody, asked: Instant) -> Result<(), String> {
        self.connection
            .respond_to(value, id, answer, asked)
            .map_err(|error| error.to_string())
    }

    /// Whether this door lets it pass.
    fn check_access(&self, action: &str, arguments: &Arguments) -> Result<(), String> {
        check_access(&self.config, action, arguments)
    }

    async fn save_file(&self, path: &str, bytes: Bytes) -> Result<String, String> {
        self.check_access(FILE_TRANSFER, &Arguments::default())?;
        let (size, most) = (bytes.len(), self.config.file_bytes);
        if size > most {
            return Err(format!("it has {size} bytes, more than the {most} of file_bytes"));
        }
        let (roots, path) = (self.roots.clone(), path.to_owned());
        let _alone = self
            .file_lock
            .acquire()
            .await
            .map_err(|closed| closed.to_string())?;
        let written = run_blocking(move || files::save(&roots, &path, &bytes)).await?;
        Ok(format!("{} bytes written", written.size))
    }

    /// Answers with a file what was asked then.
    async fn send_file(&self, id: &str, path: &str, asked: Instant) -> Result<String, String> {
        let (roots, path, most) = (self.roots.clone(), path.to_owned(), self.config.file_bytes);
        let _alone = self
            .file_lock
            .acquire()
            .await
            .map_err(|closed| closed.to_string())?;
        let bytes = run_blocking(move || files::read(&roots, &path, most)).await?;
        let size = bytes.len();
        self.respond((FILE_TRANSFER, id), ResponseBody::File(bytes), asked)?;
        Ok(format!("{size} bytes"))
    }

    fn server(&self) -> Option<SocketAddr> {
        self.connection.addr()
    }
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(fell_over) => Err(fell_over.to_string()),
    }
}

async fn wait_for_reply(end: oneshot::Receiver<Reply>) -> Reply {
    let lost = |_: oneshot::error::RecvError| Reply::failed("the node is shutting down");
    end.await.unwrap_or_else(lost)
}

/// For the log.
fn outcome(reply: &Reply) -> Result<String, String> {
    match (reply.state, &reply.error) {
        (Outcome::Done, _) => Ok(reply.state.to_string()),
        (state, Some(error)) => Err(format!("{state}: {error}")),
        (state, None) => Err(state.to_string()),
    }
}

/// Seconds since 1970, as the real program counts them.
fn unix_time_s() -> f64 {
    Duration::from_millis(clock::unix_time_ms()).as_secs_f64()
}

/// What is left to do for one that had its turn.
type TaskFuture = Pin<Box<dyn Future<Output = TaskResult> + Send>>;

/// What is told of a drone.
type Readings = Map<String, Value>;
