//! The door with drones that are played.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use swarm_shared::net::discovery::presence::Services;
use swarm_shared::proto::clever_show::{LIMITS_GREETING, Message};
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::FrameReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::Config;
use crate::doors::Face;
use crate::fleet::guests::{Answer, GUESTS_MAX, Guests, Profile, Seat, Work, guest_id, guest_name};
use crate::fleet::peers::Posts;
use crate::fleet::{Fleet, NodeRef};
use crate::store::Store;

const PATIENCE: Duration = Duration::from_secs(5);

/// An open door.
struct Rig {
    house: House,
    at: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn new(lines: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::for_host("st");
        let text = format!("[doors.clever_show]\nlisten = \"127.0.0.1:0\"\n{lines}\n");
        config.read_file(Path::new("config.toml"), &text).expect("reads");
        let config = config.doors.clever_show.expect("open");
        let house = House {
            face: Face {
                name: NodeName::parse("st").expect("a name"),
                services: Services::default(),
                posts: Posts::default(),
            },
            fleet: Fleet::local().0,
            guests: Guests::default(),
            store: Store::open(dir.path()).await.expect("opens"),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let hall = Hall::open(DOOR, &config.common, &house).expect("opens");
        let at = hall.listens().expect("bound");
        let lobby = greet::Lobby::new(Arc::new(Server {
            guard: Guard::new(DOOR, &config.common, &house),
            config,
            house: house.clone(),
        }));
        let serve = move |stream, entrance| lobby.clone().receive(stream, entrance);
        house.tasks.spawn(hall.receive(serve));
        Self { house, at, _dir: dir }
    }

    /// A drone that has said its id.
    async fn drone(&self, id: &str) -> Drone {
        let mut drone = Drone {
            stream: TcpStream::connect(self.at).await.expect("connects"),
            reader: FrameReader::new(LIMITS_GREETING),
            inbox: BytesMut::new(),
        };
        let Some(Message::Request { name, id: number, .. }) = drone.next().await else {
            panic!("not asked")
        };
        let value = json!(id);
        let answer = Message::Response {
            name,
            id: number,
            value,
        };
        let mut bytes = BytesMut::new();
        answer.to_frame().encode(&mut bytes).expect("short");
        drone.stream.write_all(&bytes).await.expect("written");
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
async fn a_drone_that_is_gone_gives_its_place_to_another_and_gets_one_again() {
    let rig = Rig::new("").await;
    let guests = &rig.house.guests;
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
    let _others: Vec<Seat> = others.collect();
    // They answer nothing more than who they are, and nobody waits for them.
    for id in ["clever-1", "clever-2", "clever-1"] {
        let told = timeout(PATIENCE, async {
            loop {
                let mut drone = rig.drone(id).await;
                // Closed at once while the one before it still counts as connected.
                if drone.next().await.is_some() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        told.await.expect("there is a place");
        assert_eq!(guests.len(), GUESTS_MAX);
    }
}
