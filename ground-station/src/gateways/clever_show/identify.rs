//! Connections that have not said who they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use swarm_shared::net::clock;
use swarm_shared::net::socket::{self, KeepaliveConfig, Purpose};
use swarm_shared::proto::clever_show::LIMITS_GREETING;
use swarm_shared::proto::clever_show::server::{BadId, Drone, Rules, answers_id, ask_id};
use swarm_shared::proto::wire::{FrameReader, WireError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::connection::Connection;
use super::drone_task::{Arrival, Namesakes, Post};
use super::policy::{ALSO_ACTS, REQUESTS, Rulebook};
use super::{SYSTEM, Server};
use crate::fleet::NodeRef;
use crate::fleet::guests::{NoSeat, Profile, guest_id, guest_name};
use crate::gateways::access::Visitor;
use crate::gateways::listener::Entrance;

/// How long a connection may take to say who it is.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Most drones that may call themselves the same at once.
const NAMESAKES_MAX: usize = 8;
/// Most frames that a connection may say before it says who it is.
const FRAMES_MAX: usize = 16;
/// Arrivals that wait for one post.
const ARRIVALS_MAX: usize = 4;

/// By id.
type Posts = BTreeMap<String, Called>;

/// Those that call themselves the same.
#[derive(Debug, Default)]
struct Called {
    /// By place among them.
    posts: Vec<mpsc::Sender<Arrival>>,
    here: Namesakes,
}

/// Leads connections to their posts.
#[derive(Clone, Debug)]
pub(super) struct Lobby {
    server: Arc<Server>,
    posts: Arc<Mutex<Posts>>,
}

/// Why a connection has no post.
#[derive(Debug, thiserror::Error)]
enum TurnedAway {
    #[error("it broke: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Id(#[from] BadId),
    #[error(transparent)]
    Seat(#[from] NoSeat),
    #[error("it did not say its id within {GREETING_MAX:?}")]
    TooSlow,
    #[error("it said {FRAMES_MAX} things, and not its id")]
    TooMuch,
    #[error("{NAMESAKES_MAX} drones call themselves so already")]
    Namesakes,
    #[error("its post has just ended; a drone that comes again gets another, unless the station stops")]
    NoPost,
}

impl TurnedAway {
    /// The log tells of each kind by itself, however often there is another.
    fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "broke",
            Self::Wire(WireError::HeaderTooLong { .. }) => "header too long",
            Self::Wire(WireError::ContentTooLong { .. }) => "content too long",
            Self::Wire(WireError::HeaderNotUtf8 | WireError::HeaderTooDeep | WireError::BadHeader(_)) => {
                "bad header"
            }
            Self::Wire(WireError::MissingKey(_)) => "missing key",
            Self::Id(_) => "bad id",
            Self::Seat(_) => "no seat",
            Self::TooSlow => "too slow",
            Self::TooMuch => "too much",
            Self::Namesakes => "namesakes",
            Self::NoPost => "no post",
        }
    }

    /// For the audit, which counts refusals of one reason together: nothing that a visitor makes up is in it.
    fn reason(&self) -> String {
        match self {
            Self::Wire(WireError::BadHeader(_)) => "bad header".to_owned(),
            Self::Io(_)
            | Self::Wire(
                WireError::HeaderTooLong { .. }
                | WireError::ContentTooLong { .. }
                | WireError::HeaderNotUtf8
                | WireError::HeaderTooDeep
                | WireError::MissingKey(_),
            )
            | Self::Id(_)
            | Self::Seat(_)
            | Self::TooSlow
            | Self::TooMuch
            | Self::Namesakes
            | Self::NoPost => self.to_string(),
        }
    }
}

impl Lobby {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            posts: Arc::default(),
        }
    }

    /// One connection, until it is a drone's.
    pub(super) async fn receive(self, stream: TcpStream, entrance: Entrance) {
        let addr = entrance.addr;
        let visitor = Visitor {
            from: addr.ip(),
            user: None,
        };
        let log = entrance.log();
        let until = clock::now() + GREETING_MAX;
        let greeted = match clock::timeout_at(until, greet(stream, entrance)).await {
            Ok(greeted) => greeted,
            Err(_elapsed) => Err(TurnedAway::TooSlow),
        };
        let (led, id) = match greeted {
            Ok((id, connection)) => (self.lead(&id, connection).await, id),
            Err(error) => (Err(error), String::new()),
        };
        let outcome = match led {
            Ok(()) => {
                // An id that is no node's name is not what selectors know it by.
                let name = guest_name(&id);
                match log.count("here") {
                    Some(count) => tracing::info!(%addr, id, %name, count, "a clever-show drone is here"),
                    None => tracing::debug!(%addr, id, %name, "a clever-show drone is here"),
                }
                "done".to_owned()
            }
            Err(error) => {
                let text = "a connection at clever-show's door was closed";
                match log.count(error.kind()) {
                    Some(count) => tracing::warn!(%addr, id, %error, count, "{text}"),
                    None => tracing::debug!(%addr, id, %error, "{text}"),
                }
                format!("not done: {}", error.reason())
            }
        };
        self.server.guard.note(&visitor, "connect", &id, outcome).await;
    }

    /// To the first post of this id that takes it; to a new one if none does.
    async fn lead(&self, id: &str, mut connection: Box<Connection>) -> Result<(), TurnedAway> {
        let mut offered: Vec<mpsc::Sender<Arrival>> = Vec::new();
        while offered.len() < NAMESAKES_MAX {
            let post = self.post(id, &offered)?;
            let (answer, taken) = oneshot::channel();
            let arrival = Arrival { connection, answer };
            post.send(arrival).await.map_err(|_gone| TurnedAway::NoPost)?;
            match taken.await.map_err(|_gone| TurnedAway::NoPost)? {
                Some(back) => connection = back,
                None => return Ok(()),
            }
            offered.push(post);
        }
        Err(TurnedAway::Namesakes)
    }

    /// A post of this id that has not been offered the connection yet: one that is there, so that a drone that comes
    /// back is what it was, or else a new one.
    fn post(&self, id: &str, offered: &[mpsc::Sender<Arrival>]) -> Result<mpsc::Sender<Arrival>, TurnedAway> {
        let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = posts
            .get(id)
            .map(|called| called.posts.as_slice())
            .unwrap_or_default();
        let is_new = |post: &mpsc::Sender<Arrival>| !offered.iter().any(|other| other.same_channel(post));
        let mut open = known.iter().filter(|post| !post.is_closed());
        if let Some(post) = open.find(|post| is_new(post)) {
            return Ok(post.clone());
        }
        let free = known.iter().position(mpsc::Sender::is_closed);
        let place = free.unwrap_or(known.len());
        if place >= NAMESAKES_MAX {
            return Err(TurnedAway::Namesakes);
        }
        // Those that have lost their seats.
        posts.retain(|called, those| called == id || those.posts.iter().any(|post| !post.is_closed()));
        let server = &self.server;
        let config = &server.config;
        // Nothing that a drone calls itself makes it another one's namesake.
        let system = match place {
            0 => SYSTEM.to_owned(),
            place => format!("{SYSTEM}/{place}"),
        };
        let known = REQUESTS.iter().filter(|name| !ALSO_ACTS.contains(*name));
        let known = known.map(|name| (*name).to_owned());
        let reads: BTreeSet<String> = known.chain(config.requests.iter().cloned()).collect();
        let seat = server.house.guests.seat(Profile {
            node: NodeRef {
                node: guest_name(id),
                id: guest_id(&system, id),
            },
            tags: BTreeMap::from([("system".to_owned(), SYSTEM.to_owned())]),
            software: Some(SYSTEM.to_owned()),
            reads: Arc::new(reads),
            file_bytes_max: config.file_bytes,
        })?;
        let rules = Rules {
            resume_queue: config.resume_queue,
            resend_requests: config.resend_requests,
            idle: config.common.limits.idle,
        };
        let drone = Drone::new(id.to_owned(), rules);
        let rulebook = Rulebook::new(config, server.guard.clone());
        let (arrivals, arrivals_in) = mpsc::channel(ARRIVALS_MAX);
        let called = posts.entry(id.to_owned()).or_default();
        let namesakes = called.here.clone();
        let post = Post::new(drone, seat, rulebook, namesakes, arrivals_in, &server.house);
        server.house.tasks.spawn(post.run());
        match called.posts.get_mut(place) {
            Some(gone) => gone.clone_from(&arrivals),
            None => called.posts.push(arrivals.clone()),
        }
        Ok(arrivals)
    }
}

/// Asks a connection who it is.
async fn greet(mut stream: TcpStream, entrance: Entrance) -> Result<(String, Box<Connection>), TurnedAway> {
    socket::tune(&stream, &KeepaliveConfig::default(), Purpose::Control)
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut question = BytesMut::new();
    ask_id().encode(&mut question)?;
    stream.write_all(&question).await?;
    let mut reader = FrameReader::new(LIMITS_GREETING);
    let mut inbox = BytesMut::new();
    for _ in 0..FRAMES_MAX {
        entrance.turn().await;
        let frame = loop {
            if let Some(frame) = reader.next_frame(&mut inbox)? {
                break frame;
            }
            inbox.reserve(reader.lacking());
            if stream.read_buf(&mut inbox).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        };
        if let Some(id) = answers_id(&frame) {
            let connection = Connection::new(stream, entrance, reader, inbox);
            return Ok((id?, Box::new(connection)));
        }
    }
    Err(TurnedAway::TooMuch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_for_the_audit_holds_nothing_that_a_visitor_makes_up() {
        let bad_header = |said: &str| TurnedAway::Wire(WireError::BadHeader(said.to_owned())).reason();
        assert_eq!(
            bad_header("unknown variant `a`"),
            bad_header("unknown variant `b`")
        );
        assert_eq!(
            TurnedAway::Wire(WireError::HeaderNotUtf8).reason(),
            "header is not UTF-8"
        );
    }
}
