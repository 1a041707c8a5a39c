//! Clients that disconnect before their response: requests are carried to their end.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::oneshot;

use super::event_readers::{TEST_TIMEOUT, connect};
use super::*;
use crate::store::audit::AuditEntry;

/// Hooks with and without a token, and the configured token.
const LINES: &str = r#"
token = "0123456789abcdef"
allow = ["led", "station.stop"]
[gateways.platypush_http.hooks.panic]
action = "station.stop"
"#;

/// A gateway with a fleet that carries out requests when a permit is sent, and the requests it got.
async fn harness_with_calls() -> (Harness, mpsc::Receiver<(Asked, oneshot::Sender<()>)>) {
    let (fleet, mut calls) = Fleet::local();
    let (asked, asking) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(RequestEnvelope { request, events, .. }) = calls.recv().await {
            let (go, gone) = oneshot::channel();
            if asked.send((request, go)).await.is_err() {
                return;
            }
            // A failed test drops the sender.
            gone.await.ok();
            let done = Delivery::new(node("n1"), Reply::done(json!("done")), 1.0);
            for event in [Event::Delivery(done), Event::End] {
                events.send(event).await.ok();
            }
        }
    });
    (Harness::with_fleet(fleet, LINES).await, asking)
}

fn post(action: &str) -> String {
    let body = json!({ "action": action }).to_string();
    let length = body.len();
    format!(
        "POST /execute HTTP/1.1\r\nHost: gateway\r\nX-Token: {TOKEN}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// An action's entry in the audit, once it has ended.
async fn audited_outcome(rig: Harness, action: &str) -> String {
    // A request may outlast its connection.
    let over = async || {
        let audit = rig.audit().await;
        let entry = audit.into_iter().find(|entry| entry.action == action);
        entry.map(|AuditEntry { outcome, .. }| outcome)
    };
    let waiting = async {
        loop {
            if let Some(outcome) = over().await {
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, waiting)
        .await
        .expect("in the audit")
}

#[tokio::test]
async fn half_closed_client_gets_its_response() {
    let (rig, mut asking) = harness_with_calls().await;
    let mut client = connect(rig.listen(), &post("led")).await;
    client.shutdown().await.expect("closed");
    let (_led, go) = asking.recv().await.expect("asked");
    // Long enough for the gateway to see the closed side.
    tokio::time::sleep(Duration::from_millis(200)).await;
    go.send(()).expect("awaited");
    let mut answer = String::new();
    let reading = client.read_to_string(&mut answer);
    tokio::time::timeout(TEST_TIMEOUT, reading)
        .await
        .expect("it ends")
        .expect("read");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(audited_outcome(rig, "led").await, "1 done");
}

#[tokio::test]
async fn stop_continues_after_client_disconnect() {
    let (rig, mut asking) = harness_with_calls().await;
    let client = connect(rig.listen(), &post("station.stop")).await;
    let (request, go) = asking.recv().await.expect("asked");
    assert!(
        matches!(request, Asked::Act(ActRequest::Stop { .. })),
        "{request:?}"
    );
    drop(client);
    tokio::time::sleep(Duration::from_millis(200)).await;
    go.send(()).expect("awaited");
    assert_eq!(audited_outcome(rig, "station.stop").await, "1 node, 0 not done");
}

/// Serves a connection.
fn spawn_connection(rig: &Harness, stream: DuplexStream) -> tokio::task::JoinHandle<()> {
    let client_info = ClientInfo::for_test(([127, 0, 0, 1], 1).into());
    let idle = Duration::from_secs(10);
    tokio::spawn(serve::serve_http(stream, client_info, rig.router.clone(), idle))
}

#[tokio::test]
async fn hook_runs_although_client_disconnected() {
    let (rig, mut asking) = harness_with_calls().await;
    let (mut near, far) = tokio::io::duplex(1024);
    let hook = b"GET /hook/panic HTTP/1.1\r\nHost: gateway\r\n\r\n";
    near.write_all(hook).await.expect("written");
    drop(near);
    let serving = spawn_connection(&rig, far);
    let asked = tokio::time::timeout(TEST_TIMEOUT, asking.recv()).await;
    let (request, go) = asked.expect("carried out").expect("asked");
    assert!(
        matches!(request, Asked::Act(ActRequest::Stop { .. })),
        "{request:?}"
    );
    go.send(()).expect("awaited");
    serving.await.expect("it ends");
    assert_eq!(audited_outcome(rig, "station.stop").await, "1 node, 0 not done");
}

#[tokio::test]
async fn connection_failure_does_not_cancel_running_requests() {
    let (rig, mut asking) = harness_with_calls().await;
    let (mut near, far) = tokio::io::duplex(1024);
    let serving = spawn_connection(&rig, far);
    near.write_all(post("station.stop").as_bytes())
        .await
        .expect("written");
    let (_stop, go) = asking.recv().await.expect("asked");
    serving.abort();
    serving.await.expect_err("dropped midway");
    go.send(()).expect("awaited");
    assert_eq!(audited_outcome(rig, "station.stop").await, "1 node, 0 not done");
}

#[tokio::test]
async fn login_attempt_is_audited_after_disconnect() {
    let rig = Harness::with_user("").await;
    let listens = rig.listen();
    let body = json!({"username": "ann", "password": "a guess"}).to_string();
    let length = body.len();
    drop(
        connect(
            listens,
            &format!("POST /auth HTTP/1.1\r\nHost: gateway\r\nContent-Length: {length}\r\n\r\n{body}"),
        )
        .await,
    );
    let outcome = audited_outcome(rig, "login").await;
    assert_eq!(outcome, "not done: wrong name or password");
}
