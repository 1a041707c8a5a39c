//! The bytes of version 1 of our link protocol. If this fails, undo your change, not the test: programs in the field
//! read and write exactly these.
//!
//! Written here without the two bytes of the header's length.

use std::collections::BTreeMap;
use std::io::IoSlice;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use swarm_shared::proto::id::{Instance, NodeName, PeerId, PeerKind, PublicKey};
use swarm_shared::proto::message::{
    Arguments, Channel, FleetStateMessage, Hello, Join, JoinProof, Joined, PROTOCOL_VERSIONS, RefusalCode,
    Refused, Roster, RosterPeer, Welcome,
};
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::wire::encoded::{EncodedFrame, OutBuffer, Trailer};
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader, Header, Kind, Lane, MessageType};

/// What goes to the socket for a frame.
fn written(frame: &Frame, trailer: Trailer) -> Bytes {
    let mut out = OutBuffer::default();
    out.push(&EncodedFrame::new(frame).expect("a short header"), trailer);
    let mut slices = [IoSlice::new(&[]); 2];
    let filled = out.fill_slices(&mut slices);
    slices[..filled]
        .iter()
        .flat_map(|slice| slice.iter().copied())
        .collect()
}

/// The frame is written as `text`, and `text` is read as the frame.
#[track_caller]
fn golden(mut frame: Frame, trailer: Trailer, header: &str, content: &[u8]) {
    let mut bytes = BytesMut::new();
    bytes.put_u16(u16::try_from(header.len()).expect("a short header"));
    bytes.put_slice(header.as_bytes());
    bytes.put_slice(content);
    let was_written = written(&frame, trailer);
    assert_eq!(
        String::from_utf8_lossy(&was_written[2..]),
        String::from_utf8_lossy(&bytes[2..])
    );
    assert_eq!(was_written, bytes);

    let read = FrameReader::new(FrameLimits::CONTROL)
        .next_frame(&mut bytes)
        .expect("sound")
        .expect("whole");
    frame.header.set_trailer(trailer);
    assert_eq!(read, frame);

    // The other way to write a frame writes the same.
    let mut encoded = BytesMut::new();
    frame.encode(&mut encoded).expect("a short header");
    assert_eq!(encoded, was_written);
}

/// A frame of JSON content without header keys of its own.
#[track_caller]
fn golden_json<T: Serialize + DeserializeOwned>(kind: Kind, word: &str, content: &T, text: &str) {
    let header = format!(
        r#"{{"byteorder":"little","content-type":"json","content-encoding":"utf-8","content-length":{},"message-type":"message","kind":"{word}"}}"#,
        text.len()
    );
    golden(
        Frame::json(kind, content),
        Trailer::default(),
        &header,
        text.as_bytes(),
    );
    let read: T = Frame::json(kind, content).parse_content().expect("what we wrote");
    assert_eq!(serde_json::to_string(&read).expect("plain data"), text);
}

fn key(byte: u8) -> PublicKey {
    PublicKey([byte; 32])
}

fn name(text: &str) -> NodeName {
    NodeName::parse(text).expect("a name")
}

fn signed<T: DeserializeOwned>(body: &str) -> T {
    serde_json::from_value(json!({"body": body, "signature": "5a".repeat(64)})).expect("a signed statement")
}

fn signed_text(body: &str) -> String {
    format!(r#"{{"body":{},"signature":"{}"}}"#, json!(body), "5a".repeat(64))
}

const GRANT: &str = r#"{"fleet":"01","key":"02","role":"node","capabilities":[],"serial":3}"#;
const STATE: &str = r#"{"fleet":"01","number":4,"revoked":[]}"#;

#[test]
fn hello() {
    let mut hello = Hello {
        versions: PROTOCOL_VERSIONS,
        channel: Channel::Control,
        kind: PeerKind::Node,
        name: name("drone-07"),
        instance: Instance(u64::MAX),
        port: 7420,
        tags: BTreeMap::new(),
        software: "0.1.0".to_owned(),
        grant: None,
        fleet_state: 0,
        small_segments: false,
    };
    golden_json(
        Kind::Hello,
        "hello",
        &hello,
        r#"{"versions":{"min":1,"max":1},"channel":"control","kind":"node","name":"drone-07","instance":18446744073709551615,"port":7420,"software":"0.1.0","fleet_state":0}"#,
    );
    hello.channel = Channel::Bulk;
    hello.kind = PeerKind::Station;
    hello.tags = BTreeMap::from([("row".to_owned(), "3".to_owned())]);
    hello.grant = Some(signed(GRANT));
    hello.fleet_state = 4;
    let text = format!(
        r#"{{"versions":{{"min":1,"max":1}},"channel":"bulk","kind":"station","name":"drone-07","instance":18446744073709551615,"port":7420,"tags":{{"row":"3"}},"software":"0.1.0","grant":{},"fleet_state":4}}"#,
        signed_text(GRANT)
    );
    golden_json(Kind::Hello, "hello", &hello, &text);
}

#[test]
fn welcome() {
    let welcome = Welcome {
        instance: Instance(7),
        peer_instance: Instance(8),
        received: 9,
    };
    golden_json(
        Kind::Welcome,
        "welcome",
        &welcome,
        r#"{"instance":7,"peer_instance":8,"received":9}"#,
    );
}

#[test]
fn refused() {
    let words = [
        (RefusalCode::Version, "version"),
        (RefusalCode::NoGrant, "no-grant"),
        (RefusalCode::WrongFleet, "wrong-fleet"),
        (RefusalCode::BadGrant, "bad-grant"),
        (RefusalCode::Revoked, "revoked"),
        (RefusalCode::NotAllowed, "not-allowed"),
        (RefusalCode::Duplicate, "duplicate"),
        (RefusalCode::ClonedKey, "cloned-key"),
        (RefusalCode::BadCode, "bad-code"),
        (RefusalCode::Pending, "pending"),
        (RefusalCode::Protocol, "protocol"),
        (RefusalCode::Busy, "busy"),
        (RefusalCode::ShuttingDown, "shutting-down"),
    ];
    for (code, word) in words {
        let text = format!(r#"{{"code":"{word}","reason":"why"}}"#);
        golden_json(Kind::Refused, "refused", &Refused::new(code, "why"), &text);
    }
    let later: Refused = serde_json::from_str(r#"{"code":"from-the-future","reason":"why"}"#).expect("read");
    assert_eq!(later.code, RefusalCode::Other);
}

#[test]
fn join_and_joined() {
    let proof = JoinProof {
        code: [0xab; 8],
        mac: [0xcd; 32],
    };
    let proof_text = format!(r#"{{"code":"{}","mac":"{}"}}"#, "ab".repeat(8), "cd".repeat(32));
    golden_json(Kind::Join, "join", &Join { proof: None }, "{}");
    golden_json(
        Kind::Join,
        "join",
        &Join { proof: Some(proof) },
        &format!(r#"{{"proof":{proof_text}}}"#),
    );
    let joined = Joined {
        root: key(1),
        grant: signed(GRANT),
        fleet_state: signed(STATE),
        proof: Some(proof),
    };
    let text = format!(
        r#"{{"root":"{}","grant":{},"fleet_state":{},"proof":{proof_text}}}"#,
        "01".repeat(32),
        signed_text(GRANT),
        signed_text(STATE)
    );
    golden_json(Kind::Joined, "joined", &joined, &text);
}

#[test]
fn roster() {
    let peer = |kind, addr: &str| RosterPeer {
        id: PeerId([0xef; 32]),
        kind,
        name: name("a"),
        addr: addr.parse().expect("an address"),
    };
    let roster = Roster {
        peers: vec![
            peer(PeerKind::Node, "192.0.2.7:7420"),
            peer(PeerKind::Station, "[2001:db8::1]:7421"),
        ],
    };
    let id = "ef".repeat(32);
    let text = format!(
        r#"{{"peers":[{{"id":"{id}","kind":"node","name":"a","addr":"192.0.2.7:7420"}},{{"id":"{id}","kind":"station","name":"a","addr":"[2001:db8::1]:7421"}}]}}"#
    );
    golden_json(Kind::Roster, "roster", &roster, &text);
}

#[test]
fn fleet_state() {
    let state: FleetStateMessage = signed(STATE);
    golden_json(Kind::FleetState, "fleet-state", &state, &signed_text(STATE));
}

#[test]
fn frames_without_content() {
    for (kind, word) in [
        (Kind::Heartbeat, "heartbeat"),
        (Kind::Ack, "ack"),
        (Kind::OpenBulk, "open-bulk"),
    ] {
        let header = format!(
            r#"{{"byteorder":"little","content-type":"binary","content-encoding":"utf-8","content-length":0,"message-type":"message","kind":"{word}","ack":12}}"#
        );
        let trailer = Trailer {
            ack: Some(12),
            ..Trailer::default()
        };
        golden(Frame::binary(kind, Bytes::new()), trailer, &header, b"");
    }
}

#[test]
fn command() {
    let mut arguments = Arguments::default();
    arguments.kwargs.insert("color".to_owned(), json!("#ff0000"));
    let mut frame = Frame::json(Kind::Command, &arguments);
    frame.header = Header {
        message_type: MessageType::Request,
        action: Some("led".to_owned()),
        lane: Some(Lane::Control),
        id: Some(41),
        epoch: Some(3),
        ..frame.header
    };
    golden(
        frame.clone(),
        Trailer {
            seq: Some(5),
            ack: Some(4),
            ttl: Some(2_000),
            ..Trailer::default()
        },
        r##"{"byteorder":"little","content-type":"json","content-encoding":"utf-8","content-length":40,"message-type":"request","action":"led","kind":"command","lane":"control","id":41,"epoch":3,"seq":5,"ack":4,"ttl":2000}"##,
        br##"{"args":[],"kwargs":{"color":"#ff0000"}}"##,
    );
    for (lane, word) in [
        (Lane::Emergency, "emergency"),
        (Lane::Telemetry, "telemetry"),
        (Lane::Bulk, "bulk"),
    ] {
        frame.header.lane = Some(lane);
        let header = format!(
            r#"{{"byteorder":"little","content-type":"json","content-encoding":"utf-8","content-length":40,"message-type":"request","action":"led","kind":"command","lane":"{word}","id":41,"epoch":3,"seq":18446744073709551615,"ack":18446744073709551615,"ttl":18446744073709551615}}"#
        );
        let most = Some(u64::MAX);
        let trailer = Trailer {
            seq: most,
            ack: most,
            ttl: most,
            ..Trailer::default()
        };
        golden(
            frame.clone(),
            trailer,
            &header,
            br##"{"args":[],"kwargs":{"color":"#ff0000"}}"##,
        );
    }
}

#[test]
fn command_with_all_its_deadlines() {
    let mut frame = Frame::json(Kind::Command, &Arguments::default());
    frame.header.message_type = MessageType::Request;
    frame.header.action = Some("takeoff".to_owned());
    frame.header.life = Some(2_000);
    golden(
        frame,
        Trailer {
            seq: Some(1),
            ack: None,
            ttl: Some(1_500),
            until: Some(72_000),
            stamp: Some(9),
        },
        r#"{"byteorder":"little","content-type":"json","content-encoding":"utf-8","content-length":23,"message-type":"request","action":"takeoff","kind":"command","life":2000,"seq":1,"ttl":1500,"until":72000,"stamp":9}"#,
        br#"{"args":[],"kwargs":{}}"#,
    );
}

#[test]
fn reply() {
    let whole = Reply {
        state: Outcome::Failed,
        value: Some(json!({"x": 1})),
        output: Some("out\n".to_owned()),
        exit: Some(3),
        error: Some("why".to_owned()),
    };
    let content = br#"{"state":"failed","value":{"x":1},"output":"out\n","exit":3,"error":"why"}"#;
    let mut frame = Frame::json(Kind::Reply, &whole);
    frame.header = Header {
        message_type: MessageType::Response,
        id: Some(41),
        epoch: Some(3),
        ..frame.header
    };
    golden(
        frame,
        Trailer {
            seq: Some(6),
            ..Trailer::default()
        },
        r#"{"byteorder":"little","content-type":"json","content-encoding":"utf-8","content-length":74,"message-type":"response","kind":"reply","id":41,"epoch":3,"seq":6}"#,
        content,
    );
    for (state, word) in [
        (Outcome::Done, "done"),
        (Outcome::Failed, "failed"),
        (Outcome::Refused, "refused"),
        (Outcome::Expired, "expired"),
        (Outcome::Unknown, "unknown"),
        (Outcome::NoAnswer, "no-answer"),
    ] {
        let text = format!(r#"{{"state":"{word}","error":"why"}}"#);
        golden_json(Kind::Reply, "reply", &Reply::ended(state, "why"), &text);
    }
}

#[test]
fn chunk_and_chunk_end() {
    for content in [Bytes::from_static(b"\x00\xff"), Bytes::from(vec![0x80; 10_000])] {
        let mut frame = Frame::binary(Kind::Chunk, content.clone());
        frame.header.id = Some(41);
        frame.header.offset = Some(262_144);
        let header = format!(
            r#"{{"byteorder":"little","content-type":"binary","content-encoding":"utf-8","content-length":{},"message-type":"message","kind":"chunk","id":41,"offset":262144,"seq":7}}"#,
            content.len()
        );
        golden(
            frame,
            Trailer {
                seq: Some(7),
                ..Trailer::default()
            },
            &header,
            &content,
        );
    }
    let mut frame = Frame::json(Kind::ChunkEnd, &json!({"sha256": "00", "size": 262_146}));
    frame.header.id = Some(41);
    golden(
        frame,
        Trailer {
            seq: Some(8),
            ..Trailer::default()
        },
        r#"{"byteorder":"little","content-type":"json","content-encoding":"utf-8","content-length":29,"message-type":"message","kind":"chunk-end","id":41,"seq":8}"#,
        br#"{"sha256":"00","size":262146}"#,
    );
}

#[test]
fn arguments_may_be_null() {
    for text in [
        r#"{"args":null,"kwargs":null}"#,
        "{}",
        r#"{"args":[],"kwargs":{},"new":1}"#,
    ] {
        let arguments: Arguments = serde_json::from_str(text).expect("read");
        assert_eq!(arguments, Arguments::default());
    }
}
