//! Visitors who go before they are answered: what they asked for is carried to its end.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;

use super::event_readers::{PATIENCE, connect};
use super::*;
use crate::store::audit::Entry;

/// A hook of each kind beside the door's own token.
const LINES: &str = r#"
token = "0123456789abcdef"
allow = ["led", "station.stop"]
[doors.platypush_http.hooks.panic]
action = "station.stop"
"#;

/// A door before a fleet that does what it is asked when it is let, and what it has been asked.
async fn rig() -> (Rig, mpsc::Receiver<(Asked, oneshot::Sender<()>)>) {
    let (fleet, mut calls) = Fleet::local();
    let (asked, asking) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(Call { request, events, .. }) = calls.recv().await {
            let (go, gone) = oneshot::channel();
            if asked.send((request, go)).await.is_err() {
                return;
            }
            // A test that has failed lets nobody go on.
            gone.await.ok();
            let done = Delivery::new(node("n1"), Reply::done(json!("done")), 1.0);
            for event in [Event::Delivery(done), Event::End] {
                events.send(event).await.ok();
            }
        }
    });
    (Rig::before(fleet, LINES).await, asking)
}

fn post(action: &str) -> String {
    let body = json!({ "action": action }).to_string();
    let length = body.len();
    format!(
        "POST /execute HTTP/1.1\r\nHost: door\r\nX-Token: {TOKEN}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// What the audit says of an action, once it is over.
async fn ended(rig: Rig, action: &str) -> String {
    // What goes on without a connection is not over when the connection is.
    let over = async || {
        let audit = rig.audit().await;
        let entry = audit.into_iter().find(|entry| entry.what == action);
        entry.map(|Entry { outcome, .. }| outcome)
    };
    let waiting = async {
        loop {
            if let Some(outcome) = over().await {
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("in the audit")
}

#[tokio::test]
async fn whoever_has_said_all_and_closed_its_side_is_answered() {
    let (rig, mut asking) = rig().await;
    let mut visitor = connect(rig.listen(), &post("led")).await;
    visitor.shutdown().await.expect("closed");
    let (_led, go) = asking.recv().await.expect("asked");
    // Long enough for the end to be noticed.
    tokio::time::sleep(Duration::from_millis(200)).await;
    go.send(()).expect("awaited");
    let mut answer = String::new();
    let reading = visitor.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("it ends")
        .expect("read");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(ended(rig, "led").await, "1 done");
}

#[tokio::test]
async fn a_stop_goes_on_though_whoever_asked_for_it_hangs_up() {
    let (rig, mut asking) = rig().await;
    let visitor = connect(rig.listen(), &post("station.stop")).await;
    let (request, go) = asking.recv().await.expect("asked");
    assert!(matches!(request, Asked::Stop { .. }), "{request:?}");
    drop(visitor);
    tokio::time::sleep(Duration::from_millis(200)).await;
    go.send(()).expect("awaited");
    assert_eq!(ended(rig, "station.stop").await, "1 node, 0 not done");
}

/// Serves a connection.
fn converse(rig: &Rig, stream: DuplexStream) -> tokio::task::JoinHandle<()> {
    let guest = Guest::from(([127, 0, 0, 1], 1).into());
    let idle = Duration::from_secs(10);
    tokio::spawn(serve::converse(stream, guest, rig.router.clone(), idle))
}

#[tokio::test]
async fn a_hook_is_set_off_by_whoever_is_gone_when_it_is_read() {
    let (rig, mut asking) = rig().await;
    let (mut near, far) = tokio::io::duplex(1024);
    let hook = b"GET /hook/panic HTTP/1.1\r\nHost: door\r\n\r\n";
    near.write_all(hook).await.expect("written");
    drop(near);
    let serving = converse(&rig, far);
    let asked = tokio::time::timeout(PATIENCE, asking.recv()).await;
    let (request, go) = asked.expect("carried out").expect("asked");
    assert!(matches!(request, Asked::Stop { .. }), "{request:?}");
    go.send(()).expect("awaited");
    serving.await.expect("it ends");
    assert_eq!(ended(rig, "station.stop").await, "1 node, 0 not done");
}

#[tokio::test]
async fn a_connection_that_fails_takes_nothing_with_it_that_has_begun() {
    let (rig, mut asking) = rig().await;
    let (mut near, far) = tokio::io::duplex(1024);
    let serving = converse(&rig, far);
    near.write_all(post("station.stop").as_bytes())
        .await
        .expect("written");
    let (_stop, go) = asking.recv().await.expect("asked");
    serving.abort();
    serving.await.expect_err("dropped midway");
    go.send(()).expect("awaited");
    assert_eq!(ended(rig, "station.stop").await, "1 node, 0 not done");
}

#[tokio::test]
async fn a_password_is_in_the_audit_though_whoever_tried_it_hangs_up() {
    let rig = Rig::with_user("").await;
    let listens = rig.listen();
    let body = json!({"username": "ann", "password": "a guess"}).to_string();
    let length = body.len();
    drop(
        connect(
            listens,
            &format!("POST /auth HTTP/1.1\r\nHost: door\r\nContent-Length: {length}\r\n\r\n{body}"),
        )
        .await,
    );
    let outcome = ended(rig, "login").await;
    assert_eq!(outcome, "not done: wrong name or password");
}
