//! Asking a running station.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{EVENT_LINE_BYTES_MAX, REQUEST_LINE_BYTES_MAX, read_line};
use crate::duration::to_ms;
use crate::fleet::{AdminRequest, Event, Failure, FleetRequest, NodesRequest, Request};
use crate::gateways::framing::WRITE_TIMEOUT;

/// Whether a station answers on this socket now.
pub async fn is_listening(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// How long a running station may take until it says anything, beyond what the request itself may take: one that is
/// stopped (Ctrl-Z) takes connections and says nothing.
const FIRST_EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries one request over the socket; faults become [`Event::Failed`]. Ends early, and so cancels the request,
/// when nobody reads the events any more.
pub async fn send_request(socket: PathBuf, request: Request, events: mpsc::Sender<Event>) {
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
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            let text = format!(
                "the running station was not understood ({error}); restart it, so that both have one version"
            );
            Event::failed(Failure::Failed, text)
        }
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            let text = "the running station does not answer: if it was put to sleep (Ctrl-Z), type `fg` there; else \
                        start it anew";
            Event::failed(Failure::ShutDown, text)
        }
        Err(error) => {
            tracing::debug!(%error, "control socket");
            shut_down()
        }
    };
    // If nobody reads any more, nobody misses it.
    events.send(last).await.ok();
}

/// `None` for what may rightly say nothing for as long as it lasts.
fn first_event_timeout(request: &Request) -> Option<Duration> {
    let own = match request {
        Request::Nodes(NodesRequest::Watch { .. } | NodesRequest::Follow { .. }) => return None,
        // A peer that does not read is given up then.
        Request::Admin(AdminRequest::SendToPeers { .. }) => to_ms(WRITE_TIMEOUT),
        Request::Nodes(NodesRequest::List { timeout_ms, .. })
        | Request::Fleet(FleetRequest::Join { timeout_ms, .. }) => *timeout_ms,
        Request::Nodes(NodesRequest::Targets { .. })
        | Request::Act(_)
        | Request::Fleet(_)
        | Request::History(_)
        | Request::Admin(_) => 0,
    };
    Some(FIRST_EVENT_TIMEOUT.saturating_add(Duration::from_millis(own)))
}

/// Whether the last event came.
pub(super) async fn exchange(
    socket: &Path,
    request: &Request,
    event_timeout: Option<Duration>,
    events: &mpsc::Sender<Event>,
) -> std::io::Result<bool> {
    let invalid = |text: String| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
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
            Some(patience) => timeout(patience, reading).await??,
            None => reading.await?,
        };
        let Some(line) = line else { return Ok(false) };
        let event: Event = serde_json::from_slice(&line).map_err(|error| invalid(error.to_string()))?;
        let last = matches!(event, Event::End | Event::Failed { .. });
        if events.send(event).await.is_err() || last {
            return Ok(true);
        }
    }
}
