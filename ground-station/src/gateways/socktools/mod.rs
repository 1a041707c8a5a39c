//! Peers of socktools: each message is a length and so many bytes; either side connects.
//!
//! | message of a peer | handling |
//! |---|---|
//! | request in Platypush's form | carried out if permitted; answered by a response |
//! | response or event | logged, not answered: two stations would answer each other without end |
//! | empty | keep-alive |
//! | any other | with `raw_action`: carried out as that action, with the message as its argument if it takes one; otherwise an error response |
//!
//! `idle` limits the time in which a peer sends no byte, without the time in which its request is carried out. A peer's
//! messages are carried out in order; messages of an operator are sent in between.

mod peers;

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
use swarm_shared::proto::rate::{Throttle, TokenBucket};
use swarm_shared::proto::wire::ContentEncoding;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::context::{GatewayContext, GatewayError};
use super::framing::{DRAIN_MESSAGES_MAX, StreamError, close_gracefully, read_message, write_message};
use super::listener::{ConnectionPermit, GatewayListener, log_throttle};
use super::platypush::handler::{MessageEnd, RequestHandler, random_id, takes_no_arguments};
use crate::config::gateways::{CommonOptions, RawEncoding, SocktoolsConfig};
use peers::{OutgoingMessage, PeerGuard, PeerRegistry};

/// The gateway's name in the configuration.
pub const GATEWAY: &str = SocktoolsConfig::NAME;
/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Upper bound of the pause after one failed attempt; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Upper bound of every pause.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A connection that lasted this long resets the pause.
const STABLE_CONNECTION_MIN: Duration = Duration::from_secs(5);

/// Time between two log lines about a peer that cannot be reached.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(600);

/// Opens the gateway, and dials the configured peers.
///
/// # Errors
/// [`GatewayError`].
pub fn open(config: &SocktoolsConfig, context: &GatewayContext) -> Result<(), GatewayError> {
    let handler = RequestHandler::new(GATEWAY, &config.common, context);
    if let Some(action) = &config.raw_action {
        let wrong = |why| GatewayError::Configuration {
            gateway: GATEWAY,
            reason: format!("`raw_action` could never be done: {why}"),
        };
        let ignored = takes_no_arguments(action);
        let given = if ignored {
            &[][..]
        } else {
            &[config.raw_argument.as_str()]
        };
        handler.check_permitted(action, given).map_err(wrong)?;
        if let Some(key) = config.raw_option.filter(|_| ignored) {
            return Err(GatewayError::Configuration {
                gateway: GATEWAY,
                reason: format!("{action} takes nothing, so `{key}` does nothing: take it out"),
            });
        }
    }
    let listener = GatewayListener::open(GATEWAY, &config.common, context)?;
    let peers = PeerRegistry::new(GATEWAY);
    let gateway_peers = &context.advertisement.gateway_peers;
    gateway_peers.register_gateway(GATEWAY, Arc::new(peers.clone()));
    let server = Arc::new(Server {
        handler,
        peers,
        config: config.clone(),
        drop_log: Mutex::new(log_throttle()),
    });
    if config.good_peers.is_empty() && !config.common.listen.ip().is_loopback() {
        tracing::warn!(
            gateway = GATEWAY,
            "Only programs of this machine may connect: name other peers in `good_peers`"
        );
    }
    for addr in &config.dial {
        let (server, addr, shutdown) = (Arc::clone(&server), *addr, context.shutdown.clone());
        context.tasks.spawn(async move {
            shutdown.run_until_cancelled(server.keep_connected(addr)).await;
        });
    }
    let policy = Arc::clone(&server);
    let is_allowed = move |ip: IpAddr| policy.config.is_allowed_peer(ip);
    context
        .tasks
        .spawn(listener.serve_allowed(is_allowed, move |stream, permit| {
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
    /// Throttles the log line about closed connections.
    drop_log: Mutex<Throttle>,
}

/// Throttles the log about failed attempts to reach a peer.
#[derive(Debug)]
struct ConnectAttempts {
    failures: u64,
    throttle: Throttle,
}

impl Default for ConnectAttempts {
    fn default() -> Self {
        Self {
            failures: 0,
            throttle: Throttle::new(TokenBucket::every(FAILURE_LOG_INTERVAL, 1)),
        }
    }
}

impl ConnectAttempts {
    /// Counts a failure. If it is to be logged, returns the number of failures in a row.
    fn on_failure(&mut self, now: Instant) -> Option<u64> {
        self.failures += 1;
        self.throttle.count(now).map(|_| self.failures)
    }

    /// Returns the number of failures before a success.
    fn on_connected(&mut self) -> u64 {
        std::mem::take(self).failures
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
                    let failed = attempts.on_connected();
                    tracing::info!(gateway = GATEWAY, %addr, failed, "Peer connected");
                    let since = clock::now();
                    let permit = ConnectionPermit::for_outgoing(addr, &self.config.common);
                    self.serve(stream, &permit, true).await;
                    failures = if clock::since(since) >= STABLE_CONNECTION_MIN {
                        0
                    } else {
                        failures + 1
                    };
                }
                Err(error) => {
                    match attempts.on_failure(clock::now()) {
                        Some(failed) => {
                            tracing::warn!(gateway = GATEWAY, %error, failed, "Peer not connected; trying again");
                        }
                        None => {
                            tracing::debug!(gateway = GATEWAY, %error, "Peer not connected; trying again");
                        }
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
        let (guard, outgoing) = self.peers.register(addr, dialled);
        let (mut from, mut to) = stream.into_split();
        let lost = CancellationToken::new();
        let mut receiving = Box::pin(self.receive_loop(&mut from, &guard, permit, &lost));
        let ended = tokio::select! {
            biased;
            ended = &mut receiving => ended,
            ended = write_outgoing(&mut to, outgoing, self.config.keep_alive) => {
                lost.cancel();
                // The request in progress is carried to its end, without a response.
                let _lost = receiving.as_mut().await;
                ended
            }
        };
        drop(receiving);
        drop(guard);
        match ended {
            Ok(()) => tracing::debug!(gateway = GATEWAY, %addr, "Peer disconnected"),
            Err(error) => {
                let mut dropped = self.drop_log.lock();
                if let Some(count) = dropped.count(clock::now()) {
                    tracing::info!(gateway = GATEWAY, %addr, %error, count, "Peer connection closed");
                }
            }
        }
        if let Ok(stream) = from.reunite(to) {
            close_gracefully(stream).await;
        }
    }

    /// Carries out a peer's messages in order, until it closes its sending side. Once `lost` is cancelled, since responses
    /// do not reach the peer any more, only emergency stops that had arrived are carried out.
    async fn receive_loop(
        &self,
        from: &mut OwnedReadHalf,
        guard: &PeerGuard,
        permit: &ConnectionPermit,
        lost: &CancellationToken,
    ) -> Result<(), StreamError> {
        let CommonOptions {
            message_bytes, idle, ..
        } = self.config.common;
        let client = permit.client();
        let mut reader = MessageReader::new(message_bytes);
        let mut left = DRAIN_MESSAGES_MAX;
        loop {
            let receiving = read_message(from, &mut reader, idle);
            let received = match lost.run_until_cancelled(receiving).await {
                Some(received) => received,
                None if left == 0 => return Ok(()),
                None => {
                    left -= 1;
                    read_message(from, &mut reader, Duration::ZERO).await
                }
            };
            let message = match received {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(StreamError::ProtocolError(fault)) => {
                    let refused = self.handler.reject_unparsed(&client, &fault).await;
                    self.respond(guard, lost, &refused).await;
                    return Err(StreamError::ProtocolError(fault));
                }
                Err(ended @ (StreamError::ConnectionLost(_) | StreamError::Silent(_))) => return Err(ended),
            };
            permit.throttle().await;
            let parsed = match self.classify(message) {
                Incoming::Request(parsed) => parsed,
                Incoming::NotUtf8 => {
                    let fault = "the message is not text in UTF-8";
                    let refused = self.handler.reject_unparsed(&client, fault).await;
                    self.respond(guard, lost, &refused).await;
                    continue;
                }
                Incoming::NoReply(kind) => {
                    tracing::debug!(gateway = GATEWAY, addr = %permit.addr, kind, "Message of a peer not answered");
                    continue;
                }
            };
            let end = self.handler.handle_message(&client, parsed, lost.is_cancelled());
            match end.await {
                MessageEnd::Respond(response) => self.respond(guard, lost, &response).await,
                MessageEnd::RespondAndClose(response) => {
                    self.respond(guard, lost, &response).await;
                    return Ok(());
                }
                MessageEnd::Drop => {}
            }
        }
    }

    fn classify(&self, message: Vec<u8>) -> Incoming {
        if message.is_empty() {
            return Incoming::NoReply("keep-alive");
        }
        let value = json::parse(&message, &ContentEncoding::Utf8);
        let kind = value.as_ref().ok().and_then(|value| value["type"].as_str());
        match (kind, &self.config.raw_action) {
            (Some("response"), _) => Incoming::NoReply("response"),
            (Some("event"), _) => Incoming::NoReply("event"),
            (Some("request"), _) | (_, None) => Incoming::Request(Request::parse(&message, random_id())),
            // Any message triggers an action without arguments.
            (_, Some(action)) if takes_no_arguments(action) => {
                Incoming::Request(Ok(raw_request(action, Value::Null)))
            }
            (_, Some(action)) => {
                let config = &self.config;
                let argument = match (config.raw_encoding, String::from_utf8(message)) {
                    (RawEncoding::Text, Ok(text)) => text,
                    (RawEncoding::Text, Err(_)) => return Incoming::NotUtf8,
                    (RawEncoding::Base64, Ok(text)) => BASE64.encode(text.as_bytes()),
                    (RawEncoding::Base64, Err(bytes)) => BASE64.encode(bytes.as_bytes()),
                };
                let mut arguments = serde_json::Map::new();
                arguments.insert(config.raw_argument.clone(), argument.into());
                Incoming::Request(Ok(raw_request(action, Value::Object(arguments))))
            }
        }
    }

    async fn respond(&self, guard: &PeerGuard, lost: &CancellationToken, response: &Response) {
        if !guard.send(self.handler.encode(response).into()).await {
            lost.cancel();
        }
    }
}

/// How a peer's message is handled.
enum Incoming {
    Request(Result<Request, BadMessage>),
    /// Not the text that the action takes.
    NotUtf8,
    /// Not answered; the kind is for the log.
    NoReply(&'static str),
}

/// The request for `raw_action`.
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

/// Writes outgoing messages, and a keep-alive after `keep_alive` without one.
async fn write_outgoing(
    to: &mut (impl AsyncWrite + Unpin),
    mut outgoing: mpsc::Receiver<OutgoingMessage>,
    keep_alive: Option<Duration>,
) -> Result<(), StreamError> {
    loop {
        let next = match keep_alive {
            None => outgoing.recv().await,
            Some(every) => match clock::timeout_at(clock::now() + every, outgoing.recv()).await {
                Ok(next) => next,
                Err(_elapsed) => {
                    write_message(to, &KEEP_ALIVE_FRAME).await?;
                    continue;
                }
            },
        };
        let Some(OutgoingMessage { message, written }) = next else {
            return Ok(());
        };
        let frame = encode(&message).map_err(|error| StreamError::ConnectionLost(error.to_string()))?;
        write_message(to, &frame).await?;
        // The sender may have stopped waiting.
        let _dropped = written.send(());
    }
}

/// An empty message.
const KEEP_ALIVE_FRAME: [u8; LENGTH_BYTES] = [0; LENGTH_BYTES];

/// The pause after so many failures in a row: random up to a bound that doubles, so that many stations do not dial at
/// the same time.
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
