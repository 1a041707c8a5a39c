//! One peer, over successive connections.
//!
//! [`ConnectionManager::connect`] drives one connection until it ends, in the task that calls it; there are no other
//! tasks. The [`PeerState`] outlives it. All other methods may be called from any thread, connected or not.
//!
//! | the connection ends | [`CloseReason`] |
//! |---|---|
//! | the peer closes it between two messages | `ClosedByPeer` |
//! | it breaks, or ends within a message | `Io` |
//! | the bytes are not a frame, or one longer than [`SKIPPED_BYTES_MAX`] | `InvalidFrame` |
//! | a message is incomplete after [`Options::message_timeout`], or nothing can be written for [`WRITE_TIMEOUT`] | `TimedOut` |
//! | [`ConnectionManager::close`], another connection replaces it, or its events have no receiver | `ClosedLocally` |
//!
//! A message that is longer than allowed is skipped and reported as an event. Closing the connection instead would
//! not help: the sender may send it again over each new one.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use super::NotifierSock;
use super::stream::{self, TimedReader};
use crate::net::state_file::{self, MODE_PLAIN, StateFileError};
use crate::net::sync::Mutex;
use crate::net::{clock, random};
use crate::proto::foreign::clever_show::{
    Event, PeerState, ReconnectPolicy, RequestError, ResponseBody, SendError,
};
use crate::proto::message::Arguments;
use crate::proto::rate::TokenBucket;
use crate::proto::wire::{
    CONTENT_BYTES_MAX, ContentType, Frame, FrameLimits, FrameReader, HEADER_BYTES_MAX, WireError,
};

/// Time from the first byte of a message to its last, by default.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the peer may accept no bytes while a frame waits to be written.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest content that is skipped if it is longer than allowed, in bytes.
pub const SKIPPED_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Bytes of content that are copied behind the header into one write.
const WRITE_BYTES: usize = 64 * 1024;
/// Smallest and largest buffer for one read, in bytes.
const READ_BYTES: (usize, usize) = (4 * 1024, 256 * 1024);
/// Bytes of the header's length field.
const LENGTH_BYTES: usize = 2;
/// Failed sends that are logged at once; later one each second.
const WARNINGS_BURST: u32 = 10;
/// Events that wait for the caller; at the limit nothing is read from the peer.
const EVENTS_MAX: usize = 64;
/// Longest content of which [`EVENTS_MAX`] may wait, in bytes. Before a longer one is read all events must be taken,
/// so that only one such content waits.
const SMALL_CONTENT_BYTES: usize = 1024;

/// Options of a [`ConnectionManager`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What happens to messages when a connection is lost.
    pub reconnect: ReconnectPolicy,
    /// Longest content of a message, files included, in bytes.
    pub content_bytes_max: usize,
    /// Messages of the peer that are read in a second; more wait.
    pub rate: u32,
    /// Time from the first byte of a message to its last.
    pub message_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reconnect: ReconnectPolicy::default(),
            content_bytes_max: 16 * 1024 * 1024,
            rate: 1_000,
            message_timeout: MESSAGE_TIMEOUT,
        }
    }
}

/// An event of the peer, and how old it may be.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedEvent {
    /// What the peer sent, or how a request ended.
    pub event: Event,
    /// The earliest time at which it reached this machine; if this program reads without interruption, at most a
    /// quarter of a second too early. How long it was on the network is unknown: the protocol transmits no times.
    pub earliest_arrival: Instant,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// The peer closed it between two messages.
    #[error("the peer closed the connection")]
    ClosedByPeer,
    /// This side closed it.
    #[error("this side closed the connection")]
    ClosedLocally,
    /// It broke, with this error.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not a frame.
    #[error("the bytes are not a message: {0}")]
    InvalidFrame(#[from] WireError),
    /// A message did not arrive or could not be written in time.
    #[error("the peer stalled within a message")]
    TimedOut,
}

/// Why a file was not transferred.
#[derive(Debug, thiserror::Error)]
pub enum FileTransferError {
    /// The file cannot be read or written here.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is longer than a message may be.
    #[error("{path} is longer than the {max} bytes allowed", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        max: usize,
    },
    /// The peer did not send it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// One peer, over successive connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionManager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    state: Mutex<State>,
    wake: NotifierSock,
    events: mpsc::Sender<ReceivedEvent>,
    /// Held while a connection is driven.
    driver_lock: tokio::sync::Mutex<()>,
    /// Changes when the present connection has to end.
    close_count: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    peer: PeerState,
    pending: BTreeMap<u64, oneshot::Sender<Result<ResponseBody, RequestError>>>,
    addr: Option<SocketAddr>,
    /// When the present connection was made; all that arrives over it is later.
    connected_since: Option<Instant>,
}

impl ConnectionManager {
    /// A peer without a connection, and the receiver of its events. If too many events wait, nothing more is read
    /// from the peer; [`Callbacks::serve`](super::Callbacks::serve) takes them.
    pub fn new(options: Options) -> (Self, mpsc::Receiver<ReceivedEvent>) {
        let (events, incoming) = mpsc::channel(EVENTS_MAX);
        let first_id = u16::try_from(random::jitter() % 10_000).unwrap_or_default();
        let state = State {
            peer: PeerState::new(options.reconnect, first_id),
            pending: BTreeMap::new(),
            addr: None,
            connected_since: None,
        };
        let inner = Inner {
            options,
            state: Mutex::new(state),
            wake: NotifierSock::default(),
            events,
            driver_lock: tokio::sync::Mutex::new(()),
            close_count: watch::Sender::new(0),
        };
        let inner = Arc::new(inner);
        (Self { inner }, incoming)
    }

    /// The options that it was made with.
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// The peer's address; `None` without a connection.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.inner.lock().addr
    }

    /// Messages that wait to be sent.
    pub fn queued_messages(&self) -> usize {
        self.inner.lock().peer.queued_messages()
    }

    /// Drives a connection with the peer until it ends; an earlier connection ends first. Queued messages are sent,
    /// and events go to the receiver. Dropping the future closes the connection.
    pub async fn connect(&self, mut stream: TcpStream) -> CloseReason {
        let inner = &*self.inner;
        let mut mine = 0;
        inner.close_count.send_modify(|count| {
            *count += 1;
            mine = *count;
        });
        // Each close raises the count, also while this connection waits for the one before it to end.
        let mut closing = inner.close_count.subscribe();
        let mut closed = std::pin::pin!(async {
            // Cannot fail, because `inner` holds the sender.
            closing.wait_for(|count| *count != mine).await.ok();
        });
        let _driver = tokio::select! {
            biased;
            () = &mut closed => return CloseReason::ClosedLocally,
            driver = inner.driver_lock.lock() => driver,
        };
        {
            let mut state = inner.lock();
            state.addr = stream.peer_addr().ok();
            state.connected_since = Some(clock::now());
            state.peer.on_connected();
        }
        let _guard = DisconnectGuard(inner);
        let (reading, writing) = stream.split();
        let Err(reason) = tokio::select! {
            biased;
            () = closed => Err(CloseReason::ClosedLocally),
            ended = inner.read_loop(reading) => ended,
            ended = inner.write_loop(writing) => ended,
        };
        reason
    }

    /// Closes the connection, if there is one.
    pub fn close(&self) {
        self.inner.close_count.send_modify(|count| *count += 1);
    }

    /// Sends an action to the peer. There is no response: whether it arrives is unknown.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_message(&self, action: &str, arguments: Arguments) -> Result<(), SendError> {
        self.inner.send(|peer| peer.send_message(action, arguments))
    }

    /// Sends an action to the peer, and drops an earlier one of the same name that still waits: for readings.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_latest(&self, action: &str, arguments: Arguments) -> Result<(), SendError> {
        self.inner.send(|peer| peer.send_latest(action, arguments))
    }

    /// Answers a [request](Event::Request) over the present connection.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn respond(&self, value: &str, id: &str, answer: ResponseBody) -> Result<(), SendError> {
        self.inner.send(|peer| peer.respond(value, id, answer))
    }

    /// Answers a request that [arrived](ReceivedEvent) at `asked`, unless the connection has changed since: another
    /// peer may use the same ids for other requests.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn respond_to(
        &self,
        value: &str,
        id: &str,
        answer: ResponseBody,
        asked: Instant,
    ) -> Result<(), SendError> {
        let mut state = self.inner.lock();
        if state.connected_since.is_none_or(|since| asked < since) {
            return Err(SendError::OtherConnection);
        }
        state.peer.respond(value, id, answer)?;
        self.inner.wake.notify();
        Ok(())
    }

    /// Requests a value from the peer.
    ///
    /// # Errors
    /// [`RequestError`]. The real program answers neither unknown nor failing requests, so the time-out ends these.
    pub async fn get_response(
        &self,
        requested_value: &str,
        arguments: Arguments,
        within: Duration,
    ) -> Result<Value, RequestError> {
        let request = |peer: &mut PeerState| peer.get_response(requested_value, arguments);
        match self.send_request(request, within).await? {
            ResponseBody::Value(value) => Ok(value),
            ResponseBody::File(_) => Err(RequestError::WrongKind),
        }
    }

    /// Requests a file from the peer, and writes it to `filepath` as a whole or not at all.
    ///
    /// # Errors
    /// See [`FileTransferError`].
    pub async fn get_file(
        &self,
        client_filepath: &str,
        filepath: Option<&Path>,
        within: Duration,
    ) -> Result<Bytes, FileTransferError> {
        let answer = self
            .send_request(|peer| peer.get_file(client_filepath), within)
            .await?;
        let ResponseBody::File(bytes) = answer else {
            return Err(RequestError::WrongKind.into());
        };
        if let Some(path) = filepath {
            let (content, to) = (bytes.clone(), path.to_owned());
            let write = move || state_file::write_atomic(&to, &content, MODE_PLAIN);
            let written = match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(StateFileError::Io { fault, .. })) => Err(fault),
                Ok(Err(other)) => Err(io::Error::other(other)),
                Err(panicked) => Err(io::Error::other(panicked)),
            };
            let path = path.to_owned();
            written.map_err(|source| FileTransferError::Io { path, source })?;
        }
        Ok(bytes)
    }

    /// Pushes a file of this machine to the peer. There is no response.
    ///
    /// # Errors
    /// See [`FileTransferError`].
    pub async fn send_file(&self, filepath: &Path, dest_filepath: &str) -> Result<(), FileTransferError> {
        let (path, max) = (filepath.to_owned(), self.inner.options.content_bytes_max);
        let read = tokio::task::spawn_blocking(move || read_file(&path, max)).await;
        let path = filepath.to_owned();
        match read.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
            Ok(Some(bytes)) => Ok(self.send_bytes(bytes, dest_filepath)?),
            Ok(None) => Err(FileTransferError::TooLong { path, max }),
            Err(source) => Err(FileTransferError::Io { path, source }),
        }
    }

    /// Pushes bytes to the peer as a file.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send_bytes(&self, bytes: Bytes, dest_filepath: &str) -> Result<(), SendError> {
        self.inner.send(|peer| peer.send_file(dest_filepath, bytes))
    }

    async fn send_request(
        &self,
        request: impl FnOnce(&mut PeerState) -> Result<u64, SendError>,
        within: Duration,
    ) -> Result<ResponseBody, RequestError> {
        let (reply, reply_receiver) = oneshot::channel();
        let number = {
            let mut state = self.inner.lock();
            let number = request(&mut state.peer)?;
            state.pending.insert(number, reply);
            number
        };
        let _guard = AbandonGuard {
            inner: &self.inner,
            number,
        };
        self.inner.wake.notify();
        match tokio::time::timeout(within, reply_receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_dropped)) => Err(RequestError::Closed),
            Err(_elapsed) => Err(RequestError::TimedOut),
        }
    }
}

/// Abandons a request when its caller stops waiting.
struct AbandonGuard<'a> {
    inner: &'a Inner,
    number: u64,
}

impl Drop for AbandonGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        state.pending.remove(&self.number);
        state.peer.abandon(self.number);
    }
}

/// Resets the state when a connection ends for any reason.
struct DisconnectGuard<'a>(&'a Inner);

impl Drop for DisconnectGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        (state.addr, state.connected_since) = (None, None);
        state.peer.on_disconnected();
        // Losing a connection creates no other events.
        drop(state.resolve_responses());
    }
}

impl State {
    /// Completes the callers of ended requests; returns the other events.
    fn resolve_responses(&mut self) -> VecDeque<Event> {
        let mut others = VecDeque::new();
        while let Some(event) = self.peer.poll_event() {
            let (number, result) = match event {
                Event::Response { number, body } => (number, Ok(body)),
                Event::RequestFailed { number, error } => (number, Err(error)),
                Event::Action { .. }
                | Event::File { .. }
                | Event::Request { .. }
                | Event::InvalidMessage(_)
                | Event::TooLong { .. }
                | Event::UnexpectedResponse { .. } => {
                    others.push_back(event);
                    continue;
                }
            };
            if let Some(reply) = self.pending.remove(&number) {
                // Fails if the caller has stopped waiting.
                reply.send(result).ok();
            }
        }
        others
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn send(&self, send: impl FnOnce(&mut PeerState) -> Result<(), SendError>) -> Result<(), SendError> {
        send(&mut self.lock().peer)?;
        self.wake.notify();
        Ok(())
    }

    /// Reads until the connection ends. Events carry their earliest arrival: see [`TimedReader`].
    async fn read_loop(&self, from: ReadHalf<'_>) -> Result<Infallible, CloseReason> {
        let limits = FrameLimits {
            header: HEADER_BYTES_MAX,
            content: self.options.content_bytes_max,
        };
        let timeout = self.options.message_timeout;
        let mut from = TimedReader::new(from);
        let mut reader = FrameReader::new(limits);
        let mut pace = TokenBucket::per_second(self.options.rate);
        let (mut buffer, mut begun) = (BytesMut::new(), None);
        loop {
            match reader.next_frame(&mut buffer) {
                Err(WireError::ContentTooLong { bytes, max }) if bytes <= SKIPPED_BYTES_MAX => {
                    // The header is still at the front of the buffer.
                    let header = buffer
                        .first_chunk()
                        .map_or(0, |length| u16::from_be_bytes(*length));
                    buffer.advance(LENGTH_BYTES + usize::from(header));
                    let earliest_arrival = from.earliest_arrival();
                    from.skip(&mut buffer, bytes, clock::now() + timeout).await?;
                    (begun, reader) = (None, FrameReader::new(limits));
                    self.forward(Event::TooLong { bytes, max }, earliest_arrival, 1)
                        .await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
                Ok(Some(frame)) => {
                    begun = None;
                    while let Err(wait) = pace.try_take(clock::now()) {
                        tokio::time::sleep(wait).await;
                    }
                    self.on_frame(&frame, from.earliest_arrival()).await?;
                    continue;
                }
                Ok(None) => {}
            }
            let is_within_message = !buffer.is_empty() || !reader.is_between_frames();
            if is_within_message {
                begun.get_or_insert_with(clock::now);
            } else {
                // An idle connection keeps no buffer.
                buffer = BytesMut::new();
            }
            buffer.reserve(reader.missing_bytes().clamp(READ_BYTES.0, READ_BYTES.1));
            let until = begun.map(|begun: Instant| begun + timeout);
            if from.read(&mut buffer, until).await? == 0 {
                return Err(if is_within_message {
                    io::Error::from(io::ErrorKind::UnexpectedEof).into()
                } else {
                    CloseReason::ClosedByPeer
                });
            }
        }
    }

    async fn on_frame(&self, frame: &Frame, earliest_arrival: Instant) -> Result<(), CloseReason> {
        let json = frame.header.content_type == ContentType::Json;
        let events = if json && frame.content.len() > CONTENT_BYTES_MAX {
            // Only files may be as long as the options allow: JSON takes many times its length in memory.
            let (bytes, max) = (frame.header.content_length, CONTENT_BYTES_MAX);
            VecDeque::from([Event::TooLong { bytes, max }])
        } else {
            let mut state = self.lock();
            state.peer.handle_frame(frame);
            state.resolve_responses()
        };
        let slots = match frame.content.len() {
            0..=SMALL_CONTENT_BYTES => 1,
            _ => EVENTS_MAX,
        };
        for event in events {
            self.forward(event, earliest_arrival, slots).await?;
        }
        Ok(())
    }

    /// Sends an event to the receiver once this many can be queued, its own place included.
    async fn forward(
        &self,
        event: Event,
        earliest_arrival: Instant,
        slots: usize,
    ) -> Result<(), CloseReason> {
        let reserved = self.events.reserve_many(slots).await;
        let mut reserved = reserved.map_err(|_no_receiver| CloseReason::ClosedLocally)?;
        if let Some(slot) = reserved.next() {
            slot.send(ReceivedEvent {
                event,
                earliest_arrival,
            });
        }
        Ok(())
    }

    async fn write_loop(&self, mut to: WriteHalf<'_>) -> Result<Infallible, CloseReason> {
        let mut warnings = TokenBucket::with_burst(1, WARNINGS_BURST);
        loop {
            let frame = self.lock().peer.poll_transmit();
            let Some(frame) = frame else {
                self.wake.notified().await;
                continue;
            };
            let mut head = BytesMut::new();
            if let Err(error) = frame.encode_header_to(&mut head) {
                if warnings.try_take(clock::now()).is_ok() {
                    tracing::warn!(%error, "Message not sent");
                }
                self.lock().peer.on_written();
                continue;
            }
            // Short content goes into one write with the header.
            let with = frame.content.len().min(WRITE_BYTES);
            head.extend_from_slice(&frame.content[..with]);
            stream::write(&mut to, &head).await?;
            stream::write(&mut to, &frame.content[with..]).await?;
            self.lock().peer.on_written();
        }
    }
}

fn read_file(path: &Path, max: usize) -> io::Result<Option<Bytes>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let most = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= max).then(|| bytes.into()))
}
