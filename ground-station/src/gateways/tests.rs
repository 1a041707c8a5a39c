use std::path::Path;

use swarm_shared::net::discovery::presence::ServicePublisher;
use swarm_shared::proto::id::NodeName;

use super::*;
use crate::config::Config;
use crate::engine::transport::gateway_peers::GatewayPeers;

/// A station that is not published.
pub(super) fn test_advertisement() -> Advertisement {
    Advertisement {
        name: NodeName::from_host("st"),
        services: ServicePublisher::default(),
        gateway_peers: GatewayPeers::default(),
    }
}

/// A context with this fleet, and with its store in this directory.
pub(super) async fn test_context(fleet: Fleet, dir: &Path) -> GatewayContext {
    GatewayContext {
        advertisement: test_advertisement(),
        fleet,
        devices: BridgedDevices::default(),
        store: Store::open(dir).await.expect("opens"),
        shutdown: CancellationToken::new(),
        tasks: TaskTracker::new(),
    }
}

async fn open(text: &str) -> Gateways {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = Config::for_host("st");
    config.read_file(Path::new("config.toml"), text).expect("reads");
    let store = Store::open(dir.path()).await.expect("opens");
    let open = Gateways::open(
        &config.gateways,
        test_advertisement(),
        Fleet::local().0,
        BridgedDevices::default(),
        store,
    );
    open.await.expect("opens")
}

#[tokio::test]
async fn runtime_is_started_for_programs_but_not_for_drones() {
    for (text, wanted) in [
        ("", false),
        (
            "[gateways.clever_show]\nlisten = \"127.0.0.1:0\"\nannounce = false",
            false,
        ),
        ("[gateways.platypush_tcp]\nlisten = \"127.0.0.1:0\"", true),
    ] {
        let open = open(text).await;
        let at_work = open.runtime.as_ref().map(LowPriorityRuntime::alive_tasks);
        assert_eq!(at_work.is_some_and(|tasks| tasks > 0), wanted, "{text}");
        open.close().await;
    }
}

#[test]
fn thread_limit_error_says_what_to_raise() {
    let told = GatewayError::Runtime("Resource temporarily unavailable".to_owned()).to_string();
    assert!(told.contains("ulimit -u") && told.contains("TasksMax"), "{told}");
}
