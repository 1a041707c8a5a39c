//! The notifier ping: a small UDP datagram by which a station announces itself.
//!
//! A ping can make a node dial; it can never make it trust. Layout of version 1, 119 bytes, numbers big-endian:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 4 | `SWNP` |
//! | 4 | 1 | version, 1 |
//! | 5 | 8 | the first bytes of the fleet's fingerprint |
//! | 13 | 32 | the station's public key |
//! | 45 | 8 | counter, rising with every ping |
//! | 53 | 2 | TCP port to dial at the address that the datagram came from |
//! | 55 | 64 | Ed25519 by the station over a label and the 55 bytes before |
//!
//! The counter starts at the station's wall clock in milliseconds, so that it usually rises over restarts. A ping only
//! makes a node dial, so [`PingFilter`] uses the counter for a moment only, to drop the copies of one ping: a station
//! whose clock went back is heard with its next ping.

use std::time::{Duration, Instant};

use crate::proto::id::PublicKey;
use crate::proto::trust::{FINGERPRINT_PREFIX_BYTES, Fingerprint, SIGNATURE_BYTES, SigningKey};

/// Length of a ping, in bytes.
pub const PING_BYTES: usize = SIGNED_BYTES + SIGNATURE_BYTES;
/// Most stations whose counters are kept; the least recent one is evicted.
pub const PING_STATIONS_MAX: usize = 64;

/// How long after a ping a further one of the same station has to have a higher counter. Less than the time between two
/// pings, so that a station is heard whatever its clock does.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(2);

const MAGIC: &[u8; 4] = b"SWNP";
const VERSION: u8 = 1;
const LABEL: &[u8] = b"swarm ping v1\0";
const SIGNED_BYTES: usize = 55;

/// The announcement of a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// The first bytes of its fleet's fingerprint.
    pub fleet: [u8; FINGERPRINT_PREFIX_BYTES],
    /// The station's public key.
    pub station: PublicKey,
    /// Rises with every ping of the station.
    pub counter: u64,
    /// Its TCP port; the address is the datagram's source.
    pub port: u16,
}

/// A datagram that is ignored. All of these are normal on a shared network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// It does not have the length of a ping.
    #[error("{0} bytes are not a ping, which has {PING_BYTES}")]
    BadLength(usize),
    /// It does not begin with the magic bytes.
    #[error("not a ping")]
    BadMagic,
    /// It is of a later version.
    #[error("ping of version {0}; this program reads version {VERSION}")]
    OtherVersion(u8),
    /// It is from a station of another fleet.
    #[error("ping of another fleet")]
    OtherFleet,
    /// Its port is 0, which cannot be dialled.
    #[error("ping without a port")]
    NoPort,
    /// Its counter is not higher than that of the ping just before.
    #[error("ping {counter} is not newer than {heard}: a copy")]
    Replayed {
        /// Counter of the ping.
        counter: u64,
        /// Counter of the station's last ping.
        heard: u64,
    },
    /// The signature does not match the bytes and the key.
    #[error("ping with a bad signature")]
    BadSignature,
}

impl Ping {
    /// Encodes and signs the datagram. `key` must be the private half of [`Ping::station`]: receivers ignore any
    /// other signature.
    pub fn encode(&self, key: &SigningKey) -> [u8; PING_BYTES] {
        let mut bytes = [0; PING_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = VERSION;
        bytes[5..13].copy_from_slice(&self.fleet);
        bytes[13..45].copy_from_slice(&self.station.0);
        bytes[45..53].copy_from_slice(&self.counter.to_be_bytes());
        bytes[53..55].copy_from_slice(&self.port.to_be_bytes());
        let signature = key.sign(&with_label(&bytes[..SIGNED_BYTES]));
        bytes[SIGNED_BYTES..].copy_from_slice(&signature);
        bytes
    }

    /// Decodes a datagram and checks its signature. [`PingFilter`] checks that it is new.
    ///
    /// # Errors
    /// [`PingError`]: the first fault found.
    pub fn decode(bytes: &[u8]) -> Result<Self, PingError> {
        let ping = Self::read_unverified(bytes)?;
        ping.check_signature(bytes)?;
        Ok(ping)
    }

    fn read_unverified(bytes: &[u8]) -> Result<Self, PingError> {
        let bytes: &[u8; PING_BYTES] = bytes
            .try_into()
            .map_err(|_length| PingError::BadLength(bytes.len()))?;
        if !bytes.starts_with(MAGIC) {
            return Err(PingError::BadMagic);
        }
        if bytes[4] != VERSION {
            return Err(PingError::OtherVersion(bytes[4]));
        }
        let ping = Self {
            fleet: field(bytes, 5),
            station: PublicKey(field(bytes, 13)),
            counter: u64::from_be_bytes(field(bytes, 45)),
            port: u16::from_be_bytes(field(bytes, 53)),
        };
        if ping.port == 0 {
            return Err(PingError::NoPort);
        }
        Ok(ping)
    }

    fn check_signature(&self, bytes: &[u8]) -> Result<(), PingError> {
        let (signed, signature) = bytes
            .split_at_checked(SIGNED_BYTES)
            .ok_or(PingError::BadLength(bytes.len()))?;
        self.station
            .verify(&with_label(signed), signature)
            .map_err(|_trust| PingError::BadSignature)
    }
}

fn field<const N: usize>(bytes: &[u8; PING_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes[at + n])
}

fn with_label(signed: &[u8]) -> Vec<u8> {
    [LABEL, signed].concat()
}

/// Creates a station's pings, each with a higher counter than the one before.
#[derive(Debug)]
pub struct PingSender {
    key: SigningKey,
    fleet: [u8; FINGERPRINT_PREFIX_BYTES],
    port: u16,
    last_counter: u64,
}

impl PingSender {
    /// A sender for the station with this key, which listens on `port`. `last` is the highest counter that this
    /// station has used, or 0 if it is not known: it matters where the wall clock may go back.
    pub fn new(key: SigningKey, fleet: &Fingerprint, port: u16, last: u64) -> Self {
        Self {
            key,
            fleet: fleet.prefix(),
            port,
            last_counter: last,
        }
    }

    /// The next datagram.
    pub fn next_datagram(&mut self, now_unix_ms: u64) -> [u8; PING_BYTES] {
        self.last_counter = now_unix_ms.max(self.last_counter.saturating_add(1));
        let ping = Ping {
            fleet: self.fleet,
            station: self.key.public(),
            counter: self.last_counter,
            port: self.port,
        };
        ping.encode(&self.key)
    }

    /// The highest counter used so far.
    pub fn last_counter(&self) -> u64 {
        self.last_counter
    }
}

/// Accepts one of the copies of each ping. It keeps the counters of [`PING_STATIONS_MAX`] stations, and checks the signature last,
/// because that is the expensive part.
#[derive(Debug, Default)]
pub struct PingFilter {
    /// The last ping of each station, the most recent station last.
    last_pings: Vec<LastPing>,
}

#[derive(Clone, Copy, Debug)]
struct LastPing {
    station: PublicKey,
    counter: u64,
    at: Instant,
}

impl PingFilter {
    /// Decodes a datagram and checks that it is new. `fleet` is ours; with `None`, as for a node that has not joined,
    /// the pings of any fleet are accepted.
    ///
    /// # Errors
    /// [`PingError`]: why it is ignored.
    pub fn accept(
        &mut self,
        datagram: &[u8],
        fleet: Option<&Fingerprint>,
        now: Instant,
    ) -> Result<Ping, PingError> {
        let ping = Ping::read_unverified(datagram)?;
        if fleet.is_some_and(|fleet| fleet.prefix() != ping.fleet) {
            return Err(PingError::OtherFleet);
        }
        let index = self
            .last_pings
            .iter()
            .position(|last| last.station == ping.station);
        if let Some(last) = index.map(|at| self.last_pings[at])
            && ping.counter <= last.counter
            && now < last.at + DUPLICATE_WINDOW
        {
            return Err(PingError::Replayed {
                counter: ping.counter,
                heard: last.counter,
            });
        }
        ping.check_signature(datagram)?;
        match index {
            Some(at) => {
                self.last_pings.remove(at);
            }
            None if self.last_pings.len() >= PING_STATIONS_MAX => {
                self.last_pings.remove(0);
            }
            None => {}
        }
        self.last_pings.push(LastPing {
            station: ping.station,
            counter: ping.counter,
            at: now,
        });
        Ok(ping)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::clock;
    use crate::proto::hex;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed([seed; 32])
    }

    fn fleet() -> Fingerprint {
        Fingerprint([0xf1; 32])
    }

    fn ping(seed: u8, counter: u64) -> Ping {
        Ping {
            fleet: fleet().prefix(),
            station: key(seed).public(),
            counter,
            port: 7421,
        }
    }

    fn datagram(seed: u8, counter: u64) -> [u8; PING_BYTES] {
        ping(seed, counter).encode(&key(seed))
    }

    /// Bytes of a released version never change: if this fails, undo your change, not the test.
    #[test]
    fn golden_ping() {
        let bytes = datagram(1, 1_700_000_000_000);
        assert_eq!(
            hex::encode(&bytes),
            concat!(
                "53574e5001f1f1f1f1f1f1f1f18a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf37488",
                "01b40f6f5c0000018bcfe568001cfdeec2f12428578aa5a9b185b98e98cdd5bd6647a60ad0016b88",
                "b7eaa26ecf497d98d9790693deef6b0441075105a546d5a9cc12a7f0e9c09eb7b58a4f5d0ca70d"
            )
        );
        assert_eq!(Ping::decode(&bytes), Ok(ping(1, 1_700_000_000_000)));
    }

    #[test]
    fn each_ping_fault_has_its_error() {
        let good = datagram(1, 5);
        let change = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Ping::decode(&bytes)
        };
        assert_eq!(Ping::decode(&good[1..]), Err(PingError::BadLength(118)));
        assert_eq!(change(0, b'X'), Err(PingError::BadMagic));
        assert_eq!(change(4, 2), Err(PingError::OtherVersion(2)));
        assert_eq!(change(52, 6), Err(PingError::BadSignature));
        let portless = Ping {
            port: 0,
            ..ping(1, 5)
        };
        assert_eq!(Ping::decode(&portless.encode(&key(1))), Err(PingError::NoPort));
        assert_eq!(
            Ping::decode(&ping(1, 5).encode(&key(2))),
            Err(PingError::BadSignature)
        );
    }

    #[test]
    fn ping_is_accepted_once_and_only_in_its_fleet() {
        let (mut guard, now) = (PingFilter::default(), clock::now());
        let other = Fingerprint([2; 32]);
        assert_eq!(
            guard.accept(&datagram(1, 5), Some(&other), now),
            Err(PingError::OtherFleet)
        );
        assert_eq!(guard.accept(&datagram(1, 5), Some(&fleet()), now), Ok(ping(1, 5)));
        for old in [5, 4] {
            let replayed = PingError::Replayed {
                counter: old,
                heard: 5,
            };
            assert_eq!(guard.accept(&datagram(1, old), None, now), Err(replayed));
        }
        assert_eq!(guard.accept(&datagram(2, 1), None, now), Ok(ping(2, 1)));
        assert_eq!(guard.accept(&datagram(1, 6), None, now), Ok(ping(1, 6)));
    }

    /// Pings received before joining, of its own station and of others, do not block later ones.
    #[test]
    fn pings_of_a_station_are_accepted_after_joining_its_fleet() {
        let (mut guard, now) = (PingFilter::default(), clock::now());
        assert_eq!(
            guard.accept(&datagram(1, 5), None, now),
            Ok(ping(1, 5)),
            "a stranger"
        );
        assert_eq!(guard.accept(&datagram(1, 6), Some(&fleet()), now), Ok(ping(1, 6)));
        let other = Fingerprint([2; 32]);
        for counter in 7..9 {
            let ignored = guard.accept(&datagram(1, counter), Some(&other), now);
            assert_eq!(ignored, Err(PingError::OtherFleet));
        }
        assert_eq!(guard.accept(&datagram(1, 8), Some(&fleet()), now), Ok(ping(1, 8)));
    }

    #[test]
    fn forged_ping_counter_does_not_block_a_station() {
        let (mut guard, now) = (PingFilter::default(), clock::now());
        let forged = ping(1, u64::MAX).encode(&key(2));
        assert_eq!(guard.accept(&forged, None, now), Err(PingError::BadSignature));
        assert_eq!(guard.accept(&datagram(1, 1), None, now), Ok(ping(1, 1)));
    }

    #[test]
    fn station_is_heard_with_its_next_ping_whatever_its_clock_does() {
        let (mut guard, now) = (PingFilter::default(), clock::now());
        let day_ms = 86_400_000;
        assert_eq!(
            guard.accept(&datagram(1, 10 * day_ms), None, now),
            Ok(ping(1, 10 * day_ms))
        );
        let next = now + Duration::from_secs(3);
        assert_eq!(
            guard.accept(&datagram(1, 9 * day_ms), None, next),
            Ok(ping(1, 9 * day_ms))
        );
        assert!(
            guard.accept(&datagram(1, 9 * day_ms), None, next).is_err(),
            "a copy"
        );
    }

    #[test]
    fn ping_filter_is_bounded_and_evicts_least_recent() {
        let (mut guard, now) = (PingFilter::default(), clock::now());
        let max = u8::try_from(PING_STATIONS_MAX).expect("small");
        guard.accept(&datagram(200, 1), None, now).expect("new");
        for seed in 0..max - 1 {
            guard.accept(&datagram(seed, 1), None, now).expect("new");
        }
        guard.accept(&datagram(200, 2), None, now).expect("newer");
        guard.accept(&datagram(201, 1), None, now).expect("new");
        assert_eq!(guard.last_pings.len(), PING_STATIONS_MAX);
        assert!(guard.accept(&datagram(200, 2), None, now).is_err());
        assert_eq!(guard.accept(&datagram(0, 1), None, now), Ok(ping(0, 1)));
    }

    #[test]
    fn ping_counters_rise_despite_restarts_and_clock_setbacks() {
        let mut sender = PingSender::new(key(1), &fleet(), 7421, 0);
        let counter =
            |sender: &mut PingSender, now| Ping::decode(&sender.next_datagram(now)).map(|ping| ping.counter);
        assert_eq!(counter(&mut sender, 1_000), Ok(1_000));
        assert_eq!(counter(&mut sender, 1_000), Ok(1_001));
        assert_eq!(counter(&mut sender, 10), Ok(1_002));
        assert_eq!(counter(&mut sender, 5_000), Ok(5_000));
        let mut restarted = PingSender::new(key(1), &fleet(), 7421, sender.last_counter());
        assert_eq!(counter(&mut restarted, 20), Ok(5_001));
    }

    proptest! {
        #[test]
        fn arbitrary_ping_datagram_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Ping::decode(&bytes).is_err());
            prop_assert!(PingFilter::default().accept(&bytes, None, clock::now()).is_err());
        }

        #[test]
        fn ping_round_trips(fleet: [u8; FINGERPRINT_PREFIX_BYTES], seed: [u8; 32], counter: u64, port in 1..=u16::MAX) {
            let key = SigningKey::from_seed(seed);
            let ping = Ping { fleet, station: key.public(), counter, port };
            prop_assert_eq!(Ping::decode(&ping.encode(&key)), Ok(ping));
        }

        #[test]
        fn ping_with_any_bit_flipped_is_refused(at in 0..PING_BYTES, bit in 0_u32..8) {
            let mut bytes = datagram(1, 5);
            bytes[at] ^= 1 << bit;
            prop_assert!(Ping::decode(&bytes).is_err());
        }
    }
}
