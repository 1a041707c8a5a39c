//! One connection: frames in, bytes out, both at once from a single task, so that neither side can block the other.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use crate::proto::wire::encoded::{EncodedFrame, OutBuffer, Trailer};
use crate::proto::wire::{Frame, FrameLimits, FrameReader, WireError};

/// Least room that is made for a read, in bytes; a chunk of which more is known to come gets more.
const READ_BYTES_MIN: usize = 4 * 1024;
/// Room that is made for the next read after one that left none, in bytes: as much as TLS decrypts at once.
const READ_BYTES_BUSY: usize = 16 * 1024;
/// Most room that is made for a read, in bytes.
const READ_BYTES_MAX: usize = 512 * 1024;
/// Most slices in one write.
const WRITE_SLICES_MAX: usize = 16;

/// Anything that a link can run over: TLS over TCP, an in-memory pipe, a simulated network.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// What [`Conn::drive`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IoProgress {
    /// Bytes came in: ask [`Conn::next_frame`].
    Received,
    /// All queued frames have been written.
    Flushed,
    /// The peer has closed its side.
    Closed,
}

/// A killed process closes its connection without TLS's close_notify; that is not worth an error text about TLS.
fn describe_eof(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return io::Error::new(io::ErrorKind::UnexpectedEof, "the connection broke off");
    }
    error
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is not a frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer closed the connection between two frames.
    #[error("the other side closed the connection")]
    Closed,
}

/// A connection with its read and write buffers.
pub(crate) struct Conn {
    io: Box<dyn Transport>,
    reader: FrameReader,
    input: BytesMut,
    /// Whether the last read left no room.
    last_read_was_full: bool,
    pub(crate) output: OutBuffer,
    unflushed: bool,
    /// Why nothing can be written any more. What the peer sent before is still read: it may contain the reason.
    write_error: Option<io::Error>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("incoming", &self.input.len())
            .field("out", &self.output.len())
            .finish()
    }
}

impl Conn {
    /// A connection at its first frame.
    pub(crate) fn new(io: impl Transport + 'static, limits: FrameLimits) -> Self {
        Self {
            io: Box::new(io),
            reader: FrameReader::new(limits),
            input: BytesMut::new(),
            last_read_was_full: false,
            output: OutBuffer::default(),
            unflushed: false,
            write_error: None,
        }
    }

    /// Changes the caps, once the peer is authenticated.
    pub(crate) fn set_limits(&mut self, limits: FrameLimits) {
        self.reader.set_limits(limits);
    }

    /// The next whole frame that has been read.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let frame = self.reader.next_frame(&mut self.input)?;
        if frame.is_none() && self.input.is_empty() {
            // An idle link keeps no buffer.
            self.input = BytesMut::new();
        }
        Ok(frame)
    }

    /// Writes what waits and reads what comes, whichever is possible; `read` may be false to hold the peer back.
    /// Nothing is lost if the future is dropped.
    pub(crate) async fn drive(&mut self, read: bool) -> io::Result<IoProgress> {
        poll_fn(|cx| self.poll_drive(cx, read)).await
    }

    fn poll_drive(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<io::Result<IoProgress>> {
        let flushed = if self.write_error.is_none() {
            match self.poll_write_out(cx) {
                Poll::Ready(Ok(wrote)) => wrote,
                Poll::Ready(Err(error)) => {
                    self.write_error = Some(error);
                    false
                }
                Poll::Pending => false,
            }
        } else {
            false
        };
        if read || self.write_error.is_some() {
            match self.poll_read_in(cx) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(self.write_error.take().map_or(Ok(IoProgress::Closed), Err));
                }
                Poll::Ready(Ok(_)) => return Poll::Ready(Ok(IoProgress::Received)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.write_error.take().unwrap_or(error))),
                Poll::Pending => {}
            }
        }
        match self.write_error.take() {
            Some(error) => Poll::Ready(Err(error)),
            None if flushed => Poll::Ready(Ok(IoProgress::Flushed)),
            None => Poll::Pending,
        }
    }

    /// Ready with whether anything was written.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut wrote = self.unflushed;
        while !self.output.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
            let filled = self.output.fill_slices(&mut slices);
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..filled]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.consume(written);
            self.unflushed = true;
            wrote = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(wrote))
    }

    fn poll_read_in(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let least = if self.last_read_was_full {
            READ_BYTES_BUSY
        } else {
            READ_BYTES_MIN
        };
        let wanted = self.reader.missing_bytes().clamp(least, READ_BYTES_MAX);
        self.input.reserve(wanted);
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input).map_err(describe_eof);
        self.last_read_was_full = self.input.len() == self.input.capacity();
        read
    }

    /// The next frame, waiting for it.
    pub(crate) async fn read_frame(&mut self) -> Result<Frame, ReadError> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            if self.drive(true).await? == IoProgress::Closed {
                return Err(ReadError::Closed);
            }
        }
    }

    /// Appends a frame outside any session: hello, refusal, join.
    pub(crate) fn queue_frame(&mut self, frame: &Frame) -> Result<(), WireError> {
        self.output.push(&EncodedFrame::new(frame)?, Trailer::default());
        Ok(())
    }

    /// Writes everything that waits.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_write_out(cx)).await?;
        Ok(())
    }

    /// Flushes, shuts down the write side, and reads until the peer closes: unread bytes of the peer would make the kernel
    /// reset the connection and drop the last frames. Use it with a time-out.
    pub(crate) async fn close(mut self) -> io::Result<()> {
        self.flush().await?;
        poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await?;
        // It does not matter how the peer closes.
        while let Ok(1..) = poll_fn(|cx| self.poll_read_in(cx)).await {
            self.input.clear();
        }
        Ok(())
    }
}
