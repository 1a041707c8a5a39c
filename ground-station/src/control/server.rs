//! The server of the control socket.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use swarm_shared::api::{Event, Failure, Request};
use swarm_shared::client::control::{
    CONTROL_SOCKET, EVENT_LINE_BYTES_MAX, REQUEST_LINE_BYTES_MAX, read_line,
};
use swarm_shared::client::{Fleet, os_user};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::store::lock::StateLock;

/// Most connections at once; further ones wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send its request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long running requests may take to end on shutdown.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Longest path of a Unix socket, in bytes (unix(7): `sun_path` less its closing zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The state directory's path is too long for a Unix socket.
    #[error(
        "{0:?} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a Unix socket's path may have; use a shorter --state-dir"
    )]
    PathTooLong(PathBuf),
    /// The system reports an error.
    #[error("cannot open {path:?}: {error}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// The bound socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlServer {
    /// Binds `control.sock` in the directory that `lock` owns. A leftover of a process that died is replaced.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn bind(lock: &StateLock) -> Result<Self, ServerError> {
        let path = lock.state_dir().join(CONTROL_SOCKET);
        let fresh = lock.state_dir().join(format!("{CONTROL_SOCKET}.new"));
        if fresh.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX {
            return Err(ServerError::PathTooLong(path));
        }
        let listener = bind_private(&fresh, &path).map_err(|error| ServerError::Io {
            path: path.clone(),
            error,
        })?;
        Ok(Self { listener, path })
    }

    /// Answers until `shutdown`; then the socket's file is removed, and running requests are cut off.
    pub async fn serve(self, fleet: Fleet, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let connection_slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let next = async {
                let slot = Arc::clone(&connection_slots).acquire_owned().await;
                (slot, self.listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                next = next => next,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (fleet, shutdown) = (fleet.clone(), shutdown.clone());
                    tasks.spawn(async move {
                        shutdown
                            .run_until_cancelled(handle_connection(stream, fleet))
                            .await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Most likely out of file descriptors until other connections close.
                    tracing::warn!(%error, "Control socket did not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        tasks.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), grace = ?SHUTDOWN_GRACE, "Control requests outlived shutdown");
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // A leftover is harmless: the next owner of the state directory replaces it.
        std::fs::remove_file(&self.path).ok();
    }
}

/// The socket gets its mode before its name, so that no other user can ever connect to that name.
fn bind_private(fresh: &Path, path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(fresh)?;
    std::fs::set_permissions(fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(fresh, path)?;
    Ok(listener)
}

async fn handle_connection(mut stream: UnixStream, fleet: Fleet) {
    // The kernel names the peer's user (SO_PEERCRED).
    let user = stream.peer_cred().map_or_else(
        |_unknown| "unknown".to_owned(),
        |peer| os_user::login_name(peer.uid()),
    );
    let (from, to) = stream.split();
    let mut from = BufReader::new(from);
    let mut to = BufWriter::new(to);
    let line = match tokio::time::timeout(REQUEST_TIMEOUT, read_line(&mut from, REQUEST_LINE_BYTES_MAX)).await
    {
        // A probe whether a station is running, or a client that is too slow.
        Ok(Ok(None)) | Err(_) => return,
        Ok(Ok(Some(line))) => line,
        Ok(Err(error)) => {
            send_refusal(&mut to, format!("the request was not read: {error}")).await;
            return;
        }
    };
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let version = env!("CARGO_PKG_VERSION");
            let text =
                format!("the running station ({version}) does not know this request ({error}); restart it");
            send_refusal(&mut to, text).await;
            return;
        }
    };
    let mut events = fleet.perform_as(request, user).await;
    loop {
        let mut more = [0; 64];
        tokio::select! {
            biased;
            event = events.recv() => {
                let Some(event) = event else { return };
                if let Err(error) = write_event(&mut to, &event, events.is_empty()).await {
                    tracing::debug!(%error, "Control client disconnected");
                    return;
                }
            }
            read = from.read(&mut more) => {
                // No bytes may follow a request; the client cancels by closing the stream.
                if !matches!(read, Ok(bytes) if bytes > 0) {
                    return;
                }
            }
        }
    }
}

async fn send_refusal(to: &mut (impl AsyncWriteExt + Unpin), text: String) {
    if let Err(error) = write_event(to, &Event::failed(Failure::Usage, text), true).await {
        tracing::debug!(%error, "Control client disconnected");
    }
}

async fn write_event(to: &mut (impl AsyncWriteExt + Unpin), event: &Event, flush: bool) -> io::Result<()> {
    let mut line = serde_json::to_vec(event).map_err(io::Error::other)?;
    if line.len() > EVENT_LINE_BYTES_MAX {
        let text = "an answer is too long for the control socket; ask fewer nodes at once";
        line = serde_json::to_vec(&Event::failed(Failure::Failed, text)).map_err(io::Error::other)?;
    }
    line.push(b'\n');
    to.write_all(&line).await?;
    if flush {
        to.flush().await?;
    }
    Ok(())
}
