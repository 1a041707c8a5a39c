//! The members: keys from the seed, and the grants of the fleet root.

use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::trust::{FleetRoot, Grant, Membership, Role, Signed, SigningKey, TrustError};

use super::plan::{FIRST_NODE, OTHER_OPERATOR, OUTSIDER, SECOND_STATION, STATION};
use super::rng::Rng;
use super::world::{Host, HostId, HostKind};

/// The statements of the fleet root.
pub(super) struct Fleet {
    memberships: Vec<Membership>,
    grants: Vec<Signed<Grant>>,
    /// An operator whose key was revoked.
    pub(super) revoked: SigningKey,
    pub(super) revoked_grant: Signed<Grant>,
}

impl Fleet {
    fn new(seed: u64, hosts: &[Host]) -> Result<Self, TrustError> {
        let mut rng = Rng::stream(seed, "root");
        let mut root = FleetRoot::create(SigningKey::from_seed(rng.bytes()))?;
        let revoked = SigningKey::from_seed(rng.bytes());
        let revoked_grant = root.grant(revoked.public(), Role::Operator)?;
        let grants = hosts
            .iter()
            .map(|host| root.grant(host.key.public(), host.role))
            .collect::<Result<Vec<_>, _>>()?;
        let state = root.revoke(revoked.public())?.clone();
        let memberships = hosts
            .iter()
            .zip(&grants)
            .map(|(host, grant)| {
                Membership::new(root.public(), &host.key.public(), grant.clone(), state.clone())
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            memberships,
            grants,
            revoked,
            revoked_grant,
        })
    }

    pub(super) fn membership(&self, host: HostId) -> &Membership {
        &self.memberships[host]
    }

    pub(super) fn grant(&self, host: HostId) -> &Signed<Grant> {
        &self.grants[host]
    }
}

/// All hosts, stations before nodes, and the root's statements about them.
pub(super) fn create_fleet(seed: u64, nodes: usize) -> Result<(Vec<Host>, Fleet), TrustError> {
    let mut rng = Rng::stream(seed, "keys");
    let mut hosts = Vec::new();
    for host in 0..FIRST_NODE + nodes {
        let (name, kind, role) = match host {
            STATION => ("station".to_owned(), HostKind::Station, Role::Admin),
            SECOND_STATION => ("second".to_owned(), HostKind::Station, Role::Admin),
            OTHER_OPERATOR => ("rival".to_owned(), HostKind::Station, Role::Operator),
            OUTSIDER => ("outsider".to_owned(), HostKind::Station, Role::Observer),
            node => (format!("node-{}", node - FIRST_NODE), HostKind::Node, Role::Node),
        };
        let bytes = rng.bytes();
        // The second station has the key of the first.
        let key = match hosts.first() {
            Some(Host { key, .. }) if host == SECOND_STATION => SigningKey::clone(key),
            Some(_) | None => SigningKey::from_seed(bytes),
        };
        hosts.push(Host {
            id: key.public().id(),
            node_name: NodeName::from_host(&name),
            name,
            kind,
            key,
            role,
        });
    }
    let fleet = Fleet::new(seed, &hosts)?;
    Ok((hosts, fleet))
}
