//! Every action, as a station meets it.

use std::time::Duration;

use serde_json::{Value, json};
use swarm_shared::proto::id::PublicKey;
use tempfile::TempDir;

use super::*;
use crate::config::Origin;

const FILE: &str = r#"
name = "n1"
tags = { row = "1" }

[execute]
allowed = true
timeout = "5s"

[reboot]
allowed = true
command = ["echo", "rebooted"]

[services]
allow = ["camera.service"]

[notify]
command = ["echo", "shown:"]

[actions.say]
command = ["echo", "{text}", "{n}"]
args.text = { type = "string", default = "$(id)" }
args.n = { type = "integer", max = 9 }

[actions.slow]
command = ["sleep", "5"]
timeout = "200ms"

[actions.bad]
command = ["sh", "-c", "echo oh; exit 4"]

[actions.hold]
command = ["sleep", "60"]

[private]
key = "s3cret"
"#;

struct Place {
    dir: TempDir,
    actions: Actions,
    name: watch::Receiver<NodeName>,
    stop: CancellationToken,
}

impl Place {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config_path = dir.path().join("config.toml");
        std::fs::write(&config_path, text).expect("written");
        let (config, _) = Config::parse(text, &Origin::Text(None)).expect("a configuration");
        let state = Arc::new(StateDir::open(dir.path()).expect("a state directory"));
        let disks = vec![("state".to_owned(), dir.path().to_owned())];
        let (name, names) = watch::channel(NodeName::from_host("n1"));
        let stop = CancellationToken::new();
        let plugins = Plugins::new(&config);
        let actions = Actions::new(Setup {
            id: PublicKey([1; 32]).id(),
            telemetry: Telemetry::new(config.telemetry.clone(), disks, plugins.clone()),
            plugins,
            roots: Roots::new(config.root_map()),
            config,
            config_path,
            state,
            log: LogRing::new(),
            name,
            name_fixed_by: None,
            stop: stop.clone(),
        });
        Self {
            dir,
            actions,
            name: names,
            stop,
        }
    }

    async fn call_as(&self, role: Role, action: &str, arguments: Value) -> Reply {
        let command = Command {
            id: 1,
            peer: PublicKey([2; 32]).id(),
            role,
            action: action.to_owned(),
            arguments: serde_json::from_value(arguments).expect("arguments"),
            deadline: Some(clock::now() + Duration::from_secs(20)),
        };
        self.actions.run(command).await
    }

    async fn call(&self, action: &str, kwargs: Value) -> Reply {
        self.call_as(Role::Admin, action, json!({ "kwargs": kwargs }))
            .await
    }

    async fn refused(&self, action: &str, kwargs: Value, says: &str) {
        let reply = self.call(action, kwargs).await;
        let error = reply.error.unwrap_or_default();
        assert_eq!(reply.state, Outcome::Refused, "{action}: {error}");
        assert!(error.contains(says), "{action}: {error}");
    }

    fn file(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("config.toml")).expect("there")
    }
}

#[tokio::test]
async fn the_simple_ones_answer() {
    let place = Place::new(FILE);
    assert_eq!(place.call("ping", json!({})).await, Reply::done(json!("pong")));
    let time = place.call("time", json!({})).await.value.expect("a value");
    assert!(time["unix_ms"].as_u64().expect("a number") > 0);
    let telemetry = place.call("telemetry", json!({})).await.value.expect("a value");
    assert!(telemetry["memory"]["total"].is_number());
    let log = place.call("log", json!({"lines": 3})).await;
    assert!(log.output.is_some());
    for action in ["ping", "time", "telemetry", "selfcheck", "reboot"] {
        place
            .refused(action, json!({"x": 1}), "unknown argument \"x\"; it takes none")
            .await;
    }
    place.refused("log", json!({"lines": -1}), "whole number").await;
    place
        .refused(
            "dance",
            json!({}),
            "no action is called \"dance\"; this node's own: bad, hold, say, slow",
        )
        .await;
    place
        .refused("filetransfer", json!({}), "ground-station send")
        .await;
}

#[tokio::test]
async fn a_rename_is_announced_and_remembered() {
    let place = Place::new(FILE);
    let value = place.call("id", json!({})).await.value.expect("a value");
    assert_eq!(value["name"], "n1");
    assert_eq!(value["id"], json!(PublicKey([1; 32]).id()));
    let renamed = place.call("id", json!({"new_id": "drone-9"})).await;
    assert_eq!(renamed.value.expect("a value")["name"], "drone-9");
    assert_eq!(place.name.borrow().as_str(), "drone-9");
    assert_eq!(
        std::fs::read_to_string(place.dir.path().join("name")).expect("there"),
        "drone-9\n"
    );
    place
        .refused("id", json!({"new_id": "a b"}), "is not a name")
        .await;
    let host = place
        .call("id", json!({"new_id": "/hostname"}))
        .await
        .value
        .expect("a value");
    assert_eq!(host["name"], json!(builtin::host_name()));
}

#[tokio::test]
async fn owners_actions_run_without_a_shell() {
    let place = Place::new(FILE);
    let reply = place.call("say", json!({"n": 3})).await;
    assert_eq!((reply.state, reply.exit), (Outcome::Done, Some(0)));
    assert_eq!(reply.output.as_deref(), Some("$(id) 3\n"));
    place
        .refused(
            "say",
            json!({"n": 10}),
            "argument n must be an integer of at most 9, not 10",
        )
        .await;
    place.refused("say", json!({}), "argument n is missing").await;
    let reply = place.call("bad", json!({})).await;
    assert_eq!((reply.state, reply.exit), (Outcome::Failed, Some(4)));
    assert_eq!(
        (reply.output.as_deref(), reply.error.as_deref()),
        (Some("oh\n"), Some("exit status 4"))
    );
    let reply = place.call("slow", json!({})).await;
    assert_eq!((reply.state, reply.exit), (Outcome::Failed, Some(143)));
    assert_eq!(
        reply.error.as_deref(),
        Some("ran longer than 200ms and was killed")
    );
}

#[tokio::test]
async fn too_many_programs_are_refused_and_shutdown_ends_them() {
    let place = Place::new(FILE);
    let held = (0..PROGRAMS_MAX).map(|_| place.call("hold", json!({})));
    let mut held: Vec<_> = held.map(Box::pin).collect();
    for call in &mut held {
        // Each begins when it is first polled.
        tokio::time::timeout(Duration::from_millis(20), call)
            .await
            .expect_err("it runs on");
    }
    place
        .refused("hold", json!({}), "busy: 8 programs are running")
        .await;
    place.stop.cancel();
    for call in held {
        let reply = call.await;
        assert_eq!(reply.state, Outcome::Failed);
        assert!(reply.error.unwrap_or_default().contains("shutting down"));
    }
}

#[tokio::test]
async fn a_late_command_does_not_begin() {
    let place = Place::new(FILE);
    let mark = place.dir.path().join("mark");
    let command = Command {
        id: 1,
        peer: PublicKey([2; 32]).id(),
        role: Role::Admin,
        action: "execute".to_owned(),
        arguments: serde_json::from_value(json!({"kwargs": {"program": "touch", "args": [mark]}}))
            .expect("arguments"),
        deadline: Some(clock::now()),
    };
    assert_eq!(place.actions.run(command).await.state, Outcome::Expired);
    assert!(!mark.exists());
}

#[tokio::test]
async fn execute_takes_an_admin_and_the_nodes_own_word() {
    let place = Place::new(FILE);
    let reply = place
        .call("execute", json!({"program": "echo", "args": ["a b", "$HOME"]}))
        .await;
    assert_eq!(reply.output.as_deref(), Some("a b $HOME\n"));
    for role in [Role::Observer, Role::Node, Role::Operator] {
        let arguments = json!({"kwargs": {"program": "true"}});
        let reply = place.call_as(role, "execute", arguments).await;
        assert_eq!(reply.state, Outcome::Refused, "{role}");
    }
    place
        .refused(
            "execute",
            json!({"program": "echo", "args": "x"}),
            "list of texts",
        )
        .await;
    place
        .refused("execute", json!({"args": []}), "program is missing")
        .await;
    place
        .refused("execute", json!({"program": "a\u{0}"}), "without NUL")
        .await;
    let reply = place
        .call(
            "execute",
            json!({"program": "sleep", "args": ["9"], "timeout": "100ms"}),
        )
        .await;
    assert_eq!(reply.state, Outcome::Failed);
    assert_eq!(
        place.call("execute", json!({"program": "/no/such"})).await.state,
        Outcome::Failed
    );
    let closed = Place::new("");
    closed
        .refused("execute", json!({"program": "true"}), "[execute] allowed = true")
        .await;
}

#[tokio::test]
async fn the_devices_own_switches_decide() {
    let place = Place::new(FILE);
    assert_eq!(
        place.call("reboot", json!({})).await.output.as_deref(),
        Some("rebooted\n")
    );
    let notice = place.call("notify", json!({"text": "hi; there"})).await;
    assert_eq!(notice.output.as_deref(), Some("shown: hi; there\n"));
    place
        .refused("notify", json!({"text": "x".repeat(5000)}), "at most 4096")
        .await;
    place
        .refused(
            "service_restart",
            json!({"name": "sshd"}),
            "allows ([services] allow): camera.service",
        )
        .await;
    place
        .refused(
            "service_restart",
            json!({"name": "--now"}),
            "may not be restarted",
        )
        .await;
    let bare = Place::new("");
    bare.refused("reboot", json!({}), "[reboot] allowed = true").await;
    bare.refused("service_restart", json!({"name": "camera"}), "allow): none")
        .await;
    assert_eq!(
        bare.call("notify", json!({"text": "hi"})).await.state,
        Outcome::Done
    );
}

#[tokio::test]
async fn the_configuration_is_read_without_its_secrets() {
    let place = Place::new(FILE);
    let whole = place.call("config", json!({})).await.value.expect("a value");
    assert_eq!(whole["name"], "n1");
    assert!(!whole.to_string().contains("s3cret") && whole.get("private").is_none());
    let section = place.call("config", json!({"section": "actions.slow"})).await;
    assert_eq!(section.value.expect("a value")["timeout"], "200ms");
    place
        .refused("config", json!({"section": "private"}), "says nothing about")
        .await;
    place
        .refused("config", json!({"section": "private.key"}), "says nothing about")
        .await;
    place
        .refused("config", json!({"mode": "burn"}), "use modify or rewrite")
        .await;
}

#[tokio::test]
async fn the_configuration_is_changed_whole_or_not_at_all() {
    let place = Place::new(FILE);
    let reply = place
        .call(
            "config",
            json!({"mode": "modify", "tags.row": 7, "ping_port": "7000"}),
        )
        .await;
    assert_eq!(
        reply.value.expect("a value")["takes_effect"],
        "when the daemon restarts"
    );
    assert!(place.file().contains("row = \"7\"") && place.file().contains("ping_port = 7000"));
    assert!(place.file().contains("key = \"s3cret\""));
    let reply = place
        .call(
            "config",
            json!({"mode": "modify", "section": "telemetry", "values": {"interval": "9s"}}),
        )
        .await;
    assert_eq!(reply.state, Outcome::Done, "{:?}", reply.error);
    let before = place.file();
    place
        .refused(
            "config",
            json!({"mode": "modify", "values": {"private": {"key": 1}}}),
            "on the device only",
        )
        .await;
    place
        .refused(
            "config",
            json!({"mode": "modify", "values": {"name": 1, "x": 1}}),
            "unknown key `x`",
        )
        .await;
    place
        .refused("config", json!({"mode": "modify"}), "no key to change")
        .await;
    place
        .refused(
            "config",
            json!({"mode": "rewrite", "text": "nme = 1"}),
            "did you mean `name`?",
        )
        .await;
    place
        .refused("config", json!({"mode": "rewrite"}), "text is missing")
        .await;
    let arguments = json!({"kwargs": {"mode": "modify", "execute.allowed": true}});
    let reply = place.call_as(Role::Operator, "config", arguments).await;
    assert_eq!(reply.state, Outcome::Refused);
    assert_eq!(place.file(), before);
    place
        .call("config", json!({"mode": "rewrite", "text": "mdns = false\n"}))
        .await;
    assert!(place.file().starts_with("mdns = false\n") && place.file().contains("s3cret"));
}

#[tokio::test]
async fn a_node_without_a_file_gets_one() {
    let place = Place::new("");
    std::fs::remove_file(place.dir.path().join("config.toml")).expect("removed");
    assert_eq!(place.call("config", json!({})).await.value, Some(json!({})));
    let reply = place
        .call("config", json!({"mode": "modify", "mdns": false}))
        .await;
    assert_eq!(reply.state, Outcome::Done);
    assert_eq!(place.file(), "mdns = false\n");
}

#[tokio::test]
async fn a_selfcheck_names_what_is_wrong() {
    let root = tempfile::tempdir().expect("a directory");
    let gone = root.path().join("gone");
    let text = format!("[files]\nroots = {{ a = {:?}, b = {gone:?} }}", root.path());
    let place = Place::new(&text);
    let reply = place.call("selfcheck", json!({})).await;
    assert_eq!(reply.state, Outcome::Failed);
    assert!(reply.error.unwrap_or_default().contains("root b: No such file"));
    let checks = reply.value.expect("a value");
    let named = |name: &str| {
        let all = checks.as_array().expect("a list");
        all.iter().find(|check| check["check"] == name).expect(name)["ok"].clone()
    };
    for good in ["state", "clock", "config", "root a"] {
        assert_eq!(named(good), true, "{good}");
    }
    std::fs::write(place.dir.path().join("config.toml"), "nme = 1").expect("written");
    let error = place.call("selfcheck", json!({})).await.error.unwrap_or_default();
    assert!(error.contains("did you mean `name`?"), "{error}");
}
