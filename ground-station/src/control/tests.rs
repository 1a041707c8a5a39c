use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use swarm_shared::api::{Event, Failure, FleetRequest};
use swarm_shared::client::control::{CONTROL_SOCKET, is_listening};
use swarm_shared::client::{Fleet, RequestEnvelope, os_user};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::server::ControlServer;
use crate::store::lock::{LockError, StateLock};

struct Station {
    dir: tempfile::TempDir,
    requests: mpsc::Receiver<RequestEnvelope>,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

impl Station {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = StateLock::try_acquire(dir.path(), "test").expect("free");
        let server = ControlServer::bind(&lock).expect("binds");
        let (fleet, requests) = Fleet::local();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(server.serve(fleet, shutdown.clone()));
        Self {
            dir,
            requests,
            shutdown,
            served,
        }
    }

    fn remote(&self) -> Fleet {
        Fleet::remote(self.dir.path().join(CONTROL_SOCKET))
    }

    async fn send_raw(&self, line: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join(CONTROL_SOCKET))
            .await
            .expect("connects");
        stream.write_all(line).await.expect("writes");
        stream.shutdown().await.expect("says no more");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    }
}

#[tokio::test]
async fn control_socket_returns_events_in_order() {
    let mut station = Station::start();
    let path = station.dir.path().join(CONTROL_SOCKET);
    assert_eq!(
        std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777,
        0o600
    );
    let fleet = station.remote();
    let mut events = fleet
        .perform_as(FleetRequest::Members, "somebody else".to_owned())
        .await;
    let call = station.requests.recv().await.expect("a call");
    assert_eq!(call.request, FleetRequest::Members.into());
    assert_eq!(
        call.user,
        os_user::current(),
        "the user that the kernel reports, not the one in the request"
    );
    for event in [Event::note("one"), Event::note("two"), Event::End] {
        call.events.send(event).await.expect("read");
    }
    let mut seen = Vec::new();
    while let Some(event) = events.recv().await {
        seen.push(event);
    }
    assert_eq!(seen, [Event::note("one"), Event::note("two"), Event::End]);
}

#[tokio::test]
async fn dropping_the_receiver_cancels_a_remote_request() {
    let mut station = Station::start();
    let events = station.remote().perform(FleetRequest::Pending).await;
    let call = station.requests.recv().await.expect("a call");
    drop(events);
    let cancelled = tokio::time::timeout(Duration::from_secs(5), call.events.closed()).await;
    assert!(cancelled.is_ok(), "the engine has to see it");
}

#[tokio::test]
async fn remote_shutdown_midway_is_reported_as_failure() {
    let mut station = Station::start();
    let mut events = station.remote().perform(FleetRequest::Pending).await;
    let call = station.requests.recv().await.expect("a call");
    call.events.send(Event::note("working")).await.expect("read");
    assert_eq!(events.recv().await, Some(Event::note("working")));
    station.shutdown.cancel();
    station.served.await.expect("ends");
    assert!(matches!(
        events.recv().await,
        Some(Event::Failed {
            failure: Failure::ShutDown,
            ..
        })
    ));
    assert_eq!(events.recv().await, None);
    assert!(
        !station.dir.path().join(CONTROL_SOCKET).exists(),
        "the file goes with the server"
    );
}

#[tokio::test]
async fn missing_control_socket_is_reported_as_failure() {
    let mut events = Fleet::remote("/nonexistent/control.sock".into())
        .perform(FleetRequest::Members)
        .await;
    assert!(matches!(
        events.recv().await,
        Some(Event::Failed {
            failure: Failure::ShutDown,
            ..
        })
    ));
}

#[tokio::test]
async fn invalid_request_lines_are_refused() {
    let station = Station::start();
    let answer = station.send_raw(b"{\"request\":\"brew\"}\n").await;
    assert!(answer.contains("does not know this request"), "{answer}");
    let answer = station.send_raw(b"\xff\n").await;
    assert!(answer.contains("failed"), "{answer}");
    assert_eq!(
        station.send_raw(b"").await.len(),
        0,
        "half a connection gets nothing"
    );
}

#[test]
fn state_directory_lock_names_its_holder() {
    let dir = tempfile::tempdir().expect("a directory");
    let state_dir = dir.path().join("a/b");
    let lock = StateLock::try_acquire(&state_dir, "ground-station serve").expect("free");
    let mode = std::fs::metadata(&state_dir).expect("made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let error = StateLock::try_acquire(&state_dir, "ground-station ping").expect_err("held");
    let who = format!("ground-station serve (pid {})", std::process::id());
    assert!(
        matches!(&error, LockError::Held { holder, .. } if *holder == who),
        "{error}"
    );
    drop(lock);
    StateLock::try_acquire(&state_dir, "x").expect("free again");
}

#[tokio::test]
async fn stale_socket_is_replaced_and_long_path_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(CONTROL_SOCKET)).expect("a leftover"));
    assert!(!is_listening(&dir.path().join(CONTROL_SOCKET)).await);
    let lock = StateLock::try_acquire(dir.path(), "test").expect("free");
    let _server = ControlServer::bind(&lock).expect("replaces it");
    assert!(is_listening(&dir.path().join(CONTROL_SOCKET)).await);

    let long = StateLock::try_acquire(&dir.path().join("x".repeat(110)), "test").expect("free");
    let error = ControlServer::bind(&long).expect_err("too long").to_string();
    assert!(error.contains("shorter --state-dir"), "{error}");
}
