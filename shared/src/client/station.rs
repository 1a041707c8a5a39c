//! The common requests as methods with typed results.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::control::{CONTROL_SOCKET, is_listening};
use super::{EventStream, Fleet, RequestError};
use crate::api::{ActRequest, Delivery, Event, FileToSend, FilesToSend, NodeView, NodesRequest, Request};
use crate::proto::message::Arguments;
use crate::proto::wire::Lane;

/// Time to live of a command, unless [`Station::with_ttl`] sets another.
const TTL_DEFAULT: Duration = Duration::from_secs(30);
/// How long to wait for outcomes, unless [`Station::with_timeout`] sets another.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// A running station. Clones share the handle.
#[derive(Clone, Debug)]
pub struct Station {
    fleet: Fleet,
    ttl: Duration,
    /// Whether the caller chose `ttl`, so that the station may not use a shorter one.
    ttl_given: bool,
    timeout: Duration,
}

/// No station can be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no station answers at {socket:?}; start one with: ground-station serve --state-dir DIR")]
pub struct ConnectError {
    /// The control socket that was tried.
    pub socket: PathBuf,
}

impl Station {
    /// Connects to the station that runs with this state directory.
    ///
    /// # Errors
    /// [`ConnectError`] if none runs.
    pub async fn connect(state_dir: impl AsRef<Path>) -> Result<Self, ConnectError> {
        let socket = state_dir.as_ref().join(CONTROL_SOCKET);
        if is_listening(&socket).await {
            Ok(Self::from(Fleet::remote(socket)))
        } else {
            Err(ConnectError { socket })
        }
    }

    /// Sets how long a command may still start after it was given; 30 s by default.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        Self {
            ttl,
            ttl_given: true,
            ..self
        }
    }

    /// Sets how long to wait for outcomes, and for progress of a transfer; 10 s by default.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The handle that takes any request.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The matching nodes.
    ///
    /// # Errors
    /// [`RequestError`]; with [`Failure::NoMatch`](crate::api::Failure::NoMatch) if no node matches.
    pub async fn nodes(&self, selector: &str) -> Result<Vec<NodeView>, RequestError> {
        let request = NodesRequest::List {
            selector: selector.parse()?,
            timeout_ms: to_ms(self.timeout),
        };
        let mut nodes = Vec::new();
        let mut stream = self.start(request).await;
        while let Some(event) = stream.next().await? {
            if let Event::Node(node) = event {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    /// The matching nodes, and each change from then on, until the stream is dropped.
    ///
    /// # Errors
    /// [`RequestError::Selector`].
    pub async fn watch(&self, selector: &str) -> Result<EventStream, RequestError> {
        let selector = selector.parse()?;
        Ok(self.start(NodesRequest::Watch { selector }).await)
    }

    /// Runs an action on the matching nodes and waits for all outcomes.
    ///
    /// # Errors
    /// [`RequestError`]; with [`Failure::NoMatch`](crate::api::Failure::NoMatch) if no node matches.
    pub async fn call(
        &self,
        selector: &str,
        action: &str,
        arguments: Arguments,
    ) -> Result<Vec<Delivery>, RequestError> {
        let request = ActRequest::Command {
            selector: selector.parse()?,
            action: action.to_owned(),
            arguments,
            lane: Lane::Control,
            ttl_ms: to_ms(self.ttl),
            ttl_given: self.ttl_given,
            timeout_ms: to_ms(self.timeout),
            batch: None,
        };
        self.start(request).await.deliveries().await
    }

    /// Sends a file to the matching nodes. The stream yields [`Event::Progress`] and one [`Event::Delivery`] per node.
    /// `source` is a path on the station's machine, `dest` is ROOT/RELATIVE on the nodes.
    ///
    /// # Errors
    /// [`RequestError::Selector`].
    pub async fn send_file(
        &self,
        source: impl Into<PathBuf>,
        selector: &str,
        dest: &str,
    ) -> Result<EventStream, RequestError> {
        let file = FileToSend {
            source: source.into(),
            dest: dest.to_owned(),
        };
        let request = ActRequest::SendFiles {
            selector: selector.parse()?,
            files: FilesToSend::Same { files: vec![file] },
            ttl_ms: to_ms(self.ttl),
            timeout_ms: to_ms(self.timeout),
        };
        Ok(self.start(request).await)
    }

    /// Gives an emergency stop, sent again until each matching node has confirmed it or the time-out has passed.
    ///
    /// # Errors
    /// [`RequestError`]; with [`Failure::NoMatch`](crate::api::Failure::NoMatch) if no node matches.
    pub async fn stop(&self, selector: &str) -> Result<Vec<Delivery>, RequestError> {
        let request = ActRequest::Stop {
            selector: selector.parse()?,
            timeout_ms: Some(to_ms(self.timeout)),
        };
        self.start(request).await.deliveries().await
    }

    /// Ends an emergency stop at the matching nodes.
    ///
    /// # Errors
    /// [`RequestError`]; with [`Failure::NoMatch`](crate::api::Failure::NoMatch) if no node matches.
    pub async fn release(&self, selector: &str) -> Result<Vec<Delivery>, RequestError> {
        let request = ActRequest::Release {
            selector: selector.parse()?,
            timeout_ms: to_ms(self.timeout),
        };
        self.start(request).await.deliveries().await
    }

    /// Sends any request.
    pub async fn start(&self, request: impl Into<Request>) -> EventStream {
        self.fleet.perform(request).await
    }
}

impl From<Fleet> for Station {
    fn from(fleet: Fleet) -> Self {
        Self {
            fleet,
            ttl: TTL_DEFAULT,
            ttl_given: false,
            timeout: TIMEOUT_DEFAULT,
        }
    }
}

fn to_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
