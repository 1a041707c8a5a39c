//! The connection of an identified drone: partly received frames, partly written frames, and their time-outs.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use swarm_shared::net::clock;
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Header, WireError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::gateways::listener::ConnectionPermit;

/// How long a message may take from its first byte to its last.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause while a frame is written, or a file is read.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The connection of an identified drone.
#[derive(Debug)]
pub(super) struct Connection {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    pub(super) permit: ConnectionPermit,
    reader: FrameReader,
    /// Received bytes that are not read as a frame yet.
    inbox: BytesMut,
    /// Whether the rate limit permits one more frame.
    may_read: bool,
    /// When the first byte of the present frame arrived.
    frame_began: Option<Instant>,
    last_read: Instant,
    /// The unwritten rest of the present frame: its header, and its content.
    head: BytesMut,
    content: Bytes,
    last_written: Instant,
}

/// One step of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The rate limit permits one more frame.
    MayRead,
    /// Bytes arrived.
    Received,
    /// Bytes of a frame were written.
    Wrote,
}

impl Connection {
    /// A connection that has identified its drone, with the bytes that arrived after the id.
    pub(super) fn new(
        stream: TcpStream,
        permit: ConnectionPermit,
        reader: FrameReader,
        inbox: BytesMut,
    ) -> Self {
        let (from, to) = stream.into_split();
        let now = clock::now();
        Self {
            from,
            to,
            permit,
            reader,
            inbox,
            may_read: false,
            frame_began: None,
            last_read: now,
            head: BytesMut::new(),
            content: Bytes::new(),
            last_written: now,
        }
    }

    /// Waits for the next step. Cancel safe.
    ///
    /// # Errors
    /// The connection's; `UnexpectedEof` if the drone has closed it.
    pub(super) async fn next_step(&mut self) -> io::Result<Step> {
        let (may_read, is_writing) = (self.may_read, !self.is_written());
        self.inbox.reserve(self.reader.missing_bytes().max(1));
        tokio::select! {
            biased;
            wrote = write_some(&mut self.to, &mut self.head, &mut self.content), if is_writing => {
                wrote?;
                self.last_written = clock::now();
                Ok(Step::Wrote)
            }
            () = self.permit.throttle(), if !may_read => {
                self.may_read = true;
                Ok(Step::MayRead)
            }
            read = self.from.read_buf(&mut self.inbox), if may_read => {
                if read? == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the drone has closed the connection"));
                }
                self.last_read = clock::now();
                Ok(Step::Received)
            }
        }
    }

    /// Takes the next frame, if it has arrived as a whole and the rate limit permits it.
    ///
    /// # Errors
    /// The bytes are not a frame within `limits`.
    pub(super) fn take_frame(
        &mut self,
        limits: FrameLimits,
        now: Instant,
    ) -> Result<Option<Frame>, WireError> {
        self.reader.set_limits(limits);
        if !self.may_read {
            return Ok(None);
        }
        let frame = self.reader.next_frame(&mut self.inbox)?;
        if frame.is_some() {
            self.may_read = false;
            self.frame_began = None;
        }
        let is_within = !self.inbox.is_empty() || !self.reader.is_between_frames();
        self.frame_began = is_within.then(|| self.frame_began.unwrap_or(now));
        Ok(frame)
    }

    /// The header of the frame whose content is arriving.
    pub(super) fn pending_header(&self) -> Option<&Header> {
        self.reader.pending_header()
    }

    /// Begins to write a frame, after the one before [is written](Self::is_written).
    ///
    /// # Errors
    /// The frame cannot be encoded.
    pub(super) fn begin_frame(&mut self, frame: Frame, now: Instant) -> Result<(), WireError> {
        frame.encode_header_to(&mut self.head)?;
        self.content = frame.content;
        self.last_written = now;
        Ok(())
    }

    /// Whether no frame is being written.
    pub(super) fn is_written(&self) -> bool {
        self.head.is_empty() && self.content.is_empty()
    }

    /// Bytes of content that the present frame still has to write.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.content.len()
    }

    /// Why the connection has to be closed, if a time-out has passed.
    pub(super) fn stall_reason(&self, is_awaiting_file: bool, now: Instant) -> Option<&'static str> {
        if self.write_deadline().is_some_and(|due| now >= due) {
            return Some("the drone does not read");
        }
        let is_late = self.read_deadline(is_awaiting_file).is_some_and(|due| now >= due);
        is_late.then_some("a message of the drone was not complete in time")
    }

    /// When [`Self::stall_reason`] has to be asked next.
    pub(super) fn deadline(&self, is_awaiting_file: bool) -> Option<Instant> {
        let deadlines = [self.write_deadline(), self.read_deadline(is_awaiting_file)];
        deadlines.into_iter().flatten().min()
    }

    fn write_deadline(&self) -> Option<Instant> {
        (!self.is_written()).then(|| self.last_written + STALL_TIMEOUT)
    }

    /// A file may take any time as long as bytes arrive.
    fn read_deadline(&self, is_awaiting_file: bool) -> Option<Instant> {
        let began = self.frame_began?;
        Some(if is_awaiting_file {
            self.last_read + STALL_TIMEOUT
        } else {
            began + MESSAGE_TIMEOUT
        })
    }
}

/// Writes some bytes of the header, or of the content once the header is written.
async fn write_some(to: &mut OwnedWriteHalf, head: &mut BytesMut, content: &mut Bytes) -> io::Result<()> {
    let written = if head.is_empty() {
        to.write_buf(content).await?
    } else {
        to.write_buf(head).await?
    };
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
