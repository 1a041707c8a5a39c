//! Today's programs read the state directories that the first format left: see `tests/data/state-0.1/README.md`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use swarm_tests::fleet::{Host, Node, Station, TEST_TIMEOUT, TestDir, str_field};
use swarm_tests::process::wait_until;

/// Copies the stored files, private as the programs wrote them.
fn copy_state(name: &str, to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data/state-0.1")
        .join(name);
    for file in std::fs::read_dir(from).expect("stored") {
        let file = file.expect("readable");
        let copy = to.join(file.file_name());
        std::fs::copy(file.path(), &copy).expect("copied");
        std::fs::set_permissions(copy, Permissions::from_mode(0o600)).expect("private");
    }
}

/// `once` writes a mark, and is not idempotent.
fn old_node(dir: &TestDir, name: &str, station: &Station) -> Node {
    let mut node = dir.node(name, Host::loopback());
    copy_state(&name.replace("drone", "node"), &node.state_dir);
    node.keys = format!("stations = [{:?}]\n", station.listen_addr());
    let marks = dir.path().join(format!("{name}-marks"));
    node.tables = format!(
        "[actions.once]\ncommand = [\"/bin/sh\", \"-c\", \"echo once >>{}\"]\n[actions.quick]\ncommand = [\"/bin/true\"]\n",
        marks.display()
    );
    node.start(&[]);
    node
}

#[test]
fn state_of_the_first_format_is_read() {
    let dir = TestDir::new();
    let mut station = dir.station("field-laptop", Host::loopback());
    copy_state("station", &station.state_dir);
    station.serve();

    let states = |number: &str| {
        let lines = station.run(&["history", number]).json();
        let states = lines
            .iter()
            .map(|line| format!("{} {}", str_field(line, "node"), str_field(line, "state")));
        states.collect::<Vec<_>>()
    };
    assert_eq!(states("1"), ["drone-a done", "drone-b done"]);
    assert_eq!(states("2"), ["drone-a done"]);
    assert_eq!(states("3"), ["drone-b open"]);
    let users = station.run(&["gateway", "users"]).expect_status(0).json();
    assert_eq!(users[0]["user"], "ann", "{users:#?}");

    let drone_a = old_node(&dir, "drone-a", &station);
    let drone_b = old_node(&dir, "drone-b", &station);
    station.wait_online(2);
    for (name, id) in [("drone-a", "2b70fe306f762357"), ("drone-b", "ca6450ff458aee63")] {
        let node = station.node(name);
        assert!(str_field(&node, "id").starts_with(id), "{node}");
    }

    // The program was running when the node was killed: its outcome is unknown, and it does not run again.
    wait_until(TEST_TIMEOUT, "the open delivery ends", || {
        states("3") == ["drone-b unknown"]
    });
    assert_eq!(drone_b.marks(), Vec::<String>::new());

    // The stop is still in force, and a release ends it.
    let refused = station.run(&["call", "all", "quick"]);
    assert_eq!(refused.outcome_of("drone-a"), "refused", "{refused:#?}");
    assert_eq!(refused.outcome_of("drone-b"), "done", "{refused:#?}");
    station.run(&["release", "drone-a"]).expect_status(0);
    station.run(&["call", "drone-a", "once"]).expect_status(0);
    assert_eq!(drone_a.marks(), ["once"]);
}
