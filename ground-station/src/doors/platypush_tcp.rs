//! Platypush's messages over TCP: `echo '{"type": "request", …}' | nc localhost 1234`.
//!
//! | state | ends with |
//! |---|---|
//! | waits for a message | its first byte; closed after [`BEGIN_MAX`], after an answer already after `idle` |
//! | takes a message | its last byte; an answer and closed after [`WHOLE_MAX`](super::stream::WHOLE_MAX), or where it cannot be cut out |
//! | does it | the answer. Nothing more is read meanwhile, so requests are done in their order |
//! | answers | all of it written; closed after [`WRITE_MAX`](super::stream::WRITE_MAX) in which nothing is read |
//!
//! A client that has said all and closed its side still gets its answers.

use std::time::Duration;

use swarm_shared::proto::platypush::{Request, Response, Splitter};
use tokio::net::TcpStream;

use super::guard::Visitor;
use super::hall::{Entrance, Hall};
use super::platypush::{Desk, random_id};
use super::stream::{BEGIN_MAX, Ended, next, part, write};
use super::{DoorError, House};
use crate::config::doors::PlatypushTcp;

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

impl Counter {
    async fn serve(self, mut stream: TcpStream, mut splitter: Splitter) {
        let addr = self.entrance.addr;
        match self.converse(&mut stream, &mut splitter).await {
            Ok(()) => {}
            Err(Ended::Lost(why)) => tracing::debug!(door = DOOR, %addr, why, "lost"),
            Err(Ended::Fault(fault)) => {
                tracing::debug!(door = DOOR, %addr, fault, "closed");
                let refused = self.desk.turn_down_all(&self.visitor, &fault).await;
                let told = self.write(&mut stream, &refused).await;
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
            patience = self.idle;
            let request = match Request::parse(&message, random_id()) {
                Ok(request) => request,
                Err(bad) => {
                    let refused = self.desk.turn_down(&self.visitor, bad).await;
                    self.write(stream, &refused).await?;
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
        }
        Ok(())
    }

    async fn write(&self, stream: &mut TcpStream, response: &Response) -> Result<(), Ended> {
        let mut bytes = self.desk.encode(response);
        // For people who look at it, and between two answers.
        bytes.push(b'\n');
        write(stream, &bytes).await
    }
}
