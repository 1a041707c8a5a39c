use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::lock::{LockError, StateLock};
use super::server::ControlServer;
use super::*;
use crate::fleet::{Call, Event, Failure, Fleet, Request};

struct Station {
    dir: tempfile::TempDir,
    calls: mpsc::Receiver<Call>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

impl Station {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = StateLock::try_take(dir.path(), "test").expect("free");
        let server = ControlServer::bind(&lock).expect("binds");
        let (fleet, calls) = Fleet::local();
        let stop = CancellationToken::new();
        let served = tokio::spawn(server.serve(fleet, stop.clone()));
        Self {
            dir,
            calls,
            stop,
            served,
        }
    }

    fn remote(&self) -> Fleet {
        Fleet::remote(self.dir.path().join(CONTROL_SOCKET))
    }

    async fn raw(&self, line: &[u8]) -> String {
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
async fn a_request_goes_over_and_its_events_come_back_in_order() {
    let mut station = Station::start();
    let path = station.dir.path().join(CONTROL_SOCKET);
    assert_eq!(
        std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777,
        0o600
    );
    let fleet = station.remote();
    let mut events = fleet
        .perform_as(Request::Members, "somebody else".to_owned())
        .await;
    let call = station.calls.recv().await.expect("a call");
    assert_eq!(call.request, Request::Members);
    assert_eq!(
        call.who,
        crate::os_user::own(),
        "as the kernel says, and nobody else"
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
async fn dropping_the_receiver_cancels_across_the_socket() {
    let mut station = Station::start();
    let events = station.remote().perform(Request::Pending).await;
    let call = station.calls.recv().await.expect("a call");
    drop(events);
    let cancelled = tokio::time::timeout(Duration::from_secs(5), call.events.closed()).await;
    assert!(cancelled.is_ok(), "the engine has to see it");
}

#[tokio::test]
async fn a_station_that_stops_midway_is_told_from_an_end() {
    let mut station = Station::start();
    let mut events = station.remote().perform(Request::Pending).await;
    let call = station.calls.recv().await.expect("a call");
    call.events.send(Event::note("working")).await.expect("read");
    assert_eq!(events.recv().await, Some(Event::note("working")));
    station.stop.cancel();
    station.served.await.expect("ends");
    assert!(matches!(
        events.recv().await,
        Some(Event::Failed {
            failure: Failure::Stopped,
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
async fn nobody_there_is_a_failure_with_advice() {
    let mut events = Fleet::remote("/nonexistent/control.sock".into())
        .perform(Request::Members)
        .await;
    assert!(matches!(
        events.recv().await,
        Some(Event::Failed {
            failure: Failure::Stopped,
            ..
        })
    ));
}

#[tokio::test]
async fn a_station_that_takes_the_question_and_sleeps_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join(CONTROL_SOCKET);
    let _asleep = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    let (events, _unread) = mpsc::channel(1);
    let patience = Some(Duration::from_millis(100));
    let asked = client::exchange(&socket, &Request::Members, patience, &events);
    let asked = tokio::time::timeout(Duration::from_secs(5), asked).await;
    let error = asked.expect("it ends").expect_err("nobody answers");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn lines_that_are_no_request_are_refused() {
    let station = Station::start();
    let answer = station.raw(b"{\"request\":\"brew\"}\n").await;
    assert!(answer.contains("does not know this request"), "{answer}");
    let answer = station.raw(b"\xff\n").await;
    assert!(answer.contains("failed"), "{answer}");
    assert_eq!(station.raw(b"").await.len(), 0, "half a connection gets nothing");
}

#[tokio::test]
async fn a_line_has_an_end_and_a_bound() {
    let lines: &[u8] = b"one\n\nthree";
    let mut from = lines;
    assert_eq!(
        read_line(&mut from, 5).await.expect("a line").as_deref(),
        Some(&b"one"[..])
    );
    assert_eq!(
        read_line(&mut from, 5).await.expect("a line").as_deref(),
        Some(&b""[..])
    );
    assert_eq!(
        read_line(&mut from, 5).await.expect_err("cut").kind(),
        io::ErrorKind::UnexpectedEof
    );
    let mut from: &[u8] = b"123456\n";
    assert_eq!(
        read_line(&mut from, 5).await.expect_err("long").kind(),
        io::ErrorKind::InvalidData
    );
    let mut from: &[u8] = b"";
    assert_eq!(read_line(&mut from, 5).await.expect("the end"), None);
}

#[test]
fn one_process_owns_a_state_directory_and_says_who() {
    let dir = tempfile::tempdir().expect("a directory");
    let state_dir = dir.path().join("a/b");
    let lock = StateLock::try_take(&state_dir, "ground-station serve").expect("free");
    let mode = std::fs::metadata(&state_dir).expect("made").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let error = StateLock::try_take(&state_dir, "ground-station ping").expect_err("held");
    let who = format!("ground-station serve (pid {})", std::process::id());
    assert!(
        matches!(&error, LockError::Held { holder, .. } if *holder == who),
        "{error}"
    );
    drop(lock);
    StateLock::try_take(&state_dir, "x").expect("free again");
}

#[tokio::test]
async fn a_leftover_socket_is_replaced_and_a_long_path_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(CONTROL_SOCKET)).expect("a leftover"));
    assert!(!client::answers(&dir.path().join(CONTROL_SOCKET)).await);
    let lock = StateLock::try_take(dir.path(), "test").expect("free");
    let _server = ControlServer::bind(&lock).expect("replaces it");
    assert!(client::answers(&dir.path().join(CONTROL_SOCKET)).await);

    let long = StateLock::try_take(&dir.path().join("x".repeat(110)), "test").expect("free");
    let error = ControlServer::bind(&long).expect_err("too long").to_string();
    assert!(error.contains("shorter --state-dir"), "{error}");
}
