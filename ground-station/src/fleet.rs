//! The façade: what can be asked of a fleet, and what comes back.
//!
//! The command line, web pages and tests all call [`Fleet::perform`] with a [`Request`] and read [`Event`]s; nothing
//! in here prints. A fleet is *local* when the links live in this process (an engine task owns them), or *remote*
//! when a running `serve` has them: then the request travels over the Unix socket in the state directory, and the
//! events are the same.
//!
//! Invariants:
//! * the last event is [`Event::End`] or [`Event::Failed`]; a stream that stops without one was cut off midway;
//! * every entry of [`Event::Targets`] gets exactly one [`Event::Delivery`] in a stream that ends;
//! * dropping the receiver cancels the request.

use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::{control, os_user};

pub mod engine;
pub mod files;
pub mod gateway_peers;
pub mod guests;
pub mod offline_history;
pub mod stop_broadcast;

pub use swarm_shared::api::*;

/// Most requests that wait for the engine.
pub const REQUESTS_MAX: usize = 64;
/// Most events of one request that wait to be read.
pub const EVENTS_MAX: usize = 1_024;

/// A request on its way to the engine, with where its events go. The engine ends with [`Event::End`] or
/// [`Event::Failed`], and gives up when the receiver is gone (`events.closed()`).
#[derive(Debug)]
pub struct RequestEnvelope {
    /// What is asked.
    pub request: Request,
    /// Where the events go.
    pub events: mpsc::Sender<Event>,
    /// The user of this machine who asks.
    pub user: String,
}

/// A handle on a fleet; clones share it.
#[derive(Clone, Debug)]
pub struct Fleet(Backend);

#[derive(Clone, Debug)]
enum Backend {
    Local(mpsc::Sender<RequestEnvelope>),
    Remote(PathBuf),
}

impl Fleet {
    /// A fleet whose links live in this process, and the calls that its engine has to answer.
    pub fn local() -> (Self, mpsc::Receiver<RequestEnvelope>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self(Backend::Local(requests)), receiver)
    }

    /// A fleet that a running `serve` keeps, reached by its control socket.
    pub fn remote(socket: PathBuf) -> Self {
        Self(Backend::Remote(socket))
    }

    /// Whether a running `serve` has the links.
    pub fn is_remote(&self) -> bool {
        matches!(self.0, Backend::Remote(_))
    }

    /// Asks. Faults come as [`Event::Failed`]; dropping the receiver cancels the request.
    pub async fn perform(&self, request: impl Into<Request>) -> mpsc::Receiver<Event> {
        self.perform_as(request, os_user::current().to_owned()).await
    }

    /// Asks for another user of this machine. A remote fleet sees for itself who asks.
    pub async fn perform_as(&self, request: impl Into<Request>, user: String) -> mpsc::Receiver<Event> {
        let request = request.into();
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        match &self.0 {
            Backend::Local(calls) => {
                let envelope = RequestEnvelope {
                    request,
                    events: events.clone(),
                    user,
                };
                if calls.send(envelope).await.is_err() {
                    let shut_down =
                        Event::failed(Failure::ShutDown, "the station is shutting down; ask again");
                    // The channel is empty and its receiver is in our hands, so this cannot fail.
                    events.send(shut_down).await.ok();
                }
            }
            Backend::Remote(socket) => {
                tokio::spawn(control::client::send_request(socket.clone(), request, events));
            }
        }
        receiver
    }

    /// Passes on what another fleet was asked.
    async fn forward(&self, envelope: RequestEnvelope) {
        match &self.0 {
            Backend::Local(calls) => {
                if let Err(mpsc::error::SendError(call)) = calls.send(envelope).await {
                    let shut_down =
                        Event::failed(Failure::ShutDown, "the station is shutting down; ask again");
                    let _caller_gone = call.events.send(shut_down).await;
                }
            }
            Backend::Remote(socket) => {
                tokio::spawn(control::client::send_request(
                    socket.clone(),
                    envelope.request,
                    envelope.events,
                ));
            }
        }
    }
}
