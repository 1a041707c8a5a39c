//! The gateway with simulated drones.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use swarm_shared::proto::foreign::clever_show::{LIMITS_UNIDENTIFIED, Message};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::FrameReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::config::Config;
use crate::engine::transport::bridge::{
    BridgedDevices, DEVICES_MAX, DeviceGuard, DeviceOperation, DeviceProfile, DeviceReply, device_id,
    device_name,
};
use swarm_shared::api::NodeRef;
use swarm_shared::client::Fleet;

const TEST_TIMEOUT: Duration = Duration::from_secs(5);

/// An open gateway.
struct Harness {
    context: GatewayContext,
    addr: SocketAddr,
    dir: tempfile::TempDir,
}

impl Harness {
    async fn new(lines: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::for_host("st");
        let text = format!("[gateways.clever_show]\nlisten = \"127.0.0.1:0\"\n{lines}\n");
        config.read_file(Path::new("config.toml"), &text).expect("reads");
        let config = config.gateways.clever_show.expect("open");
        let context = crate::gateways::tests::test_context(Fleet::local().0, dir.path()).await;
        let listener = GatewayListener::open(GATEWAY, &config.common, &context).expect("opens");
        let at = listener.local_addr().expect("bound");
        let registry = identify::DroneRegistry::new(Arc::new(Server {
            access: AccessPolicy::new(GATEWAY, &config.common, &context),
            config,
            context: context.clone(),
        }));
        let serve = move |stream, permit| registry.clone().handle_connection(stream, permit);
        context.tasks.spawn(listener.serve(serve));
        Self {
            context,
            addr: at,
            dir,
        }
    }

    /// A drone that has reported its id.
    async fn drone(&self, id: &str) -> Drone {
        Self::drone_at(self.addr, id).await
    }

    async fn drone_at(at: SocketAddr, id: &str) -> Drone {
        let mut drone = Drone {
            stream: TcpStream::connect(at).await.expect("connects"),
            reader: FrameReader::new(LIMITS_UNIDENTIFIED),
            inbox: BytesMut::new(),
        };
        assert_eq!(drone.next_name().await, "id");
        drone.answer_id(id, 0).await;
        drone
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.context.shutdown.cancel();
    }
}

struct Drone {
    stream: TcpStream,
    reader: FrameReader,
    inbox: BytesMut,
}

impl Drone {
    /// The next message that it receives; `None` if its connection is closed.
    async fn next_message(&mut self) -> Option<Message> {
        loop {
            if let Some(frame) = self.reader.next_frame(&mut self.inbox).expect("a frame") {
                return Some(Message::from_frame(&frame).expect("a message"));
            }
            self.inbox.reserve(self.reader.missing_bytes().max(1));
            let read = timeout(TEST_TIMEOUT, self.stream.read_buf(&mut self.inbox)).await;
            if read.expect("in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Answers the request for its id with this number.
    async fn answer_id(&mut self, id: &str, number: u32) {
        let answer = Message::Response {
            name: "id".to_owned(),
            id: format!("{number:04}"),
            value: json!(id),
        };
        let mut bytes = BytesMut::new();
        answer.to_frame().encode(&mut bytes).expect("short");
        self.stream.write_all(&bytes).await.expect("written");
    }

    /// The name of the next message that it receives.
    async fn next_name(&mut self) -> String {
        match self.next_message().await.expect("connected") {
            Message::Action { action: name, .. } | Message::Request { name, .. } => name,
            other @ (Message::Response { .. } | Message::FileResponse { .. } | Message::FilePush { .. }) => {
                panic!("{other:?}")
            }
        }
    }
}

async fn reply_of(answer: oneshot::Receiver<DeviceReply>) -> Reply {
    match timeout(TEST_TIMEOUT, answer)
        .await
        .expect("in time")
        .expect("ends")
    {
        DeviceReply::Reply(reply) => reply,
        DeviceReply::File(file) => panic!("a file of {} bytes", file.len()),
    }
}

#[tokio::test]
async fn stop_is_not_delayed_by_a_file_transfer() {
    let rig = Harness::new("allow = [\"*\"]\nresume_queue = true").await;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.next_name().await, "clover_dir");
    let push = DeviceOperation::Push {
        path: "shows/long".to_owned(),
        content: Bytes::from(vec![7; 64 * 1024 * 1024]),
    };
    let push = rig.context.devices.send("clever-1", push).await;
    let begun = timeout(TEST_TIMEOUT, drone.stream.read_buf(&mut drone.inbox)).await;
    assert!(begun.expect("in time").expect("connected") > 0);
    // From here on it reads nothing, as on a very slow network.
    let stop = rig.context.devices.send("clever-1", DeviceOperation::Stop).await;
    assert_eq!(
        reply_of(push).await,
        Reply::refused("dropped by an emergency stop")
    );
    let mut again = rig.drone("clever-1").await;
    assert_eq!(again.next_name().await, "emergency_land");
    assert_eq!(reply_of(stop).await, Reply::done("sent, unconfirmed".into()));
    assert_eq!(again.next_name().await, "clover_dir", "and not the file");
}

#[tokio::test]
async fn stop_is_sent_after_its_requester_disconnected() {
    let rig = Harness::new("allow = [\"*\"]").await;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.next_name().await, "clover_dir");
    // The caller leaves before the gateway has taken the command.
    drop(rig.context.devices.send("clever-1", DeviceOperation::Stop).await);
    assert_eq!(drone.next_name().await, "emergency_land");
}

/// Registers devices until one place is left.
fn fill_all_seats_but_one(devices: &BridgedDevices) -> Vec<DeviceGuard> {
    let profile = |number| DeviceProfile {
        node: NodeRef {
            node: device_name("other"),
            id: device_id("test", &format!("{number}")),
        },
        tags: BTreeMap::new(),
        software: None,
        reads: Arc::default(),
        file_bytes_max: 0,
    };
    let others = (1..DEVICES_MAX).map(|number| devices.register(profile(number)).expect("free"));
    others.collect()
}

/// Connects a drone once the gateway has noticed that the drone before it has disconnected.
async fn connect_when_free(rig: &Harness, id: &str) -> Drone {
    let let_in = timeout(TEST_TIMEOUT, async {
        loop {
            let mut drone = rig.drone(id).await;
            // Closed at once while the drone before it still counts as connected.
            if drone.next_message().await.is_some() {
                return drone;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let_in.await.expect("there is a place")
}

#[tokio::test]
async fn absent_drone_frees_its_seat_and_can_return() {
    let rig = Harness::new("").await;
    let devices = &rig.context.devices;
    let _others = fill_all_seats_but_one(devices);
    // They answer only the request for their id, and no caller waits for them.
    for id in ["clever-1", "clever-2", "clever-1"] {
        drop(connect_when_free(&rig, id).await);
        assert_eq!(devices.len(), DEVICES_MAX);
    }
}

#[tokio::test]
async fn drone_that_lost_its_seat_is_stopped_on_return() {
    let rig = Harness::new("").await;
    let devices = &rig.context.devices;
    let _others = fill_all_seats_but_one(devices);
    drop(connect_when_free(&rig, "clever-1").await);
    // A long-running command keeps the device in use.
    let _held = devices.hold("clever-1");
    drop(connect_when_free(&rig, "clever-2").await);
    let told = timeout(2 * TEST_TIMEOUT, async {
        loop {
            let mut drone = connect_when_free(&rig, "clever-1").await;
            // The task that has lost its registration may take the connection for a moment.
            if !devices.contains("clever-1") {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let stop = devices.send("clever-1", DeviceOperation::Stop).await;
            assert_eq!(drone.next_name().await, "emergency_land");
            return reply_of(stop).await;
        }
    });
    assert_eq!(
        told.await.expect("it has a device again"),
        Reply::done("sent, unconfirmed".into())
    );
}

#[tokio::test]
async fn flight_action_delayed_by_the_disk_expires() {
    let rig = Harness::new("allow = [\"*\"]").await;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.next_name().await, "clover_dir");
    let work = |action: &str| DeviceOperation::Command {
        action: action.to_owned(),
        arguments: swarm_shared::proto::message::Arguments::default(),
    };
    let devices = &rig.context.devices;
    let issued = swarm_shared::net::clock::now();
    let long_ago = issued
        .checked_sub(Duration::from_secs(3))
        .expect("the machine has been up");
    let late = devices.send_issued("clever-1", work("takeoff"), long_ago).await;
    assert_eq!(
        reply_of(late).await.state,
        swarm_shared::proto::outcome::Outcome::Expired
    );
    let other = devices.send_issued("clever-1", work("led_test"), long_ago).await;
    let in_time = devices.send_issued("clever-1", work("land"), issued).await;
    for answer in [other, in_time] {
        assert_eq!(reply_of(answer).await, Reply::done("sent, unconfirmed".into()));
    }
    assert_eq!(
        (drone.next_name().await, drone.next_name().await),
        ("led_test".to_owned(), "land".to_owned())
    );
}

#[tokio::test]
async fn crafted_id_does_not_collide_with_a_duplicate_id() {
    let rig = Harness::new("").await;
    let mut drones = Vec::new();
    for (id, count) in [("clever-1", 1), ("clever-1\u{0}1", 2)] {
        let mut drone = rig.drone(id).await;
        assert_eq!(drone.next_name().await, "clover_dir");
        drones.push(drone);
        assert_eq!(rig.context.devices.len(), count);
    }
    // A copied card: the first drone is still alive.
    let copy = tokio::spawn({
        let at = rig.addr;
        async move { Harness::drone_at(at, "clever-1").await }
    });
    assert_eq!(drones[0].next_name().await, "id");
    drones[0].answer_id("clever-1", 2).await;
    let mut copy = copy.await.expect("connected");
    assert_eq!(copy.next_name().await, "clover_dir");
    assert_eq!(rig.context.devices.len(), 3);
}

#[tokio::test]
async fn active_stop_is_sent_to_arriving_drones_until_released() {
    let rig = Harness::new("allow = [\"*\"]").await;
    let devices = &rig.context.devices;
    devices.latch("clever-*", true);
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.next_name().await, "emergency_land", "before all else");
    assert_eq!(drone.next_name().await, "clover_dir");
    let led = || DeviceOperation::Command {
        action: "led_test".to_owned(),
        arguments: swarm_shared::proto::message::Arguments::default(),
    };
    let refused = reply_of(devices.send("clever-1", led()).await).await;
    assert_eq!(
        refused,
        Reply::refused("an emergency stop is in force: release it first")
    );
    // The release reaches no task as a command, as if the drone had not been known when it was given.
    devices.latch("clever-*", false);
    let done = timeout(TEST_TIMEOUT, async {
        while reply_of(devices.send("clever-1", led()).await).await != Reply::done("sent, unconfirmed".into())
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    done.await.expect("released");
    // The same if the caller of the release leaves early. A release that follows as a command reports a release, once.
    let stop = devices.send("clever-1", DeviceOperation::Stop).await;
    assert_eq!(reply_of(stop).await, Reply::done("sent, unconfirmed".into()));
    devices.latch("all", false);
    let done = timeout(TEST_TIMEOUT, async {
        while reply_of(devices.send("clever-1", led()).await).await != Reply::done("sent, unconfirmed".into())
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    done.await.expect("released");
    let told = reply_of(devices.send("clever-1", DeviceOperation::Release).await).await;
    assert_eq!(told, Reply::done(policy::RELEASED_TEXT.into()));
    let told = reply_of(devices.send("clever-1", DeviceOperation::Release).await).await;
    assert_eq!(told, Reply::done("it was not stopped".into()));
}

#[tokio::test]
async fn stop_without_action_still_blocks_later_actions() {
    for lines in ["stop_action = \"\"", "role = \"observer\""] {
        let rig = Harness::new(&format!("allow = [\"*\"]\nresume_queue = true\n{lines}")).await;
        let devices = &rig.context.devices;
        let mut drone = rig.drone("clever-1").await;
        assert_eq!(drone.next_name().await, "clover_dir");
        let led = || DeviceOperation::Command {
            action: "led_test".to_owned(),
            arguments: swarm_shared::proto::message::Arguments::default(),
        };
        let stop = reply_of(devices.send("clever-1", DeviceOperation::Stop).await).await;
        assert_eq!(stop.state, Outcome::Refused);
        let push = DeviceOperation::Push {
            path: "shows/a".to_owned(),
            content: Bytes::new(),
        };
        for work in [led(), push] {
            let refused = reply_of(devices.send("clever-1", work).await).await;
            let wanted = "an emergency stop is in force: release it first";
            assert_eq!(refused, Reply::refused(wanted), "{lines}");
        }
        devices.latch("all", false);
        let told = reply_of(devices.send("clever-1", DeviceOperation::Release).await).await;
        assert_eq!(told, Reply::done(policy::RELEASED_TEXT.into()));
    }
}

#[tokio::test]
async fn stop_without_action_drops_queued_commands() {
    let rig = Harness::new("allow = [\"*\"]\nresume_queue = true\nstop_action = \"\"").await;
    let devices = &rig.context.devices;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.next_name().await, "clover_dir");
    drop(drone);
    let action = |name: &str| DeviceOperation::Command {
        action: name.to_owned(),
        arguments: swarm_shared::proto::message::Arguments::default(),
    };
    // A flight action, which ends at once while the drone is away.
    let away = timeout(TEST_TIMEOUT, async {
        while reply_of(devices.send("clever-1", action("land")).await)
            .await
            .state
            != Outcome::NoAnswer
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    away.await.expect("it is seen to be gone");
    let queued = devices.send("clever-1", action("led_test")).await;
    // Handled after the queued command, so that the command waits by then.
    reply_of(devices.send("clever-1", action("land")).await).await;
    let stop = reply_of(devices.send("clever-1", DeviceOperation::Stop).await).await;
    assert_eq!(stop.state, Outcome::Refused);
    assert_eq!(
        reply_of(queued).await,
        Reply::refused("dropped by an emergency stop")
    );
}

#[tokio::test]
async fn unknown_request_error_suggests_the_requests_setting() {
    let rig = Harness::new("").await;
    let devices = &rig.context.devices;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.next_name().await, "clover_dir");
    for (action, may_ask) in [("battery_temp", true), ("takeoff", false), ("execute", false)] {
        let work = DeviceOperation::Command {
            action: action.to_owned(),
            arguments: swarm_shared::proto::message::Arguments::default(),
        };
        let refused = reply_of(devices.send("clever-1", work).await).await;
        let why = refused.error.expect("why");
        assert!(why.contains("`allow`"), "{why}");
        assert_eq!(why.contains("`requests`"), may_ask, "{why}");
    }
}

#[tokio::test]
async fn rejected_connections_are_audited_at_once() {
    let rig = Harness::new("").await;
    let _drone = rig.drone("clever-1").await;
    for _ in 0..2 {
        // An empty id is not valid.
        let mut other = rig.drone("").await;
        assert_eq!(other.next_message().await, None);
    }
    let _another = rig.drone("clever-2").await;
    let noted = async {
        loop {
            let audit = crate::store::history::run_query(rig.dir.path(), |connection| {
                crate::store::audit::newest(connection, 0, 100)
            });
            let audit = audit.await.expect("read").expect("there is one");
            if audit.len() >= 2 {
                return audit;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let audit = timeout(TEST_TIMEOUT, noted).await.expect("in time");
    let mut outcomes: Vec<&str> = audit.iter().map(|entry| entry.outcome.as_str()).collect();
    outcomes.sort_unstable();
    assert_eq!(
        outcomes,
        ["done", "not done: its id is not a text of 1 to 253 bytes"]
    );
}
