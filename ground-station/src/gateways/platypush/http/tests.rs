//! Every route, by calls of the router without a socket.

mod audit;
mod client_disconnects;
mod event_readers;
mod hooks;
mod logins;
mod misbehaving_clients;
mod openapi_document;
mod talkative_readers;

use std::path::Path;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use data_encoding::BASE64;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::*;
use crate::config::Config;
use crate::http::serve::ClientInfo;
use crate::users::{self, Password};
use swarm_shared::api::Request as Asked;
use swarm_shared::api::{ActRequest, Delivery, Event, Failure, NodeRef, NodesRequest, Warning};
use swarm_shared::client::RequestEnvelope;

/// The configured token.
const TOKEN: &str = "0123456789abcdef";
const PASSWORD: &str = "correct horse";

/// A gateway with a scripted fleet.
struct Harness {
    app: Shared,
    context: GatewayContext,
    router: Router,
    dir: tempfile::TempDir,
}

impl Harness {
    /// A gateway with these lines of configuration.
    async fn new(lines: &str) -> Self {
        let (fleet, calls) = Fleet::local();
        tokio::spawn(run_fake_fleet(calls));
        Self::with_fleet(fleet, lines).await
    }

    async fn with_fleet(fleet: Fleet, lines: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let files = dir.path().join("files");
        std::fs::create_dir_all(files.join("below")).expect("made");
        std::fs::write(files.join("below/ten.txt"), "0123456789").expect("written");
        std::fs::write(files.join("empty"), "").expect("written");
        std::fs::write(dir.path().join("secret"), "secret").expect("written");
        std::os::unix::fs::symlink(dir.path().join("secret"), files.join("link")).expect("linked");
        let mut config = Config::for_host("st");
        let text = format!(
            "[gateways.platypush_http]\n{lines}\n[gateways.platypush_http.resources]\nfiles = {files:?}\n"
        );
        config.read_file(Path::new("config.toml"), &text).expect("reads");
        let config = config.gateways.platypush_http.expect("open");
        let context = crate::gateways::tests::test_context(fleet, dir.path()).await;
        let app = Arc::new(AppState::new(&config, &context).expect("made"));
        let router = router(&app);
        Self {
            app,
            context,
            router,
            dir,
        }
    }

    async fn with_user(lines: &str) -> Self {
        let rig = Self::new(lines).await;
        let kept = users::PasswordChecker::default()
            .hash(Password::new(PASSWORD))
            .await
            .expect("hashed");
        rig.app
            .store
            .put_user("ann".to_owned(), kept, 1)
            .await
            .expect("kept");
        rig
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.send_from("127.0.0.1", request).await
    }

    async fn send_from(&self, from: &str, mut request: Request<Body>) -> Response<Body> {
        let from: std::net::IpAddr = from.parse().expect("an address");
        request
            .extensions_mut()
            .insert(ClientInfo::for_test((from, 1).into()));
        self.router.clone().oneshot(request).await.expect("never fails")
    }

    /// Status and body, as JSON, of the response to a request.
    async fn send_json(&self, request: Request<Body>) -> (u16, Value) {
        let response = self.send(request).await;
        let status = response.status().as_u16();
        let body = body_bytes(response).await;
        (
            status,
            serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body))),
        )
    }
}

async fn body_bytes(response: Response<Body>) -> Vec<u8> {
    let collected = response.into_body().collect().await.expect("read");
    collected.to_bytes().to_vec()
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "gateway");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).expect("well formed")
}

fn execute(headers: &[(&str, &str)], message: &Value) -> Request<Body> {
    request("POST", "/execute", headers, message.to_string())
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn node(name: &str) -> NodeRef {
    NodeRef {
        node: NodeName::parse(name).expect("a name"),
        id: PeerId([7; 32]),
    }
}

/// A fleet of one node, `n1`: `fail` fails, other actions return their arguments.
async fn run_fake_fleet(mut calls: mpsc::Receiver<RequestEnvelope>) {
    while let Some(RequestEnvelope { request, events, .. }) = calls.recv().await {
        let all = if let Asked::Act(ActRequest::Command {
            selector,
            action,
            arguments,
            ..
        }) = request
        {
            fake_events(&selector, &action, &arguments)
        } else {
            vec![Event::End]
        };
        for event in all {
            if events.send(event).await.is_err() {
                break;
            }
        }
    }
}

fn fake_events(selector: &Selector, action: &str, arguments: &Arguments) -> Vec<Event> {
    if selector.as_str() == "nobody" {
        return vec![Event::failed(Failure::NoMatch, "no node matches")];
    }
    let reply = if action == "fail" {
        Reply::ended(Outcome::Failed, "it broke")
    } else {
        Reply::done(json!({ "args": arguments.args, "kwargs": arguments.kwargs }))
    };
    vec![Event::Delivery(Delivery::new(node("n1"), reply, 1.0)), Event::End]
}

#[tokio::test]
async fn request_gets_a_platypush_response() {
    let rig = Harness::new(&format!("token = \"{TOKEN}\"\nallow = [\"led\", \"fail\"]")).await;
    let auth = bearer(TOKEN);
    let headers = [("authorization", auth.as_str())];
    let id = "0123456789abcdef0123456789abcdef";
    let message =
        json!({"type": "request", "action": "led", "args": {"color": "red"}, "id": id, "origin": "me"});
    let (status, answer) = rig.send_json(execute(&headers, &message)).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&answer["id"], &answer["target"], &answer["origin"]),
        (&json!(id), &json!("me"), &json!("st"))
    );
    assert_eq!(
        answer["response"],
        json!({"output": {"args": [], "kwargs": {"color": "red"}}, "errors": []})
    );
    for (message, wanted) in [
        (json!({"action": "fail"}), "n1: failed: it broke"),
        (json!({"action": "reboot"}), "name it in `allow`"),
        (json!({"action": "led", "target": "nobody"}), "no node matches"),
    ] {
        let (status, answer) = rig.send_json(execute(&headers, &message)).await;
        let error = answer["response"]["errors"][0]
            .as_str()
            .expect("an error")
            .to_owned();
        assert!(status == 200 && error.contains(wanted), "{status} {answer}");
    }
    for bad in ["", "x", "[]", "{\"type\": \"event\"}", "{}"] {
        let (status, answer) = rig.send_json(request("POST", "/execute", &headers, bad)).await;
        assert_eq!(
            (status, &answer["type"]),
            (400, &json!("response")),
            "{bad}: {answer}"
        );
        assert!(answer["response"]["errors"][0].is_string());
    }
}

#[tokio::test]
async fn oversized_response_is_replaced_by_an_error() {
    let (fleet, mut calls) = Fleet::local();
    tokio::spawn(async move {
        while let Some(RequestEnvelope { events, .. }) = calls.recv().await {
            let reply = Reply::done("x".repeat(17 * 1024 * 1024).into());
            for event in [Event::Delivery(Delivery::new(node("n1"), reply, 1.0)), Event::End] {
                events.send(event).await.expect("taken");
            }
        }
    });
    let rig = Harness::with_fleet(fleet, &format!("token = \"{TOKEN}\"")).await;
    let response = rig
        .send(execute(&[("x-token", TOKEN)], &json!({"action": "ping"})))
        .await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let answer: Value = serde_json::from_slice(&body_bytes(response).await).expect("JSON");
    let error = answer["response"]["errors"][0].as_str().expect("an error");
    assert!(error.contains("it is done, but its outcome has"), "{error}");
}

#[tokio::test]
async fn cross_site_page_cannot_call_a_hook_without_token() {
    let rig = Harness::new(HOOKS).await;
    let path = "/hook/lights?colour=%2300ff00";
    for (headers, wanted) in [
        (&[("origin", "http://evil.example")][..], 403),
        (&[("sec-fetch-site", "cross-site")], 403),
        (
            &[("origin", "http://gateway"), ("sec-fetch-site", "same-origin")],
            200,
        ),
    ] {
        let (status, body) = rig.send_json(request("POST", path, headers, "")).await;
        assert_eq!(status, wanted, "{headers:?} {body}");
    }
    let headers = [
        ("origin", "http://other.example"),
        ("x-token", "fedcba9876543210"),
    ];
    let (status, body) = rig
        .send_json(request("POST", "/hook/guarded", &headers, ""))
        .await;
    assert_eq!(status, 200, "it showed the token: {body}");
}

#[tokio::test]
async fn token_is_accepted_in_every_documented_place() {
    let rig = Harness::with_user(&format!("token = \"{TOKEN}\"")).await;
    let auth = bearer(TOKEN);
    let ping = json!({"action": "ping"});
    for (path, headers, message) in [
        ("/execute", &[("authorization", auth.as_str())][..], ping.clone()),
        ("/execute", &[("x-token", TOKEN)], ping.clone()),
        ("/execute?token=0123456789abcdef", &[], ping.clone()),
        ("/execute", &[], json!({"action": "ping", "token": TOKEN})),
    ] {
        let (status, answer) = rig
            .send_json(request("POST", path, headers, message.to_string()))
            .await;
        assert_eq!(status, 200, "{path} {headers:?} {answer}");
    }
    let basic = |pair: &str| format!("Basic {}", BASE64.encode(pair.as_bytes()));
    let good = basic("ann:correct horse");
    let (status, _) = rig.send_json(execute(&[("authorization", &good)], &ping)).await;
    assert_eq!(status, 200);
    for wrong in [
        basic("ann:wrong"),
        basic("bob:correct horse"),
        basic("ann"),
        "Basic ?".to_owned(),
        bearer("wrong"),
    ] {
        let response = rig.send(execute(&[("authorization", &wrong)], &ping)).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{wrong}");
        assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
        let body: Value = serde_json::from_slice(&body_bytes(response).await).expect("JSON");
        assert_eq!(
            (&body["code"], &body["error"]),
            (&json!(401), &json!("Unauthorized"))
        );
        assert!(body["message"].is_string());
    }
    let (status, _) = rig.send_json(execute(&[], &ping)).await;
    assert_eq!(status, 401);
    // With the token the response says what is wrong with the message.
    let slip = json!({"action": "ping", "token": TOKEN, "reason": "fire"});
    let (status, answer) = rig.send_json(execute(&[], &slip)).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("reason"), "{answer}");
}

#[tokio::test]
async fn without_users_or_token_every_request_is_refused() {
    let rig = Harness::new("").await;
    let auth = bearer("x");
    let ping = json!({"action": "ping"}).to_string();
    let login = json!({"username": "ann", "password": PASSWORD}).to_string();
    for (method, path, headers, body) in [
        ("POST", "/execute", &[][..], ping.as_str()),
        ("POST", "/execute", &[("authorization", auth.as_str())], &ping),
        ("POST", "/auth", &[], &login),
        ("GET", "/dashboard/main", &[("accept", "text/html")], ""),
        ("GET", "/resources/files/below/ten.txt", &[], ""),
        ("GET", "/ws/events", &[], ""),
    ] {
        let (status, body) = rig
            .send_json(request(method, path, headers, body.to_owned()))
            .await;
        assert_eq!((status, &body["code"]), (412, &json!(412)), "{path}: {body}");
        assert!(
            body["message"]
                .as_str()
                .expect("a text")
                .contains("gateway user add"),
            "{body}"
        );
    }
}

const HOOKS: &str = r##"
allow = ["led", "fail"]
[gateways.platypush_http.hooks.lights]
action = "led"
[gateways.platypush_http.hooks.lights.parameters]
color = { key = "colour", pattern = "#[0-9a-f]{6}" }
level = { from = "body", type = "integer", default = 3 }
[gateways.platypush_http.hooks.guarded]
action = "led"
token = "fedcba9876543210"
methods = ["POST"]
[gateways.platypush_http.hooks.broken]
action = "fail"
"##;

#[tokio::test]
async fn resource_supports_ranges_and_etags() {
    let rig = Harness::new(&format!("token = \"{TOKEN}\"")).await;
    let path = format!("/resources/files/below/ten.txt?token={TOKEN}");
    let get = |method: &str, headers: &[(&str, &str)]| rig.send(request(method, &path, headers, ""));
    let first = get("GET", &[]).await;
    let tag = first.headers()[header::ETAG].to_str().expect("a text").to_owned();
    assert_eq!(first.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    assert_eq!(first.headers()[header::CONTENT_SECURITY_POLICY], "sandbox");
    assert_eq!(body_bytes(first).await, b"0123456789");
    for (range, status, shown, bytes) in [
        ("bytes=2-4", 206, Some("bytes 2-4/10"), &b"234"[..]),
        ("bytes=-3", 206, Some("bytes 7-9/10"), b"789"),
        ("bytes=8-", 206, Some("bytes 8-9/10"), b"89"),
        ("bytes=10-", 416, Some("bytes */10"), b""),
        ("bytes=0-1,4-5", 200, None, b"0123456789"),
    ] {
        let response = get("GET", &[("range", range)]).await;
        assert_eq!(response.status().as_u16(), status, "{range}");
        let told = response.headers().get(header::CONTENT_RANGE).cloned();
        assert_eq!(
            told.as_ref().map(|told| told.to_str().expect("a text")),
            shown,
            "{range}"
        );
        assert_eq!(body_bytes(response).await, bytes, "{range}");
    }
    let head = get("HEAD", &[]).await;
    assert_eq!(
        (head.status().as_u16(), &head.headers()[header::CONTENT_LENGTH]),
        (200, &"10".parse().expect("a value"))
    );
    assert_eq!(body_bytes(head).await, b"");
    assert_eq!(
        get("GET", &[("if-none-match", &tag)]).await.status(),
        StatusCode::NOT_MODIFIED
    );
    let part = [("range", "bytes=0-1"), ("if-range", tag.as_str())];
    assert_eq!(get("GET", &part).await.status(), StatusCode::PARTIAL_CONTENT);
    let part = [("range", "bytes=0-1"), ("if-range", "\"another\"")];
    assert_eq!(get("GET", &part).await.status(), StatusCode::OK);
    std::fs::write(rig.dir.path().join("files/below/ten.txt"), "changed").expect("written");
    assert_eq!(
        get("GET", &[("if-none-match", &tag)]).await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn resource_outside_its_root_is_not_served() {
    let rig = Harness::new(&format!("token = \"{TOKEN}\"")).await;
    let headers = [("x-token", TOKEN)];
    for path in [
        "/resources/files/../secret",
        "/resources/files/%2e%2e/secret",
        "/resources/files/%2e%2e%2fsecret",
        "/resources/files/below/..%2f..%2fsecret",
        "/resources/files/link",
        "/resources/files/below",
        "/resources/files/below/",
        "/resources/files//etc/passwd",
        "/resources/files/%2fetc%2fpasswd",
        "/resources/files/nothing",
        "/resources/files/below/ten.txt/x",
        "/resources/files/below/ten.txt/",
        &format!("/resources/files/{}", "x".repeat(300)),
        &format!("/resources/files/{}", "x/".repeat(3_000)),
        "/resources/files%2fbelow/../../secret",
        "/resources/files/a%00b",
        "/resources/%2e%2e/secret",
        "/resources/other/x",
        "/resources/files",
        "/resources/",
    ] {
        let (status, body) = rig.send_json(request("GET", path, &headers, "")).await;
        assert!(status == 404, "{path}: {status} {body}");
        assert!(!body.to_string().contains("\"secret\""), "{path}: {body}");
    }
    let (status, _) = rig
        .send_json(request("GET", "/resources/files/empty", &headers, ""))
        .await;
    assert_eq!(status, 200);
    let (status, _) = rig
        .send_json(request("GET", "/resources/files/empty", &[], ""))
        .await;
    assert_eq!(status, 401);
    let (status, _) = rig
        .send_json(request("PUT", "/resources/files/empty", &headers, ""))
        .await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn request_body_is_limited_in_size_and_time() {
    let rig = Harness::new(&format!(
        "token = \"{TOKEN}\"\nmessage_bytes = 256\nidle = \"50ms\""
    ))
    .await;
    let headers = [("x-token", TOKEN)];
    let (status, body) = rig
        .send_json(request("POST", "/execute", &headers, "x".repeat(257)))
        .await;
    assert_eq!((status, &body["code"]), (413, &json!(413)), "{body}");
    let never = Body::from_stream(tokio_util::io::ReaderStream::new(SilentBody));
    let (status, body) = rig.send_json(request("POST", "/execute", &headers, never)).await;
    assert_eq!((status, &body["code"]), (408, &json!(408)), "{body}");
}

struct SilentBody;

impl tokio::io::AsyncRead for SilentBody {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
        _to: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn unknown_routes_return_not_found() {
    let rig = Harness::new("").await;
    for (method, path, wanted) in [
        ("GET", "/nowhere", 404),
        ("GET", "/execute", 405),
        ("DELETE", "/auth", 405),
        ("GET", "/dashboard/%ff", 400),
        ("GET", "/hook/%ff", 400),
        ("GET", "/resources/files/%ff", 400),
    ] {
        let (status, body) = rig.send_json(request(method, path, &[], "")).await;
        assert_eq!((status, &body["code"]), (wanted, &json!(wanted)), "{body}");
    }
    let home = rig.send(request("GET", "/", &[], "")).await;
    assert_eq!(
        (home.status().as_u16(), &home.headers()[header::LOCATION]),
        (303, &"/dashboard/main".parse().expect("a value"))
    );
    assert_eq!(home.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
}
