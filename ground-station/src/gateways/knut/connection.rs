//! One connection: messages are answered in order; pushes and heartbeats are written in between.

use std::pin::pin;

use bytes::{Buf as _, Bytes, BytesMut};
use swarm_shared::net::clock;
use swarm_shared::proto::foreign::knut::{Decoder, Item, TERMINATOR};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::super::framing::{FIRST_BYTE_TIMEOUT, MessageDecoder, StreamError, read_message, write_message};
use super::super::listener::{ConnectionPermit, log_throttled};
use super::{GATEWAY, HEARTBEAT_INTERVAL, ServerState};

/// Answers that wait to be written; the next message is not read before there is room.
const QUEUED_RESPONSES_MAX: usize = 1;
/// Longest HTTP method that is recognised, in bytes.
const HTTP_METHOD_BYTES_MAX: usize = 32;

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

/// Splits a client's bytes into items; fails if they begin with an HTTP request. Most likely a web page had a browser send
/// it, with messages in its body.
struct ItemDecoder {
    decoder: Decoder,
    received: BytesMut,
    http: HttpDetector,
    is_http: bool,
}

impl ItemDecoder {
    fn new(message_bytes_max: usize) -> Self {
        Self {
            decoder: Decoder::new(message_bytes_max),
            received: BytesMut::new(),
            http: HttpDetector::default(),
            is_http: false,
        }
    }
}

impl MessageDecoder for ItemDecoder {
    type Message = Item;

    fn feed(&mut self, bytes: &[u8]) {
        self.is_http |= self.http.is_http(bytes);
        self.received.extend_from_slice(bytes);
    }

    fn next_message(&mut self) -> Result<Option<Item>, String> {
        if self.is_http {
            return Err("began with a request of HTTP, which this gateway does not speak".to_owned());
        }
        let mut rest = self.received.as_ref();
        let item = self.decoder.decode_next(&mut rest);
        let used = self.received.len() - rest.len();
        self.received.advance(used);
        Ok(item)
    }

    fn has_begun(&self) -> bool {
        self.decoder.has_partial_message()
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
    if let Err(StreamError::ProtocolError(fault)) = &ended {
        state.access.audit_malformed(&permit.client(), fault).await;
    }
    match ended {
        Ok(()) => tracing::debug!(gateway = GATEWAY, %addr, "Connection closed by the client"),
        Err(error) => log_throttled!(
            permit.throttled_log(), "closed", info, gateway = GATEWAY, %addr, %error, "Connection closed"
        ),
    }
}

/// Reads and answers a client's messages, until it closes its sending side.
pub(super) async fn read_loop(
    state: &ServerState,
    mut from: impl AsyncRead + Unpin,
    permit: &ConnectionPermit,
    answers: mpsc::Sender<Bytes>,
) -> Result<(), StreamError> {
    let (client, addr) = (permit.client(), permit.addr);
    let mut decoder = ItemDecoder::new(state.config.common.message_bytes);
    let mut idle_timeout = Some(FIRST_BYTE_TIMEOUT);
    while let Some(item) = read_message(&mut from, &mut decoder, idle_timeout).await? {
        idle_timeout = None;
        permit.throttle().await;
        let message = match item {
            Item::Heartbeat => continue,
            Item::Message(message) => message,
            Item::Invalid(error) => {
                log_throttled!(
                    permit.throttled_log(), "not a message", info,
                    gateway = GATEWAY, %addr, %error, "Invalid message ignored"
                );
                state.access.audit_malformed(&client, &error.to_string()).await;
                continue;
            }
        };
        if let Some(answer) = state.handle(&client, message).await
            && answers.send(answer.encode().into()).await.is_err()
        {
            break;
        }
    }
    Ok(())
}

/// Writes answers, pushes and heartbeats, until there are no more answers to come.
pub(super) async fn write_loop(
    state: &ServerState,
    mut to: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Bytes>,
    mut pushes: broadcast::Receiver<Bytes>,
) -> Result<(), StreamError> {
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
        write_message(&mut to, &bytes).await?;
    }
}
