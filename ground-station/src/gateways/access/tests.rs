use std::path::Path;

use tokio::sync::mpsc;

use super::*;
use crate::config::Config;
use crate::store::{audit, history};
use swarm_shared::client::{Fleet, RequestEnvelope};

/// A policy with a fleet that never answers.
struct Harness {
    access: AccessPolicy,
    context: GatewayContext,
    calls: mpsc::Receiver<RequestEnvelope>,
    dir: tempfile::TempDir,
}

impl Harness {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::for_host("st");
        let text = "[gateways.knut]\nallow = [\"led\"]\n";
        config.read_file(Path::new("config.toml"), text).expect("reads");
        let config = config.gateways.knut.expect("open");
        let (fleet, calls) = Fleet::local();
        let context = crate::gateways::tests::test_context(fleet, dir.path()).await;
        Self {
            access: AccessPolicy::new("knut", &config.common, &context),
            context,
            calls,
            dir,
        }
    }

    /// The audit so far, newest first.
    async fn audit(&self) -> Vec<AuditEntry> {
        let found = history::run_query(self.dir.path(), |connection| {
            audit::newest(connection, 0, 100_000)
        });
        found.await.expect("read").unwrap_or_default()
    }

    /// The audit of a station that has shut down.
    async fn shut_down(self) -> Vec<AuditEntry> {
        self.context.shutdown.cancel();
        self.context.tasks.close();
        self.context.tasks.wait().await;
        self.audit().await
    }
}

fn client(from: &str) -> Client {
    Client {
        from: from.parse().expect("an address"),
        user: None,
    }
}

fn action_request(action: &str) -> ActionRequest {
    ActionRequest {
        selector: Selector::parse("all").expect("a selector"),
        action: action.to_owned(),
        arguments: Arguments::default(),
        ttl: Duration::from_secs(10),
        timeout: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn misspelt_action_is_refused_with_a_suggestion() {
    let harness = Harness::new().await;
    for name in READ_ONLY_ACTIONS {
        let class = gate::classify(name, &Arguments::default());
        assert_eq!(class, ActionClass::Read, "{name}");
    }
    let mut renames = Arguments::default();
    renames.args.push("drone-8".into());
    let none = Arguments::default();
    for (action, arguments, says) in [
        (
            "pnig",
            &none,
            "it is not known to read, and no name in `allow` means it; name it in `allow` of [gateways.knut], or did you mean \"ping\"?",
        ),
        (
            "lde",
            &none,
            "name it in `allow` of [gateways.knut], or did you mean \"led\"?",
        ),
        ("takeoff", &none, "name it in `allow` of [gateways.knut]"),
        (
            "id",
            &renames,
            "with these arguments it does not only read, and no name in `allow` means it; name it in `allow` of [gateways.knut]",
        ),
    ] {
        let refused = harness
            .access
            .permit(action, arguments)
            .expect_err(action)
            .to_string();
        assert!(
            refused.starts_with(&format!("action {action:?} may not pass this gateway: "))
                && refused.ends_with(says),
            "{refused}"
        );
    }
    harness.access.permit("led", &none).expect("named");
    harness.access.permit("ping", &none).expect("reads");
}

#[tokio::test]
async fn request_of_a_disconnected_client_is_audited() {
    let mut harness = Harness::new().await;
    let access = harness.access.clone();
    let serving =
        tokio::spawn(async move { access.command(&client("10.0.0.1"), action_request("led")).await });
    let call = harness.calls.recv().await.expect("asked");
    serving.abort();
    serving.await.expect_err("dropped midway");
    drop(call);
    let audit = harness.shut_down().await;
    let [entry] = audit.as_slice() else {
        panic!("one entry: {audit:#?}");
    };
    assert_eq!(
        (entry.user.as_str(), entry.action.as_str(), entry.detail.as_str()),
        ("knut from 10.0.0.1", "led", "all")
    );
    assert!(entry.outcome.starts_with("cut off"), "{entry:?}");
    assert!(entry.at_ms > 0);
}

#[tokio::test]
async fn repeated_requests_do_not_fill_the_audit() {
    let mut harness = Harness::new().await;
    let mut calls = std::mem::replace(&mut harness.calls, mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            call.events.send(Event::End).await.expect("taken");
        }
    });
    let asker = client("10.0.0.1");
    for _ in 0..50 {
        for action in ["ping", "led"] {
            harness
                .access
                .command(&asker, action_request(action))
                .await
                .expect("permitted");
        }
        let refused = harness.access.command(&asker, action_request("reboot")).await;
        refused.expect_err("not named");
    }
    let audit = harness.shut_down().await;
    let of = |what: &str| audit.iter().filter(|entry| entry.action == what).count();
    assert_eq!((of("ping"), of("reboot"), of("led")), (2, 2, 50));
    let counted = |entry: &&AuditEntry| entry.outcome.starts_with("49 times more");
    assert_eq!(audit.iter().filter(counted).count(), 2, "{audit:#?}");
}

/// A shutdown waits for a bounded time, and a slow disk needs long for each flush.
#[tokio::test]
async fn aggregates_are_written_in_one_flush_at_shutdown() {
    let harness = Harness::new().await;
    for _ in 0..2 {
        for n in 0..30 {
            let from = client(&format!("10.0.0.{n}"));
            harness.access.audit_malformed(&from, "no message").await;
        }
    }
    let log = harness.context.store.path().with_extension("db-wal");
    let bytes = || std::fs::metadata(&log).expect("there").len();
    let before = bytes();
    harness.context.shutdown.cancel();
    harness.context.tasks.close();
    harness.context.tasks.wait().await;
    // Each commit by itself writes a page at least.
    let pages = (bytes() - before) / 4_096;
    assert!(pages < 30, "{pages} pages for 30 entries");
    assert_eq!(harness.shut_down().await.len(), 60);
}

#[tokio::test]
async fn requests_matching_no_node_do_not_fill_the_audit() {
    let mut harness = Harness::new().await;
    let mut calls = std::mem::replace(&mut harness.calls, mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            let no_match = Event::failed(Failure::NoMatch, "no node matches");
            call.events.send(no_match).await.expect("taken");
        }
    });
    for _ in 0..50 {
        let done = harness
            .access
            .command(&client("10.0.0.1"), action_request("led"))
            .await;
        done.expect_err("no node matches");
    }
    let audit = harness.shut_down().await;
    let outcomes: Vec<&str> = audit.iter().map(|entry| entry.outcome.as_str()).collect();
    assert_eq!(
        outcomes,
        [
            "49 times more within 60 s, at last: not done: no node matches",
            "not done: no node matches"
        ]
    );
}

#[tokio::test]
async fn insufficient_role_error_names_the_gateway_setting() {
    let harness = Harness::new().await;
    let refused = harness.access.permit("execute", &Arguments::default());
    assert_eq!(
        refused.expect_err("an operator's gateway").to_string(),
        "running a program may not be asked for by role operator: it takes role admin; see `role` in [gateways.knut], and \
         name it in `allow`"
    );
    harness.shut_down().await;
}

#[test]
fn selector_of_a_client_is_limited_in_terms() {
    let text = |terms| vec!["drone-1"; terms].join(",");
    assert_eq!(
        parse_selector(&text(SELECTOR_TERMS_MAX))
            .expect("few")
            .term_count(),
        SELECTOR_TERMS_MAX
    );
    let error = parse_selector(&text(SELECTOR_TERMS_MAX + 1))
        .expect_err("more")
        .to_string();
    assert!(error.contains("at most 64 terms"), "{error}");
}
