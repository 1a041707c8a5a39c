//! A drone's connection: what has arrived and is no frame yet, what is left to be written, and how long both may take.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use swarm_shared::net::clock;
use swarm_shared::proto::wire::FrameReader;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::gateways::listener::ConnectionPermit;

/// How long a message may take once it has begun.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause while a frame is written, or a file is read.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that has said who it is.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) from: OwnedReadHalf,
    pub(super) to: OwnedWriteHalf,
    pub(super) permit: ConnectionPermit,
    pub(super) reader: FrameReader,
    pub(super) inbox: BytesMut,
    /// Whether one more frame may be taken.
    pub(super) may_read: bool,
    /// When the frame at hand began to arrive, and when bytes of it came last.
    pub(super) frame_began: Option<Instant>,
    pub(super) last_read: Instant,
    /// What is left to be written of the frame at hand, and since when nothing moved.
    pub(super) head: BytesMut,
    pub(super) content: Bytes,
    pub(super) last_written: Instant,
}

impl Connection {
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

    pub(super) fn is_written(&self) -> bool {
        self.head.is_empty() && self.content.is_empty()
    }

    /// Why it is of no use any more.
    pub(super) fn stall_reason(&self, is_awaiting_file: bool, now: Instant) -> Option<&'static str> {
        if self.write_deadline().is_some_and(|due| now >= due) {
            return Some("it takes nothing more");
        }
        let late = self.read_deadline(is_awaiting_file).is_some_and(|due| now >= due);
        late.then_some("a message of it does not end")
    }

    pub(super) fn write_deadline(&self) -> Option<Instant> {
        (!self.is_written()).then(|| self.last_written + STALL_TIMEOUT)
    }

    /// A file takes as long as it moves on.
    pub(super) fn read_deadline(&self, is_awaiting_file: bool) -> Option<Instant> {
        let began = self.frame_began?;
        Some(if is_awaiting_file {
            self.last_read + STALL_TIMEOUT
        } else {
            began + MESSAGE_TIMEOUT
        })
    }
}

/// Writes some of what is left.
pub(super) async fn write_some(
    to: &mut OwnedWriteHalf,
    head: &mut BytesMut,
    content: &mut Bytes,
) -> std::io::Result<()> {
    let written = if head.is_empty() {
        to.write_buf(content).await?
    } else {
        to.write_buf(head).await?
    };
    if written == 0 {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
