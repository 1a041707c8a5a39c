//! Every request and every refusal is in the audit.

use super::*;
use crate::store::audit::{self, AuditEntry};
use crate::store::history;

impl Harness {
    /// The audit after a shutdown, newest first.
    pub(super) async fn shut_down(self) -> Vec<AuditEntry> {
        self.context.shutdown.cancel();
        self.context.tasks.close();
        self.context.tasks.wait().await;
        self.audit().await
    }

    /// The audit so far, newest first.
    pub(super) async fn audit(&self) -> Vec<AuditEntry> {
        let newest = history::run_query(self.dir.path(), |connection| audit::newest(connection, 0, 1_000));
        newest.await.expect("read").unwrap_or_default()
    }
}

const LINES: &str = r#"
message_bytes = 256
[gateways.platypush_http.hooks.guarded]
action = "ping"
token = "fedcba9876543210"
"#;

/// Method, path, headers and body; the status; client, action and reason in the audit.
type Case<'a> = (
    &'a str,
    &'a str,
    &'a [(&'a str, &'a str)],
    &'a str,
    u16,
    &'a str,
    &'a str,
    &'a str,
);

#[tokio::test]
async fn every_http_refusal_is_audited() {
    let rig = Harness::with_user(LINES).await;
    let basic = |pair: &str| format!("Basic {}", BASE64.encode(pair.as_bytes()));
    let (good, wrong) = (basic("ann:correct horse"), basic("ann:wrong"));
    let (good, wrong) = (
        ("authorization", good.as_str()),
        ("authorization", wrong.as_str()),
    );
    let evil = ("origin", "http://evil");
    let html = ("accept", "text/html");
    let form = "username=ann&password=correct+horse";
    let login = rig.send(request("POST", "/login", &[], form)).await;
    let cookie = login.headers()[header::SET_COOKIE]
        .to_str()
        .expect("a text")
        .to_owned();
    let cookie = ("cookie", cookie.split(';').next().expect("a cookie"));
    let (long, ping) = ("x".repeat(257), json!({"action": "ping"}).to_string());
    let no_node = json!({"action": "led", "target": "!"}).to_string();
    let history = json!({"action": "station.history", "target": "tag:row=1"}).to_string();
    // Each from another address, so that nothing is aggregated.
    let all: &[Case<'_>] = &[
        (
            "POST",
            "/execute",
            &[("x-token", "x")],
            &ping,
            401,
            "",
            "/execute",
            "not good",
        ),
        (
            "POST",
            "/execute",
            &[wrong],
            &ping,
            401,
            "",
            "/execute",
            "wrong name or password",
        ),
        (
            "POST",
            "/execute",
            &[("authorization", "Basic ?")],
            &ping,
            401,
            "",
            "/execute",
            "NAME:PASSWORD",
        ),
        (
            "POST",
            "/execute",
            &[],
            &ping,
            401,
            "",
            "/execute",
            "show a token",
        ),
        (
            "POST",
            "/execute",
            &[good, evil],
            &ping,
            403,
            "ann",
            "/execute",
            "another site",
        ),
        (
            "POST",
            "/execute",
            &[cookie],
            &ping,
            403,
            "ann",
            "/execute",
            "X-CSRF-Token",
        ),
        (
            "POST",
            "/execute",
            &[good],
            &long,
            413,
            "",
            "/execute",
            "longer than 256",
        ),
        ("POST", "/execute", &[good], "{", 400, "ann", "message", "JSON"),
        ("POST", "/execute", &[good], &no_node, 200, "ann", "led", "\"!\""),
        (
            "POST",
            "/execute",
            &[good],
            &history,
            200,
            "ann",
            "station.history",
            "does not keep tags",
        ),
        ("POST", "/auth", &[], "{}", 400, "", "/auth", "username"),
        ("POST", "/auth", &[evil], "{}", 403, "", "/auth", "another site"),
        ("POST", "/login", &[evil], form, 403, "", "/login", "another site"),
        (
            "POST",
            "/login",
            &[],
            "username=ann&password=x",
            401,
            "",
            "login",
            "wrong name",
        ),
        (
            "POST",
            "/logout",
            &[cookie],
            "",
            403,
            "ann",
            "/logout",
            "X-CSRF-Token",
        ),
        (
            "POST",
            "/logout",
            &[good],
            "",
            400,
            "ann",
            "/logout",
            "only a login's cookie",
        ),
        (
            "GET",
            "/dashboard/x",
            &[("cookie", "session_token=x")],
            "",
            401,
            "",
            "/dashboard/{name}",
            "login is over",
        ),
        (
            "GET",
            "/dashboard/x",
            &[("x-token", "x"), html],
            "",
            303,
            "",
            "/dashboard/{name}",
            "not good",
        ),
        (
            "GET",
            "/resources/files/empty",
            &[wrong],
            "",
            401,
            "",
            "/resources/{name}/{*path}",
            "wrong name",
        ),
        (
            "GET",
            "/resources/files/none",
            &[good],
            "",
            404,
            "ann",
            "resource",
            "there is no file",
        ),
        (
            "GET",
            "/ws/events",
            &[("x-token", "x")],
            "",
            401,
            "",
            "/ws/events",
            "not good",
        ),
        (
            "GET",
            "/ws/events",
            &[good],
            "",
            426,
            "ann",
            "/ws/events",
            "over a WebSocket",
        ),
        (
            "POST",
            "/hook/guarded",
            &[("x-token", "x")],
            "",
            401,
            "hook guarded",
            "/hook/{name}",
            "not the token",
        ),
        (
            "POST",
            "/hook/guarded",
            &[],
            "",
            401,
            "hook guarded",
            "/hook/{name}",
            "takes a token",
        ),
        (
            "POST",
            "/hook/nothing",
            &[],
            "",
            404,
            "",
            "/hook/{name}",
            "no such hook",
        ),
        (
            "GET",
            "/execute",
            &[],
            "",
            405,
            "",
            "/execute",
            "not with this method",
        ),
    ];
    let address = |number: usize| format!("10.0.0.{number}");
    for (number, (method, path, headers, body, status, ..)) in all.iter().enumerate() {
        let asked = request(method, path, headers, (*body).to_owned());
        let answer = rig.send_from(&address(number), asked).await;
        assert_eq!(answer.status().as_u16(), *status, "{method} {path} {headers:?}");
        // A method that the document does not describe has no responses there.
        let described = openapi_document::documents_status(method, path, *status);
        assert!(described || *status == 405, "{method} {path}: {status}");
    }
    // A path that does not exist is not audited.
    rig.send_from("10.0.1.1", request("GET", "/nowhere", &[], ""))
        .await;
    let audit = rig.shut_down().await;
    for (number, (method, path, headers, .., user, what, why)) in all.iter().enumerate() {
        let from = format!("platypush_http from {}", address(number));
        let who = if user.is_empty() {
            from
        } else {
            format!("{user} at {from}")
        };
        let of: Vec<_> = audit.iter().filter(|entry| entry.user == who).collect();
        let [entry] = of.as_slice() else {
            panic!("{method} {path} {headers:?}: {who:?} is not once in {audit:#?}");
        };
        let noted = entry.action == *what && entry.outcome.contains(why);
        assert!(
            noted && entry.outcome.starts_with("not done: "),
            "{what}, {why}: {entry:?}"
        );
    }
    let strangers = audit.iter().filter(|entry| entry.user.ends_with("10.0.1.1"));
    assert_eq!(strangers.count(), 0);
}

#[tokio::test]
async fn token_guessing_does_not_fill_the_audit() {
    let rig = Harness::with_user(LINES).await;
    for number in 0..200 {
        let headers = [("x-token", format!("guess {number}"))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let path = ["/execute", "/ws/events"][number % 2];
        let method = ["POST", "GET"][number % 2];
        let (status, _) = rig.send_json(request(method, path, &headers, "{}")).await;
        assert_eq!(status, if number < 10 { 401 } else { 429 });
    }
    let audit = rig.shut_down().await;
    // Per route: the first wrong token, the first throttled one, and the repeats of each.
    assert_eq!(audit.len(), 8, "{audit:#?}");
    for times in ["4 times more", "94 times more"] {
        let counted = |entry: &&AuditEntry| entry.outcome.starts_with(times);
        assert_eq!(audit.iter().filter(counted).count(), 2, "{times}: {audit:#?}");
    }
}
