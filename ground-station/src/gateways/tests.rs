use std::path::Path;

use super::*;
use crate::config::Config;

/// A station that nobody finds.
pub(super) fn face() -> Face {
    Face {
        name: NodeName::from_host("st"),
        services: Services::default(),
        posts: Posts::default(),
    }
}

/// What a door stands in, before this fleet and with its store in this directory.
pub(super) async fn house(fleet: Fleet, dir: &Path) -> House {
    House {
        face: face(),
        fleet,
        guests: Guests::default(),
        store: Store::open(dir).await.expect("opens"),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    }
}

async fn open(text: &str) -> Open {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = Config::for_host("st");
    config.read_file(Path::new("config.toml"), text).expect("reads");
    let store = Store::open(dir.path()).await.expect("opens");
    let open = Open::all(&config.doors, face(), Fleet::local().0, Guests::default(), store);
    open.await.expect("opens")
}

#[tokio::test]
async fn threads_are_made_for_programs_and_not_for_drones() {
    for (text, wanted) in [
        ("", false),
        (
            "[doors.clever_show]\nlisten = \"127.0.0.1:0\"\nannounce = false",
            false,
        ),
        ("[doors.platypush_tcp]\nlisten = \"127.0.0.1:0\"", true),
    ] {
        let open = open(text).await;
        let at_work = open.threads.as_ref().map(Threads::at_work);
        assert_eq!(at_work.is_some_and(|tasks| tasks > 0), wanted, "{text}");
        open.close().await;
    }
}

#[test]
fn whoever_has_no_threads_left_is_told_what_to_do() {
    let told = DoorError::Threads("Resource temporarily unavailable".to_owned()).to_string();
    assert!(told.contains("ulimit -u") && told.contains("TasksMax"), "{told}");
}
