//! Peers of socktools: each message is a length and so many bytes; either side connects.
//!
//! | a peer's message | what becomes of it |
//! |---|---|
//! | a request in Platypush's form | done if it may be; the response goes back |
//! | a response or an event | noted, never answered: two stations would answer each other for ever |
//! | empty | a sign of life |
//! | anything else | given to `raw_action`, or sets it off if that takes nothing; the response goes back. An error without one |
//!
//! A peer is silent while it sends no byte; while what it asked for is being done, it is waited for. Its messages are
//! done in their order; what an operator sends goes out in between.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::Value;
use swarm_shared::net::socket::{self, KeepaliveConfig, Purpose};
use swarm_shared::net::{clock, random};
use swarm_shared::proto::json;
use swarm_shared::proto::platypush::{BadMessage, Request, Response, made_up_id};
use swarm_shared::proto::socktools::{LENGTH_BYTES, Reader, encode};
use swarm_shared::proto::wire::ContentEncoding;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::access::Visitor;
use super::framing::{Ended, UNHEARD_MAX, next, part, write};
use super::listener::{Entrance, Hall, Told};
use super::platypush_handler::{Desk, random_id, takes_nothing};
use super::{DoorError, House};
use crate::config::gateways::{RawEncoding, Socktools};
use crate::fleet::gateway_peers::{Parcel, Peers, Seat};

/// As the configuration calls it.
pub const DOOR: &str = "socktools";
/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The longest pause before the first attempt that follows a failed one; it doubles with each.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest pause of all.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A connection that held for so long was a good one: the next attempt follows soon.
const STEADY_MIN: Duration = Duration::from_secs(5);

/// How often it is said that a peer is still not reached.
const STILL_EVERY: Duration = Duration::from_secs(600);

/// Opens the door, and calls whom the configuration names.
///
/// # Errors
/// [`DoorError`].
pub fn open(config: &Socktools, house: &House) -> Result<(), DoorError> {
    let desk = Desk::new(DOOR, &config.common, house);
    if let Some(action) = &config.raw.action {
        let wrong = |why| DoorError::Configuration {
            door: DOOR,
            reason: format!("`raw_action` could never be done: {why}"),
        };
        let ignored = takes_nothing(action);
        let given = if ignored {
            &[][..]
        } else {
            &[config.raw.argument.as_str()]
        };
        desk.permits(action, given).map_err(wrong)?;
        if let Some(key) = config.raw.key.filter(|_| ignored) {
            return Err(DoorError::Configuration {
                door: DOOR,
                reason: format!("{action} takes nothing, so `{key}` does nothing: take it out"),
            });
        }
    }
    let hall = Hall::open(DOOR, &config.common, house)?;
    let club = Arc::new(Club {
        desk,
        peers: house.face.posts.open(DOOR),
        config: config.clone(),
        dropped: Mutex::default(),
    });
    if config.good_peers.is_empty() && !config.common.listen.ip().is_loopback() {
        tracing::warn!(
            door = DOOR,
            "only this machine's own programs are welcome: name others in `good_peers`"
        );
    }
    for addr in &config.dial {
        let (club, addr, stop) = (Arc::clone(&club), *addr, house.stop.clone());
        house.tasks.spawn(async move {
            stop.run_until_cancelled(club.call(addr)).await;
        });
    }
    let welcome = Arc::clone(&club);
    let is_welcome = move |ip: IpAddr| welcome.config.is_good(ip);
    house
        .tasks
        .spawn(hall.receive_some(is_welcome, move |stream, entrance| {
            let club = Arc::clone(&club);
            async move { club.serve(stream, &entrance, false).await }
        }));
    Ok(())
}

/// What all peers share.
struct Club {
    desk: Desk,
    peers: Peers,
    config: Socktools,
    /// Peers that were dropped, as far as the log has not been told.
    dropped: Mutex<Told>,
}

/// What the log is told of attempts to reach a peer: the first that fails, now and then that it still does, and that it
/// is reached.
#[derive(Debug, Default)]
struct Attempts {
    failed: u64,
    told: Option<Instant>,
}

impl Attempts {
    /// One more has failed; how many have in a row, if it is time to say so.
    fn failed(&mut self, now: Instant) -> Option<u64> {
        self.failed += 1;
        if self.told.is_some_and(|told| now < told + STILL_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(self.failed)
    }

    /// It is reached; how many attempts had failed.
    fn reached(&mut self) -> u64 {
        self.told = None;
        std::mem::take(&mut self.failed)
    }
}

impl Club {
    /// Keeps a connection to a peer.
    async fn call(&self, addr: SocketAddr) {
        let (mut failures, mut attempts) = (0, Attempts::default());
        loop {
            let connected =
                socket::connect(addr, CONNECT_MAX, &KeepaliveConfig::default(), Purpose::Control).await;
            match connected {
                Ok(stream) => {
                    match attempts.reached() {
                        0 => tracing::info!(door = DOOR, %addr, "connected"),
                        failed => {
                            tracing::info!(door = DOOR, %addr, failed, "connected, after attempts that failed");
                        }
                    }
                    let since = clock::now();
                    let entrance = Entrance::alone(addr, &self.config.common.limits);
                    self.serve(stream, &entrance, true).await;
                    failures = if clock::since(since) >= STEADY_MIN {
                        0
                    } else {
                        failures + 1
                    };
                }
                Err(error) => {
                    match attempts.failed(clock::now()) {
                        Some(1) => tracing::warn!(door = DOOR, %error, "not connected; trying again"),
                        Some(failed) => {
                            tracing::warn!(door = DOOR, %error, failed, "still not connected; trying again");
                        }
                        None => tracing::debug!(door = DOOR, %error, "still not connected"),
                    }
                    failures += 1;
                }
            }
            tokio::time::sleep(pause(failures, random::spread())).await;
        }
    }

    /// Serves a peer until one side ends.
    async fn serve(&self, stream: TcpStream, entrance: &Entrance, dialled: bool) {
        let addr = entrance.addr;
        let (seat, parcels) = self.peers.seat(addr, dialled);
        let (mut from, mut to) = stream.into_split();
        let unheard = CancellationToken::new();
        let mut hearing = Box::pin(self.hear(&mut from, &seat, entrance, &unheard));
        let ended = tokio::select! {
            biased;
            ended = &mut hearing => ended,
            ended = deliver(&mut to, parcels, self.config.keep_alive) => {
                unheard.cancel();
                // What it asked for is carried to its end; there is nobody to tell.
                let _lost = hearing.as_mut().await;
                ended
            }
        };
        drop(hearing);
        drop(seat);
        match ended {
            Ok(()) => tracing::debug!(door = DOOR, %addr, "a peer has ended"),
            Err(Ended::Lost(why) | Ended::Fault(why)) => {
                let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(count) = dropped.count(clock::now()) {
                    tracing::info!(door = DOOR, %addr, why, count, "a peer is dropped");
                }
            }
        }
        if let Ok(stream) = from.reunite(to) {
            part(stream).await;
        }
    }

    /// Does what a peer says, message by message, until it has said all. Once the answers are `unheard`, of what has
    /// arrived before it does an emergency stop.
    async fn hear(
        &self,
        from: &mut OwnedReadHalf,
        seat: &Seat,
        entrance: &Entrance,
        unheard: &CancellationToken,
    ) -> Result<(), Ended> {
        let limits = &self.config.common.limits;
        let visitor = Visitor {
            from: entrance.addr.ip(),
            user: None,
        };
        let mut reader = Reader::new(limits.message_bytes);
        let mut left = UNHEARD_MAX;
        loop {
            let since = clock::now();
            let hearing = next(from, &mut reader, limits.idle);
            let heard = match unheard.run_until_cancelled(hearing).await {
                Some(heard) => heard,
                None if left == 0 => return Ok(()),
                None => {
                    left -= 1;
                    next(from, &mut reader, Duration::ZERO).await
                }
            };
            let message = match heard {
                Ok(Some(message)) => message,
                Ok(None) if clock::since(since) >= limits.idle => {
                    let idle = limits.idle;
                    return Err(Ended::Lost(format!("it was silent for {idle:?} (`idle`)")));
                }
                Ok(None) => return Ok(()),
                Err(Ended::Fault(fault)) => {
                    let refused = self.desk.turn_down_all(&visitor, &fault).await;
                    self.answer(seat, unheard, &refused).await;
                    return Err(Ended::Fault(fault));
                }
                Err(lost @ Ended::Lost(_)) => return Err(lost),
            };
            entrance.turn().await;
            let request = match self.read(message) {
                Heard::Request(request) => request,
                Heard::Bad(bad) => {
                    let refused = self.desk.turn_down(&visitor, bad).await;
                    self.answer(seat, unheard, &refused).await;
                    continue;
                }
                Heard::NotText => {
                    let fault = "the message is not text in UTF-8";
                    let refused = self.desk.turn_down_all(&visitor, fault).await;
                    self.answer(seat, unheard, &refused).await;
                    continue;
                }
                Heard::Word(kind) => {
                    tracing::debug!(door = DOOR, addr = %entrance.addr, kind, "heard of a peer");
                    continue;
                }
            };
            if let Err(refused) = self.desk.admit(&visitor, &request).await {
                // Whoever guesses has to come again for each guess.
                self.answer(seat, unheard, &refused).await;
                return Ok(());
            }
            if unheard.is_cancelled() {
                self.desk.finish(&visitor, request).await;
                continue;
            }
            let response = self.desk.answer(&visitor, request).await;
            self.answer(seat, unheard, &response).await;
        }
    }

    fn read(&self, message: Vec<u8>) -> Heard {
        if message.is_empty() {
            return Heard::Word("a sign of life");
        }
        let value = json::parse(&message, &ContentEncoding::Utf8);
        let kind = value.as_ref().ok().and_then(|value| value["type"].as_str());
        match (kind, &self.config.raw.action) {
            (Some("response"), _) => Heard::Word("a response"),
            (Some("event"), _) => Heard::Word("an event"),
            (Some("request"), _) | (_, None) => match Request::parse(&message, random_id()) {
                Ok(request) => Heard::Request(request),
                Err(bad) => Heard::Bad(bad),
            },
            // Whatever the message is: it is the button that is pressed.
            (_, Some(action)) if takes_nothing(action) => Heard::Request(given(action, Value::Null)),
            (_, Some(action)) => {
                let raw = &self.config.raw;
                let argument = match (raw.encoding, String::from_utf8(message)) {
                    (RawEncoding::Text, Ok(text)) => text,
                    (RawEncoding::Text, Err(_)) => return Heard::NotText,
                    (RawEncoding::Base64, Ok(text)) => BASE64.encode(text.as_bytes()),
                    (RawEncoding::Base64, Err(bytes)) => BASE64.encode(bytes.as_bytes()),
                };
                let mut arguments = serde_json::Map::new();
                arguments.insert(raw.argument.clone(), argument.into());
                Heard::Request(given(action, Value::Object(arguments)))
            }
        }
    }

    async fn answer(&self, seat: &Seat, unheard: &CancellationToken, response: &Response) {
        if !seat.send(self.desk.encode(response).into()).await {
            unheard.cancel();
        }
    }
}

/// What a message of a peer is.
enum Heard {
    Request(Request),
    Bad(BadMessage),
    /// For an action that takes text.
    NotText,
    /// Nothing to answer.
    Word(&'static str),
}

/// A message that is no request, as one for the action that takes such messages.
fn given(action: &str, args: Value) -> Request {
    Request {
        target: None,
        action: action.to_owned(),
        args,
        origin: None,
        id: made_up_id(random_id()),
        token: None,
        timestamp: None,
    }
}

/// Writes what a peer is sent, and signs of life in between.
async fn deliver(
    to: &mut (impl AsyncWrite + Unpin),
    mut parcels: mpsc::Receiver<Parcel>,
    keep_alive: Option<Duration>,
) -> Result<(), Ended> {
    loop {
        let parcel = match keep_alive {
            None => parcels.recv().await,
            Some(every) => match clock::timeout_at(clock::now() + every, parcels.recv()).await {
                Ok(parcel) => parcel,
                Err(_elapsed) => {
                    write(to, &SIGN_OF_LIFE).await?;
                    continue;
                }
            },
        };
        let Some(Parcel { message, written }) = parcel else {
            return Ok(());
        };
        let frame = encode(&message).map_err(|error| Ended::Lost(error.to_string()))?;
        write(to, &frame).await?;
        // Whoever sent it may have stopped waiting.
        let _nobody_waits = written.send(());
    }
}

/// An empty message.
const SIGN_OF_LIFE: [u8; LENGTH_BYTES] = [0; LENGTH_BYTES];

/// How long to wait after so many failures in a row: any time up to a bound that doubles, so that many do not call at
/// once.
fn pause(failures: u32, random: u64) -> Duration {
    let bound = BACKOFF_MIN
        .saturating_mul(2_u32.saturating_pow(failures.min(16)))
        .min(BACKOFF_MAX);
    let bound_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(1 + random % bound_ms.max(1))
}

#[cfg(test)]
mod connection_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_of_the_first_failure_and_then_rarely_and_of_the_end() {
        let start = clock::now();
        let mut attempts = Attempts::default();
        assert_eq!(attempts.reached(), 0);
        assert_eq!(attempts.failed(start), Some(1));
        for _ in 0..100 {
            assert_eq!(attempts.failed(start + STILL_EVERY / 2), None);
        }
        assert_eq!(attempts.failed(start + STILL_EVERY), Some(102));
        assert_eq!(attempts.reached(), 102);
        assert_eq!(
            attempts.failed(start + STILL_EVERY),
            Some(1),
            "a new failure is news"
        );
    }

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread() {
        assert_eq!(pause(0, u64::MAX - u64::MAX % 200), Duration::from_millis(1));
        for (failures, most) in [(0, 200), (1, 400), (3, 1_600), (6, 10_000), (u32::MAX, 10_000)] {
            let longest = (0..most * 2).map(|random| pause(failures, random)).max();
            assert_eq!(longest, Some(Duration::from_millis(most)), "{failures}");
        }
    }
}
