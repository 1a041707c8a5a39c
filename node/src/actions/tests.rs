//! Every action, run as by a station's command.

use std::time::Duration;

use serde_json::{Value, json};
use swarm_shared::proto::delivery::executor::ActionProperties;
use swarm_shared::proto::foreign::plugin::message;
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::message::LOST_LINK_CHECK;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::config::Origin;
use crate::status::{LinkLoss, StatusView};

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

pub(crate) struct TestNode {
    pub(crate) dir: TempDir,
    pub(crate) actions: Actions,
    status: Status,
    name: watch::Receiver<NodeName>,
    shutdown: CancellationToken,
}

impl TestNode {
    pub(crate) fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config_path = dir.path().join("config.toml");
        std::fs::write(&config_path, text).expect("written");
        let config = Config::parse(text, &Origin::Text(None)).expect("a configuration");
        let state = Arc::new(StateDir::open(dir.path()).expect("a state directory"));
        let disks = vec![("state".to_owned(), dir.path().to_owned())];
        let (name, names) = watch::channel(NodeName::from_host("n1"));
        let shutdown = CancellationToken::new();
        let plugins = Plugins::new(&config);
        let status = Status::new(StatusView::default(), LogRing::new());
        let actions = Actions::new(Setup {
            id: PublicKey([1; 32]).id(),
            telemetry: Telemetry::new(config.telemetry.clone(), disks, plugins.clone()),
            plugins,
            roots: Roots::new(config.root_map()),
            config,
            config_path,
            state,
            log: LogRing::new(),
            status: status.clone(),
            name,
            name_fixed_by: None,
        });
        Self {
            dir,
            actions,
            status,
            name: names,
            shutdown,
        }
    }

    fn command(&self, role: Role, action: &str, arguments: Value) -> Command {
        Command {
            id: CommandId {
                issuer: PublicKey([2; 32]).id(),
                epoch: 1,
                seq: 1,
            },
            role,
            action: action.to_owned(),
            arguments: serde_json::from_value(arguments).expect("arguments"),
            deadline: Some(clock::now() + Duration::from_secs(20)),
            cancel: self.shutdown.child_token(),
        }
    }

    async fn call_as(&self, role: Role, action: &str, arguments: Value) -> Reply {
        self.actions.run(self.command(role, action, arguments)).await
    }

    async fn call(&self, action: &str, kwargs: Value) -> Reply {
        self.call_as(Role::Admin, action, json!({ "kwargs": kwargs }))
            .await
    }

    async fn refused(&self, action: &str, kwargs: Value, expected: &str) {
        let reply = self.call(action, kwargs).await;
        let error = reply.error.unwrap_or_default();
        assert_eq!(reply.state, Outcome::Refused, "{action}: {error}");
        assert!(error.contains(expected), "{action}: {error}");
    }

    fn file(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("config.toml")).expect("there")
    }
}

#[tokio::test]
async fn read_only_actions_answer() {
    let node = TestNode::new(FILE);
    assert_eq!(node.call("ping", json!({})).await, Reply::done(json!("pong")));
    let time = node.call("time", json!({})).await.value.expect("a value");
    assert!(time["unix_ms"].as_u64().expect("a number") > 0);
    let telemetry = node.call("telemetry", json!({})).await.value.expect("a value");
    assert!(telemetry["memory"]["total"].is_number());
    let log = node.call("log", json!({"lines": 3})).await;
    assert!(log.output.is_some());
    for action in ["ping", "time", "telemetry", "selfcheck", "reboot"] {
        node.refused(action, json!({"x": 1}), "unknown argument \"x\"; it takes none")
            .await;
    }
    node.refused("log", json!({"lines": -1}), "whole number").await;
    node.refused(
        "dance",
        json!({}),
        "no action is called \"dance\"; this node's own: bad, hold, say, slow",
    )
    .await;
    node.refused("filetransfer", json!({}), "ground-station send")
        .await;
}

#[tokio::test]
async fn a_rename_is_announced_and_remembered() {
    let node = TestNode::new(FILE);
    let value = node.call("id", json!({})).await.value.expect("a value");
    assert_eq!(value["name"], "n1");
    assert_eq!(value["id"], json!(PublicKey([1; 32]).id()));
    let renamed = node.call("id", json!({"new_id": "drone-9"})).await;
    assert_eq!(renamed.value.expect("a value")["name"], "drone-9");
    assert_eq!(node.name.borrow().as_str(), "drone-9");
    assert_eq!(
        std::fs::read_to_string(node.dir.path().join("name")).expect("there"),
        "drone-9\n"
    );
    node.refused("id", json!({"new_id": "a b"}), "is not a name")
        .await;
    let host = node
        .call("id", json!({"new_id": "/hostname"}))
        .await
        .value
        .expect("a value");
    assert_eq!(host["name"], json!(builtin::host_name()));
}

#[tokio::test]
async fn custom_actions_run_without_a_shell() {
    let node = TestNode::new(FILE);
    let reply = node.call("say", json!({"n": 3})).await;
    assert_eq!((reply.state, reply.exit), (Outcome::Done, Some(0)));
    assert_eq!(reply.output.as_deref(), Some("$(id) 3\n"));
    node.refused(
        "say",
        json!({"n": 10}),
        "argument n must be an integer of at most 9, not 10",
    )
    .await;
    node.refused("say", json!({}), "argument n is missing").await;
    let reply = node.call("bad", json!({})).await;
    assert_eq!((reply.state, reply.exit), (Outcome::Failed, Some(4)));
    assert_eq!(
        (reply.output.as_deref(), reply.error.as_deref()),
        (Some("oh\n"), Some("exit status 4"))
    );
    let reply = node.call("slow", json!({})).await;
    assert_eq!((reply.state, reply.exit), (Outcome::Failed, Some(143)));
    assert_eq!(
        reply.error.as_deref(),
        Some("ran longer than 200ms and was killed")
    );
}

#[tokio::test]
async fn shutdown_kills_a_running_program() {
    let node = TestNode::new(FILE);
    let mut held = Box::pin(node.call("hold", json!({})));
    // The future starts at its first poll.
    tokio::time::timeout(Duration::from_millis(20), &mut held)
        .await
        .expect_err("it runs on");
    node.shutdown.cancel();
    let reply = held.await;
    assert_eq!(reply.state, Outcome::Failed);
    assert_eq!(reply.error.as_deref(), Some("it was killed before it ended"));
}

#[tokio::test]
async fn action_properties_come_from_the_configuration() {
    let node = TestNode::new(
        r#"
        actions.a.command = ["true"]
        actions.b = { command = ["true"], idempotent = true }
        actions.c = { command = ["true"], while_stopped = true, class = "flight" }
        actions.land.command = ["true"]
        "#,
    );
    let traits = |idempotent, while_stopped, flight| ActionProperties {
        idempotent,
        while_stopped,
        flight,
        ends_flight: false,
    };
    let of = |action| node.actions.properties(action);
    assert_eq!(of("a"), traits(false, false, false));
    assert_eq!(of("b"), traits(true, false, false));
    assert_eq!(of("c"), traits(false, true, true));
    let land = ActionProperties {
        ends_flight: true,
        ..ActionProperties::default()
    };
    assert_eq!(of("land"), land, "whatever its class");
    assert_eq!(of("pause"), ActionProperties::default(), "not defined");
    assert_eq!(of("undefined"), ActionProperties::default());
    for harmful in ["execute", "reboot", "service_restart"] {
        assert_eq!(of(harmful), ActionProperties::default(), "{harmful}");
    }
    for through in ["log", "notify", "config", "id"] {
        assert_eq!(of(through), traits(through == "log", true, false), "{through}");
    }
    let offer = serde_json::to_value(node.actions.catalog()).expect("JSON");
    let plain = json!({"class": "ordinary", "idempotent": false, "while_stopped": false});
    assert_eq!(
        offer,
        json!({"actions": {
            "a": plain,
            "b": {"class": "ordinary", "idempotent": true, "while_stopped": false},
            "c": {"class": "flight", "idempotent": false, "while_stopped": true},
            "land": plain,
        }})
    );
}

#[tokio::test]
async fn plugin_actions_behave_like_configured_ones() {
    let node = TestNode::new("");
    let socket = node.dir.path().join("s");
    let listener = crate::status::bind(&socket).expect("bound");
    let plugins = node.actions.inner.setup.plugins.clone();
    let (tasks, shutdown) = (tokio_util::task::TaskTracker::new(), node.shutdown.clone());
    tokio::spawn(crate::plugins::serve(
        listener,
        plugins,
        || json!({}),
        tasks,
        shutdown,
    ));
    let mut changes = node.actions.catalog_changes();
    let mut program = tokio::net::UnixStream::connect(&socket)
        .await
        .expect("it listens");
    let kwargs = json!({
        "name": "copter",
        "actions": { "fly": { "class": "flight", "timeout": 3600 } },
        "requests": ["height"],
    });
    let register = message("register", serde_json::from_value(kwargs).expect("an object"));
    let mut bytes = bytes::BytesMut::new();
    register.encode(&mut bytes).expect("fits");
    program.write_all(&bytes).await.expect("written");
    changes.changed().await.expect("registered");

    let traits = |idempotent, while_stopped, flight| ActionProperties {
        idempotent,
        while_stopped,
        flight,
        ends_flight: false,
    };
    assert_eq!(node.actions.properties("fly"), traits(false, false, true));
    assert_eq!(node.actions.properties("height"), traits(true, true, false));
    let offer = serde_json::to_value(node.actions.catalog()).expect("JSON");
    assert_eq!(offer["actions"]["fly"]["class"], "flight");

    // Ending it early does not wait for the other program.
    let command = node.command(Role::Operator, "fly", json!({}));
    let cancel = command.cancel.clone();
    let running = tokio::spawn({
        let actions = node.actions.clone();
        async move { actions.run(command).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!running.is_finished(), "it waits for its answer");
    cancel.cancel();
    let reply = running.await.expect("no panic");
    assert_eq!(reply.state, Outcome::Failed);
    assert!(
        reply
            .error
            .is_some_and(|error| error.starts_with("ended early; the plug-in copter was told"))
    );

    drop(program);
    changes.changed().await.expect("it is gone");
    assert_eq!(node.actions.properties("fly"), ActionProperties::default());
    assert!(node.actions.catalog().actions.is_empty());
    let expected = "no action is called \"fly\"; this node's own: none";
    node.refused("fly", json!({}), expected).await;
}

#[tokio::test]
async fn the_action_catalog_is_bounded() {
    let action = |n: usize| format!("actions.a{n}.command = [\"true\"]\n");
    let node = TestNode::new(&(0..CATALOG_ACTIONS_MAX + 10).map(action).collect::<String>());
    assert_eq!(node.actions.catalog().actions.len(), CATALOG_ACTIONS_MAX);
}

#[tokio::test]
async fn an_expired_command_does_not_start() {
    let node = TestNode::new(FILE);
    let mark = node.dir.path().join("mark");
    let command = Command {
        id: CommandId {
            issuer: PublicKey([2; 32]).id(),
            epoch: 1,
            seq: 1,
        },
        role: Role::Admin,
        action: "execute".to_owned(),
        arguments: serde_json::from_value(json!({"kwargs": {"program": "touch", "args": [mark]}}))
            .expect("arguments"),
        deadline: Some(clock::now()),
        cancel: node.shutdown.clone(),
    };
    assert_eq!(node.actions.run(command).await.state, Outcome::Expired);
    assert!(!mark.exists());
}

#[tokio::test]
async fn execute_needs_an_admin_and_the_nodes_permission() {
    let node = TestNode::new(FILE);
    let reply = node
        .call("execute", json!({"program": "echo", "args": ["a b", "$HOME"]}))
        .await;
    assert_eq!(reply.output.as_deref(), Some("a b $HOME\n"));
    for role in [Role::Observer, Role::Node, Role::Operator] {
        let arguments = json!({"kwargs": {"program": "true"}});
        let reply = node.call_as(role, "execute", arguments).await;
        assert_eq!(reply.state, Outcome::Refused, "{role}");
    }
    node.refused(
        "execute",
        json!({"program": "echo", "args": "x"}),
        "list of texts",
    )
    .await;
    node.refused("execute", json!({"args": []}), "program is missing")
        .await;
    node.refused("execute", json!({"program": "a\u{0}"}), "without NUL")
        .await;
    let reply = node
        .call(
            "execute",
            json!({"program": "sleep", "args": ["9"], "timeout": "100ms"}),
        )
        .await;
    assert_eq!(reply.state, Outcome::Failed);
    assert_eq!(
        node.call("execute", json!({"program": "/no/such"})).await.state,
        Outcome::Failed
    );
    let closed = TestNode::new("");
    closed
        .refused("execute", json!({"program": "true"}), "[execute] allowed = true")
        .await;
}

#[tokio::test]
async fn restricted_actions_need_the_nodes_permission() {
    let node = TestNode::new(FILE);
    assert_eq!(
        node.call("reboot", json!({})).await.output.as_deref(),
        Some("rebooted\n")
    );
    let notice = node.call("notify", json!({"text": "hi; there"})).await;
    assert_eq!(notice.output.as_deref(), Some("shown: hi; there\n"));
    node.refused("notify", json!({"text": "x".repeat(5000)}), "at most 4096")
        .await;
    node.refused(
        "service_restart",
        json!({"name": "sshd"}),
        "allows ([services] allow): camera.service",
    )
    .await;
    node.refused(
        "service_restart",
        json!({"name": "--now"}),
        "may not be restarted",
    )
    .await;
    let bare = TestNode::new("");
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
    let node = TestNode::new(FILE);
    let whole = node.call("config", json!({})).await.value.expect("a value");
    assert_eq!(whole["name"], "n1");
    assert!(!whole.to_string().contains("s3cret") && whole.get("private").is_none());
    let section = node.call("config", json!({"section": "actions.slow"})).await;
    assert_eq!(section.value.expect("a value")["timeout"], "200ms");
    node.refused("config", json!({"section": "private"}), "says nothing about")
        .await;
    node.refused("config", json!({"section": "private.key"}), "says nothing about")
        .await;
    node.refused("config", json!({"mode": "burn"}), "use modify or rewrite")
        .await;
}

#[tokio::test]
async fn configuration_changes_are_atomic() {
    let node = TestNode::new(FILE);
    let reply = node
        .call(
            "config",
            json!({"mode": "modify", "tags.row": 7, "ping_port": "7000"}),
        )
        .await;
    assert_eq!(
        reply.value.expect("a value")["takes_effect"],
        "when the daemon restarts"
    );
    assert!(node.file().contains("row = \"7\"") && node.file().contains("ping_port = 7000"));
    assert!(node.file().contains("key = \"s3cret\""));
    let reply = node
        .call(
            "config",
            json!({"mode": "modify", "section": "telemetry", "values": {"interval": "9s"}}),
        )
        .await;
    assert_eq!(reply.state, Outcome::Done, "{:?}", reply.error);
    let before = node.file();
    node.refused(
        "config",
        json!({"mode": "modify", "values": {"private": {"key": 1}}}),
        "on the device only",
    )
    .await;
    node.refused(
        "config",
        json!({"mode": "modify", "values": {"name": 1, "x": 1}}),
        "unknown key `x`",
    )
    .await;
    node.refused("config", json!({"mode": "modify"}), "no key to change")
        .await;
    node.refused(
        "config",
        json!({"mode": "rewrite", "text": "nme = 1"}),
        "did you mean `name`?",
    )
    .await;
    node.refused("config", json!({"mode": "rewrite"}), "text is missing")
        .await;
    let arguments = json!({"kwargs": {"mode": "modify", "execute.allowed": true}});
    let reply = node.call_as(Role::Operator, "config", arguments).await;
    assert_eq!(reply.state, Outcome::Refused);
    assert_eq!(node.file(), before);
    node.call("config", json!({"mode": "rewrite", "text": "mdns = false\n"}))
        .await;
    assert!(node.file().starts_with("mdns = false\n") && node.file().contains("s3cret"));
}

#[tokio::test]
async fn a_missing_config_file_is_created_on_change() {
    let node = TestNode::new("");
    std::fs::remove_file(node.dir.path().join("config.toml")).expect("removed");
    assert_eq!(node.call("config", json!({})).await.value, Some(json!({})));
    let reply = node
        .call("config", json!({"mode": "modify", "mdns": false}))
        .await;
    assert_eq!(reply.state, Outcome::Done);
    assert_eq!(node.file(), "mdns = false\n");
}

#[tokio::test]
async fn a_selfcheck_names_each_failed_check() {
    let root = tempfile::tempdir().expect("a directory");
    let gone = root.path().join("gone");
    let text = format!("[files]\nroots = {{ a = {:?}, b = {gone:?} }}", root.path());
    let node = TestNode::new(&text);
    let reply = node.call("selfcheck", json!({})).await;
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
    std::fs::write(node.dir.path().join("config.toml"), "nme = 1").expect("written");
    let error = node.call("selfcheck", json!({})).await.error.unwrap_or_default();
    assert!(error.contains("did you mean `name`?"), "{error}");
}

#[tokio::test]
async fn selfcheck_reports_stop_and_lost_link() {
    let node = TestNode::new("");
    let check = async |name: &str| {
        let checks = node.call("selfcheck", json!({})).await.value.expect("a value");
        let all = checks.as_array().expect("a list").clone();
        all.into_iter().find(|check| check["check"] == name)
    };
    let telemetry = node.call("telemetry", json!({})).await.value.expect("a value");
    assert!(telemetry.get("stopped").is_none(), "{telemetry}");
    let stop = check("emergency stop").await.expect("always told");
    assert_eq!(stop["ok"], true, "{stop}");
    assert_eq!(check(LOST_LINK_CHECK).await, None);

    node.status
        .update(|facts| facts.stopped = Some("by station a1b2, number 7".to_owned()));
    let telemetry = node.call("telemetry", json!({})).await.value.expect("a value");
    assert_eq!(telemetry["stopped"], "by station a1b2, number 7");
    let stop = check("emergency stop").await.expect("told");
    assert_eq!(stop["ok"], false, "{stop}");
    let detail = stop["detail"].as_str().expect("a text");
    assert!(
        detail.contains("number 7") && detail.contains("release"),
        "{stop}"
    );

    for (command, ok) in [
        (None, true),
        (Some(Ok(())), true),
        (Some(Err("exit status 3".to_owned())), false),
    ] {
        let loss = LinkLoss { number: 2, command };
        node.status.update(|facts| facts.last_loss = Some(loss));
        let lost = check(LOST_LINK_CHECK).await.expect("told");
        assert_eq!(lost["ok"], ok, "{lost}");
        assert!(
            lost["detail"].as_str().is_some_and(|text| text.contains('2')),
            "{lost}"
        );
    }
}
