//! What is said before a peer is known: no bytes do more than fail, and what was understood reads back.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::message::{Hello, Join, Joined, Refused, Roster, Welcome};
use swarm_shared::proto::wire::{Frame, Kind};

fuzz_target!(|data: &[u8]| {
    let frame = Frame::binary(Kind::Hello, Bytes::copy_from_slice(data));
    if let Ok(hello) = frame.read::<Hello>() {
        let written = Frame::json(Kind::Hello, &hello);
        let again: Hello = written.read().expect("what we write, we read");
        assert_eq!(Frame::json(Kind::Hello, &again), written);
        if let Some(grant) = hello.grant {
            assert!(grant.verify(&PublicKey([7; 32])).is_err(), "nobody signed this");
        }
    }
    let _any = frame.read::<Welcome>();
    let _any = frame.read::<Refused>();
    let _any = frame.read::<Join>();
    let _any = frame.read::<Joined>();
    let _any = frame.read::<Roster>();
});
