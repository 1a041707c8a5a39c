//! A throw-away fleet whose keys all follow from one seed, so that processes agree on it without exchanging anything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use swarm_shared::net::endpoint::{Config, Endpoint, Events};
use swarm_shared::net::handshake::Identity;
use swarm_shared::net::socket::KeepaliveConfig;
use swarm_shared::proto::hex;
use swarm_shared::proto::id::{NodeName, PeerKind};
use swarm_shared::proto::session::Timing;
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};

/// Where the keys of stations begin; nodes count from 0.
const STATION: u32 = u32::MAX;

/// The fleet.
#[derive(Debug)]
pub struct SeededFleet {
    seed: [u8; 32],
    root: FleetRoot,
}

/// A member that runs in this process.
#[derive(Debug)]
pub struct RunningMember {
    /// To send with.
    pub endpoint: Endpoint,
    /// Its events.
    pub events: Events,
}

impl SeededFleet {
    /// The fleet whose root key has this seed.
    ///
    /// # Errors
    /// Never in practice.
    pub fn from_seed(seed: [u8; 32]) -> anyhow::Result<Self> {
        let root = FleetRoot::create(SigningKey::from_seed(seed))?;
        Ok(Self { seed, root })
    }

    /// The fleet of a seed in hexadecimal digits.
    ///
    /// # Errors
    /// If they are not 64.
    pub fn parse(seed: &str) -> anyhow::Result<Self> {
        let seed = hex::decode(seed).ok_or_else(|| anyhow::anyhow!("a seed has 64 hexadecimal digits"))?;
        Self::from_seed(seed)
    }

    /// The seed in hexadecimal digits.
    pub fn seed(&self) -> String {
        hex::encode(&self.seed)
    }

    /// The station's endpoint.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn station(&mut self, listen: SocketAddr) -> anyhow::Result<RunningMember> {
        self.start(PeerKind::Station, Role::Admin, STATION, listen)
    }

    /// A node's endpoint, on a free port of the loopback interface.
    ///
    /// # Errors
    /// If the machine is out of ports or descriptors.
    pub fn node(&mut self, number: u32) -> anyhow::Result<RunningMember> {
        self.node_at(number, ([127, 0, 0, 1], 0).into())
    }

    /// A node's endpoint at an address of its own.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn node_at(&mut self, number: u32, listen: SocketAddr) -> anyhow::Result<RunningMember> {
        self.start(PeerKind::Node, Role::Node, number, listen)
    }

    fn start(
        &mut self,
        kind: PeerKind,
        role: Role,
        number: u32,
        listen: SocketAddr,
    ) -> anyhow::Result<RunningMember> {
        let material = [&self.seed[..], &number.to_be_bytes()].concat();
        let mut seed = [0; 32];
        seed.copy_from_slice(digest(&SHA256, &material).as_ref());
        let key = SigningKey::from_seed(seed);
        let grant = self.root.grant(key.public(), role)?;
        let state = self.root.state().clone();
        let config = Config {
            kind,
            name: NodeName::parse(&format!("{kind}-{number}"))?,
            tags: BTreeMap::new(),
            listen,
            keepalive: KeepaliveConfig::default(),
            timing: Timing::default(),
            membership: Some(Membership::new(self.root.public(), &key.public(), grant, state)?),
            joins: None,
        };
        let (endpoint, events) = Endpoint::start(config, Arc::new(Identity::new(key)?))?;
        Ok(RunningMember { endpoint, events })
    }
}
