//! A handle on a fleet, wherever its links are.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::control::ControlClient;
use super::{EventStream, os_user};
use crate::api::{Event, Failure, Request};

/// Most requests that wait for a backend in this process.
pub const REQUESTS_MAX: usize = 64;
/// Most events of one request that wait to be read.
pub const EVENTS_MAX: usize = 1_024;

/// A request on its way to an engine in this process.
///
/// The engine sends [`Event::End`] or [`Event::Failed`] last, and cancels the request when the stream of its events is
/// dropped (`events.closed()`).
#[derive(Debug)]
pub struct RequestEnvelope {
    /// The request.
    pub request: Request,
    /// Where its events go.
    pub events: mpsc::Sender<Event>,
    /// The user of this machine who asks.
    pub user: String,
}

/// What [`Backend::send`] returns.
pub type BackendFuture<'a> = Pin<Box<dyn Future<Output = EventStream> + Send + 'a>>;

/// Carries out requests.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Takes one request over; returns when it is under way, not when it has ended. Reports errors as
    /// [`Event::Failed`].
    fn send(&self, request: Request, user: String) -> BackendFuture<'_>;
}

/// A handle on a fleet; clones share it.
#[derive(Clone, Debug)]
pub struct Fleet(Arc<dyn Backend>);

impl Fleet {
    /// A fleet behind any backend.
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self(Arc::new(backend))
    }

    /// A fleet whose requests this process answers: they come out of the receiver, which holds [`REQUESTS_MAX`].
    pub fn local() -> (Self, mpsc::Receiver<RequestEnvelope>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self::new(requests), receiver)
    }

    /// The fleet of a running station, reached through its control socket.
    pub fn remote(socket: PathBuf) -> Self {
        Self::new(ControlClient::new(socket))
    }

    /// Sends a request for the user of this process. Errors come as [`Event::Failed`]; dropping the stream cancels the
    /// request.
    pub async fn perform(&self, request: impl Into<Request>) -> EventStream {
        self.perform_as(request, os_user::current().to_owned()).await
    }

    /// Sends a request for another user of this machine. A remote station asks the kernel for the user instead.
    pub async fn perform_as(&self, request: impl Into<Request>, user: String) -> EventStream {
        self.0.send(request.into(), user).await
    }
}

/// An engine in this process, which reads requests from the channel.
impl Backend for mpsc::Sender<RequestEnvelope> {
    fn send(&self, request: Request, user: String) -> BackendFuture<'_> {
        Box::pin(async move {
            let (events, stream) = EventStream::channel();
            let envelope = RequestEnvelope {
                request,
                events,
                user,
            };
            if let Err(mpsc::error::SendError(envelope)) = Self::send(self, envelope).await {
                let shut_down = Event::failed(Failure::ShutDown, "the station is shutting down; ask again");
                // The first event: there is room.
                envelope.events.try_send(shut_down).ok();
            }
            stream
        })
    }
}
