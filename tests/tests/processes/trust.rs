//! Which keys are accepted and which are not; both sides show the reason.

use std::time::Duration;

use swarm_shared::proto::trust::invite::{Invitation, InviteSecret};
use swarm_tests::fleet::{Fleet, Host, Invite, Node, Station, TEST_TIMEOUT, TestDir, str_field};
use swarm_tests::process::{Signal, sleep_for, wait_until};

fn join_result(node: &Node, code: &str) -> Result<String, String> {
    let output = node.run(&["join", code, "--no-pings", "--no-mdns"]);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(said(&output.stdout))
    } else {
        Err(said(&output.stderr))
    }
}

fn wait_station_log(station: &Station, what: &str) {
    wait_until(
        TEST_TIMEOUT,
        &format!("the station's log says {what:?}: {:#?}", station.log()),
        || station.log().iter().any(|line| line.contains(what)),
    );
}

#[test]
fn join_reports_its_result() {
    let field = TestDir::new();
    let mut station = field.station("st", Host::loopback());
    station.serve();
    let code = station.invite(&Invite::nodes(2));
    let mut running = field.node("n1", Host::loopback());
    running.start(&[]);
    let idle = field.node("n2", Host::loopback());
    for node in [&running, &idle] {
        let output = node.run(&["join", &code, "--no-pings", "--no-mdns"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        for word in ["connecting to ", "found st at "] {
            assert!(told.contains(word), "{word:?} is missing: {told}");
        }
    }
}

#[test]
fn invalid_join_codes_are_refused() {
    let field = TestDir::new();
    let mut station = field.station("st", Host::loopback());
    station.serve();
    let good = station.invite(&Invite::nodes(1));
    let known: Invitation = good.parse().expect("a code");

    let node = field.node("n1", Host::loopback());
    let forged = Invitation::new(
        *known.fingerprint(),
        InviteSecret::new([7; 16]),
        known.addresses().to_vec(),
    );
    let why = join_result(&node, &forged.to_string()).expect_err("wrong");
    assert!(why.contains("code"), "{why}");
    wait_station_log(&station, "Join refused");

    let short = Invite {
        valid_for: "200ms",
        ..Invite::nodes(1)
    };
    let late = station.invite(&short);
    sleep_for(Duration::from_millis(300));
    let why = join_result(&node, &late).expect_err("expired");
    assert!(why.contains("expired"), "{why}");
    wait_station_log(&station, "expired");

    let mistyped = good.replace(&good[10..12], "00");
    let why = join_result(&node, &mistyped).expect_err("mistyped");
    assert!(why.contains("code"), "{why}");
    let why = join_result(&node, &station.invite(&Invite::station("operator"))).expect_err("for a station");
    assert!(why.contains("role"), "{why}");

    join_result(&node, &good).expect("the good one");
    let other = field.node("n2", Host::loopback());
    let why = join_result(&other, &good).expect_err("used");
    assert!(why.contains("used"), "{why}");
    wait_station_log(&station, "used");

    // A code that a running node was started with: its log and its status have the reason.
    let mut other = other;
    other.start(&["--join", &good]);
    other.wait_log("used");
    assert!(str_field(&other.status(), "last_refusal").contains("used"));
    // A valid code that is passed to it now makes it join.
    join_result(&other, &station.invite(&Invite::nodes(1))).expect("joined");
    station.wait_state("n2", "online");
}

#[test]
fn revocation_closes_the_link_and_is_final() {
    let mut fleet = Fleet::linked(2);
    fleet.station.run(&["fleet", "revoke", "n1"]).expect_status(0);
    fleet.nodes[0].wait_log("revoked");
    wait_until(TEST_TIMEOUT, "it has no link", || {
        fleet.nodes[0].status()["links"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    assert!(str_field(&fleet.nodes[0].status(), "last_refusal").contains("revoked"));
    fleet.station.wait_online(1);
    fleet.station.run(&["ping", "n1"]).expect_status(3);
    let members = fleet.station.run(&["fleet", "members"]).expect_status(0).json();
    assert!(
        members
            .iter()
            .any(|member| member["node"] == "n1" && member["revoked"] == true)
    );

    // Neither a restart nor a code admits that key again.
    fleet.nodes[0].signal_and_wait(Signal::TERM);
    fleet.station.signal_and_wait(Signal::TERM);
    fleet.station.serve();
    fleet.nodes[0].start(&[]);
    wait_station_log(&fleet.station, "revoked");
    fleet.station.wait_online(1);
    let code = fleet.station.invite(&Invite::nodes(1));
    let why = join_result(&fleet.nodes[0], &code).expect_err("revoked");
    assert!(why.contains("revoked"), "{why}");

    // With a new key it may join.
    fleet.nodes[0].signal_and_wait(Signal::TERM);
    for name in ["identity.key", "fleet.json"] {
        std::fs::remove_file(fleet.nodes[0].state_dir.join(name)).expect("there");
    }
    let code = fleet.station.invite(&Invite::nodes(1));
    fleet.nodes[0].start(&["--join", &code]);
    fleet.station.wait_online(2);
}

#[test]
fn foreign_and_forged_memberships_are_refused() {
    let ours = Fleet::linked(1);
    let theirs = Fleet::linked(1);
    // A node of ours dials a station of another fleet, which does not know its root.
    let mut lost = ours.test_dir.node("lost", Host::loopback());
    lost.keys = format!("stations = [{:?}]", theirs.station.listen_addr());
    lost.start(&["--join", &ours.station.invite(&Invite::nodes(1))]);
    ours.station.wait_online(2);
    lost.wait_log("fleet");
    wait_until(TEST_TIMEOUT, "both say why", || {
        let refused = |log: &[String]| {
            log.iter()
                .any(|line| line.contains("WARN") && line.contains("fleet"))
        };
        refused(&lost.log()) && refused(&theirs.station.log())
    });
    theirs.station.wait_online(1);
    ours.station.run(&["ping", "lost"]).expect_status(0);

    // A membership of another key is not valid, and is not used.
    let mut thief = ours.test_dir.node("thief", Host::loopback());
    for name in ["fleet.json", "stations.json"] {
        std::fs::copy(lost.state_dir.join(name), thief.state_dir.join(name)).expect("copied");
    }
    thief.start(&[]);
    thief.wait_log("not a fleet of this node");
    assert!(thief.status()["fleet"].is_null());
    ours.station.wait_online(2);
}

/// A second station of the fleet, which learns of its nodes from the first.
fn second_station(fleet: &Fleet, role: &'static str) -> Station {
    let mut station = fleet.test_dir.station(role, Host::loopback());
    let code = fleet.station.invite(&Invite::station(role));
    let line = station
        .run(&["fleet", "join", &code])
        .expect_status(0)
        .json()
        .remove(0);
    assert_eq!(
        (str_field(&line, "role"), &line["has_root"]),
        (role, &false.into())
    );
    station.serve();
    station.wait_online(fleet.nodes.len());
    station
}

#[test]
fn observer_reads_but_cannot_command() {
    let fleet = Fleet::linked_with(2, |node| {
        node.tables = "[execute]\nallowed = true\n".to_owned();
    });
    let observer = second_station(&fleet, "observer");
    observer.run(&["ping"]).expect_status(0);
    observer.run(&["call", "all", "telemetry"]).expect_status(0);
    let small = fleet.test_dir.file("small", b"x").display().to_string();
    let collected = fleet.test_dir.dir("collected").display().to_string();
    for words in [
        &["call", "all", "slow", "tag=x"][..],
        &["call", "n1,n2", "id", "new_id=mine"],
        &["notify", "all", "hello"],
        &["run", "all", "--", "/bin/true"],
        &["send", &small, "all:files/x"],
        &["fetch", "all:files/x", &collected],
    ] {
        let ran = observer
            .run(&[words, &["--timeout", "5s"]].concat())
            .expect_status(1);
        for node in ["n1", "n2"] {
            let line = ran.line_of(node);
            assert_eq!(line["state"], "refused", "{words:?}: {line}");
            assert!(
                str_field(&line, "error").contains("observer"),
                "{words:?}: {line}"
            );
        }
    }
    observer
        .run(&["fleet", "invite"])
        .expect_status(2)
        .expect_stderr("root key");
    observer
        .run(&["fleet", "revoke", "n1"])
        .expect_status(2)
        .expect_stderr("root key");
    for node in &fleet.nodes {
        assert!(node.marks().is_empty() && node.files().0.is_empty());
    }
    fleet.station.run(&["ping"]).expect_status(0);
}

#[test]
fn two_stations_of_one_fleet_share_its_nodes() {
    let fleet = Fleet::linked_with(2, |node| {
        node.tables = "[execute]\nallowed = true\n".to_owned();
    });
    let mut second = second_station(&fleet, "operator");
    second.run(&["call", "all", "slow", "tag=two"]).expect_status(0);
    fleet
        .station
        .run(&["call", "all", "slow", "tag=one"])
        .expect_status(0);
    let ids = |station: &Station| {
        let mut ids: Vec<String> = station
            .nodes()
            .iter()
            .map(|node| str_field(node, "id").to_owned())
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&second), ids(&fleet.station));
    assert_eq!(fleet.nodes[0].status()["links"].as_array().map(Vec::len), Some(2));
    // An operator may do everything except running arbitrary programs.
    let ran = second.run(&["run", "all", "--", "/bin/true"]).expect_status(1);
    assert!(
        str_field(&ran.line_of("n1"), "error").contains("admin"),
        "{ran:#?}"
    );
    let small = fleet.test_dir.file("small", b"x").display().to_string();
    second.run(&["send", &small, "all:files/x"]).expect_status(0);

    // Revoked by the first, it gets the reason, and the nodes refuse it.
    fleet
        .station
        .run(&["fleet", "revoke", "operator"])
        .expect_status(0);
    wait_station_log(&second, "revoked");
    wait_until(TEST_TIMEOUT, "the nodes have left it", || {
        second.nodes().iter().all(|node| node["state"] == "offline")
    });
    second.run(&["ping", "--timeout", "300ms"]).expect_status(4);
    second.signal_and_wait(Signal::TERM);
    second.serve();
    second.run(&["ping", "--timeout", "1s"]).expect_status(4);
    fleet.station.run(&["ping"]).expect_status(0);
}

#[test]
fn pending_node_is_accepted_manually() {
    let field = TestDir::new();
    let mut station = field.station("st", Host::loopback());
    station.serve();
    station.run(&["fleet", "init"]);
    let mut node = field.node("n1", Host::loopback());
    node.keys = format!("adoptable = true\nstations = [{:?}]", station.listen_addr());
    node.start(&[]);
    let mut waiting = Vec::new();
    wait_until(TEST_TIMEOUT, "it waits", || {
        waiting = station.run(&["fleet", "pending"]).expect_status(0).json();
        !waiting.is_empty()
    });
    assert_eq!((waiting.len(), str_field(&waiting[0], "node")), (1, "n1"));
    let id = str_field(&waiting[0], "id").to_owned();
    assert_eq!(id, str_field(&node.status(), "id"), "what the device says itself");
    // Both programs show the same short form of the fingerprint.
    let said = station.run_plain(&["fleet", "pending"]).expect_status(0);
    let short = said
        .stdout
        .iter()
        .find_map(|line| line.strip_prefix("n1"))
        .expect("its row");
    let short = short.split_whitespace().next().expect("its id").to_owned();
    assert!(
        node.log().iter().any(|line| line.contains(&short)),
        "{short}: {:#?}",
        node.log()
    );
    assert!(
        station.log().iter().any(|line| line.contains(&short)),
        "{short}: {:#?}",
        station.log()
    );
    station.run(&["ping"]).expect_status(3);

    station.run(&["fleet", "accept", &id[..12]]).expect_status(0);
    station.wait_online(1);
    station.run(&["ping"]).expect_status(0);
    assert!(
        station
            .run(&["fleet", "pending"])
            .expect_status(0)
            .json()
            .is_empty()
    );
    node.signal_and_wait(Signal::KILL);
    node.start(&[]);
    station.wait_online(1);

    // Without `adoptable` in its configuration, a node sends no request.
    let mut shy = field.node("shy", Host::loopback());
    shy.keys = format!("stations = [{:?}]", station.listen_addr());
    shy.start(&[]);
    sleep_for(Duration::from_secs(2));
    assert!(
        station
            .run(&["fleet", "pending"])
            .expect_status(0)
            .json()
            .is_empty()
    );
    assert_eq!(station.nodes().len(), 1);
}

#[test]
fn cloned_key_of_two_devices_is_reported() {
    let fleet = Fleet::linked(2);
    let mut clone = fleet.test_dir.node("clone", Host::loopback());
    for name in ["identity.key", "fleet.json", "stations.json"] {
        std::fs::copy(fleet.nodes[0].state_dir.join(name), clone.state_dir.join(name)).expect("copied");
    }
    clone.start(&[]);
    fleet.station.wait_nodes("the clone is reported", |nodes| {
        nodes.iter().any(|node| {
            let warnings = node["warnings"].to_string();
            let both = ["n1", "clone", fleet.nodes[0].listen_addr()];
            node["node"] == "n1" && both.iter().all(|part| warnings.contains(part))
        })
    });
    assert_eq!(
        fleet.station.nodes().len(),
        2,
        "not merged, not a member of its own"
    );
    fleet.station.wait_online(2);
    assert!(
        fleet
            .station
            .log()
            .iter()
            .any(|line| line.contains("two devices hold the key"))
    );
    wait_until(TEST_TIMEOUT, "the clone knows too", || {
        !str_field(&clone.status(), "last_refusal").is_empty()
    });
    let ran = fleet
        .station
        .run(&["call", "all", "slow", "tag=once"])
        .expect_status(0);
    assert_eq!(ran.json().len(), 2);
    assert_eq!(fleet.nodes[0].marks().len(), 2, "the first one stays linked");
    assert!(clone.marks().is_empty());
}
