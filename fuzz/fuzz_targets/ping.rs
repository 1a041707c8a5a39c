//! Ping datagrams. A ping without a valid signature is refused, and a repeated one too.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::discovery::ping::{Ping, PingFilter};
use swarm_shared::proto::trust::SigningKey;

fuzz_target!(|data: &[u8]| {
    let (mut filter, now) = (PingFilter::default(), Instant::now());
    let accepted = filter.accept(data, None, now);
    assert_eq!(accepted, Ping::decode(data));
    if accepted.is_ok() {
        assert!(filter.accept(data, None, now).is_err(), "a repeat");
    }

    // Behind the signature check: a signed ping round-trips, and one with any changed byte is refused.
    let Some((fields, change)) = data.split_first_chunk::<18>() else {
        return;
    };
    let key = SigningKey::from_seed([7; 32]);
    let ping = Ping {
        fleet: std::array::from_fn(|at| fields[at]),
        station: key.public(),
        counter: u64::from_be_bytes(std::array::from_fn(|at| fields[8 + at])),
        port: u16::from_be_bytes([fields[16], fields[17]]).max(1),
    };
    let mut bytes = ping.encode(&key);
    assert_eq!(Ping::decode(&bytes), Ok(ping));
    if let [at, bits, ..] = change
        && *bits != 0
    {
        let at = usize::from(*at) % bytes.len();
        bytes[at] ^= bits;
        assert!(Ping::decode(&bytes).is_err(), "byte {at} was changed");
    }
});
