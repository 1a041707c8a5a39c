//! One session, with a peer and a clock that the test controls.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use swarm_shared::net::clock;
use swarm_shared::proto::id::Instance;
use swarm_shared::proto::message::Welcome;
use swarm_shared::proto::session::outbox::OutboxLimits;
use swarm_shared::proto::session::{
    Event, ExpectedReply, LinkFault, Outgoing, RequestEnd, SendError, Session, Timing,
};
use swarm_shared::proto::wire::encoded::{EncodedFrame, OutBuffer};
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Kind, Lane};

pub(crate) const US: Instance = Instance(1);
pub(crate) const PEER: Instance = Instance(2);
pub(crate) const ROOM: usize = 1 << 20;

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn limits(queued_max: usize, window_max: usize) -> OutboxLimits {
    OutboxLimits {
        queued_max,
        queued_bytes_max: 100_000,
        window_max,
        window_bytes_max: 100_000,
        window_bytes_min: 100_000,
    }
}

/// A session and the frames that it wrote; the test acts as the peer.
pub(crate) struct Rig {
    pub(crate) session: Session<&'static str>,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
}

impl Rig {
    /// Not linked.
    pub(crate) fn new(limits: OutboxLimits) -> Self {
        Self::with_timing(limits, Timing::default())
    }

    /// The same with these time-outs.
    pub(crate) fn with_timing(limits: OutboxLimits, timing: Timing) -> Self {
        let now = clock::now();
        let session = Session::new(US, timing, limits, now).expect("constant frames");
        Self {
            session,
            start: now,
            now,
        }
    }

    /// Linked and open.
    pub(crate) fn open(limits: OutboxLimits) -> Self {
        let mut rig = Self::new(limits);
        rig.link(PEER, 0);
        rig
    }

    /// A new link to `peer`, which has read our frames up to `received`.
    pub(crate) fn link(&mut self, peer: Instance, received: u64) {
        self.session.attach(peer, self.now);
        let sent = self.transmit();
        assert_eq!(kinds(&sent), [Kind::Welcome]);
        self.receive(welcome(peer, received)).expect("a good welcome");
    }

    pub(crate) fn receive(&mut self, frame: Frame) -> Result<(), LinkFault> {
        self.session.handle_frame(frame, self.now)
    }

    pub(crate) fn wait_for_timeout(&mut self, by: Duration) -> Result<(), LinkFault> {
        self.now += by;
        self.session.handle_timeout(self.now)
    }

    /// Advances the clock, and does what is due, as the driver does; the peer stays linked.
    pub(crate) fn advance(&mut self, by: Duration) -> Vec<Frame> {
        self.wait_for_timeout(by).expect("not lost");
        let written = self.transmit();
        assert!(
            self.session.poll_timeout().is_none_or(|next| next > self.now),
            "the driver would spin"
        );
        written
    }

    pub(crate) fn transmit(&mut self) -> Vec<Frame> {
        let mut out = OutBuffer::default();
        self.session.transmit(&mut out, ROOM, self.now).expect("encodes");
        frames(&mut out)
    }

    pub(crate) fn send(&mut self, lane: Lane, ttl: Option<Duration>) -> Result<(), SendError> {
        self.session.send(
            outgoing(Kind::Roster, lane, 0, ttl.map(|ttl| self.now + ttl)),
            None,
        )
    }

    pub(crate) fn request(
        &mut self,
        id: u64,
        ttl: Option<Duration>,
        timeout: Duration,
    ) -> Result<(), SendError> {
        let expected = ExpectedReply {
            id,
            deadline: self.now + timeout,
            token: "token",
        };
        let message = outgoing(Kind::Command, Lane::Control, id, ttl.map(|ttl| self.now + ttl));
        self.session.send(message, Some(expected))
    }

    pub(crate) fn events(&mut self) -> Vec<Event<&'static str>> {
        self.session.take_events().collect()
    }

    /// The events by name.
    pub(crate) fn event_names(&mut self) -> Vec<&'static str> {
        let word = |event| match event {
            Event::Opened { resumed: true } => "resumed",
            Event::Opened { resumed: false } => "opened",
            Event::Frame { .. } => "frame",
            Event::RequestEnded("token", RequestEnd::Reply(_)) => "reply",
            Event::RequestEnded("token", RequestEnd::Expired) => "expired",
            Event::RequestEnded("token", RequestEnd::Lost) => "lost",
            Event::RequestEnded("token", RequestEnd::TimedOut) => "timed out",
            Event::RequestEnded(..) => "another token",
            Event::Silent => "silent",
            Event::Recovered => "heard",
        };
        self.events().into_iter().map(word).collect()
    }
}

pub(crate) fn outgoing(kind: Kind, lane: Lane, id: u64, deadline: Option<Instant>) -> Outgoing {
    let mut frame = Frame::binary(kind, Bytes::from_static(b"content"));
    frame.header.id = Some(id);
    frame.header.lane = Some(lane);
    frame.header.epoch = Some(7);
    Outgoing {
        frame: EncodedFrame::new(&frame).expect("a short header"),
        lane,
        deadline,
    }
}

pub(crate) fn frames(out: &mut OutBuffer) -> Vec<Frame> {
    let mut bytes = BytesMut::new();
    while !out.is_empty() {
        let mut slices = [IoSlice::new(&[])];
        out.fill_slices(&mut slices);
        bytes.extend_from_slice(&slices[0]);
        let written = slices[0].len();
        out.consume(written);
    }
    let mut reader = FrameReader::new(FrameLimits::BULK);
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame(&mut bytes).expect("sound") {
        frames.push(frame);
    }
    assert!(bytes.is_empty());
    frames
}

pub(crate) fn kinds(frames: &[Frame]) -> Vec<Kind> {
    frames
        .iter()
        .map(|frame| frame.header.kind.expect("a kind"))
        .collect()
}

pub(crate) fn lanes(frames: &[Frame]) -> Vec<Lane> {
    frames
        .iter()
        .map(|frame| frame.header.lane.expect("a lane"))
        .collect()
}

pub(crate) fn welcome(peer: Instance, received: u64) -> Frame {
    Frame::json(
        Kind::Welcome,
        &Welcome {
            instance: peer,
            peer_instance: US,
            received,
        },
    )
}

/// A frame of the peer.
pub(crate) fn numbered(kind: Kind, seq: u64) -> Frame {
    let mut frame = Frame::binary(kind, Bytes::from_static(b"content"));
    frame.header.seq = Some(seq);
    frame
}

pub(crate) fn heartbeat() -> Frame {
    Frame::binary(Kind::Heartbeat, Bytes::new())
}

pub(crate) fn ack(number: u64) -> Frame {
    let mut frame = Frame::binary(Kind::Ack, Bytes::new());
    frame.header.ack = Some(number);
    frame
}

pub(crate) fn reply(seq: u64, id: u64, epoch: Option<u64>) -> Frame {
    let mut frame = numbered(Kind::Reply, seq);
    frame.header.id = Some(id);
    frame.header.epoch = epoch;
    frame
}
