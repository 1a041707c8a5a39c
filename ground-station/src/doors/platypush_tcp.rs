//! Platypush's messages over TCP: `echo '{"type": "request", …}' | nc localhost 1234`.
//!
//! | state | ends with |
//! |---|---|
//! | waits for a message | its first byte; closed after [`BEGIN_MAX`], after an answer already after `idle` |
//! | takes a message | its last byte; an answer and closed after [`WHOLE_MAX`], or where it cannot be cut out |
//! | does it | the answer. Nothing more is read meanwhile, so requests are done in their order |
//! | answers | all of it written; closed after [`WRITE_MAX`] |
//!
//! A client that has said all and closed its side still gets its answers.

use std::io;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::platypush::{Request, Response, Splitter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::guard::Visitor;
use super::hall::{Entrance, Hall};
use super::platypush::{Desk, random_id};
use super::{DoorError, House};
use crate::config::doors::PlatypushTcp;

/// How long a client may take to begin its first message.
pub const BEGIN_MAX: Duration = Duration::from_secs(10);
/// How long a message may take from its first byte to its last.
pub const WHOLE_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take to be read.
pub const WRITE_MAX: Duration = Duration::from_secs(10);
/// Before a connection is closed with something unread: a close would else take the answer with it.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// Read at once, in bytes.
const READ_BYTES: usize = 4 * 1024;

const DOOR: &str = "platypush_tcp";
/// As programs look for it.
const SERVICE: &str = "_platypush-tcp._tcp.local.";

/// Opens the door.
///
/// # Errors
/// [`DoorError`].
pub async fn open(config: &PlatypushTcp, house: &House) -> Result<(), DoorError> {
    let hall = Hall::open(DOOR, &config.common, house)?;
    if let Ok(listens) = hall.listens() {
        house.publish(SERVICE, listens).await;
    }
    let desk = Desk::new(DOOR, &config.common, house);
    let limits = config.common.limits.clone();
    house.tasks.spawn(hall.receive(move |stream, entrance| {
        let (message_max, idle) = (limits.message_bytes, limits.idle);
        let counter = Counter {
            desk: desk.clone(),
            visitor: Visitor {
                from: entrance.addr.ip(),
                user: None,
            },
            entrance,
            idle,
        };
        counter.serve(stream, Splitter::new(message_max))
    }));
    Ok(())
}

/// One client.
struct Counter {
    desk: Desk,
    visitor: Visitor,
    entrance: Entrance,
    idle: Duration,
}

/// Why a conversation ends before its end.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The connection is gone, or nobody reads.
    #[error("{0}")]
    Lost(String),
    /// The client is told.
    #[error("{0}")]
    Fault(String),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

impl Counter {
    async fn serve(self, mut stream: TcpStream, mut splitter: Splitter) {
        let addr = self.entrance.addr;
        match self.converse(&mut stream, &mut splitter).await {
            Ok(()) => {}
            Err(Ended::Lost(why)) => tracing::debug!(door = DOOR, %addr, why, "lost"),
            Err(Ended::Fault(fault)) => {
                tracing::debug!(door = DOOR, %addr, fault, "closed");
                let told = self.write(&mut stream, &self.desk.refuse_all(fault)).await;
                if let Err(error) = told {
                    tracing::debug!(door = DOOR, %addr, %error, "not told why");
                }
            }
        }
        part(stream).await;
    }

    async fn converse(&self, stream: &mut TcpStream, splitter: &mut Splitter) -> Result<(), Ended> {
        let mut patience = BEGIN_MAX;
        while let Some(message) = next(stream, splitter, patience).await? {
            self.entrance.turn().await;
            let request = match Request::parse(&message, random_id()) {
                Ok(request) => request,
                Err(bad) => {
                    self.write(stream, &self.desk.refuse(bad)).await?;
                    continue;
                }
            };
            drop(message);
            if let Err(refused) = self.desk.admit(&self.visitor, &request).await {
                // Whoever guesses has to come again for each guess.
                return self.write(stream, &refused).await;
            }
            let response = self.desk.answer(&self.visitor, request).await;
            self.write(stream, &response).await?;
            patience = self.idle;
        }
        Ok(())
    }

    async fn write(&self, stream: &mut TcpStream, response: &Response) -> Result<(), Ended> {
        let mut bytes = self.desk.encode(response);
        // For people who look at it, and between two answers.
        bytes.push(b'\n');
        match timeout(WRITE_MAX, stream.write_all(&bytes)).await {
            Ok(written) => Ok(written?),
            Err(_elapsed) => Err(Ended::Lost(format!(
                "the answer was not read within {WRITE_MAX:?}"
            ))),
        }
    }
}

/// The next whole message; `None` if the client has said all, or does not begin one within `patience`.
async fn next(
    stream: &mut TcpStream,
    splitter: &mut Splitter,
    patience: Duration,
) -> Result<Option<Vec<u8>>, Ended> {
    let mut due = clock::now() + patience;
    let mut begun = false;
    let mut piece = [0; READ_BYTES];
    loop {
        let cut = splitter.next_message();
        if let Some(message) = cut.map_err(|cut| Ended::Fault(cut.to_string()))? {
            return Ok(Some(message));
        }
        if !begun && splitter.has_begun() {
            begun = true;
            due = clock::now() + WHOLE_MAX;
        }
        let read = clock::timeout_at(due, stream.read(&mut piece)).await;
        match read {
            Err(_elapsed) if begun => {
                return Err(Ended::Fault(format!(
                    "the message was not whole within {WHOLE_MAX:?}"
                )));
            }
            Ok(Ok(0)) if begun => {
                return Err(Ended::Fault(
                    "the message ends before its last bracket".to_owned(),
                ));
            }
            Err(_) | Ok(Ok(0)) => return Ok(None),
            Ok(Ok(bytes)) => splitter.feed(&piece[..bytes]),
            Ok(Err(error)) => return Err(error.into()),
        }
    }
}

/// Says that no more comes, and lets the client read what did.
async fn part(mut stream: TcpStream) {
    let farewell = async {
        stream.shutdown().await?;
        let mut piece = [0; READ_BYTES];
        while stream.read(&mut piece).await? > 0 {}
        io::Result::Ok(())
    };
    // It is closed either way.
    let _gone = timeout(LINGER_MAX, farewell).await;
}
