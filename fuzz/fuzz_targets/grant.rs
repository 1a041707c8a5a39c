//! A signed grant as JSON. It is accepted only with the fleet root's signature.
#![no_main]

use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::trust::{Grant, Signed, SigningKey};

fuzz_target!(|bytes: &[u8]| {
    let Ok(signed) = serde_json::from_slice::<Signed<Grant>>(bytes) else {
        return;
    };
    let root = SigningKey::from_seed([1; 32]).public();
    if let Ok(grant) = signed.verify(&root) {
        assert_eq!(grant.fleet, root);
        let again = serde_json::to_vec(&signed).expect("it was decoded");
        assert_eq!(
            serde_json::from_slice::<Signed<Grant>>(&again).expect("our own encoding"),
            signed
        );
    }
});
