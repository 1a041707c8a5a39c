//! Platypush's messages over TCP: `echo '{"type": "request", …}' | nc localhost 1234`.
//!
//! | state | ends with |
//! |---|---|
//! | waits for a message | its first byte; closed after [`BEGIN_MAX`], after an answer already after `idle` |
//! | takes a message | its last byte; an answer and closed after [`WHOLE_MAX`](super::stream::WHOLE_MAX), or where it cannot be cut out |
//! | does it | the answer. Nothing more is read meanwhile, so requests are done in their order |
//! | answers | all of it written; closed after [`WRITE_MAX`](super::stream::WRITE_MAX) in which nothing is read |
//!
//! A client that has said all and closed its side still gets its answers. Of one that is gone, an
//! emergency stop that has arrived is done.

use std::time::Duration;

use swarm_shared::proto::platypush::{Request, Response, Splitter};
use tokio::net::TcpStream;

use super::access::Visitor;
use super::framing::{BEGIN_MAX, Ended, UNHEARD_MAX, next, part, write};
use super::listener::{Entrance, Hall};
use super::platypush_handler::{Desk, random_id};
use super::{DoorError, House};
use crate::config::gateways::PlatypushTcp;

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
                let mut unheard = None;
                self.tell(&mut stream, &refused, &mut unheard).await;
                if let Some(error) = unheard {
                    tracing::debug!(door = DOOR, %addr, %error, "not told why");
                }
            }
        }
        part(stream).await;
    }

    async fn converse(&self, stream: &mut TcpStream, splitter: &mut Splitter) -> Result<(), Ended> {
        let mut patience = BEGIN_MAX;
        // Why it hears no answers any more. Of what has arrived before, an emergency stop is done all the same.
        let mut unheard = None;
        let mut left = UNHEARD_MAX;
        loop {
            if unheard.is_some() {
                left -= 1;
                patience = Duration::ZERO;
            }
            let message = match next(stream, splitter, patience).await {
                Ok(Some(message)) if left > 0 => message,
                Ok(_) => return unheard.map_or(Ok(()), Err),
                Err(ended) => return Err(unheard.unwrap_or(ended)),
            };
            self.entrance.turn().await;
            patience = self.idle;
            let request = match Request::parse(&message, random_id()) {
                Ok(request) => request,
                Err(bad) => {
                    let refused = self.desk.turn_down(&self.visitor, bad).await;
                    self.tell(stream, &refused, &mut unheard).await;
                    continue;
                }
            };
            drop(message);
            if let Err(refused) = self.desk.admit(&self.visitor, &request).await {
                // Whoever guesses has to come again for each guess.
                self.tell(stream, &refused, &mut unheard).await;
                return unheard.map_or(Ok(()), Err);
            }
            if unheard.is_some() {
                self.desk.finish(&self.visitor, request).await;
                continue;
            }
            let response = self.desk.answer(&self.visitor, request).await;
            self.tell(stream, &response, &mut unheard).await;
        }
    }

    /// Answers, unless nobody hears that any more.
    async fn tell(&self, stream: &mut TcpStream, response: &Response, unheard: &mut Option<Ended>) {
        if unheard.is_some() {
            return;
        }
        let mut bytes = self.desk.encode(response);
        // For people who look at it, and between two answers.
        bytes.push(b'\n');
        *unheard = write(stream, &bytes).await.err();
    }
}
