//! The door with drones that are played.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use swarm_shared::proto::clever_show::{LIMITS_GREETING, Message};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::FrameReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::config::Config;
use crate::fleet::guests::{Answer, GUESTS_MAX, Guests, Profile, Seat, Work, guest_id, guest_name};
use crate::fleet::{Fleet, NodeRef};

const PATIENCE: Duration = Duration::from_secs(5);

/// An open door.
struct Rig {
    house: House,
    at: SocketAddr,
    dir: tempfile::TempDir,
}

impl Rig {
    async fn new(lines: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::for_host("st");
        let text = format!("[doors.clever_show]\nlisten = \"127.0.0.1:0\"\n{lines}\n");
        config.read_file(Path::new("config.toml"), &text).expect("reads");
        let config = config.doors.clever_show.expect("open");
        let house = crate::gateways::tests::house(Fleet::local().0, dir.path()).await;
        let hall = Hall::open(DOOR, &config.common, &house).expect("opens");
        let at = hall.listens().expect("bound");
        let lobby = identify::Lobby::new(Arc::new(Server {
            guard: Guard::new(DOOR, &config.common, &house),
            config,
            house: house.clone(),
        }));
        let serve = move |stream, entrance| lobby.clone().receive(stream, entrance);
        house.tasks.spawn(hall.receive(serve));
        Self { house, at, dir }
    }

    /// A drone that has said its id.
    async fn drone(&self, id: &str) -> Drone {
        Self::drone_at(self.at, id).await
    }

    async fn drone_at(at: SocketAddr, id: &str) -> Drone {
        let mut drone = Drone {
            stream: TcpStream::connect(at).await.expect("connects"),
            reader: FrameReader::new(LIMITS_GREETING),
            inbox: BytesMut::new(),
        };
        assert_eq!(drone.told().await, "id");
        drone.answer_id(id, 0).await;
        drone
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.house.stop.cancel();
    }
}

struct Drone {
    stream: TcpStream,
    reader: FrameReader,
    inbox: BytesMut,
}

impl Drone {
    /// What it is told; nothing if its connection is gone.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(frame) = self.reader.next_frame(&mut self.inbox).expect("a frame") {
                return Some(Message::read(&frame).expect("a message"));
            }
            self.inbox.reserve(self.reader.lacking().max(1));
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await;
            if read.expect("in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Answers who it is, to the question of this number.
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

    /// The name of what it is told.
    async fn told(&mut self) -> String {
        match self.next().await.expect("connected") {
            Message::Action { action: name, .. } | Message::Request { name, .. } => name,
            other @ (Message::Response { .. } | Message::FileResponse { .. } | Message::FilePush { .. }) => {
                panic!("{other:?}")
            }
        }
    }
}

async fn ended(answer: oneshot::Receiver<Answer>) -> Reply {
    match timeout(PATIENCE, answer).await.expect("in time").expect("ends") {
        Answer::Reply(reply) => reply,
        Answer::File(file) => panic!("a file of {} bytes", file.len()),
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_file() {
    let rig = Rig::new("allow = [\"*\"]\nresume_queue = true").await;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.told().await, "clover_dir");
    let push = Work::Push {
        path: "shows/long".to_owned(),
        content: Bytes::from(vec![7; 64 * 1024 * 1024]),
    };
    let push = rig.house.guests.order("clever-1", push).await;
    let begun = timeout(PATIENCE, drone.stream.read_buf(&mut drone.inbox)).await;
    assert!(begun.expect("in time").expect("connected") > 0);
    // From here on it reads no more: its network is that slow.
    let stop = rig.house.guests.order("clever-1", Work::Stop).await;
    assert_eq!(ended(push).await, Reply::refused("dropped by an emergency stop"));
    let mut again = rig.drone("clever-1").await;
    assert_eq!(again.told().await, "emergency_land");
    assert_eq!(ended(stop).await, Reply::done("sent, unconfirmed".into()));
    assert_eq!(again.told().await, "clover_dir", "and not the file");
}

#[tokio::test]
async fn a_stop_is_told_though_whoever_asked_for_it_is_gone() {
    let rig = Rig::new("allow = [\"*\"]").await;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.told().await, "clover_dir");
    // Before its door has even looked at it.
    drop(rig.house.guests.order("clever-1", Work::Stop).await);
    assert_eq!(drone.told().await, "emergency_land");
}

/// Guests who have all seats but one, and keep them.
fn others(guests: &Guests) -> Vec<Seat> {
    let profile = |number| Profile {
        node: NodeRef {
            node: guest_name("other"),
            id: guest_id("test", &format!("{number}")),
        },
        tags: BTreeMap::new(),
        software: None,
        reads: Arc::default(),
        file_bytes_max: 0,
    };
    let others = (1..GUESTS_MAX).map(|number| guests.seat(profile(number)).expect("free"));
    others.collect()
}

/// A drone that is let in as soon as it is seen that the one before it is gone.
async fn let_in(rig: &Rig, id: &str) -> Drone {
    let let_in = timeout(PATIENCE, async {
        loop {
            let mut drone = rig.drone(id).await;
            // Closed at once while the one before it still counts as connected.
            if drone.next().await.is_some() {
                return drone;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let_in.await.expect("there is a place")
}

#[tokio::test]
async fn a_drone_that_is_gone_gives_its_place_to_another_and_gets_one_again() {
    let rig = Rig::new("").await;
    let guests = &rig.house.guests;
    let _others = others(guests);
    // They answer nothing more than who they are, and nobody waits for them.
    for id in ["clever-1", "clever-2", "clever-1"] {
        drop(let_in(&rig, id).await);
        assert_eq!(guests.len(), GUESTS_MAX);
    }
}

#[tokio::test]
async fn a_drone_that_has_lost_its_place_is_told_to_stop_when_it_is_back_whoever_holds_on_to_it() {
    let rig = Rig::new("").await;
    let guests = &rig.house.guests;
    let _others = others(guests);
    drop(let_in(&rig, "clever-1").await);
    // Of a run that goes on for long.
    let _held = guests.hold("clever-1");
    drop(let_in(&rig, "clever-2").await);
    let told = timeout(2 * PATIENCE, async {
        loop {
            let mut drone = let_in(&rig, "clever-1").await;
            // Let in by the post that has lost its seat, for a moment.
            if !guests.knows("clever-1") {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let stop = guests.order("clever-1", Work::Stop).await;
            assert_eq!(drone.told().await, "emergency_land");
            return ended(stop).await;
        }
    });
    assert_eq!(
        told.await.expect("it has a seat again"),
        Reply::done("sent, unconfirmed".into())
    );
}

#[tokio::test]
async fn an_action_of_flight_that_waited_for_a_disk_is_not_sent_late() {
    let rig = Rig::new("allow = [\"*\"]").await;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.told().await, "clover_dir");
    let work = |action: &str| Work::Command {
        action: action.to_owned(),
        arguments: swarm_shared::proto::message::Arguments::default(),
    };
    let guests = &rig.house.guests;
    let issued = swarm_shared::net::clock::now();
    let long_ago = issued
        .checked_sub(Duration::from_secs(3))
        .expect("the machine has been up");
    let late = guests.order_of("clever-1", work("takeoff"), long_ago).await;
    assert_eq!(
        ended(late).await.state,
        swarm_shared::proto::outcome::Outcome::Expired
    );
    let other = guests.order_of("clever-1", work("led_test"), long_ago).await;
    let in_time = guests.order_of("clever-1", work("land"), issued).await;
    for answer in [other, in_time] {
        assert_eq!(ended(answer).await, Reply::done("sent, unconfirmed".into()));
    }
    assert_eq!(
        (drone.told().await, drone.told().await),
        ("led_test".to_owned(), "land".to_owned())
    );
}

#[tokio::test]
async fn an_id_does_not_make_a_drone_another_one_s_namesake() {
    let rig = Rig::new("").await;
    let mut drones = Vec::new();
    for (id, count) in [("clever-1", 1), ("clever-1\u{0}1", 2)] {
        let mut drone = rig.drone(id).await;
        assert_eq!(drone.told().await, "clover_dir");
        drones.push(drone);
        assert_eq!(rig.house.guests.len(), count);
    }
    // A card that was copied: the first of them lives.
    let copy = tokio::spawn({
        let at = rig.at;
        async move { Rig::drone_at(at, "clever-1").await }
    });
    assert_eq!(drones[0].told().await, "id");
    drones[0].answer_id("clever-1", 2).await;
    let mut copy = copy.await.expect("connected");
    assert_eq!(copy.told().await, "clover_dir");
    assert_eq!(rig.house.guests.len(), 3);
}

#[tokio::test]
async fn a_stop_that_stands_is_told_to_whoever_comes_and_one_that_was_lifted_meanwhile_is_not() {
    let rig = Rig::new("allow = [\"*\"]").await;
    let guests = &rig.house.guests;
    guests.stand("clever-*", true);
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.told().await, "emergency_land", "before all else");
    assert_eq!(drone.told().await, "clover_dir");
    let led = || Work::Command {
        action: "led_test".to_owned(),
        arguments: swarm_shared::proto::message::Arguments::default(),
    };
    let refused = ended(guests.order("clever-1", led()).await).await;
    assert_eq!(
        refused,
        Reply::refused("an emergency stop is in force: release it first")
    );
    // Nobody told it of the release: it was not known yet when that was typed.
    guests.stand("clever-*", false);
    let done = timeout(PATIENCE, async {
        while ended(guests.order("clever-1", led()).await).await != Reply::done("sent, unconfirmed".into()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    done.await.expect("released");
    // So it is if whoever released it went away before he could tell; whoever tells is not told that nothing was so.
    let stop = guests.order("clever-1", Work::Stop).await;
    assert_eq!(ended(stop).await, Reply::done("sent, unconfirmed".into()));
    guests.stand("all", false);
    let done = timeout(PATIENCE, async {
        while ended(guests.order("clever-1", led()).await).await != Reply::done("sent, unconfirmed".into()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    done.await.expect("released");
    let told = ended(guests.order("clever-1", Work::Release).await).await;
    assert_eq!(told, Reply::done(policy::RELEASED.into()));
    let told = ended(guests.order("clever-1", Work::Release).await).await;
    assert_eq!(told, Reply::done("it was not stopped".into()));
}

#[tokio::test]
async fn nothing_that_acts_passes_while_a_stop_stands_that_tells_drones_nothing() {
    for lines in ["stop_action = \"\"", "role = \"observer\""] {
        let rig = Rig::new(&format!("allow = [\"*\"]\nresume_queue = true\n{lines}")).await;
        let guests = &rig.house.guests;
        let mut drone = rig.drone("clever-1").await;
        assert_eq!(drone.told().await, "clover_dir");
        let led = || Work::Command {
            action: "led_test".to_owned(),
            arguments: swarm_shared::proto::message::Arguments::default(),
        };
        let stop = ended(guests.order("clever-1", Work::Stop).await).await;
        assert_eq!(stop.state, Outcome::Refused);
        let push = Work::Push {
            path: "shows/a".to_owned(),
            content: Bytes::new(),
        };
        for work in [led(), push] {
            let refused = ended(guests.order("clever-1", work).await).await;
            let wanted = "an emergency stop is in force: release it first";
            assert_eq!(refused, Reply::refused(wanted), "{lines}");
        }
        guests.stand("all", false);
        let told = ended(guests.order("clever-1", Work::Release).await).await;
        assert_eq!(told, Reply::done(policy::RELEASED.into()));
    }
}

#[tokio::test]
async fn what_waits_for_a_drone_is_dropped_by_a_stop_that_tells_it_nothing() {
    let rig = Rig::new("allow = [\"*\"]\nresume_queue = true\nstop_action = \"\"").await;
    let guests = &rig.house.guests;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.told().await, "clover_dir");
    drop(drone);
    let action = |name: &str| Work::Command {
        action: name.to_owned(),
        arguments: swarm_shared::proto::message::Arguments::default(),
    };
    // Of flight, so it ends at once while the drone is away.
    let away = timeout(PATIENCE, async {
        while ended(guests.order("clever-1", action("land")).await).await.state != Outcome::NoAnswer {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    away.await.expect("it is seen to be gone");
    let queued = guests.order("clever-1", action("led_test")).await;
    // Comes after it, so that it is seen to wait.
    ended(guests.order("clever-1", action("land")).await).await;
    let stop = ended(guests.order("clever-1", Work::Stop).await).await;
    assert_eq!(stop.state, Outcome::Refused);
    assert_eq!(
        ended(queued).await,
        Reply::refused("dropped by an emergency stop")
    );
}

#[tokio::test]
async fn a_question_that_is_not_known_is_not_said_to_need_a_permission_to_act() {
    let rig = Rig::new("").await;
    let guests = &rig.house.guests;
    let mut drone = rig.drone("clever-1").await;
    assert_eq!(drone.told().await, "clover_dir");
    for (action, may_ask) in [("battery_temp", true), ("takeoff", false), ("execute", false)] {
        let work = Work::Command {
            action: action.to_owned(),
            arguments: swarm_shared::proto::message::Arguments::default(),
        };
        let refused = ended(guests.order("clever-1", work).await).await;
        let why = refused.error.expect("why");
        assert!(why.contains("`allow`"), "{why}");
        assert_eq!(why.contains("`requests`"), may_ask, "{why}");
    }
}

#[tokio::test]
async fn who_is_turned_away_is_in_the_audit_at_once_among_those_who_are_not() {
    let rig = Rig::new("").await;
    let _drone = rig.drone("clever-1").await;
    for _ in 0..2 {
        // An id of no bytes is none.
        let mut other = rig.drone("").await;
        assert_eq!(other.next().await, None);
    }
    let _another = rig.drone("clever-2").await;
    let noted = async {
        loop {
            let audit = crate::store::history::ask(rig.dir.path(), |connection| {
                crate::store::audit::newest(connection, 0, 100)
            });
            let audit = audit.await.expect("read").expect("there is one");
            if audit.len() >= 2 {
                return audit;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let audit = timeout(PATIENCE, noted).await.expect("in time");
    let mut outcomes: Vec<&str> = audit.iter().map(|entry| entry.outcome.as_str()).collect();
    outcomes.sort_unstable();
    assert_eq!(
        outcomes,
        ["done", "not done: its id is no text of 1 to 253 bytes"]
    );
}
