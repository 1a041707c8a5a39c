//! Asking a running station.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::{EVENT_LINE_BYTES_MAX, REQUEST_LINE_BYTES_MAX, read_line};
use crate::fleet::{Event, Failure, Request};

/// Whether a station answers on this socket now.
pub async fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// Carries one request over the socket; faults become [`Event::Failed`]. Ends early, and so cancels the request,
/// when nobody reads the events any more.
pub async fn ask(socket: PathBuf, request: Request, events: mpsc::Sender<Event>) {
    let stopped = || {
        Event::failed(
            Failure::Stopped,
            "the running station stopped before it had answered; ask again",
        )
    };
    let outcome = tokio::select! {
        biased;
        () = events.closed() => return,
        outcome = exchange(&socket, &request, &events) => outcome,
    };
    let last = match outcome {
        Ok(true) => return,
        Ok(false) => stopped(),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            let text = format!(
                "the running station was not understood ({error}); restart it, so that both have one version"
            );
            Event::failed(Failure::Failed, text)
        }
        Err(error) => {
            tracing::debug!(%error, "control socket");
            stopped()
        }
    };
    // If nobody reads any more, nobody misses it.
    events.send(last).await.ok();
}

/// Whether the last event came.
async fn exchange(socket: &Path, request: &Request, events: &mpsc::Sender<Event>) -> std::io::Result<bool> {
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
    while let Some(line) = read_line(&mut stream, EVENT_LINE_BYTES_MAX).await? {
        let event: Event = serde_json::from_slice(&line).map_err(|error| invalid(error.to_string()))?;
        let last = matches!(event, Event::End | Event::Failed { .. });
        if events.send(event).await.is_err() || last {
            return Ok(true);
        }
    }
    Ok(false)
}
