//! Invitation codes as text. Arbitrary text never panics; a parsed code prints to the same code.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::trust::Fingerprint;
use swarm_shared::proto::trust::invite::{Invitation, InviteSecret};

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(invitation) = text.parse::<Invitation>()
    {
        assert_eq!(invitation.to_string().parse(), Ok(invitation));
    }

    // Behind the checksum: any invitation round-trips.
    let Some((fixed, addresses)) = data.split_first_chunk::<48>() else {
        return;
    };
    let addresses = addresses.chunks_exact(6).map(|bytes| {
        let ip = IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]));
        SocketAddr::new(ip, u16::from_be_bytes([bytes[4], bytes[5]]))
    });
    let invitation = Invitation::new(
        Fingerprint(std::array::from_fn(|at| fixed[at])),
        InviteSecret::new(std::array::from_fn(|at| fixed[32 + at])),
        addresses,
    );
    assert_eq!(invitation.to_string().to_lowercase().parse(), Ok(invitation));
});
