//! Messages on a plain TCP stream, and their time-outs.
//!
//! | a client that | is disconnected |
//! |---|---|
//! | sends nothing | after the `idle_timeout` of its gateway |
//! | has begun a message | [`MESSAGE_TIMEOUT`] after the message's first byte |
//! | does not read | [`WRITE_TIMEOUT`] after the last byte that it has read |

use std::io;
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::foreign::{platypush, socktools};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a client may take to begin its first message, unless its protocol says otherwise.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a message may take from its first byte to its last.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may read nothing. A client that reads slowly gets the whole message, however long it is.
pub const WRITE_TIMEOUT: Duration = swarm_shared::api::PEER_WRITE_TIMEOUT;
/// How long to wait for a client to close its side: closing with unread bytes would reset the connection, and the last
/// response could be lost.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Messages that are still looked at once a client has disconnected, of those that had arrived.
pub const DRAIN_MESSAGES_MAX: usize = 64;
/// Bytes that are read at once.
const READ_BYTES: usize = 4 * 1024;

/// Splits a stream into messages; buffers at most one message and one read.
pub trait MessageDecoder {
    /// A message.
    type Message;
    /// Adds received bytes.
    fn feed(&mut self, bytes: &[u8]);
    /// The next complete message, if there is one.
    ///
    /// # Errors
    /// Why the stream cannot be split any further.
    fn next_message(&mut self) -> Result<Option<Self::Message>, String>;
    /// Whether the buffer holds a part of a message.
    fn has_begun(&self) -> bool;
}

macro_rules! impl_message_decoder {
    ($($reader:ty),*) => {$(
        impl MessageDecoder for $reader {
            type Message = Vec<u8>;

            fn feed(&mut self, bytes: &[u8]) {
                self.feed(bytes);
            }

            fn next_message(&mut self) -> Result<Option<Vec<u8>>, String> {
                self.next_message().map_err(|error| error.to_string())
            }

            fn has_begun(&self) -> bool {
                self.has_partial_message()
            }
        }
    )*};
}

impl_message_decoder!(platypush::MessageReader, socktools::MessageReader);

/// Why a connection ends early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection failed, or the client does not read.
    #[error("{0}")]
    ConnectionLost(String),
    /// The client began no message within this time.
    #[error("silent for {0:?}")]
    Silent(Duration),
    /// The client broke the protocol; it may be sent an error response.
    #[error("{0}")]
    ProtocolError(String),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::ConnectionLost(error.to_string())
    }
}

/// Reads the next message; `None` if the client has closed its sending side. Without `idle_timeout` it may be silent for
/// ever.
///
/// # Errors
/// [`StreamError`].
pub async fn read_message<D: MessageDecoder>(
    from: &mut (impl AsyncRead + Unpin),
    decoder: &mut D,
    idle_timeout: impl Into<Option<Duration>>,
) -> Result<Option<D::Message>, StreamError> {
    let idle_timeout = idle_timeout.into();
    let mut due = idle_timeout.map(|idle| clock::now() + idle);
    let mut begun = false;
    let mut piece = [0; READ_BYTES];
    loop {
        if let Some(message) = decoder.next_message().map_err(StreamError::ProtocolError)? {
            return Ok(Some(message));
        }
        if !begun && decoder.has_begun() {
            begun = true;
            due = Some(clock::now() + MESSAGE_TIMEOUT);
        }
        let reading = from.read(&mut piece);
        let read = match due {
            Some(due) => clock::timeout_at(due, reading).await,
            None => Ok(reading.await),
        };
        match read {
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
            Err(_elapsed) => return Err(StreamError::Silent(idle_timeout.unwrap_or_default())),
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(bytes)) => decoder.feed(&piece[..bytes]),
            Ok(Err(error)) => return Err(error.into()),
        }
    }
}

/// Writes a message.
///
/// # Errors
/// [`StreamError::ConnectionLost`].
pub async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> Result<(), StreamError> {
    match write_all_with_timeout(to, message, WRITE_TIMEOUT).await? {
        true => Ok(()),
        false => Err(StreamError::ConnectionLost(format!(
            "nothing was read for {WRITE_TIMEOUT:?}"
        ))),
    }
}

/// Writes all bytes, however long that takes; `false` if the client read nothing for `idle_timeout`.
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

/// Closes the sending side, and waits a moment for the client to close its own.
pub async fn close_gracefully(mut stream: TcpStream) {
    let closing = async {
        stream.shutdown().await?;
        let mut piece = [0; READ_BYTES];
        while stream.read(&mut piece).await? > 0 {}
        io::Result::Ok(())
    };
    // The connection is closed either way.
    let _ended = timeout(LINGER_TIMEOUT, closing).await;
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
