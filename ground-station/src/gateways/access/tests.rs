use std::path::Path;

use tokio::sync::mpsc;

use super::*;
use crate::config::Config;
use crate::fleet::{Call, Fleet};
use crate::store::{audit, history};

/// A guard before a fleet that never answers.
struct Gate {
    guard: Guard,
    house: House,
    calls: mpsc::Receiver<Call>,
    dir: tempfile::TempDir,
}

impl Gate {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::for_host("st");
        let text = "[doors.knut]\nallow = [\"led\"]\n";
        config.read_file(Path::new("config.toml"), text).expect("reads");
        let config = config.doors.knut.expect("open");
        let (fleet, calls) = Fleet::local();
        let house = crate::gateways::tests::house(fleet, dir.path()).await;
        Self {
            guard: Guard::new("knut", &config.common, &house),
            house,
            calls,
            dir,
        }
    }

    /// The audit so far, newest first.
    async fn audit(&self) -> Vec<Entry> {
        let found = history::ask(self.dir.path(), |connection| {
            audit::newest(connection, 0, 100_000)
        });
        found.await.expect("read").unwrap_or_default()
    }

    /// The audit of a station that has shut down.
    async fn closed(self) -> Vec<Entry> {
        self.house.stop.cancel();
        self.house.tasks.close();
        self.house.tasks.wait().await;
        self.audit().await
    }
}

fn visitor(from: &str) -> Visitor {
    Visitor {
        from: from.parse().expect("an address"),
        user: None,
    }
}

fn errand(action: &str) -> Errand {
    Errand {
        selector: Selector::parse("all").expect("a selector"),
        action: action.to_owned(),
        arguments: Arguments::default(),
        ttl: Duration::from_secs(10),
        timeout: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn whoever_misspells_an_action_is_told_what_is_called_nearly_so() {
    let gate = Gate::new().await;
    for name in READS {
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
            "it is not known to read, and no name in `allow` means it; name it in `allow` of [doors.knut], or did you mean \"ping\"?",
        ),
        (
            "lde",
            &none,
            "name it in `allow` of [doors.knut], or did you mean \"led\"?",
        ),
        ("takeoff", &none, "name it in `allow` of [doors.knut]"),
        (
            "id",
            &renames,
            "with these arguments it does not only read, and no name in `allow` means it; name it in `allow` of [doors.knut]",
        ),
    ] {
        let refused = gate
            .guard
            .permit(action, arguments)
            .expect_err(action)
            .to_string();
        assert!(
            refused.starts_with(&format!("action {action:?} may not pass this door: "))
                && refused.ends_with(says),
            "{refused}"
        );
    }
    gate.guard.permit("led", &none).expect("named");
    gate.guard.permit("ping", &none).expect("reads");
}

#[tokio::test]
async fn what_a_visitor_asked_for_is_in_the_audit_though_it_left_before_the_end() {
    let mut gate = Gate::new().await;
    let guard = gate.guard.clone();
    let serving = tokio::spawn(async move { guard.command(&visitor("10.0.0.1"), errand("led")).await });
    let call = gate.calls.recv().await.expect("asked");
    serving.abort();
    serving.await.expect_err("dropped midway");
    drop(call);
    let audit = gate.closed().await;
    let [entry] = audit.as_slice() else {
        panic!("one entry: {audit:#?}");
    };
    assert_eq!(
        (entry.who.as_str(), entry.what.as_str(), entry.detail.as_str()),
        ("knut from 10.0.0.1", "led", "all")
    );
    assert!(entry.outcome.starts_with("cut off"), "{entry:?}");
    assert!(entry.at_ms > 0);
}

#[tokio::test]
async fn whoever_asks_again_and_again_does_not_fill_the_audit() {
    let mut gate = Gate::new().await;
    let mut calls = std::mem::replace(&mut gate.calls, mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            call.events.send(Event::End).await.expect("taken");
        }
    });
    let asker = visitor("10.0.0.1");
    for _ in 0..50 {
        for action in ["ping", "led"] {
            gate.guard
                .command(&asker, errand(action))
                .await
                .expect("permitted");
        }
        let refused = gate.guard.command(&asker, errand("reboot")).await;
        refused.expect_err("not named");
    }
    let audit = gate.closed().await;
    let of = |what: &str| audit.iter().filter(|entry| entry.what == what).count();
    assert_eq!((of("ping"), of("reboot"), of("led")), (2, 2, 50));
    let counted = |entry: &&Entry| entry.outcome.starts_with("49 times more");
    assert_eq!(audit.iter().filter(counted).count(), 2, "{audit:#?}");
}

/// What a closing station waits for is bounded, and a slow disk takes its time for each flush.
#[tokio::test]
async fn what_was_counted_is_written_together_when_the_door_closes() {
    let gate = Gate::new().await;
    for _ in 0..2 {
        for n in 0..30 {
            let from = visitor(&format!("10.0.0.{n}"));
            gate.guard.note_wrong(&from, "no message").await;
        }
    }
    let log = gate.house.store.path().with_extension("db-wal");
    let bytes = || std::fs::metadata(&log).expect("there").len();
    let before = bytes();
    gate.house.stop.cancel();
    gate.house.tasks.close();
    gate.house.tasks.wait().await;
    // Each flush by itself takes a page at least.
    let pages = (bytes() - before) / 4_096;
    assert!(pages < 30, "{pages} pages for 30 entries");
    assert_eq!(gate.closed().await.len(), 60);
}

#[tokio::test]
async fn whoever_means_nobody_again_and_again_does_not_fill_the_audit() {
    let mut gate = Gate::new().await;
    let mut calls = std::mem::replace(&mut gate.calls, mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            let nobody = Event::failed(Failure::NobodyMatched, "no node matches");
            call.events.send(nobody).await.expect("taken");
        }
    });
    for _ in 0..50 {
        let done = gate.guard.command(&visitor("10.0.0.1"), errand("led")).await;
        done.expect_err("nobody is meant");
    }
    let audit = gate.closed().await;
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
async fn a_role_that_is_too_low_is_mended_at_the_door_and_not_by_an_invitation() {
    let gate = Gate::new().await;
    let refused = gate.guard.permit("execute", &Arguments::default());
    assert_eq!(
        refused.expect_err("an operator's door").to_string(),
        "running a program may not be asked for by role operator: it takes role admin; see `role` in [doors.knut], and \
         name it in `allow`"
    );
    gate.closed().await;
}

#[test]
fn a_visitor_names_no_more_terms_than_are_looked_for_at_once() {
    let text = |terms| vec!["drone-1"; terms].join(",");
    assert_eq!(selector(&text(TERMS_MAX)).expect("few").term_count(), TERMS_MAX);
    let error = selector(&text(TERMS_MAX + 1)).expect_err("more").to_string();
    assert!(error.contains("at most 64 terms"), "{error}");
}
