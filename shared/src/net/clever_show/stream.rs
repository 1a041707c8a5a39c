//! Bytes of one connection: reading them, passing them over, writing them.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use super::{CloseReason, WRITE_TIMEOUT};
use crate::net::clock;

/// How often an empty socket is looked at again. So much older than it is may a message seem, and never younger.
pub(super) const SOCKET_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Room that is made for what is passed over, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// What comes in, and how old it may be: what is read carries the time before which it cannot have come, when the socket
/// was found empty last and something came into it. So neither a peer that sends faster than it is read, nor a stop of
/// this program, makes an old word look like a new one.
pub(super) struct TimedReader<'a> {
    from: ReadHalf<'a>,
    /// Of what has been read.
    earliest_arrival: Instant,
    /// Of what has not, where the socket has been emptied since.
    last_empty: Option<Instant>,
}

impl<'a> TimedReader<'a> {
    pub(super) fn new(from: ReadHalf<'a>) -> Self {
        Self {
            from,
            earliest_arrival: clock::now(),
            last_empty: None,
        }
    }

    /// What was read last did not come before then.
    pub(super) fn earliest_arrival(&self) -> Instant {
        self.earliest_arrival
    }

    /// Reads what there is into the room of the buffer, and waits for it until then at most; 0 at the end.
    pub(super) async fn read(
        &mut self,
        buffer: &mut BytesMut,
        until: Option<Instant>,
    ) -> Result<usize, CloseReason> {
        let room = buffer.capacity() - buffer.len();
        loop {
            let looked = clock::now();
            let read = self.from.try_read_buf(buffer);
            if let Err(error) = &read
                && error.kind() == io::ErrorKind::WouldBlock
            {
                self.wait_readable(until).await?;
                continue;
            }
            self.earliest_arrival = self.last_empty.take().unwrap_or(self.earliest_arrival);
            let bytes = read?;
            self.last_empty = (0 < bytes && bytes < room).then_some(looked);
            return Ok(bytes);
        }
    }

    /// Reads so many bytes, until then at most, and keeps none.
    pub(super) async fn skip(
        &mut self,
        buffer: &mut BytesMut,
        bytes: u64,
        until: Instant,
    ) -> Result<(), CloseReason> {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        loop {
            let there = left.min(buffer.len());
            buffer.advance(there);
            left -= there;
            if left == 0 {
                return Ok(());
            }
            // One that sends without rest is not waited for.
            if until <= clock::now() {
                return Err(CloseReason::TimedOut);
            }
            // Nor does it keep others waiting.
            tokio::task::consume_budget().await;
            buffer.reserve(READ_BYTES);
            if self.read(buffer, Some(until)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Waits for something to read, until then at most. [`Self::emptied`] becomes the last time at which there was
    /// nothing: taken before looking, for between a look and the next step any time may pass, with the process stopped
    /// or the machine asleep, and what came meanwhile is as old as that. The runtime's word is not enough: after a stop
    /// it may say that there is nothing because it has not asked yet.
    async fn wait_readable(&mut self, until: Option<Instant>) -> Result<(), CloseReason> {
        loop {
            let looked = clock::now();
            if until.is_some_and(|until| until <= looked) {
                return Err(CloseReason::TimedOut);
            }
            if is_empty(self.from.as_ref()) {
                self.last_empty = Some(looked);
            }
            let again = looked + SOCKET_POLL_INTERVAL;
            let again = until.map_or(again, |until| until.min(again));
            if let Ok(ready) = clock::timeout_at(again, self.from.readable()).await {
                return Ok(ready?);
            }
        }
    }
}

/// Whether the system holds nothing that came; `false` if it does not say.
fn is_empty(stream: &TcpStream) -> bool {
    rustix::io::ioctl_fionread(stream) == Ok(0)
}

/// Writes all of it, as slowly as the peer takes it, if it takes anything in each [`WRITE_STALL`].
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8]) -> Result<(), CloseReason> {
    while !bytes.is_empty() {
        match tokio::time::timeout(WRITE_TIMEOUT, to.write(bytes)).await {
            Ok(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Ok(Ok(taken)) => bytes = &bytes[taken..],
            Ok(Err(error)) => return Err(error.into()),
            Err(_elapsed) => return Err(CloseReason::TimedOut),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_peer_is_tolerated_and_stalled_one_times_out() {
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        let reading = tokio::spawn(async move {
            let mut part = [0; 1024];
            for _ in 0..64 {
                tokio::time::sleep(WRITE_TIMEOUT / 2).await;
                theirs.read_exact(&mut part).await.expect("written");
            }
            theirs
        });
        let content = vec![0; 64 * 1024];
        write(&mut ours, &content).await.expect("it takes something");
        let _theirs = reading.await.expect("ran");
        let ended = write(&mut ours, &content).await.expect_err("it takes nothing");
        assert!(matches!(ended, CloseReason::TimedOut), "{ended}");
    }
}
