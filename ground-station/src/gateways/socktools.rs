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
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::Value;
use swarm_shared::net::socket::{self, KeepaliveConfig, TrafficClass};
use swarm_shared::net::sync::Mutex;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::foreign::platypush::{BadMessage, Request, Response, id_from_random};
use swarm_shared::proto::foreign::socktools::{LENGTH_BYTES, MessageReader, encode};
use swarm_shared::proto::json;
use swarm_shared::proto::wire::ContentEncoding;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::access::Client;
use super::framing::{DRAIN_MESSAGES_MAX, StreamError, close_gracefully, read_message, write_message};
use super::listener::{ConnectionPermit, GatewayListener, LogThrottle};
use super::platypush_handler::{RequestHandler, random_id, takes_no_arguments};
use super::{GatewayContext, GatewayError};
use crate::config::gateways::{RawEncoding, SocktoolsConfig};
use crate::fleet::gateway_peers::{OutgoingMessage, PeerGuard, PeerRegistry};

/// As the configuration calls it.
pub const GATEWAY: &str = "socktools";
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause before the first attempt that follows a failed one; it doubles with each.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest pause of all.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A connection that held for so long was a good one: the next attempt follows soon.
const STABLE_CONNECTION_MIN: Duration = Duration::from_secs(5);

/// How often it is said that a peer is still not reached.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(600);

/// Opens the gateway, and calls whom the configuration names.
///
/// # Errors
/// [`DoorError`].
pub fn open(config: &SocktoolsConfig, context: &GatewayContext) -> Result<(), GatewayError> {
    let handler = RequestHandler::new(GATEWAY, &config.common, context);
    if let Some(action) = &config.raw.action {
        let wrong = |why| GatewayError::Configuration {
            gateway: GATEWAY,
            reason: format!("`raw_action` could never be done: {why}"),
        };
        let ignored = takes_no_arguments(action);
        let given = if ignored {
            &[][..]
        } else {
            &[config.raw.argument.as_str()]
        };
        handler.check_permitted(action, given).map_err(wrong)?;
        if let Some(key) = config.raw.option_set.filter(|_| ignored) {
            return Err(GatewayError::Configuration {
                gateway: GATEWAY,
                reason: format!("{action} takes nothing, so `{key}` does nothing: take it out"),
            });
        }
    }
    let listener = GatewayListener::open(GATEWAY, &config.common, context)?;
    let server = Arc::new(Server {
        handler,
        peers: context.advertisement.gateway_peers.register_gateway(GATEWAY),
        config: config.clone(),
        drop_log: Mutex::default(),
    });
    if config.good_peers.is_empty() && !config.common.listen.ip().is_loopback() {
        tracing::warn!(
            gateway = GATEWAY,
            "only this machine's own programs are welcome: name others in `good_peers`"
        );
    }
    for addr in &config.dial {
        let (server, addr, shutdown) = (Arc::clone(&server), *addr, context.shutdown.clone());
        context.tasks.spawn(async move {
            shutdown.run_until_cancelled(server.keep_connected(addr)).await;
        });
    }
    let welcome = Arc::clone(&server);
    let is_welcome = move |ip: IpAddr| welcome.config.is_allowed_peer(ip);
    context
        .tasks
        .spawn(listener.serve_allowed(is_welcome, move |stream, permit| {
            let server = Arc::clone(&server);
            async move { server.serve(stream, &permit, false).await }
        }));
    Ok(())
}

/// What all peers share.
struct Server {
    handler: RequestHandler,
    peers: PeerRegistry,
    config: SocktoolsConfig,
    /// Peers that were dropped, as far as the log has not been told.
    drop_log: Mutex<LogThrottle>,
}

/// What the log is told of attempts to reach a peer: the first that fails, now and then that it still does, and that it
/// is reached.
#[derive(Debug, Default)]
struct ConnectAttempts {
    failures: u64,
    last_logged: Option<Instant>,
}

impl ConnectAttempts {
    /// One more has failed; how many have in a row, if it is time to say so.
    fn on_failure(&mut self, now: Instant) -> Option<u64> {
        self.failures += 1;
        if self
            .last_logged
            .is_some_and(|told| now < told + FAILURE_LOG_INTERVAL)
        {
            return None;
        }
        self.last_logged = Some(now);
        Some(self.failures)
    }

    /// It is reached; how many attempts had failed.
    fn on_connected(&mut self) -> u64 {
        self.last_logged = None;
        std::mem::take(&mut self.failures)
    }
}

impl Server {
    /// Keeps a connection to a peer.
    async fn keep_connected(&self, addr: SocketAddr) {
        let (mut failures, mut attempts) = (0, ConnectAttempts::default());
        loop {
            let connected = socket::connect(
                addr,
                CONNECT_TIMEOUT,
                &KeepaliveConfig::default(),
                TrafficClass::Control,
            )
            .await;
            match connected {
                Ok(stream) => {
                    match attempts.on_connected() {
                        0 => tracing::info!(gateway = GATEWAY, %addr, "connected"),
                        failed => {
                            tracing::info!(gateway = GATEWAY, %addr, failed, "connected, after attempts that failed");
                        }
                    }
                    let since = clock::now();
                    let permit = ConnectionPermit::for_outgoing(addr, &self.config.common.limits);
                    self.serve(stream, &permit, true).await;
                    failures = if clock::since(since) >= STABLE_CONNECTION_MIN {
                        0
                    } else {
                        failures + 1
                    };
                }
                Err(error) => {
                    match attempts.on_failure(clock::now()) {
                        Some(1) => tracing::warn!(gateway = GATEWAY, %error, "not connected; trying again"),
                        Some(failed) => {
                            tracing::warn!(gateway = GATEWAY, %error, failed, "still not connected; trying again");
                        }
                        None => tracing::debug!(gateway = GATEWAY, %error, "still not connected"),
                    }
                    failures += 1;
                }
            }
            tokio::time::sleep(backoff(failures, random::jitter())).await;
        }
    }

    /// Serves a peer until one side ends.
    async fn serve(&self, stream: TcpStream, permit: &ConnectionPermit, dialled: bool) {
        let addr = permit.addr;
        let (seat, parcels) = self.peers.register(addr, dialled);
        let (mut from, mut to) = stream.into_split();
        let unheard = CancellationToken::new();
        let mut hearing = Box::pin(self.receive_loop(&mut from, &seat, permit, &unheard));
        let ended = tokio::select! {
            biased;
            ended = &mut hearing => ended,
            ended = write_outgoing(&mut to, parcels, self.config.keep_alive) => {
                unheard.cancel();
                // What it asked for is carried to its end; there is nobody to tell.
                let _lost = hearing.as_mut().await;
                ended
            }
        };
        drop(hearing);
        drop(seat);
        match ended {
            Ok(()) => tracing::debug!(gateway = GATEWAY, %addr, "a peer has ended"),
            Err(StreamError::ConnectionLost(why) | StreamError::ProtocolError(why)) => {
                let mut dropped = self.drop_log.lock();
                if let Some(count) = dropped.count(clock::now()) {
                    tracing::info!(gateway = GATEWAY, %addr, why, count, "a peer is dropped");
                }
            }
        }
        if let Ok(stream) = from.reunite(to) {
            close_gracefully(stream).await;
        }
    }

    /// Does what a peer says, message by message, until it has said all. Once the answers are `unheard`, of what has
    /// arrived before it does an emergency stop.
    async fn receive_loop(
        &self,
        from: &mut OwnedReadHalf,
        seat: &PeerGuard,
        permit: &ConnectionPermit,
        unheard: &CancellationToken,
    ) -> Result<(), StreamError> {
        let limits = &self.config.common.limits;
        let client = Client {
            from: permit.addr.ip(),
            user: None,
        };
        let mut reader = MessageReader::new(limits.message_bytes);
        let mut left = DRAIN_MESSAGES_MAX;
        loop {
            let since = clock::now();
            let hearing = read_message(from, &mut reader, limits.idle);
            let heard = match unheard.run_until_cancelled(hearing).await {
                Some(heard) => heard,
                None if left == 0 => return Ok(()),
                None => {
                    left -= 1;
                    read_message(from, &mut reader, Duration::ZERO).await
                }
            };
            let message = match heard {
                Ok(Some(message)) => message,
                Ok(None) if clock::since(since) >= limits.idle => {
                    let idle = limits.idle;
                    return Err(StreamError::ConnectionLost(format!(
                        "it was silent for {idle:?} (`idle`)"
                    )));
                }
                Ok(None) => return Ok(()),
                Err(StreamError::ProtocolError(fault)) => {
                    let refused = self.handler.reject_unparsed(&client, &fault).await;
                    self.respond(seat, unheard, &refused).await;
                    return Err(StreamError::ProtocolError(fault));
                }
                Err(lost @ StreamError::ConnectionLost(_)) => return Err(lost),
            };
            permit.throttle().await;
            let request = match self.classify(message) {
                Incoming::Request(request) => request,
                Incoming::Invalid(bad) => {
                    let refused = self.handler.reject(&client, bad).await;
                    self.respond(seat, unheard, &refused).await;
                    continue;
                }
                Incoming::NotUtf8 => {
                    let fault = "the message is not text in UTF-8";
                    let refused = self.handler.reject_unparsed(&client, fault).await;
                    self.respond(seat, unheard, &refused).await;
                    continue;
                }
                Incoming::NoReply(kind) => {
                    tracing::debug!(gateway = GATEWAY, addr = %permit.addr, kind, "heard of a peer");
                    continue;
                }
            };
            if let Err(refused) = self.handler.authenticate(&client, &request).await {
                // Whoever guesses has to come again for each guess.
                self.respond(seat, unheard, &refused).await;
                return Ok(());
            }
            if unheard.is_cancelled() {
                self.handler.handle_after_disconnect(&client, request).await;
                continue;
            }
            let response = self.handler.handle(&client, request).await;
            self.respond(seat, unheard, &response).await;
        }
    }

    fn classify(&self, message: Vec<u8>) -> Incoming {
        if message.is_empty() {
            return Incoming::NoReply("a sign of life");
        }
        let value = json::parse(&message, &ContentEncoding::Utf8);
        let kind = value.as_ref().ok().and_then(|value| value["type"].as_str());
        match (kind, &self.config.raw.action) {
            (Some("response"), _) => Incoming::NoReply("a response"),
            (Some("event"), _) => Incoming::NoReply("an event"),
            (Some("request"), _) | (_, None) => match Request::parse(&message, random_id()) {
                Ok(request) => Incoming::Request(request),
                Err(bad) => Incoming::Invalid(bad),
            },
            // Whatever the message is: it is the button that is pressed.
            (_, Some(action)) if takes_no_arguments(action) => {
                Incoming::Request(raw_request(action, Value::Null))
            }
            (_, Some(action)) => {
                let raw = &self.config.raw;
                let argument = match (raw.encoding, String::from_utf8(message)) {
                    (RawEncoding::Text, Ok(text)) => text,
                    (RawEncoding::Text, Err(_)) => return Incoming::NotUtf8,
                    (RawEncoding::Base64, Ok(text)) => BASE64.encode(text.as_bytes()),
                    (RawEncoding::Base64, Err(bytes)) => BASE64.encode(bytes.as_bytes()),
                };
                let mut arguments = serde_json::Map::new();
                arguments.insert(raw.argument.clone(), argument.into());
                Incoming::Request(raw_request(action, Value::Object(arguments)))
            }
        }
    }

    async fn respond(&self, seat: &PeerGuard, unheard: &CancellationToken, response: &Response) {
        if !seat.send(self.handler.encode(response).into()).await {
            unheard.cancel();
        }
    }
}

/// What a message of a peer is.
enum Incoming {
    Request(Request),
    Invalid(BadMessage),
    /// For an action that takes text.
    NotUtf8,
    /// Nothing to answer.
    NoReply(&'static str),
}

/// A message that is no request, as one for the action that takes such messages.
fn raw_request(action: &str, args: Value) -> Request {
    Request {
        target: None,
        action: action.to_owned(),
        args,
        origin: None,
        id: id_from_random(random_id()),
        token: None,
        timestamp: None,
    }
}

/// Writes what a peer is sent, and signs of life in between.
async fn write_outgoing(
    to: &mut (impl AsyncWrite + Unpin),
    mut parcels: mpsc::Receiver<OutgoingMessage>,
    keep_alive: Option<Duration>,
) -> Result<(), StreamError> {
    loop {
        let parcel = match keep_alive {
            None => parcels.recv().await,
            Some(every) => match clock::timeout_at(clock::now() + every, parcels.recv()).await {
                Ok(parcel) => parcel,
                Err(_elapsed) => {
                    write_message(to, &KEEP_ALIVE_FRAME).await?;
                    continue;
                }
            },
        };
        let Some(OutgoingMessage { message, written }) = parcel else {
            return Ok(());
        };
        let frame = encode(&message).map_err(|error| StreamError::ConnectionLost(error.to_string()))?;
        write_message(to, &frame).await?;
        // Whoever sent it may have stopped waiting.
        let _nobody_waits = written.send(());
    }
}

/// An empty message.
const KEEP_ALIVE_FRAME: [u8; LENGTH_BYTES] = [0; LENGTH_BYTES];

/// How long to wait after so many failures in a row: any time up to a bound that doubles, so that many do not call at
/// once.
fn backoff(failures: u32, random: u64) -> Duration {
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
    fn connect_failures_are_logged_first_then_rarely() {
        let start = clock::now();
        let mut attempts = ConnectAttempts::default();
        assert_eq!(attempts.on_connected(), 0);
        assert_eq!(attempts.on_failure(start), Some(1));
        for _ in 0..100 {
            assert_eq!(attempts.on_failure(start + FAILURE_LOG_INTERVAL / 2), None);
        }
        assert_eq!(attempts.on_failure(start + FAILURE_LOG_INTERVAL), Some(102));
        assert_eq!(attempts.on_connected(), 102);
        assert_eq!(
            attempts.on_failure(start + FAILURE_LOG_INTERVAL),
            Some(1),
            "a new failure is news"
        );
    }

    #[test]
    fn reconnect_backoff_is_capped_and_jittered() {
        assert_eq!(backoff(0, u64::MAX - u64::MAX % 200), Duration::from_millis(1));
        for (failures, most) in [(0, 200), (1, 400), (3, 1_600), (6, 10_000), (u32::MAX, 10_000)] {
            let longest = (0..most * 2).map(|random| backoff(failures, random)).max();
            assert_eq!(longest, Some(Duration::from_millis(most)), "{failures}");
        }
    }
}
