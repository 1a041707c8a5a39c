//! One connection: messages are answered in order; pushes and heartbeats are written in between.

use std::io;
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::proto::foreign::knut::{Decoder, Item, TERMINATOR};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::super::access::Client;
use super::super::framing::write_all_with_timeout;
use super::super::listener::ConnectionPermit;
use super::{
    FIRST_MESSAGE_TIMEOUT, GATEWAY, HEARTBEAT_INTERVAL, MESSAGE_TIMEOUT, ServerState, WRITE_TIMEOUT,
};

/// Bytes that are read at once.
const READ_BYTES: usize = 8 * 1024;
/// Answers that wait to be written; the next message is not read before there is room.
const QUEUED_RESPONSES_MAX: usize = 1;

/// Longest HTTP method that is recognised, in bytes.
const HTTP_METHOD_BYTES_MAX: usize = 32;

/// Why a connection ended, unless the client closed it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    /// [`FIRST_MESSAGE_TIMEOUT`] has passed.
    #[error("said nothing for {FIRST_MESSAGE_TIMEOUT:?}")]
    NoFirstMessage,
    /// [`MESSAGE_TIMEOUT`] has passed.
    #[error("a message took longer than {MESSAGE_TIMEOUT:?}")]
    MessageTimeout,
    /// [`WRITE_TIMEOUT`] has passed.
    #[error("read nothing for {WRITE_TIMEOUT:?}")]
    WriteTimeout,
    /// Most likely a web page had a browser send it, with messages in its body.
    #[error("began with a request of HTTP, which this gateway does not speak")]
    HttpRequest,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Recognises HTTP by the first bytes of a connection: any web page can have a browser send requests to this port. They
/// begin with a method, and messages never do.
#[derive(Debug, Default)]
struct HttpDetector {
    seen: Vec<u8>,
    decided: bool,
}

impl HttpDetector {
    /// Whether the stream, with these next bytes, begins with an HTTP request.
    fn is_http(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if self.decided {
                break;
            }
            if self.seen.is_empty() && byte.is_ascii_whitespace() {
                continue;
            }
            if self.seen.len() < HTTP_METHOD_BYTES_MAX && (byte.is_ascii_uppercase() || *byte == b'-') {
                self.seen.push(*byte);
                continue;
            }
            self.decided = true;
            return *byte == b' ' && !self.seen.is_empty();
        }
        false
    }
}

fn client_of(permit: &ConnectionPermit) -> Client {
    Client {
        from: permit.addr.ip(),
        user: None,
    }
}

/// Serves one client until either side closes the connection.
pub(super) async fn serve(state: &ServerState, stream: TcpStream, permit: &ConnectionPermit) {
    let addr = permit.addr;
    let (from, to) = stream.into_split();
    let (answers, outgoing) = mpsc::channel(QUEUED_RESPONSES_MAX);
    let pushes = state.pushes.subscribe();
    let mut reading = pin!(read_loop(state, from, permit, answers));
    let mut writing = pin!(write_loop(state, to, outgoing, pushes));
    let ended = tokio::select! {
        ended = &mut writing => ended,
        ended = &mut reading => match ended {
            // The client sends no more; answers are still written.
            Ok(()) => writing.await,
            Err(left) => Err(left),
        },
    };
    if let Err(wrong @ (ConnectionEnd::HttpRequest | ConnectionEnd::MessageTimeout)) = &ended {
        state
            .access
            .audit_malformed(&client_of(permit), &wrong.to_string())
            .await;
    }
    match ended {
        Ok(()) => tracing::debug!(gateway = GATEWAY, %addr, "Connection closed by the client"),
        Err(left) => match permit.throttled_log().count("closed") {
            Some(count) => tracing::info!(gateway = GATEWAY, %addr, why = %left, count, "Connection closed"),
            None => tracing::debug!(gateway = GATEWAY, %addr, why = %left, "Connection closed"),
        },
    }
}

/// Reads and answers a client's messages, until it closes its sending side.
pub(super) async fn read_loop(
    state: &ServerState,
    mut from: impl AsyncRead + Unpin,
    permit: &ConnectionPermit,
    answers: mpsc::Sender<Bytes>,
) -> Result<(), ConnectionEnd> {
    let client = client_of(permit);
    let mut opening = HttpDetector::default();
    let mut decoder = Decoder::new(state.config.common.limits.message_bytes);
    let mut buffer = [0; READ_BYTES];
    // Until the first message has come, and the time when the present one began.
    let mut first = Some(clock::now() + FIRST_MESSAGE_TIMEOUT);
    let mut begun = None::<Instant>;
    loop {
        let reading = from.read(&mut buffer);
        let count = match (begun.map(|begun| begun + MESSAGE_TIMEOUT), first) {
            (Some(until), _) => clock::timeout_at(until, reading)
                .await
                .map_err(|_late| ConnectionEnd::MessageTimeout)?,
            (None, Some(until)) => clock::timeout_at(until, reading)
                .await
                .map_err(|_late| ConnectionEnd::NoFirstMessage)?,
            (None, None) => reading.await,
        }?;
        if count == 0 {
            return Ok(());
        }
        let mut bytes = buffer.get(..count).unwrap_or_default();
        if opening.is_http(bytes) {
            return Err(ConnectionEnd::HttpRequest);
        }
        while let Some(item) = decoder.decode_next(&mut bytes) {
            (first, begun) = (None, None);
            permit.throttle().await;
            let message = match item {
                Item::Heartbeat => continue,
                Item::Message(message) => message,
                Item::Invalid(error) => {
                    let addr = permit.addr;
                    match permit.throttled_log().count("not a message") {
                        Some(count) => {
                            tracing::info!(gateway = GATEWAY, %addr, %error, count, "Invalid message ignored");
                        }
                        None => {
                            tracing::debug!(gateway = GATEWAY, %addr, %error, "Invalid message ignored");
                        }
                    }
                    state.access.audit_malformed(&client, &error.to_string()).await;
                    continue;
                }
            };
            if let Some(answer) = state.handle(&client, message).await
                && answers.send(answer.encode().into()).await.is_err()
            {
                return Ok(());
            }
        }
        begun = if decoder.has_partial_message() {
            begun.or_else(|| Some(clock::now()))
        } else {
            None
        };
    }
}

/// Writes answers, pushes and heartbeats, until there are no more answers to come.
pub(super) async fn write_loop(
    state: &ServerState,
    mut to: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Bytes>,
    mut pushes: broadcast::Receiver<Bytes>,
) -> Result<(), ConnectionEnd> {
    let mut beat = clock::now() + HEARTBEAT_INTERVAL;
    loop {
        let bytes = tokio::select! {
            biased;
            () = clock::sleep_until(beat) => {
                beat = clock::now() + HEARTBEAT_INTERVAL;
                Bytes::from_static(&[TERMINATOR])
            }
            answer = answers.recv() => match answer {
                Some(answer) => answer,
                None => return Ok(()),
            },
            push = pushes.recv() => match push {
                Ok(push) => push,
                Err(RecvError::Lagged(_)) => {
                    let everything = state.temperatures().all_as_push();
                    everything.encode().into()
                }
                Err(RecvError::Closed) => return Ok(()),
            },
        };
        if !write_all_with_timeout(&mut to, &bytes, WRITE_TIMEOUT).await? {
            return Err(ConnectionEnd::WriteTimeout);
        }
    }
}
