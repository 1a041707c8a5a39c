//! Bridged devices as targets of the engine: commands, stops, releases, the history.

mod files;
mod history;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use swarm_shared::net::clock;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::wire::Lane;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::config::Config;
use crate::engine::files::memory_budget::IN_MEMORY_MAX;
use crate::engine::transport::bridge::*;
use crate::store::{Store, history as store_history};
use swarm_shared::api::{
    ActRequest, Batch, BatchSize, Event, Failure, FileToSend, FilesToSend, HistoryDelivery, HistoryQuery,
    HistoryState, NodeRef, NodeState, NodesRequest, Warning,
};
use swarm_shared::client::{EventStream, Fleet};

fn profile(number: usize) -> DeviceProfile {
    let name = format!("d{number}");
    DeviceProfile {
        node: NodeRef {
            node: device_name(&name),
            id: device_id("test", &name),
        },
        tags: BTreeMap::new(),
        software: None,
        reads: Arc::default(),
        file_bytes_max: u64::from(IN_MEMORY_MAX),
    }
}

/// An engine without a fleet.
async fn start(dir: &std::path::Path) -> Engine {
    let mut config = Config::load(None, dir).expect("the usual");
    config.listen = ([127, 0, 0, 1], 0).into();
    (config.pings, config.mdns) = (false, false);
    let settings = Settings {
        config,
        state_dir: dir.to_owned(),
        mode: Mode::Daemon,
        bridges_devices: true,
    };
    Engine::start(settings).await.expect("started")
}

/// The same, with two devices.
async fn start_with_devices(dir: &std::path::Path) -> (Engine, Fleet, [DeviceGuard; 2]) {
    let engine = start(dir).await;
    let devices = engine.bridged_devices();
    let guards = [1, 2].map(|number| devices.register(profile(number)).expect("free"));
    let fleet = engine.fleet();
    (engine, fleet, guards)
}

#[tokio::test]
async fn query_ages_from_its_request_and_is_not_queued() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut device, _other]) = start_with_devices(dir.path()).await;
    let before = clock::now();
    let question = ActRequest::Command {
        selector: Selector::parse("d1").expect("a name"),
        action: "telemetry".to_owned(),
        arguments: Arguments::default(),
        lane: Lane::Control,
        ttl_ms: 30_000,
        ttl_given: true,
        timeout_ms: 50,
        batch: None,
    };
    let mut told = fleet.perform(question).await;
    let command = device.commands.recv().await.expect("sent");
    assert!(command.issued >= before);
    assert_eq!(command.start_by, command.issued + Duration::from_secs(30));
    let error = loop {
        if let Event::Delivery(delivery) = told.recv().await.expect("an end") {
            break delivery.error.expect("why");
        }
    };
    assert!(
        !error.contains("go out") && error.contains("no answer"),
        "{error}"
    );
    assert!(command.reply.is_closed(), "its gateway drops it");
    engine.shut_down().await;
}

fn all_led(batch: Option<Batch>) -> ActRequest {
    ActRequest::Command {
        selector: Selector::all(),
        action: "led".to_owned(),
        arguments: Arguments::default(),
        lane: Lane::Control,
        ttl_ms: 60_000,
        ttl_given: true,
        timeout_ms: 60_000,
        batch,
    }
}

fn all_stop() -> ActRequest {
    ActRequest::Stop {
        selector: Selector::all(),
        timeout_ms: Some(10_000),
    }
}

/// Replies `done` to the next command, and returns what it was.
async fn done(commands: &mut mpsc::Receiver<DeviceCommand>) -> DeviceOperation {
    let command = tokio::time::timeout(Duration::from_secs(20), commands.recv()).await;
    let DeviceCommand { operation, reply, .. } = command.expect("in time").expect("sent");
    let _gone = reply.send(DeviceReply::Reply(Reply::done(Value::Null)));
    operation
}

#[tokio::test]
async fn batch_requested_before_a_stop_is_not_sent_after_release() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let batch = Batch {
        size: BatchSize::Count(1),
        wait_ms: 1_500,
        keep_going: true,
    };
    let mut told = fleet.perform(all_led(Some(batch))).await;
    assert!(matches!(
        done(&mut first.commands).await,
        DeviceOperation::Command { .. }
    ));
    let stopping = fleet.perform(all_stop()).await;
    for device in [&mut first, &mut second] {
        assert_eq!(done(&mut device.stops).await, DeviceOperation::Stop);
    }
    drop(stopping);
    let release = ActRequest::Release {
        selector: Selector::all(),
        timeout_ms: 10_000,
    };
    let _releasing = fleet.perform(release).await;
    for device in [&mut first, &mut second] {
        assert_eq!(done(&mut device.commands).await, DeviceOperation::Release);
        assert_eq!(device.stopped(), None);
    }
    let mut ends = Vec::new();
    while let Some(event) = told.recv().await {
        if let Event::Delivery(delivery) = event {
            ends.push((delivery.node.to_string(), delivery.state));
        }
    }
    ends.sort();
    let ended = [("d1", Outcome::Done), ("d2", Outcome::Refused)];
    assert_eq!(ends, ended.map(|(name, state)| (name.to_owned(), state)));
    assert!(second.commands.try_recv().is_err(), "nothing is sent");
    // What is asked for from now on goes out.
    let _told = fleet.perform(all_led(None)).await;
    assert!(matches!(
        done(&mut second.commands).await,
        DeviceOperation::Command { .. }
    ));
    engine.shut_down().await;
}

#[tokio::test]
async fn watchers_see_device_stop_and_release() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = start(dir.path()).await;
    let (fleet, devices) = (engine.fleet(), engine.bridged_devices());
    let _guard = devices.register(profile(1)).expect("free");
    let selector = Selector::all();
    let mut told = fleet.perform(NodesRequest::Watch { selector }).await;
    let unconfirmed = async |told: &mut EventStream| {
        let event = tokio::time::timeout(Duration::from_secs(20), told.recv()).await;
        let Event::Node(view) = event.expect("in time").expect("watched") else {
            panic!("not a node")
        };
        (view.stop_unconfirmed.is_some(), view.warnings.len())
    };
    assert_eq!(unconfirmed(&mut told).await, (false, 0));
    devices.stop(&Selector::all());
    assert_eq!(unconfirmed(&mut told).await, (true, 1));
    let release = ActRequest::Release {
        selector: Selector::all(),
        timeout_ms: 100,
    };
    let _releasing = fleet.perform(release).await;
    assert_eq!(unconfirmed(&mut told).await, (false, 0));
    engine.shut_down().await;
}

#[tokio::test]
async fn unmatched_selector_error_names_the_devices() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = start(dir.path()).await;
    let (fleet, devices) = (engine.fleet(), engine.bridged_devices());
    let error = async |selector: &str| {
        let selector = Selector::parse(selector).expect("a selector");
        let mut told = fleet.perform(NodesRequest::Targets { selector }).await;
        match told.recv().await {
            Some(Event::Failed { failure, message }) => (failure, message),
            other => panic!("{other:?}"),
        }
    };
    let (failure, message) = error("x").await;
    assert_eq!(failure, Failure::NoMatch);
    assert!(message.contains("fleet invite"), "{message}");
    let _guards = [1, 2].map(|number| devices.register(profile(number)).expect("free"));
    let drones = "known drones of other programs are d1, d2";
    let expected = (Failure::NoMatch, format!("no node matches \"x\"; {drones}"));
    assert_eq!(error("x").await, expected);
    let expected = format!("nothing was done: the exclusion \"!x\" matches no node; {drones}");
    assert_eq!(error("all,!x").await, (Failure::Usage, expected));
    engine.shut_down().await;
}

#[tokio::test]
async fn device_release_does_not_need_a_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, _second]) = start_with_devices(dir.path()).await;
    let stopping = fleet.perform(all_stop()).await;
    assert_eq!(done(&mut first.stops).await, DeviceOperation::Stop);
    drop(stopping);
    let disk = rusqlite::Connection::open(engine.store().path()).expect("opens");
    for table in ["meta", "commands"] {
        let full = format!(
            "CREATE TRIGGER {table}_full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END"
        );
        disk.execute_batch(&full).expect("made");
    }
    let release = ActRequest::Release {
        selector: Selector::all(),
        timeout_ms: 5_000,
    };
    let _releasing = fleet.perform(release).await;
    assert_eq!(done(&mut first.commands).await, DeviceOperation::Release);
    engine.shut_down().await;
}

#[tokio::test]
async fn watchers_see_device_leave_and_return() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = start(dir.path()).await;
    let (fleet, devices) = (engine.fleet(), engine.bridged_devices());
    let device = devices.register(profile(1)).expect("free");
    device.publish(DevicePresence {
        online: true,
        ..DevicePresence::default()
    });
    let selector = Selector::all();
    let mut told = fleet.perform(NodesRequest::Watch { selector }).await;
    let view = async |told: &mut EventStream| {
        let event = tokio::time::timeout(Duration::from_secs(20), told.recv()).await;
        let Event::Node(view) = event.expect("in time").expect("watched") else {
            panic!("not a node")
        };
        view
    };
    assert_eq!(view(&mut told).await.state, NodeState::Online);
    drop(device);
    let last = view(&mut told).await;
    assert_eq!((last.id, last.state), (profile(1).node.id, NodeState::Offline));
    assert!(last.warnings == [Warning::DeviceLeft], "{last:?}");
    // It is told of again when it is back.
    let back = devices.register(profile(1)).expect("free");
    back.publish(DevicePresence {
        online: true,
        ..DevicePresence::default()
    });
    assert!(view(&mut told).await.warnings.is_empty());
    engine.shut_down().await;
}

#[tokio::test]
async fn stop_beyond_the_limit_stops_all_devices() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let stop = |name: &str| ActRequest::Stop {
        selector: Selector::parse(name).expect("a name"),
        timeout_ms: Some(1_000),
    };
    for number in 0..crate::engine::stop::latches::ENTRIES_MAX {
        let mut told = fleet.perform(stop(&format!("absent-{number}"))).await;
        while told.recv().await.is_some() {}
    }
    assert_eq!((first.stopped(), second.stopped()), (None, None));
    // What was requested before is withdrawn at all of them.
    let requested_at = clock::now();
    let all = engine.bridged_devices().targets(&Selector::all());
    let mut told = fleet.perform(stop("d1")).await;
    for device in [&mut first, &mut second] {
        assert_eq!(done(&mut device.stops).await, DeviceOperation::Stop);
        assert_eq!(device.stopped(), Some(Selector::all()));
    }
    assert!(
        all.iter()
            .all(|(_, device)| device.was_stopped_since(requested_at))
    );
    let (mut notes, mut targets) = (Vec::new(), Vec::new());
    while let Some(event) = told.recv().await {
        if let Event::Note { text } = event {
            notes.push(text);
        } else if let Event::Targets { targets: all } = event {
            targets = all;
        }
    }
    assert_eq!((notes.len(), targets.len()), (1, 2), "{notes:?}");
    assert!(notes[0].starts_with("too many stops are in force"), "{notes:?}");
    engine.shut_down().await;
}
