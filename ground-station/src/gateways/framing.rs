//! Messages over a plain TCP stream, and how long each may take.
//!
//! | a client | is heard until |
//! |---|---|
//! | that says nothing | the idle_timeout of its gateway is over |
//! | that is in the middle of a message | [`MESSAGE_TIMEOUT`] from the message's first byte |
//! | that does not read what it is told | [`WRITE_TIMEOUT`] from the last byte that it has taken |

use std::io;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::foreign::{platypush, socktools};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a client may take to begin its first message, where its protocol does not say.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a message may take from its first byte to its last.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what it is told. However long the message is, one that reads slowly gets all.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Before a connection is closed with something unread: a close would else take the last answer with it.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages that are looked at of what had arrived when it turned out that a client hears no answers any more.
pub const DRAIN_MESSAGES_MAX: usize = 64;
/// Read at once, in bytes.
const READ_BYTES: usize = 4 * 1024;

/// Finds where messages end. It keeps no more than one message and one read.
pub trait MessageDecoder {
    /// Takes what has arrived.
    fn feed(&mut self, bytes: &[u8]);
    /// The next whole message.
    ///
    /// # Errors
    /// Why the stream cannot be cut any further.
    fn next_message(&mut self) -> Result<Option<Vec<u8>>, String>;
    /// Whether a message has begun that is not whole.
    fn has_begun(&self) -> bool;
}

impl MessageDecoder for platypush::MessageReader {
    fn feed(&mut self, bytes: &[u8]) {
        self.feed(bytes);
    }

    fn next_message(&mut self) -> Result<Option<Vec<u8>>, String> {
        self.next_message().map_err(|cut| cut.to_string())
    }

    fn has_begun(&self) -> bool {
        self.has_partial_message()
    }
}

impl MessageDecoder for socktools::MessageReader {
    fn feed(&mut self, bytes: &[u8]) {
        self.feed(bytes);
    }

    fn next_message(&mut self) -> Result<Option<Vec<u8>>, String> {
        self.next_message().map_err(|too_long| too_long.to_string())
    }

    fn has_begun(&self) -> bool {
        self.has_partial_message()
    }
}

/// Why a conversation breaks off.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is gone, or nobody reads.
    #[error("{0}")]
    ConnectionLost(String),
    /// The client is at fault, and may be told.
    #[error("{0}")]
    ProtocolError(String),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::ConnectionLost(error.to_string())
    }
}

/// The next whole message; `None` if the client has said all, or does not begin one within `idle_timeout`.
///
/// # Errors
/// [`Ended`].
pub async fn read_message(
    from: &mut (impl AsyncRead + Unpin),
    decoder: &mut impl MessageDecoder,
    idle_timeout: Duration,
) -> Result<Option<Vec<u8>>, StreamError> {
    let mut due = clock::now() + idle_timeout;
    let mut begun = false;
    let mut piece = [0; READ_BYTES];
    loop {
        if let Some(message) = decoder.next_message().map_err(StreamError::ProtocolError)? {
            return Ok(Some(message));
        }
        if !begun && decoder.has_begun() {
            begun = true;
            due = clock::now() + MESSAGE_TIMEOUT;
        }
        match clock::timeout_at(due, from.read(&mut piece)).await {
            Err(_elapsed) if begun => {
                return Err(StreamError::ProtocolError(format!(
                    "the message was not whole within {MESSAGE_TIMEOUT:?}"
                )));
            }
            Ok(Ok(0)) if begun => {
                return Err(StreamError::ProtocolError(
                    "the message ends before its end".to_owned(),
                ));
            }
            Err(_) | Ok(Ok(0)) => return Ok(None),
            Ok(Ok(bytes)) => decoder.feed(&piece[..bytes]),
            Ok(Err(error)) => return Err(error.into()),
        }
    }
}

/// Writes a message.
///
/// # Errors
/// [`Ended::Lost`].
pub async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> Result<(), StreamError> {
    match write_all_with_timeout(to, message, WRITE_TIMEOUT).await? {
        true => Ok(()),
        false => Err(StreamError::ConnectionLost(format!(
            "nothing was read for {WRITE_TIMEOUT:?}"
        ))),
    }
}

/// Writes all of it, however long that takes, as long as it moves on; `false` if nothing was taken for `idle_timeout`.
///
/// # Errors
/// The connection's.
pub async fn write_all_with_timeout(
    to: &mut (impl AsyncWrite + Unpin),
    mut bytes: &[u8],
    idle_timeout: Duration,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        let until = clock::now() + idle_timeout;
        let Ok(written) = clock::timeout_at(until, to.write(bytes)).await else {
            return Ok(false);
        };
        match written? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes = bytes.get(count..).unwrap_or_default(),
        }
    }
    Ok(true)
}

/// Says that no more comes, and lets the client read what did.
pub async fn close_gracefully(mut stream: TcpStream) {
    let farewell = async {
        stream.shutdown().await?;
        let mut piece = [0; READ_BYTES];
        while stream.read(&mut piece).await? > 0 {}
        io::Result::Ok(())
    };
    // It is closed either way.
    let _gone = timeout(LINGER_TIMEOUT, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_reader_gets_everything_and_stalled_reader_is_closed() {
        let (mut near, mut far) = tokio::io::duplex(16);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            while all.len() < 64 {
                tokio::time::sleep(WRITE_TIMEOUT * 9 / 10).await;
                let mut some = [0; 16];
                far.read_exact(&mut some).await.expect("more");
                all.extend(some);
            }
            (all, far)
        });
        write_message(&mut near, &[7; 64]).await.expect("it moves on");
        let (all, _far) = reading.await.expect("read");
        assert_eq!(all, [7; 64]);
        let ended = write_message(&mut near, &[7; 64]).await;
        assert!(matches!(ended, Err(StreamError::ConnectionLost(_))), "{ended:?}");
    }
}
