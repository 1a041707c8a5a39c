//! Content of messages that arrive before authentication. Arbitrary bytes never panic; decoded messages round-trip.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::message::{Hello, Join, Joined, Refused, Roster, Welcome};
use swarm_shared::proto::wire::{Frame, Kind};

fuzz_target!(|data: &[u8]| {
    let frame = Frame::binary(Kind::Hello, Bytes::copy_from_slice(data));
    if let Ok(hello) = frame.parse_content::<Hello>() {
        let written = Frame::json(Kind::Hello, &hello);
        let again: Hello = written.parse_content().expect("our own encoding decodes");
        assert_eq!(Frame::json(Kind::Hello, &again), written);
        if let Some(grant) = hello.grant {
            assert!(grant.verify(&PublicKey([7; 32])).is_err(), "no valid signature");
        }
    }
    let _any = frame.parse_content::<Welcome>();
    let _any = frame.parse_content::<Refused>();
    let _any = frame.parse_content::<Join>();
    let _any = frame.parse_content::<Joined>();
    let _any = frame.parse_content::<Roster>();
});
