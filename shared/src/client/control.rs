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
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Backend, BackendFuture, RequestEnvelope};
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

/// Sends requests over the control socket, each over a connection and a task of its own.
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
    fn send(&self, envelope: RequestEnvelope) -> BackendFuture<'_> {
        let RequestEnvelope { request, events, .. } = envelope;
        tokio::spawn(send_request(self.socket.clone(), request, events));
        Box::pin(std::future::ready(()))
    }
}

/// Carries one request; errors become [`Event::Failed`]. Ends when the receiver of the events is dropped, which
/// closes the connection and so cancels the request.
async fn send_request(socket: PathBuf, request: Request, events: mpsc::Sender<Event>) {
    let shut_down = || {
        Event::failed(
            Failure::ShutDown,
            "the running station stopped before it had answered; `ground-station history` says what it had begun: look there before you ask again",
        )
    };
    let event_timeout = first_event_timeout(&request);
    let outcome = tokio::select! {
        biased;
        () = events.closed() => return,
        outcome = exchange(&socket, &request, event_timeout, &events) => outcome,
    };
    let last = match outcome {
        Ok(true) => return,
        Ok(false) => shut_down(),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let text = format!(
                "the running station was not understood ({error}); restart it, so that both have one version"
            );
            Event::failed(Failure::Failed, text)
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let text = "the running station does not answer: if it was put to sleep (Ctrl-Z), type `fg` there; else \
                        start it anew";
            Event::failed(Failure::ShutDown, text)
        }
        Err(error) => {
            tracing::debug!(%error, "Control socket failed");
            shut_down()
        }
    };
    // If the receiver is gone, the caller has cancelled.
    events.send(last).await.ok();
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

/// Writes the request and passes on the events; returns whether the last event came.
async fn exchange(
    socket: &Path,
    request: &Request,
    event_timeout: Option<Duration>,
    events: &mpsc::Sender<Event>,
) -> io::Result<bool> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut line = serde_json::to_vec(request).map_err(|error| invalid(error.to_string()))?;
    if line.len() > REQUEST_LINE_BYTES_MAX {
        let text =
            format!("the arguments are longer than {REQUEST_LINE_BYTES_MAX} bytes; send a file instead");
        let failed = Event::failed(Failure::Usage, text);
        return Ok(events.send(failed).await.is_ok());
    }
    line.push(b'\n');
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&line).await?;
    let mut stream = BufReader::new(stream);
    let mut next_timeout = event_timeout;
    loop {
        let reading = read_line(&mut stream, EVENT_LINE_BYTES_MAX);
        let line = match next_timeout.take() {
            Some(limit) => timeout(limit, reading).await??,
            None => reading.await?,
        };
        let Some(line) = line else { return Ok(false) };
        let event: Event = serde_json::from_slice(&line).map_err(|error| invalid(error.to_string()))?;
        let last = event.is_last();
        if events.send(event).await.is_err() || last {
            return Ok(true);
        }
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
        let (events, _unread) = mpsc::channel(1);
        let limit = Some(Duration::from_millis(100));
        let request = FleetRequest::Members.into();
        let exchange = exchange(&socket, &request, limit, &events);
        let outcome = timeout(Duration::from_secs(5), exchange).await;
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
