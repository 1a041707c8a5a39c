//! Frames between two simulated processes: the product's session, outbox and decoder over turmoil's TCP.
//!
//! There is no TLS: the host determines the identity. Nothing here waits; a process polls all its sockets once in
//! each tick.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use serde_json::{Value, json};
use swarm_shared::proto::id::Instance;
use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::{Event, Outgoing, Session, Timing};
use swarm_shared::proto::wire::encoded::{EncodedFrame, OutBuffer};
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Kind, Lane, WireError};
use tokio::io::{AsyncRead, ReadBuf};
use turmoil::net::TcpStream;

use super::fault::Fault;
use super::ground_truth::Invariant;
use super::world::{FrameFault, HostId, KillPoint, Killed, World};

/// Bytes that may be queued for the socket before the session keeps its frames, as in the product.
const WRITE_AHEAD_BYTES: usize = 4 * 1024;
const READ_BYTES: usize = 16 * 1024;
/// Bytes of one simulated segment; the network takes a limited number of them, and then the socket accepts no more.
const SEGMENT_BYTES: usize = 1_024;
/// A connection whose first frame has not come within this time is closed, in milliseconds: sooner than in the
/// product, because lost segments are not retransmitted here.
const HELLO_MS_MAX: u64 = 2_000;

/// A dial in progress.
pub(super) type DialFuture = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

/// Polls a future once. It is polled again in the next tick.
pub(super) fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Converts bytes to frames and back.
struct FrameConnection {
    stream: TcpStream,
    reader: FrameReader,
    read_buffer: BytesMut,
    /// Bytes queued for the socket.
    write_buffer: BytesMut,
}

impl FrameConnection {
    /// The next complete frame.
    fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.reader.next_frame(&mut self.read_buffer).map_err(invalid)? {
                return Ok(Some(frame));
            }
            let mut space = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut space);
            let mut context = Context::from_waker(Waker::noop());
            match Pin::new(&mut self.stream).poll_read(&mut context, &mut buffer) {
                Poll::Pending => return Ok(None),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Poll::Ready(Ok(())) => self.read_buffer.extend_from_slice(buffer.filled()),
            }
        }
    }

    /// Writes what the socket accepts; returns whether that was anything.
    fn write(&mut self) -> io::Result<bool> {
        let mut any = false;
        while !self.write_buffer.is_empty() {
            let piece = self.write_buffer.len().min(SEGMENT_BYTES);
            match self.stream.try_write(&self.write_buffer[..piece]) {
                Ok(written) => {
                    self.write_buffer.advance(written);
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }
}

fn invalid(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// A connection whose other end has not sent its instance yet.
pub(super) struct Handshake {
    pub(super) host: HostId,
    conn: FrameConnection,
    since_ms: u64,
}

impl Handshake {
    /// Sends the hello on a new connection with `host`.
    pub(super) fn new(stream: TcpStream, host: HostId, own: Instance, now_ms: u64) -> io::Result<Self> {
        let mut hello = BytesMut::new();
        Frame::json(Kind::Hello, &json!({ "instance": own.0 }))
            .encode(&mut hello)
            .map_err(|error| io::Error::other(error.to_string()))?;
        stream.try_write(&hello)?;
        Ok(Self {
            host,
            conn: FrameConnection {
                stream,
                reader: FrameReader::new(FrameLimits::CONTROL),
                read_buffer: BytesMut::new(),
                write_buffer: BytesMut::new(),
            },
            since_ms: now_ms,
        })
    }

    /// The instance of the other end, once it has sent it.
    pub(super) fn poll_instance(&mut self, now_ms: u64) -> io::Result<Option<Instance>> {
        if now_ms > self.since_ms + HELLO_MS_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let Some(frame) = self.conn.next_frame()? else {
            return Ok(None);
        };
        let value = frame.json_value().unwrap_or(Value::Null);
        match (frame.header.kind, value["instance"].as_u64()) {
            (Some(Kind::Hello), Some(instance)) => Ok(Some(Instance(instance))),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

struct ActiveLink {
    conn: FrameConnection,
    /// How often this end had moved when the connection was made.
    address_changes: u16,
    /// A frame that the middlebox holds back.
    held_frame: Option<Frame>,
    tampered: bool,
}

/// A session with a peer, and its current connection.
pub(super) struct Peer {
    pub(super) session: Session<()>,
    pub(super) host: HostId,
    active_link: Option<ActiveLink>,
    /// Whether the owner was told that the link is open.
    pub(super) reported_up: bool,
}

impl Peer {
    pub(super) fn new(host: HostId, own: Instance, now: Instant) -> Result<Self, WireError> {
        Ok(Self {
            session: Session::new(own, Timing::default(), OutboxLimits::CONTROL, now)?,
            host,
            active_link: None,
            reported_up: false,
        })
    }

    pub(super) fn is_linked(&self) -> bool {
        self.active_link.is_some()
    }

    pub(super) fn attach(
        &mut self,
        world: &World,
        own_host: HostId,
        greeting: Handshake,
        instance: Instance,
    ) {
        self.host = greeting.host;
        self.session.attach(instance, world.monotonic_now(own_host));
        self.active_link = Some(ActiveLink {
            conn: greeting.conn,
            address_changes: world.controls[own_host].borrow().address_changes,
            held_frame: None,
            tampered: false,
        });
    }

    /// Closes the link; the session waits for the next one.
    pub(super) fn close_link(&mut self) {
        self.session.detach();
        self.active_link = None;
    }

    /// Passes a frame to the session; returns whether it was accepted.
    pub(super) fn send(&mut self, frame: EncodedFrame, lane: Lane, deadline: Option<Instant>) -> bool {
        let outgoing = Outgoing {
            frame,
            lane,
            deadline,
        };
        self.session.send(outgoing, None).is_ok()
    }

    /// Reads received bytes, and runs the session's timers.
    pub(super) fn read(&mut self, world: &World, own_host: HostId) -> Vec<Event<()>> {
        let now = world.monotonic_now(own_host);
        let node = own_host.max(self.host);
        let moves = world.controls[own_host].borrow().address_changes;
        let mut why = None;
        while let Some(linked) = &mut self.active_link {
            if linked.address_changes != moves {
                why = Some("the address is another".to_owned());
                break;
            }
            match linked.conn.next_frame() {
                Ok(Some(frame)) => {
                    for frame in apply_frame_fault(world, node, linked, frame) {
                        if let Err(fault) = self.session.handle_frame(frame, now) {
                            why = Some(fault.to_string());
                            break;
                        }
                    }
                    if why.is_some() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    why = Some(error.kind().to_string());
                    break;
                }
            }
        }
        // A middlebox that has lost a frame for good also ends the connection.
        if let Some(linked) = &self.active_link
            && linked.tampered
            && world.controls[node].borrow().frame_fault.is_none()
        {
            why = why.or_else(|| Some("the middlebox went away".to_owned()));
        }
        if why.is_none()
            && let Err(fault) = self.session.handle_timeout(now)
        {
            why = Some(fault.to_string());
        }
        if let Some(why) = why {
            self.on_link_lost(world, own_host, &why);
        }
        self.session.take_events().collect()
    }

    fn on_link_lost(&mut self, world: &World, own_host: HostId, why: &str) {
        if self.active_link.is_some() {
            world.log(
                own_host,
                format_args!("link to {} lost: {why}", world.hosts[self.host].name),
            );
        }
        self.close_link();
    }

    /// Sends the queued frames.
    pub(super) fn write(&mut self, world: &World, own_host: HostId) -> Result<(), Killed> {
        let now = world.monotonic_now(own_host);
        let Some(linked) = &mut self.active_link else {
            return Ok(());
        };
        let room = WRITE_AHEAD_BYTES.saturating_sub(linked.conn.write_buffer.len());
        let mut out = OutBuffer::default();
        if room > 0
            && let Err(error) = self.session.transmit(&mut out, room, now)
        {
            self.on_link_lost(world, own_host, &error.to_string());
            return Ok(());
        }
        let made = flatten(&mut out);
        self.check_lane_order(world, own_host, &made);
        let Some(linked) = &mut self.active_link else {
            return Ok(());
        };
        linked.conn.write_buffer.extend_from_slice(&made);
        if linked.conn.write_buffer.is_empty() {
            return Ok(());
        }
        if !made.is_empty() {
            world.reach_kill_point(own_host, KillPoint::BeforeSend)?;
        }
        match linked.conn.write() {
            Ok(true) => world.reach_kill_point(own_host, KillPoint::AfterSend),
            Ok(false) => Ok(()),
            Err(error) => {
                self.on_link_lost(world, own_host, &error.kind().to_string());
                Ok(())
            }
        }
    }

    /// Logs the frames that the session made in one call, and checks their order: frames that waited in the emergency
    /// lane go first.
    fn check_lane_order(&mut self, world: &World, own_host: HostId, made: &[u8]) {
        let mut bytes = BytesMut::from(made);
        let mut reader = FrameReader::new(FrameLimits::CONTROL);
        let mut before = None;
        while let Ok(Some(frame)) = reader.next_frame(&mut bytes) {
            let header = &frame.header;
            let Some(seq) = header.seq else { continue };
            let to = &world.hosts[self.host].name;
            let (kind, id) = (header.kind, header.id.unwrap_or_default());
            world.log(
                own_host,
                format_args!(
                    "sends {kind:?} {id} as {seq} to {to}, {:?} ms to live",
                    header.ttl
                ),
            );
            let urgent =
                matches!(kind, Some(Kind::Stop | Kind::Stopped)) || header.lane == Some(Lane::Emergency);
            if !urgent {
                before = before.or(kind);
            } else if let Some(before) = before {
                let what = format!(
                    "{} sent {before:?} to {to} before {kind:?}",
                    world.hosts[own_host].name
                );
                world
                    .truth
                    .borrow_mut()
                    .report_violation(Invariant::LaneOrder, what);
            }
        }
    }
}

fn flatten(out: &mut OutBuffer) -> Vec<u8> {
    let mut whole = Vec::with_capacity(out.len());
    while !out.is_empty() {
        let mut slices = [io::IoSlice::new(&[]); 16];
        let filled = out.fill_slices(&mut slices);
        let before = whole.len();
        for slice in &slices[..filled] {
            whole.extend_from_slice(slice);
        }
        out.consume(whole.len() - before);
    }
    whole
}

/// Applies the fault of the link's middlebox to a frame. It sits in front of the node, which is the host with the
/// higher number, and affects both directions.
fn apply_frame_fault(
    world: &World,
    in_front_of: HostId,
    linked: &mut ActiveLink,
    frame: Frame,
) -> Vec<Frame> {
    let mut through = Vec::new();
    match world.draw_frame_fault(in_front_of) {
        Some(FrameFault::Drop) => {
            world.count_fault(Fault::Drop);
            linked.tampered = true;
        }
        Some(FrameFault::Duplicate) => {
            world.count_fault(Fault::Duplicate);
            through.extend([frame.clone(), frame]);
        }
        Some(FrameFault::Reorder) if linked.held_frame.is_none() => {
            linked.held_frame = Some(frame);
            linked.tampered = true;
        }
        Some(FrameFault::Reorder) | None => {
            through.push(frame);
            if let Some(kept) = linked.held_frame.take() {
                world.count_fault(Fault::Reorder);
                through.push(kept);
            }
        }
    }
    through
}
