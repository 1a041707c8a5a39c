use std::time::Duration;

use serde_json::json;
use swarm_shared::net::roots::Roots;
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::id::{NodeName, PublicKey};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::trust::{Role, SigningKey};

use super::files::send_file;
use super::*;
use crate::actions::Command;

pub(super) fn endpoint() -> Endpoint {
    let config = endpoint::Config {
        kind: PeerKind::Node,
        name: NodeName::from_host("n1"),
        tags: BTreeMap::new(),
        listen: ([127, 0, 0, 1], 0).into(),
        keepalive: KeepaliveConfig::default(),
        timing: Timing::default(),
        membership: None,
        joins: None,
    };
    let identity = Identity::new(SigningKey::from_seed([1; 32])).expect("randomness");
    let (endpoint, _events) = Endpoint::start(config, Arc::new(identity)).expect("started");
    endpoint
}

#[tokio::test]
async fn sending_to_a_peer_that_never_returns_times_out() {
    let endpoint = endpoint();
    let dir = tempfile::tempdir().expect("a directory");
    let file = std::fs::File::create(dir.path().join("big")).expect("made");
    // More than all queues on the way hold.
    file.set_len(64 * 1024 * 1024).expect("a hole");
    let roots = Roots::new(BTreeMap::from([("r".to_owned(), dir.path().to_owned())]));
    let transfers = Transfers::with_idle(roots, CancellationToken::new(), Duration::from_millis(300));
    let kwargs = json!({ "op": "pull", "path": "r/big" });
    let command = Command {
        id: CommandId {
            issuer: PublicKey([2; 32]).id(),
            epoch: 1,
            seq: 1,
        },
        role: Role::Operator,
        action: "filetransfer".to_owned(),
        arguments: Arguments {
            args: Vec::new(),
            kwargs: kwargs.as_object().cloned().expect("an object"),
        },
        deadline: None,
        cancel: CancellationToken::new(),
    };
    let sent = send_file(&endpoint, &transfers, &command);
    let reply = tokio::time::timeout(Duration::from_secs(20), sent).await;
    assert_eq!(reply.expect("it ends").state, Outcome::Failed);
    endpoint.shutdown().await;
}
