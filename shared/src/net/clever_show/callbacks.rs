//! Callbacks for the messages of a peer.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{ConnectionManager, Event, ReceivedEvent, ResponseBody, files};
use crate::net::roots::Roots;
use crate::proto::foreign::clever_show::{FILE_TRANSFER, memory_bytes};
use crate::proto::message::Arguments;

/// Callbacks that run at once; at the limit nothing is read from the peer.
pub const CALLBACKS_MAX: usize = 64;
/// Memory of the arguments of running callbacks, in bytes; at the limit nothing is read from the peer.
pub const CALLBACKS_BYTES_MAX: u32 = 16 * 1024 * 1024;

type CallbackFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type MessageCallback = Arc<dyn Fn(ConnectionManager, Arguments) -> CallbackFuture<()> + Send + Sync>;
type RequestCallback =
    Arc<dyn Fn(ConnectionManager, Arguments) -> CallbackFuture<Result<Value, String>> + Send + Sync>;

/// Callbacks by action and by requested value. They start in the order of the messages, and a slow one does not delay
/// the next. A pushed file is stored, and a requested file read, before the next message is handled, as in the real
/// program. Cheap to clone.
#[derive(Clone, Default)]
pub struct Callbacks {
    messages: BTreeMap<String, MessageCallback>,
    requests: BTreeMap<String, RequestCallback>,
    roots: Option<Roots>,
}

impl std::fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callbacks")
            .field("messages", &self.messages.keys())
            .field("requests", &self.requests.keys())
            .field("roots", &self.roots)
            .finish()
    }
}

impl Callbacks {
    /// No callbacks: every message is ignored.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs this for each message with the action.
    pub fn message_callback<F, W>(&mut self, action_string: &str, callback: F) -> &mut Self
    where
        F: Fn(ConnectionManager, Arguments) -> W + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let callback: MessageCallback = Arc::new(move |from, arguments| Box::pin(callback(from, arguments)));
        self.messages.insert(action_string.to_owned(), callback);
        self
    }

    /// Answers requests for the value with the result of this. An error is logged and not answered, as in the real
    /// program: the protocol has no errors.
    pub fn request_callback<F, W, E>(&mut self, string_command: &str, callback: F) -> &mut Self
    where
        F: Fn(ConnectionManager, Arguments) -> W + Send + Sync + 'static,
        W: Future<Output = Result<Value, E>> + Send + 'static,
        E: Display,
    {
        let callback: RequestCallback = Arc::new(move |from, arguments| {
            let answer = callback(from, arguments);
            Box::pin(async move { answer.await.map_err(|error| error.to_string()) })
        });
        self.requests.insert(string_command.to_owned(), callback);
        self
    }

    /// Stores pushed files and serves requested files below these roots. Without it all files are refused; the real
    /// program has no such limit.
    pub fn files(&mut self, roots: Roots) -> &mut Self {
        self.roots = Some(roots);
        self
    }

    /// Runs the callbacks for a peer, over all its connections. It does not return; dropping the future drops the
    /// running callbacks.
    pub async fn serve(self, connection: &ConnectionManager, mut incoming: mpsc::Receiver<ReceivedEvent>) {
        let mut running = JoinSet::new();
        let memory = Arc::new(Semaphore::new(CALLBACKS_BYTES_MAX as usize));
        while let Some(ReceivedEvent {
            event,
            earliest_arrival,
        }) = incoming.recv().await
        {
            while running.try_join_next().is_some() {}
            if running.len() >= CALLBACKS_MAX {
                running.join_next().await;
            }
            match event {
                Event::Action { action, arguments } => match self.messages.get(&action) {
                    Some(callback) => {
                        let reserved = reserve_memory(&memory, &arguments).await;
                        let work = callback(connection.clone(), arguments);
                        running.spawn(async move {
                            work.await;
                            drop(reserved);
                        });
                    }
                    None => tracing::debug!(action, "Action ignored: no callback"),
                },
                Event::Request { value, id, arguments } => {
                    if let Some(callback) = self.requests.get(&value) {
                        let reserved = reserve_memory(&memory, &arguments).await;
                        let answer = callback(connection.clone(), arguments);
                        let connection = connection.clone();
                        running.spawn(async move {
                            let answer = answer.await.map(ResponseBody::Value);
                            respond(&connection, (&value, &id), answer, earliest_arrival);
                            drop(reserved);
                        });
                    } else if let Some(roots) = self.roots.clone().filter(|_| value == FILE_TRANSFER) {
                        let read =
                            read_requested_file(roots, &arguments, connection.options().content_bytes_max);
                        respond(connection, (&value, &id), read.await, earliest_arrival);
                    } else {
                        tracing::debug!(value, "Request ignored: no callback");
                    }
                }
                Event::File { filepath, bytes } => match self.roots.clone() {
                    Some(roots) => save_pushed_file(roots, filepath, bytes).await,
                    None => tracing::debug!(filepath, "File ignored: no roots configured"),
                },
                Event::InvalidMessage(error) => tracing::warn!(%error, "Message is invalid"),
                Event::TooLong { bytes, max } => {
                    tracing::warn!(bytes, max, "Message skipped: too long");
                }
                // A response after its time-out.
                Event::UnexpectedResponse { value, .. } => {
                    tracing::debug!(value, "Response matches no open request");
                }
                Event::Response { .. } | Event::RequestFailed { .. } => {}
            }
        }
    }
}

/// Reserves memory for the arguments of one callback; a request above the limit reserves all of it.
async fn reserve_memory(memory: &Arc<Semaphore>, arguments: &Arguments) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(memory_bytes(arguments)).unwrap_or(u32::MAX);
    let reserved = memory.clone().acquire_many_owned(bytes.min(CALLBACKS_BYTES_MAX));
    // The semaphore is never closed.
    reserved.await.ok()
}

fn respond(
    connection: &ConnectionManager,
    (value, id): (&str, &str),
    answer: Result<ResponseBody, String>,
    request_arrival: Instant,
) {
    let responded = answer.and_then(|answer| {
        let responded = connection.respond_to(value, id, answer, request_arrival);
        responded.map_err(|error| error.to_string())
    });
    if let Err(error) = responded {
        tracing::warn!(value, error, "Request failed and stays unanswered");
    }
}

async fn save_pushed_file(roots: Roots, path: String, bytes: Bytes) {
    match tokio::task::spawn_blocking(move || files::save(&roots, &path, &bytes)).await {
        Ok(Ok(written)) => tracing::debug!(path = written.path, size = written.size, "File stored"),
        Ok(Err(error)) => tracing::warn!(%error, "File not stored"),
        Err(error) => tracing::warn!(%error, "File not stored"),
    }
}

async fn read_requested_file(
    roots: Roots,
    arguments: &Arguments,
    bytes_max: usize,
) -> Result<ResponseBody, String> {
    let path = arguments.kwargs.get("filepath").and_then(Value::as_str);
    let path = path.ok_or("the request for a file has no filepath")?.to_owned();
    let read = tokio::task::spawn_blocking(move || files::read(&roots, &path, bytes_max)).await;
    let read = read.map_err(|panicked| panicked.to_string())?;
    read.map(ResponseBody::File).map_err(|error| error.to_string())
}
