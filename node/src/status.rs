//! The status socket, for users of the device: shows the daemon's status, and accepts invitation codes.
//!
//! One request line and one answer line, both JSON: `{"verb":"status"}` returns a [`StatusView`];
//! `{"verb":"join","code":"…"}` passes an invitation code to the daemon and returns [`Joined`]; with
//! `"progress":true`, lines `{"progress":"…"}` for display come before that. An empty request counts as `status`. The
//! socket has mode 0660: the daemon's user and group may use it.

mod view;

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::view::{JournalView, LinkLoss, LinkView, PluginView, ServerState, ServerView, StatusView};
use crate::journal::{Health, Journal};
use crate::logging::LogRing;

/// Warnings in the status.
const WARNINGS_MAX: usize = 20;
/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 4096;
/// Time-out for a request to be complete.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after an error of a socket, such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Most clients at the same time.
const CLIENTS_MAX: usize = 8;
/// Time after which a `join` request gets an error, in case the enrolment does not answer.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Progress messages that may wait to be read.
pub const JOIN_UPDATES_MAX: usize = 64;
/// Codes that may wait to be tried.
pub const JOIN_REQUESTS_MAX: usize = 4;

/// Result of a `join` request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Fingerprint of the joined fleet; absent if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A request to the status socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "verb")]
pub enum Request {
    /// Returns a [`StatusView`].
    Status,
    /// Joins a fleet by a code.
    Join {
        /// The invitation code.
        code: String,
        /// Whether to send progress messages.
        #[serde(default)]
        progress: bool,
    },
}

/// A progress message, for display.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Progress {
    progress: String,
}

/// A code to be tried by the enrolment.
#[derive(Debug)]
pub struct JoinRequest {
    /// The invitation code.
    pub code: String,
    /// Receives progress messages, for display; dropped if the channel is full.
    pub updates: mpsc::Sender<String>,
    /// Receives the fleet's fingerprint, or the reason of the failure.
    pub reply: oneshot::Sender<Result<String, String>>,
}

/// The facts of [`StatusView`], updated by the tasks that know them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Status {
    facts: Arc<Mutex<StatusView>>,
    log: LogRing,
    start: Instant,
    journal: Option<watch::Receiver<Health>>,
}

impl Status {
    /// A status with these facts; later ones are set by [`Self::update`].
    pub fn new(facts: StatusView, log: LogRing) -> Self {
        Self {
            facts: Arc::new(Mutex::new(facts)),
            log,
            start: clock::now(),
            journal: None,
        }
    }

    /// Adds the state of this journal.
    #[must_use]
    pub fn with_journal(self, journal: &Journal) -> Self {
        Self {
            journal: Some(journal.health()),
            ..self
        }
    }

    /// Changes the facts.
    pub fn update(&self, change: impl FnOnce(&mut StatusView)) {
        change(&mut self.facts.lock());
    }

    /// The current facts.
    pub fn view(&self) -> StatusView {
        let mut view = self.facts.lock().clone();
        let now = clock::now();
        for link in &mut view.links {
            if let Some(since) = link.since {
                link.up_s = now.saturating_duration_since(since).as_secs();
            }
        }
        for plugin in &mut view.plugins {
            if let Some(since) = plugin.since {
                plugin.up_s = now.saturating_duration_since(since).as_secs();
            }
        }
        if let Some(server) = &mut view.clever_show
            && let Some(since) = server.since
        {
            server.since_s = now.saturating_duration_since(since).as_secs();
        }
        view.uptime_s = now.saturating_duration_since(self.start).as_secs();
        view.journal = self.journal.as_ref().map(|health| (&*health.borrow()).into());
        view.warnings = self.log.warnings(WARNINGS_MAX);
        view
    }
}

/// Binds the socket, and removes one that a former daemon left. The caller has locked the state directory.
///
/// # Errors
/// The error of the system.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
    Ok(listener)
}

/// Accepts the next client of a local socket, `name` for the log; `None` at shutdown.
pub(crate) async fn accept(
    listener: &UnixListener,
    name: &str,
    shutdown: &CancellationToken,
) -> Option<UnixStream> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => return Some(stream),
            Err(error) => tracing::warn!(%error, socket = name, "Socket failed"),
        }
        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
    }
}

/// Answers requests until shutdown.
pub async fn serve(
    listener: UnixListener,
    status: Status,
    joins: mpsc::Sender<JoinRequest>,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let Some(stream) = accept(&listener, "status", &shutdown).await else {
            return;
        };
        let (status, joins, shutdown) = (status.clone(), joins.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                answered = handle_client(stream, &status, &joins) => if let Err(error) = answered {
                    tracing::debug!(%error, "Status socket client disconnected");
                }
            }
            drop(slot);
        });
    }
}

async fn handle_client(
    mut stream: UnixStream,
    status: &Status,
    joins: &mpsc::Sender<JoinRequest>,
) -> io::Result<()> {
    let mut line = String::new();
    {
        let (reader, _) = stream.split();
        let mut reader = tokio::io::BufReader::new(reader.take(REQUEST_BYTES_MAX));
        // An empty request counts as `status`.
        let _late = tokio::time::timeout(REQUEST_TIMEOUT, reader.read_line(&mut line)).await;
    }
    let request = match line.trim() {
        "" => Ok(Request::Status),
        text => serde_json::from_str(text),
    };
    let mut text = match request {
        Ok(Request::Status) => serde_json::to_vec(&status.view()),
        Ok(Request::Join { code, progress }) => {
            let (updates, updates_rx) = mpsc::channel(JOIN_UPDATES_MAX);
            let joining = submit_join(code, updates, joins);
            let joined = if progress {
                send_updates(&mut stream, updates_rx, joining).await?
            } else {
                joining.await
            };
            serde_json::to_vec(&joined)
        }
        Err(error) => serde_json::to_vec(&Joined {
            fleet: None,
            error: Some(format!("not a request: {error}")),
        }),
    }?;
    text.push(b'\n');
    stream.write_all(&text).await?;
    stream.shutdown().await
}

/// Sends progress messages until the join has ended, or the client has disconnected.
async fn send_updates(
    stream: &mut UnixStream,
    mut updates_rx: mpsc::Receiver<String>,
    joining: impl Future<Output = Joined>,
) -> io::Result<Joined> {
    tokio::pin!(joining);
    loop {
        tokio::select! {
            biased;
            Some(progress) = updates_rx.recv() => {
                let mut line = serde_json::to_vec(&Progress { progress })?;
                line.push(b'\n');
                stream.write_all(&line).await?;
            }
            joined = &mut joining => return Ok(joined),
        }
    }
}

async fn submit_join(
    code: String,
    updates: mpsc::Sender<String>,
    joins: &mpsc::Sender<JoinRequest>,
) -> Joined {
    let (reply, outcome) = oneshot::channel();
    let ended = match joins.try_send(JoinRequest { code, updates, reply }) {
        Err(mpsc::error::TrySendError::Full(_)) => Err("other codes are being tried; ask again".to_owned()),
        Err(mpsc::error::TrySendError::Closed(_)) => Err("the daemon is shutting down".to_owned()),
        Ok(()) => match tokio::time::timeout(JOIN_TIMEOUT, outcome).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_dropped)) => Err("the daemon is shutting down".to_owned()),
            Err(_late) => Err(format!(
                "no answer from the station within {JOIN_TIMEOUT:?}; the log says more"
            )),
        },
    };
    match ended {
        Ok(fleet) => Joined {
            fleet: Some(fleet),
            error: None,
        },
        Err(error) => Joined {
            fleet: None,
            error: Some(error),
        },
    }
}

/// Sends a request to the daemon of this state directory; `None` if none is running.
///
/// # Errors
/// The system's error for an existing socket.
pub fn query(socket: &Path, request: &Request) -> io::Result<Option<String>> {
    query_with_progress(socket, request, |_word| {})
}

/// As [`query`]; calls `said` with each progress message.
///
/// # Errors
/// As [`query`].
pub fn query_with_progress(
    socket: &Path,
    request: &Request,
    mut on_progress: impl FnMut(&str),
) -> io::Result<Option<String>> {
    let mut stream = match BlockingStream::connect(socket) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let wait = match request {
        Request::Status => Duration::from_secs(5),
        Request::Join { .. } => JOIN_TIMEOUT + Duration::from_secs(5),
    };
    stream.set_read_timeout(Some(wait))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::Error::other(
                "the daemon closed the connection without an answer",
            ));
        }
        match serde_json::from_str(&line) {
            Ok(Progress { progress }) => on_progress(&progress),
            Err(_the_answer) => return Ok(Some(line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TestServer {
        dir: tempfile::TempDir,
        status: Status,
        joins: mpsc::Receiver<JoinRequest>,
        _stop: tokio_util::sync::DropGuard,
    }

    impl TestServer {
        fn start() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let facts = StatusView {
                name: "n1".to_owned(),
                ..StatusView::default()
            };
            let status = Status::new(facts, LogRing::new());
            let (tx, joins) = mpsc::channel(JOIN_REQUESTS_MAX);
            let shutdown = CancellationToken::new();
            let socket = dir.path().join("s");
            std::fs::write(&socket, "left behind").expect("written");
            let listener = bind(&socket).expect("bound");
            tokio::spawn(serve(listener, status.clone(), tx, shutdown.clone()));
            Self {
                dir,
                status,
                joins,
                _stop: shutdown.drop_guard(),
            }
        }

        async fn ask(&self, request: Request) -> String {
            let socket = self.dir.path().join("s");
            tokio::task::spawn_blocking(move || query(&socket, &request))
                .await
                .expect("no panic")
                .expect("asked")
                .expect("served")
        }
    }

    #[tokio::test]
    async fn status_query_returns_the_current_view() {
        let served = TestServer::start();
        let mode = std::fs::metadata(served.dir.path().join("s"))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        served
            .status
            .update(|facts| facts.listen = Some("127.0.0.1:4711".to_owned()));
        let view: StatusView = serde_json::from_str(&served.ask(Request::Status).await).expect("a view");
        assert_eq!(
            (view.name.as_str(), view.listen.as_deref()),
            ("n1", Some("127.0.0.1:4711"))
        );
    }

    #[tokio::test]
    async fn an_empty_request_gets_status_and_garbage_an_error() {
        let served = TestServer::start();
        let socket = served.dir.path().join("s");
        for (request_text, gets) in [
            ("", "\"name\":\"n1\""),
            ("{\"verb\":\"dance\"}\n", "not a request"),
        ] {
            let mut stream = UnixStream::connect(&socket).await.expect("there");
            stream.write_all(request_text.as_bytes()).await.expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("answered");
            assert!(text.contains(gets), "{text}");
        }
    }

    #[tokio::test]
    async fn a_join_code_reaches_the_enrolment_task() {
        let mut served = TestServer::start();
        let request = Request::Join {
            code: "C".to_owned(),
            progress: true,
        };
        let socket = served.dir.path().join("s");
        let query = tokio::task::spawn_blocking(move || {
            let mut progress = Vec::new();
            let line = query_with_progress(&socket, &request, |update| progress.push(update.to_owned()));
            (line, progress)
        });
        let join = served.joins.recv().await.expect("a request");
        assert_eq!(join.code, "C");
        for update in ["looking", "found"] {
            join.updates.try_send(update.to_owned()).expect("room");
        }
        join.reply.send(Err("used up".to_owned())).expect("awaited");
        let (line, progress) = query.await.expect("no panic");
        let line = line.expect("asked").expect("served");
        assert_eq!(line, "{\"error\":\"used up\"}\n");
        assert_eq!(progress, ["looking", "found"]);
        served.joins.close();
        assert!(
            served
                .ask(Request::Join {
                    code: "D".to_owned(),
                    progress: false,
                })
                .await
                .contains("shutting down")
        );
    }

    #[test]
    fn a_missing_daemon_is_not_an_error() {
        assert!(matches!(query(Path::new("/no/such"), &Request::Status), Ok(None)));
    }
}
