//! Reads, skips and writes the bytes of one connection.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use super::{CloseReason, WRITE_TIMEOUT};
use crate::net::clock;

/// Interval at which an empty socket is examined. A message may seem older by that much, never younger.
pub(super) const SOCKET_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Buffer for bytes that are skipped.
const READ_BYTES: usize = 256 * 1024;

/// Reads a connection and records how old the bytes may be: the earliest arrival of the bytes that are read is the last
/// time at which the socket was found empty. So neither a backlog nor a suspension of this process makes an old message
/// look recent.
pub(super) struct TimedReader<'a> {
    from: ReadHalf<'a>,
    /// Of the bytes that were read.
    earliest_arrival: Instant,
    /// Of the bytes that were not read, since the socket was found empty.
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

    /// The earliest arrival of the bytes that were read last.
    pub(super) fn earliest_arrival(&self) -> Instant {
        self.earliest_arrival
    }

    /// Reads available bytes into the buffer, and waits for them until the deadline; 0 at the end of the stream.
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

    /// Reads and drops this many bytes until the deadline.
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
            // A peer that sends without pause does not get here.
            if until <= clock::now() {
                return Err(CloseReason::TimedOut);
            }
            // Other tasks run in between.
            tokio::task::consume_budget().await;
            buffer.reserve(READ_BYTES);
            if self.read(buffer, Some(until)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Waits until the deadline for bytes to read. `last_empty` becomes the last time at which there were none:
    /// the time is taken before the check, since any time may pass between the check and the next step, with the
    /// process stopped or the machine suspended. The runtime's readiness is not enough: after a suspension it may
    /// report none because it has not polled yet.
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

/// Whether the kernel's receive buffer is empty; `false` if unknown.
fn is_empty(stream: &TcpStream) -> bool {
    rustix::io::ioctl_fionread(stream) == Ok(0)
}

/// Writes all bytes at the peer's pace, if it accepts some in each [`WRITE_TIMEOUT`].
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
        write(&mut ours, &content).await.expect("the peer reads slowly");
        let _theirs = reading.await.expect("ran");
        let ended = write(&mut ours, &content)
            .await
            .expect_err("the peer reads nothing");
        assert!(matches!(ended, CloseReason::TimedOut), "{ended}");
    }
}
