//! The benchmarked frames: a command of 200 bytes and its reply.

use serde_json::json;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::encoded::Trailer;
use swarm_shared::proto::wire::{Frame, Header, Kind, Lane, MessageType};

/// About 200 bytes on the wire, nearly all of them header.
pub(crate) fn command() -> Frame {
    let frame = Frame::json(Kind::Command, &Arguments::default());
    Frame {
        header: Header {
            message_type: MessageType::Request,
            action: Some("ping".to_owned()),
            lane: Some(Lane::Control),
            id: Some(1_000_001),
            epoch: Some(3),
            ..frame.header
        },
        ..frame
    }
}

/// The shortest reply.
pub(crate) fn reply() -> Frame {
    let frame = Frame::json(Kind::Reply, &Reply::done(json!(null)));
    Frame {
        header: Header {
            message_type: MessageType::Response,
            lane: Some(Lane::Control),
            id: Some(1_000_001),
            epoch: Some(3),
            ..frame.header
        },
        ..frame
    }
}

/// The trailer of a busy session.
pub(crate) fn trailer(seq: u64) -> Trailer {
    Trailer {
        seq: Some(1_000_000 + seq),
        ack: None,
        ttl: Some(30_000),
        until: Some(1_030_000),
        stamp: None,
    }
}

/// The frame with the trailer of its session.
pub(crate) fn number(frame: &Frame, seq: u64) -> Frame {
    let mut frame = frame.clone();
    frame.header.set_trailer(trailer(seq));
    frame
}
