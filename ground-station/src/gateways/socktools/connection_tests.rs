//! Connected peers, with a scripted fleet.

use std::path::Path;

use serde_json::json;
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::Reply;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::config::Config;
use crate::store::audit::{self, AuditEntry};
use crate::store::history;
use swarm_shared::api::Request as Asked;
use swarm_shared::api::{ActRequest, Delivery, Event, NodeRef};
use swarm_shared::client::{Fleet, RequestEnvelope};

/// Longer than anything here takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// An open gateway.
struct Harness {
    context: GatewayContext,
    addr: SocketAddr,
    calls: mpsc::Receiver<RequestEnvelope>,
    dir: tempfile::TempDir,
}

impl Harness {
    async fn new(lines: &str) -> Result<Self, GatewayError> {
        let dir = tempfile::tempdir().expect("a directory");
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let at = port.local_addr().expect("bound");
        drop(port);
        let mut config = Config::for_host("st");
        let text = format!("[gateways.socktools]\nlisten = \"{at}\"\n{lines}\n");
        config.read_file(Path::new("config.toml"), &text).expect("reads");
        let (fleet, calls) = Fleet::local();
        let context = crate::gateways::tests::test_context(fleet, dir.path()).await;
        open(&config.gateways.socktools.expect("configured"), &context)?;
        Ok(Self {
            context,
            addr: at,
            calls,
            dir,
        })
    }

    /// The next request to the fleet.
    async fn next_call(&mut self) -> RequestEnvelope {
        let asked = tokio::time::timeout(TEST_TIMEOUT, self.calls.recv()).await;
        asked.expect("in time").expect("asked")
    }

    /// The audit, once it has an entry of this action.
    async fn audit_with(&self, what: &str) -> Vec<AuditEntry> {
        let waiting = async {
            loop {
                let newest =
                    history::run_query(self.dir.path(), |connection| audit::newest(connection, 0, 100));
                let newest = newest.await.expect("read").unwrap_or_default();
                if newest.iter().any(|entry| entry.action == what) {
                    return newest;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, waiting)
            .await
            .expect("in the audit")
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
    }
}

async fn answer_done(call: RequestEnvelope) {
    let node = NodeRef {
        node: NodeName::parse("n1").expect("a name"),
        id: PeerId([7; 32]),
    };
    let delivery = Delivery::new(node, Reply::done(json!("done")), 1.0);
    for event in [Event::Delivery(delivery), Event::End] {
        call.events.send(event).await.ok();
    }
}

#[tokio::test]
async fn request_of_a_disconnected_peer_is_completed() {
    let mut rig = Harness::new("allow = [\"led\"]\nkeep_alive = \"20ms\"")
        .await
        .expect("opens");
    let mut peer = TcpStream::connect(rig.addr).await.expect("connects");
    let request = encode(br#"{"type": "request", "action": "led"}"#).expect("short");
    peer.write_all(&request).await.expect("written");
    let call = rig.next_call().await;
    // An unread keep-alive makes the peer's close a reset, which the next keep-alive finds.
    peer.readable().await.expect("a sign of life");
    drop(peer);
    tokio::time::sleep(Duration::from_millis(300)).await;
    answer_done(call).await;
    let audit = rig.audit_with("led").await;
    assert_eq!(audit[0].outcome, "1 done", "{audit:#?}");
}

#[tokio::test]
async fn received_stop_of_a_disconnected_peer_is_executed() {
    let lines = "allow = [\"led\", \"station.stop\"]\nkeep_alive = \"20ms\"\nraw_action = \"station.stop\"";
    let mut rig = Harness::new(lines).await.expect("opens");
    let mut peer = TcpStream::connect(rig.addr).await.expect("connects");
    let led = encode(br#"{"type": "request", "action": "led"}"#).expect("short");
    let press = encode(b"PANIC").expect("short");
    let said = [&led[..], &led, &press].concat();
    peer.write_all(&said).await.expect("written");
    let led = rig.next_call().await;
    peer.readable().await.expect("a sign of life");
    drop(peer);
    // Long enough for the next keep-alive to fail, so that no response can be sent.
    tokio::time::sleep(Duration::from_millis(100)).await;
    answer_done(led).await;
    // Not the second `led`, which would be late.
    let press = rig.next_call().await;
    assert!(
        matches!(press.request, Asked::Act(ActRequest::Stop { .. })),
        "{:?}",
        press.request
    );
    answer_done(press).await;
    let audit = rig.audit_with("station.stop").await;
    let late = audit
        .iter()
        .any(|entry| entry.action == "led" && entry.outcome == "not done: the client has disconnected");
    assert!(late, "{audit:#?}");
}

#[tokio::test]
async fn raw_message_triggers_the_raw_action() {
    let mut rig = Harness::new("allow = [\"station.stop\"]\nraw_action = \"station.stop\"")
        .await
        .expect("opens");
    let mut peer = TcpStream::connect(rig.addr).await.expect("connects");
    for press in [&b"PANIC"[..], &[0xff, 0], b"{}"] {
        peer.write_all(&encode(press).expect("short"))
            .await
            .expect("written");
        let call = rig.next_call().await;
        let Asked::Act(ActRequest::Stop { selector, .. }) = &call.request else {
            panic!("{:?}", call.request)
        };
        assert_eq!(selector.as_str(), "all");
        answer_done(call).await;
    }
    let audit = rig.audit_with("station.stop").await;
    assert_eq!(audit[0].outcome, "1 node, 0 not done", "{audit:#?}");
}

#[tokio::test]
async fn impossible_raw_action_prevents_opening() {
    for (lines, says) in [
        (
            "allow = [\"station.*\"]\nraw_action = \"station.shutdown\"",
            "`raw_action` could never be done: the station has no \"station.shutdown\"",
        ),
        (
            "raw_action = \"station.history\"",
            "station.history takes number, action, state, since, limit, and no data",
        ),
        (
            "allow = [\"station.stop\"]\nraw_action = \"station.stop\"\nraw_argument = \"why\"",
            "station.stop takes nothing, so `raw_argument` does nothing: take it out",
        ),
        ("raw_action = \"station.stop\"", "name it in `allow`"),
    ] {
        let fault = Harness::new(lines).await.err().expect(lines).to_string();
        assert!(fault.contains(says), "{fault}");
    }
}

#[tokio::test]
async fn malformed_socktools_messages_are_audited() {
    let text = "allow = [\"led\"]\nraw_action = \"led\"\nraw_encoding = \"text\"";
    for (lines, bytes, says) in [
        ("", encode(b"no request").expect("short"), "not done: "),
        (
            "message_bytes = 1000",
            vec![0, 0, 4, 0],
            "1024 bytes is longer than 1000",
        ),
        (text, encode(&[0xff]).expect("short"), "not text in UTF-8"),
    ] {
        let rig = Harness::new(lines).await.expect("opens");
        let mut peer = TcpStream::connect(rig.addr).await.expect("connects");
        peer.write_all(&bytes).await.expect("written");
        let audit = rig.audit_with("message").await;
        let [entry] = audit.as_slice() else {
            panic!("one entry: {audit:#?}");
        };
        assert_eq!(entry.user, "socktools from 127.0.0.1");
        assert!(entry.outcome.contains(says), "{entry:?}");
    }
}
