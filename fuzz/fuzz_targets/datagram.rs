//! Any datagram to the port for pings: as a stop, as a ping. Nothing forged is heeded, and nothing panics.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::ping::PingFilter;
use swarm_shared::proto::selector::Target;
use swarm_shared::proto::stop::{Carrier, StopDatagram, StopReceiver};
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};

static MEMBER: LazyLock<Membership> = LazyLock::new(|| {
    let mut root = FleetRoot::create(SigningKey::from_seed([1; 32])).expect("a fleet");
    let own = SigningKey::from_seed([3; 32]).public();
    let grant = root.grant(own, Role::Node).expect("a grant");
    Membership::new(root.public(), &own, grant, root.state().clone()).expect("ours")
});

fuzz_target!(|bytes: &[u8]| {
    let name = NodeName::parse("drone-07").expect("a name");
    let id = SigningKey::from_seed([3; 32]).public().id();
    let tags = BTreeMap::new();
    let me = Target {
        name: &name,
        id: &id,
        tags: &tags,
    };
    let mut desk = StopReceiver::new(true, Vec::new(), None);
    #[allow(clippy::disallowed_methods)]
    let now = Instant::now();
    let first = desk.hear(bytes, Carrier::Datagram, Some(&MEMBER), &me, now);
    if first.is_ok() && desk.present().is_some() {
        // Only what the corpus holds is signed: it is heeded once.
        let order = desk.present().expect("stopped").order;
        desk.release(order).expect("in force");
        desk.hear(bytes, Carrier::Datagram, Some(&MEMBER), &me, now)
            .expect("sound");
        assert!(desk.present().is_none(), "a replay after the release");
    }
    let _ping = PingFilter::default().accept(bytes, None);
    if let Ok(read) = StopDatagram::read(bytes) {
        let _grant = read.grant().verify(MEMBER.root());
    }
});
