//! Datagrams to the ping port, read as a stop and as a ping. Forged ones have no effect, and none panics.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::discovery::ping::PingFilter;
use swarm_shared::proto::selector::NodeAttributes;
use swarm_shared::proto::stop::{ReceivedVia, StopDatagram, StopReceiver};
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
    let me = NodeAttributes {
        name: &name,
        id: &id,
        tags: &tags,
    };
    let mut receiver = StopReceiver::new(true, Vec::new(), None);
    #[allow(clippy::disallowed_methods)]
    let now = Instant::now();
    let first = receiver.receive(bytes, ReceivedVia::Datagram, Some(&MEMBER), &me, now);
    if first.is_ok() && receiver.active_stop().is_some() {
        // Only the datagrams in the corpus have a valid signature: each takes effect once.
        let id = receiver.active_stop().expect("stopped").id;
        receiver.release(id).expect("in force");
        receiver
            .receive(bytes, ReceivedVia::Datagram, Some(&MEMBER), &me, now)
            .expect("sound");
        assert!(receiver.active_stop().is_none(), "a replay after the release");
    }
    let _ping = PingFilter::default().accept(bytes, None, Instant::now());
    if let Ok(datagram) = StopDatagram::parse(bytes) {
        let _grant = datagram.grant().verify(MEMBER.root());
    }
});
