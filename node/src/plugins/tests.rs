//! Programs played over real sockets.

use std::pin::Pin;
use std::task::{Context, Waker};

use serde_json::json;
use swarm_shared::proto::foreign::plugin::{CALLS_MAX, message};
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::wire::{CONTENT_BYTES_MAX, Frame, FrameLimits, FrameReader, Header, MessageType};
use tokio::io::AsyncReadExt;

use super::*;
use crate::config::Origin;
use crate::status;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

struct Fixture {
    dir: tempfile::TempDir,
    plugins: Plugins,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let text = "[actions.led]\ncommand = [\"true\"]";
        let config = Config::parse(text, &Origin::Text(None)).expect("a configuration");
        let rig = Self {
            plugins: Plugins::new(&config),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            dir,
        };
        let listener = status::bind(&rig.dir.path().join("s")).expect("bound");
        let (plugins, tasks) = (rig.plugins.clone(), rig.tasks.clone());
        let welcome = || json!({ "node": "n1" });
        rig.tasks
            .spawn(serve(listener, plugins, welcome, tasks, rig.shutdown.clone()));
        rig
    }

    async fn program(&self) -> Program {
        let stream = UnixStream::connect(self.dir.path().join("s"))
            .await
            .expect("it listens");
        Program {
            stream,
            reader: FrameReader::new(FrameLimits::CONTROL),
            inbox: BytesMut::new(),
        }
    }

    /// A plug-in that is in the table.
    async fn plugin(&self, registration: Value) -> Program {
        let mut program = self.program().await;
        program.register(registration).await;
        let answer = program.read().await.expect("an answer");
        assert_eq!(
            answer.json_value().expect("JSON"),
            json!({ "value": { "node": "n1" } })
        );
        program
    }

    fn call(&self, name: &str) -> tokio::task::JoinHandle<Reply> {
        let action = self.plugins.find(name).expect("it is offered");
        tokio::spawn(action.call(Arguments::default(), None))
    }

    /// A call that is in the queue, and nothing has happened since.
    fn pending_call(&self, name: &str) -> Pin<Box<dyn Future<Output = Reply> + Send>> {
        let action = self.plugins.find(name).expect("it is offered");
        let mut call = Box::pin(action.call(Arguments::default(), None));
        let begun = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(begun.is_pending(), "it is refused");
        call
    }

    async fn wait_until(&self, what: &str, is: impl Fn(&Plugins) -> bool) {
        let mut changes = self.plugins.changes();
        let waited = tokio::time::timeout(TEST_TIMEOUT, async {
            while !is(&self.plugins) {
                let _changed = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
            }
        });
        waited.await.unwrap_or_else(|_late| panic!("never: {what}"));
    }
}

struct Program {
    stream: UnixStream,
    reader: FrameReader,
    inbox: BytesMut,
}

impl Program {
    async fn write(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).expect("fits");
        self.stream.write_all(&bytes).await.expect("written");
    }

    async fn send(&mut self, action: &str, kwargs: Value) {
        let kwargs = serde_json::from_value(kwargs).expect("an object");
        self.write(&message(action, kwargs)).await;
    }

    async fn register(&mut self, registration: Value) {
        self.send("register", registration).await;
    }

    async fn answer(&mut self, question: &Frame, content: &Value) {
        let content = content.to_string();
        let header = Header {
            message_type: MessageType::Response,
            content_length: content.len() as u64,
            requested_value: question.header.action.clone(),
            request_id: question.header.request_id.clone(),
            ..Header::default()
        };
        let content = content.into();
        self.write(&Frame { header, content }).await;
    }

    /// The next frame; `None` when the node has hung up.
    async fn read(&mut self) -> Option<Frame> {
        let reading = async {
            loop {
                if let Some(frame) = self.reader.next_frame(&mut self.inbox).expect("frames") {
                    return Some(frame);
                }
                if self.stream.read_buf(&mut self.inbox).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, reading)
            .await
            .expect("in time")
    }

    /// Why the node hangs up, which it says once.
    async fn close_error(mut self) -> String {
        let told = self.read().await.expect("a reason").json_value().expect("JSON");
        assert!(self.read().await.is_none(), "and nothing after it");
        told["error"].as_str().expect("a text").to_owned()
    }
}

fn lamp() -> Value {
    json!({
        "name": "lamp",
        "actions": { "blink": {}, "hang": { "timeout": 0.1 }, "clever": { "answers": false } },
        "requests": ["uptime"],
        "telemetry": { "level": "%" },
    })
}

#[tokio::test]
async fn a_plugin_answers_calls_and_reports_readings() {
    let rig = Fixture::new();
    let mut lamp = rig.plugin(lamp()).await;
    let names: Vec<String> = rig
        .plugins
        .actions()
        .into_iter()
        .map(|action| action.name)
        .collect();
    assert_eq!(names, ["blink", "clever", "hang", "uptime"]);
    let views = rig.plugins.views();
    assert_eq!(
        (views.len(), views[0].requests.as_slice()),
        (1, &["uptime".to_owned()][..])
    );
    assert_eq!(views[0].pid, i32::try_from(std::process::id()).ok());

    let call = rig.call("blink");
    let question = lamp.read().await.expect("the action");
    assert_eq!(question.header.action.as_deref(), Some("blink"));
    assert!(
        question
            .header
            .until
            .is_some_and(|until| until > clock::boot_time_ms())
    );
    lamp.answer(&question, &json!({ "value": 3 })).await;
    assert_eq!(call.await.expect("no panic"), Reply::done(json!(3)));

    assert_eq!(rig.plugins.readings(clock::now()), None);
    lamp.send("telemetry", json!({ "level": 80 })).await;
    rig.wait_until("a reading", |plugins| plugins.readings(clock::now()).is_some())
        .await;
    let readings = rig
        .plugins
        .readings(clock::now() + Duration::from_secs(2))
        .expect("readings");
    let level = &readings["lamp"]["level"];
    assert_eq!((&level["value"], &level["unit"]), (&json!(80), &json!("%")));
    assert!(
        level["age_s"]
            .as_f64()
            .is_some_and(|age| (2.0..9.0).contains(&age)),
        "{level}"
    );

    let call = rig.call("clever");
    let handed = call.await.expect("no panic");
    assert_eq!(handed.state, Outcome::Done, "{handed:?}");
    assert_eq!(
        lamp.read().await.expect("it").header.action.as_deref(),
        Some("clever")
    );

    drop(lamp);
    rig.wait_until("it is gone", |plugins| plugins.find("blink").is_none())
        .await;
    assert_eq!(
        rig.plugins.readings(clock::now()),
        None,
        "what it told is gone too"
    );
    assert!(rig.plugins.views().is_empty());
}

#[tokio::test]
async fn an_action_name_belongs_to_one_plugin() {
    let rig = Fixture::new();
    let mut lamp = rig.plugin(lamp()).await;
    for (registration, why) in [
        (
            json!({"name": "a", "actions": ["ping"]}),
            "\"ping\" is the name of a built-in action",
        ),
        (json!({"name": "a", "requests": ["telemetry"]}), "built-in action"),
        (
            json!({"name": "a", "actions": ["led"]}),
            "an action of the node's configuration",
        ),
        (
            json!({"name": "a", "actions": ["new", "blink"]}),
            "\"blink\" is the name of the plug-in \"lamp\"",
        ),
        (
            json!({"name": "lamp"}),
            "a plug-in called \"lamp\" is connected already, process",
        ),
    ] {
        let mut second = rig.program().await;
        second.register(registration).await;
        let told = second.close_error().await;
        assert!(told.contains(why), "{told}");
    }
    assert!(rig.plugins.find("new").is_none(), "all of it or nothing");
    let call = rig.call("blink");
    let question = lamp.read().await.expect("the first one's");
    lamp.answer(&question, &json!({ "value": true })).await;
    assert_eq!(call.await.expect("no panic").state, Outcome::Done);
}

#[tokio::test]
async fn calls_fail_when_a_plugin_hangs_or_dies() {
    let rig = Fixture::new();
    let mut lamp = rig.plugin(lamp()).await;
    let call = rig.call("hang");
    let question = lamp.read().await.expect("the action");
    let reply = call.await.expect("no panic");
    assert_eq!(
        reply,
        Reply::failed("the plug-in lamp did not answer within 100ms")
    );
    let cancel = lamp.read().await.expect("it is told");
    assert_eq!(
        cancel.json_value().expect("JSON")["kwargs"]["request_id"],
        *question.header.request_id.as_deref().expect("one")
    );
    lamp.answer(&question, &json!({ "value": "at last" })).await;

    let call = rig.call("blink");
    lamp.read().await.expect("the action");
    drop(lamp);
    let reply = call.await.expect("no panic");
    let why = "the plug-in lamp went away while blink ran: it closed its connection";
    assert_eq!(reply, Reply::failed(why));
}

#[tokio::test]
async fn answers_sent_before_a_disconnect_count() {
    let rig = Fixture::new();
    let mut lamp = rig.plugin(lamp()).await;
    let (answered, unread) = (rig.call("blink"), rig.call("uptime"));
    let question = lamp.read().await.expect("the action");
    lamp.answer(&question, &json!({ "value": "just in time" })).await;
    drop(lamp);
    // Written before its answer is read, which shows that it is gone.
    let late = rig.call("blink");
    assert_eq!(
        answered.await.expect("no panic"),
        Reply::done(json!("just in time"))
    );
    assert_eq!(unread.await.expect("no panic").state, Outcome::Failed);
    assert_eq!(late.await.expect("no panic").state, Outcome::Failed);
}

#[tokio::test]
async fn an_abandoned_call_is_cancelled() {
    let rig = Fixture::new();
    // With more time than this test has.
    let slow = json!({"name": "slow", "actions": {"blink": {"timeout": 3600}}});
    let mut lamp = rig.plugin(slow).await;
    let call = rig.call("blink");
    lamp.read().await.expect("the action");
    call.abort();
    let cancel = lamp.read().await.expect("told");
    assert_eq!(cancel.header.action.as_deref(), Some("cancel"));
}

/// As many calls wait for the plug-in's task as can, so that there is no room for another word to it.
#[tokio::test]
async fn a_cancel_passes_a_full_call_queue() {
    let rig = Fixture::new();
    let slow = json!({"name": "slow", "actions": {"blink": {"timeout": 3600}}});
    let mut lamp = rig.plugin(slow).await;
    let first = rig.pending_call("blink");
    let told = lamp.read().await.expect("the action");
    let id = told.header.request_id.clone().expect("each has one");
    // On one thread no other task runs from here on.
    let mut calls: Vec<_> = (0..CALL_QUEUE_MAX).map(|_| rig.pending_call("blink")).collect();
    let full = rig.plugins.find("blink").expect("it is offered");
    let refused = full.call(Arguments::default(), None).await;
    assert_eq!(refused.state, Outcome::Refused, "the queue is full");
    drop(first);
    // All but one of those that wait are given up before they began.
    let last = tokio::spawn(calls.pop().expect("one of them"));
    drop(calls);
    let cancel = lamp.read().await.expect("told");
    assert_eq!(cancel.header.action.as_deref(), Some("cancel"));
    let cancelled = &cancel.json_value().expect("JSON")["kwargs"]["request_id"];
    assert_eq!(cancelled, &json!(id), "the first");
    let next = lamp.read().await.expect("the action");
    assert_eq!(
        next.header.action.as_deref(),
        Some("blink"),
        "the others never began"
    );
    lamp.answer(&next, &json!({ "value": 1 })).await;
    assert_eq!(last.await.expect("no panic"), Reply::done(json!(1)));
}

#[tokio::test]
async fn garbage_gets_one_error_and_a_disconnect() {
    let rig = Fixture::new();
    let _lamp = rig.plugin(lamp()).await;
    let mut huge = message("register", Map::new());
    huge.header.content_length = CONTENT_BYTES_MAX as u64;
    let mut announced = BytesMut::new();
    huge.encode_header_to(&mut announced).expect("fits");
    for (bytes, why) in [
        (
            b"GET / HTTP/1.1\r\n\r\n".as_slice(),
            "not a frame: header of 18245 bytes is longer",
        ),
        (b"\x00\x02{}", "not a frame: header has no \"byteorder\""),
        (
            &announced,
            "not a frame: content of 1048576 bytes is longer than the 262144",
        ),
    ] {
        let mut program = rig.program().await;
        program.stream.write_all(bytes).await.expect("written");
        let told = program.close_error().await;
        assert!(told.contains(why), "{told}");
    }
    // Within a plug-in's life as well.
    let mut other = rig.plugin(json!({"name": "other", "actions": ["x"]})).await;
    other.stream.write_all(b"\xff\xff").await.expect("written");
    assert!(other.close_error().await.contains("not a frame"));
    rig.wait_until("its actions vanish", |plugins| plugins.find("x").is_none())
        .await;
    assert!(rig.plugins.find("blink").is_some());
}

#[tokio::test]
async fn plugins_above_the_limit_are_refused() {
    let rig = Fixture::new();
    let mut held = Vec::new();
    for number in 0..PLUGINS_MAX {
        held.push(rig.plugin(json!({ "name": format!("p{number}") })).await);
    }
    let told = rig.program().await.close_error().await;
    assert_eq!(told, "busy: 16 plug-ins are connected; end one first");
    held.pop();
    rig.wait_until("one is gone", |plugins| plugins.views().len() < PLUGINS_MAX)
        .await;
    rig.plugin(json!({ "name": "another" })).await;
}

#[tokio::test]
async fn calls_above_the_limit_are_refused_as_busy() {
    let rig = Fixture::new();
    let mut lamp = rig.plugin(lamp()).await;
    let calls: Vec<_> = (0..CALLS_MAX).map(|_| rig.call("blink")).collect();
    for _ in 0..CALLS_MAX {
        lamp.read().await.expect("one of them");
    }
    let reply = rig.call("blink").await.expect("no panic");
    assert_eq!(reply.state, Outcome::Refused);
    assert!(
        reply
            .error
            .as_deref()
            .is_some_and(|error| error.starts_with("busy: ")),
        "{reply:?}"
    );
    drop(lamp);
    for call in calls {
        assert_eq!(call.await.expect("no panic").state, Outcome::Failed);
    }
}

#[tokio::test]
async fn a_plugin_that_reads_nothing_is_disconnected() {
    let rig = Fixture::new();
    let lamp = rig
        .plugin(json!({ "name": "deaf", "actions": { "take": { "timeout": 60 } } }))
        .await;
    let large = || {
        let action = rig.plugins.find("take").expect("offered");
        let text = "x".repeat(CONTENT_BYTES_MAX - 200);
        let arguments = serde_json::from_value(json!({ "kwargs": { "text": text } })).expect("arguments");
        tokio::spawn(action.call(arguments, None))
    };
    let calls = [large(), large(), large(), large()];
    let mut busy = 0;
    for call in calls {
        let reply = tokio::time::timeout(TEST_TIMEOUT, call)
            .await
            .expect("in time")
            .expect("no panic");
        let error = reply.error.unwrap_or_default();
        if reply.state == Outcome::Refused {
            busy += 1;
        } else {
            assert_eq!(reply.state, Outcome::Failed);
            assert!(error.ends_with("it read nothing for 5s"), "{error}");
        }
    }
    assert!(busy > 0, "what does not fit is not kept");
    assert!(rig.plugins.find("take").is_none());
    drop(lamp);
}

#[tokio::test]
async fn a_flood_without_reads_is_bounded() {
    let rig = Fixture::new();
    let mut lamp = rig.plugin(lamp()).await;
    // No task reads the answers to these.
    let header = Header {
        message_type: MessageType::Request,
        content_length: 2,
        ..Header::default()
    };
    let mut bytes = BytesMut::new();
    for _ in 0..1000 {
        let question = Frame {
            header: header.clone(),
            content: "{}".into(),
        };
        question.encode(&mut bytes).expect("fits");
    }
    let flood = async {
        let mut taken = 0;
        while let Ok(some) = lamp.stream.write(&bytes[taken % bytes.len()..]).await {
            taken += some;
        }
        taken
    };
    // It is held back, and then dropped: the node itself goes on all the time.
    let taken = tokio::time::timeout(TEST_TIMEOUT, flood).await;
    let taken = taken.expect("the node hangs up");
    assert!(
        taken < 4 * CONTENT_BYTES_MAX,
        "{taken} bytes were taken and no answer read"
    );
    rig.wait_until("it is gone", |plugins| plugins.find("blink").is_none())
        .await;
}

#[tokio::test]
async fn shutdown_fails_running_plugin_calls() {
    let rig = Fixture::new();
    let mut lamp = rig.plugin(lamp()).await;
    let call = rig.call("blink");
    lamp.read().await.expect("the action");
    rig.shutdown.cancel();
    let reply = call.await.expect("no panic");
    let why = "the plug-in lamp was closed while blink ran: the node is shutting down";
    assert_eq!(reply, Reply::failed(why));
    assert_eq!(lamp.close_error().await, "the node is shutting down");
    rig.tasks.close();
    tokio::time::timeout(TEST_TIMEOUT, rig.tasks.wait())
        .await
        .expect("all tasks end");
}
