//! The control socket of a running station, client side: the Unix socket `control.sock` (mode 0600) in its state
//! directory.
//!
//! One connection carries one request: the client writes a [`Request`] as one line of JSON, the station answers with
//! lines of [`Event`], the last of them `end` or `failed`, and closes. A client that closes early cancels its request.
//! Lines are bounded both ways. Both ends have to have the same version.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Backend, BackendFuture, EventStream, RequestError};
use crate::api::{AdminRequest, Event, Failure, FleetRequest, NodesRequest, PEER_WRITE_TIMEOUT, Request};

/// Name of the socket in the state directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Longest request line, in bytes: the largest arguments, and room for escapes.
pub const REQUEST_LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest event line, in bytes: the largest reply, each byte escaped.
pub const EVENT_LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long a station may take until the first event, beyond what the request itself may take. A station that is
/// suspended (Ctrl-Z) accepts connections and sends nothing.
const FIRST_EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a station accepts connections on this socket.
pub async fn is_listening(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// Sends requests over the control socket, each over a connection of its own.
#[derive(Clone, Debug)]
pub struct ControlClient {
    socket: PathBuf,
}

impl ControlClient {
    /// A client of the station behind this socket. Nothing is opened before a request is sent.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }
}

impl Backend for ControlClient {
    fn send(&self, request: Request, _user: String) -> BackendFuture<'_> {
        Box::pin(async move {
            let opened = Exchange::open(&self.socket, &request, first_event_timeout(&request)).await;
            opened.map_or_else(
                |error| {
                    let (events, stream) = EventStream::channel();
                    // The first event: there is room.
                    events.try_send(failure_event(&error)).ok();
                    stream
                },
                EventStream::socket,
            )
        })
    }
}

/// How a request ends whose connection failed.
fn failure_event(error: &io::Error) -> Event {
    let kind = error.kind();
    if kind == io::ErrorKind::InvalidInput {
        return Event::failed(Failure::Usage, error.to_string());
    }
    if kind == io::ErrorKind::InvalidData {
        let text = format!(
            "the running station was not understood ({error}); restart it, so that both have one version"
        );
        return Event::failed(Failure::Failed, text);
    }
    if kind == io::ErrorKind::TimedOut {
        let text = "the running station does not answer: if it is suspended (Ctrl-Z), type `fg` there; else restart it";
        return Event::failed(Failure::ShutDown, text);
    }
    tracing::debug!(%error, "Control socket failed");
    Event::failed(Failure::ShutDown, RequestError::CutOff.to_string())
}

/// `None` for requests that may stay without an event for as long as they last.
fn first_event_timeout(request: &Request) -> Option<Duration> {
    let own = match request {
        Request::Nodes(NodesRequest::Watch { .. } | NodesRequest::Follow { .. }) => return None,
        Request::Admin(AdminRequest::SendToPeers { .. }) => PEER_WRITE_TIMEOUT,
        Request::Nodes(NodesRequest::List { timeout_ms, .. })
        | Request::Fleet(FleetRequest::Join { timeout_ms, .. }) => Duration::from_millis(*timeout_ms),
        Request::Nodes(NodesRequest::Targets { .. })
        | Request::Act(_)
        | Request::Fleet(_)
        | Request::History(_)
        | Request::Admin(_) => Duration::ZERO,
    };
    Some(FIRST_EVENT_TIMEOUT.saturating_add(own))
}

/// A request that a station has received, and whose answer is not complete. Dropping it closes the connection, and so
/// cancels the request.
#[derive(Debug)]
pub(super) struct Exchange {
    stream: BufReader<UnixStream>,
    /// Time-out of the next event.
    next_timeout: Option<Duration>,
}

impl Exchange {
    /// Connects and writes the request.
    async fn open(socket: &Path, request: &Request, first_timeout: Option<Duration>) -> io::Result<Self> {
        let mut line = serde_json::to_vec(request)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        if line.len() > REQUEST_LINE_BYTES_MAX {
            let text =
                format!("the arguments are longer than {REQUEST_LINE_BYTES_MAX} bytes; send a file instead");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        line.push(b'\n');
        let write = async {
            let mut stream = UnixStream::connect(socket).await?;
            stream.write_all(&line).await?;
            Ok::<_, io::Error>(stream)
        };
        Ok(Self {
            stream: BufReader::new(timeout(FIRST_EVENT_TIMEOUT, write).await??),
            next_timeout: first_timeout,
        })
    }

    /// The next event, and the rest of the exchange unless it is the last one. Errors become [`Event::Failed`].
    pub(super) async fn next(mut self) -> (Event, Option<Self>) {
        match self.read().await {
            Ok(event) => {
                let rest = (!event.is_last()).then_some(self);
                (event, rest)
            }
            Err(error) => (failure_event(&error), None),
        }
    }

    async fn read(&mut self) -> io::Result<Event> {
        let limit = self.next_timeout.take();
        let reading = read_line(&mut self.stream, EVENT_LINE_BYTES_MAX);
        let line = match limit {
            Some(limit) => timeout(limit, reading).await??,
            None => reading.await?,
        };
        let line = line.ok_or(io::ErrorKind::UnexpectedEof)?;
        serde_json::from_slice(&line)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    }
}

/// Reads one line without its end; `None` at the end of the stream.
///
/// # Errors
/// `UnexpectedEof` if the last line has no end, `InvalidData` if a line is longer than `bytes_max`.
pub async fn read_line(
    from: &mut (impl AsyncBufRead + Unpin),
    bytes_max: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let part = from.fill_buf().await?;
        if part.is_empty() {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the last line was cut off");
            return if line.is_empty() { Ok(None) } else { Err(cut) };
        }
        let end = part.iter().position(|b| *b == b'\n');
        let taken = end.unwrap_or(part.len());
        if line.len() + taken > bytes_max {
            let long = format!("a line is longer than {bytes_max} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, long));
        }
        line.extend_from_slice(&part[..taken]);
        from.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn suspended_station_times_out_the_request() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join(CONTROL_SOCKET);
        let _suspended = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        let limit = Some(Duration::from_millis(100));
        let request = FleetRequest::Members.into();
        let exchange = Exchange::open(&socket, &request, limit).await;
        let mut exchange = exchange.expect("the kernel accepts it");
        let outcome = timeout(Duration::from_secs(5), exchange.read()).await;
        let error = outcome.expect("it ends").expect_err("no answer");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn lines_are_terminated_and_bounded() {
        let mut from: &[u8] = b"one\n\nthree";
        let line = read_line(&mut from, 5).await.expect("a line");
        assert_eq!(line.as_deref(), Some(&b"one"[..]));
        let line = read_line(&mut from, 5).await.expect("a line");
        assert_eq!(line.as_deref(), Some(&b""[..]));
        let error = read_line(&mut from, 5).await.expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut from: &[u8] = b"123456\n";
        let error = read_line(&mut from, 5).await.expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut from: &[u8] = b"";
        assert_eq!(read_line(&mut from, 5).await.expect("the end"), None);
    }
}
