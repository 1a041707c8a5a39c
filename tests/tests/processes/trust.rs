//! Who may come in and who may not, with a reason on both screens.

use std::time::Duration;

use swarm_shared::proto::trust::invite::{Invitation, InviteSecret};
use swarm_tests::fleet::{Field, Fleet, Invite, Node, PATIENCE, Place, Station, text};
use swarm_tests::process::{Signal, let_pass, wait_until};

fn joined(node: &Node, code: &str) -> Result<String, String> {
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
        PATIENCE,
        &format!("the station's log says {what:?}: {:#?}", station.log()),
        || station.log().iter().any(|line| line.contains(what)),
    );
}

#[test]
fn whoever_joins_sees_how_it_goes() {
    let field = Field::new();
    let mut station = field.station("st", Place::here());
    station.serve();
    let code = station.invite(&Invite::nodes(2));
    let mut running = field.node("n1", Place::here());
    running.start(&[]);
    let idle = field.node("n2", Place::here());
    for node in [&running, &idle] {
        let output = node.run(&["join", &code, "--no-pings", "--no-mdns"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        for word in ["looking at ", "found st at "] {
            assert!(told.contains(word), "{word:?} is missing: {told}");
        }
    }
}

#[test]
fn codes_that_are_not_good() {
    let field = Field::new();
    let mut station = field.station("st", Place::here());
    station.serve();
    let good = station.invite(&Invite::nodes(1));
    let known: Invitation = good.parse().expect("a code");

    let node = field.node("n1", Place::here());
    let forged = Invitation::new(
        *known.fingerprint(),
        InviteSecret::new([7; 16]),
        known.addresses().to_vec(),
    );
    let why = joined(&node, &forged.to_string()).expect_err("wrong");
    assert!(why.contains("code"), "{why}");
    wait_station_log(&station, "refused to take in");

    let short = Invite {
        valid_for: "200ms",
        ..Invite::nodes(1)
    };
    let late = station.invite(&short);
    let_pass(Duration::from_millis(300));
    let why = joined(&node, &late).expect_err("expired");
    assert!(why.contains("expired"), "{why}");
    wait_station_log(&station, "expired");

    let mistyped = good.replace(&good[10..12], "00");
    let why = joined(&node, &mistyped).expect_err("mistyped");
    assert!(why.contains("code"), "{why}");
    let why = joined(&node, &station.invite(&Invite::station("operator"))).expect_err("for a station");
    assert!(why.contains("role"), "{why}");

    joined(&node, &good).expect("the good one");
    let other = field.node("n2", Place::here());
    let why = joined(&other, &good).expect_err("used");
    assert!(why.contains("used"), "{why}");
    wait_station_log(&station, "used");

    // A code that a running node was started with: its log and its status say why not.
    let mut other = other;
    other.start(&["--join", &good]);
    other.wait_log("used");
    assert!(text(&other.status(), "last_refusal").contains("used"));
    // And one that is handed to it now takes it in.
    joined(&other, &station.invite(&Invite::nodes(1))).expect("joined");
    station.wait_state("n2", "online");
}

#[test]
fn revoking_ends_the_live_link_and_is_final() {
    let mut fleet = Fleet::linked(2);
    fleet.station.run(&["fleet", "revoke", "n1"]).expect(0);
    fleet.nodes[0].wait_log("revoked");
    wait_until(PATIENCE, "it has no link", || {
        fleet.nodes[0].status()["links"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    assert!(text(&fleet.nodes[0].status(), "last_refusal").contains("revoked"));
    fleet.station.wait_online(1);
    fleet.station.run(&["ping", "n1"]).expect(3);
    let members = fleet.station.run(&["fleet", "members"]).expect(0).json();
    assert!(
        members
            .iter()
            .any(|member| member["node"] == "n1" && member["revoked"] == true)
    );

    // Neither a restart nor a code lets that key in again.
    fleet.nodes[0].end(Signal::TERM);
    fleet.station.end(Signal::TERM);
    fleet.station.serve();
    fleet.nodes[0].start(&[]);
    wait_station_log(&fleet.station, "revoked");
    fleet.station.wait_online(1);
    let code = fleet.station.invite(&Invite::nodes(1));
    let why = joined(&fleet.nodes[0], &code).expect_err("revoked");
    assert!(why.contains("revoked"), "{why}");

    // As a new one it may.
    fleet.nodes[0].end(Signal::TERM);
    for name in ["identity.key", "fleet.json"] {
        std::fs::remove_file(fleet.nodes[0].dir.join(name)).expect("there");
    }
    let code = fleet.station.invite(&Invite::nodes(1));
    fleet.nodes[0].start(&["--join", &code]);
    fleet.station.wait_online(2);
}

#[test]
fn another_fleet_and_a_forged_membership() {
    let ours = Fleet::linked(1);
    let theirs = Fleet::linked(1);
    // A node of ours is told to dial their station, where nobody knows its root.
    let mut lost = ours.field.node("lost", Place::here());
    lost.keys = format!("stations = [{:?}]", theirs.station.listen());
    lost.start(&["--join", &ours.station.invite(&Invite::nodes(1))]);
    ours.station.wait_online(2);
    lost.wait_log("fleet");
    wait_until(PATIENCE, "both say why", || {
        let refused = |log: &[String]| {
            log.iter()
                .any(|line| line.contains("WARN") && line.contains("fleet"))
        };
        refused(&lost.log()) && refused(&theirs.station.log())
    });
    theirs.station.wait_online(1);
    ours.station.run(&["ping", "lost"]).expect(0);

    // A membership that was made out for another key is worth nothing, and is not used.
    let mut thief = ours.field.node("thief", Place::here());
    for name in ["fleet.json", "stations.json"] {
        std::fs::copy(lost.dir.join(name), thief.dir.join(name)).expect("copied");
    }
    thief.start(&[]);
    thief.wait_log("not a fleet of this node");
    assert!(thief.status()["fleet"].is_null());
    ours.station.wait_online(2);
}

/// A second station of the fleet, which hears of its nodes from the first.
fn second_station(fleet: &Fleet, role: &'static str) -> Station {
    let mut station = fleet.field.station(role, Place::here());
    let code = fleet.station.invite(&Invite::station(role));
    let line = station.run(&["fleet", "join", &code]).expect(0).json().remove(0);
    assert_eq!((text(&line, "role"), &line["has_root"]), (role, &false.into()));
    station.serve();
    station.wait_online(fleet.nodes.len());
    station
}

#[test]
fn an_observer_sees_and_does_not_touch() {
    let fleet = Fleet::linked_with(2, |node| {
        node.tables = "[execute]\nallowed = true\n".to_owned();
    });
    let observer = second_station(&fleet, "observer");
    observer.run(&["ping"]).expect(0);
    observer.run(&["call", "all", "telemetry"]).expect(0);
    let small = fleet.field.file("small", b"x").display().to_string();
    let collected = fleet.field.dir("collected").display().to_string();
    for words in [
        &["call", "all", "slow", "tag=x"][..],
        &["call", "n1,n2", "id", "new_id=mine"],
        &["notify", "all", "hello"],
        &["run", "all", "--", "/bin/true"],
        &["send", &small, "all:files/x"],
        &["fetch", "all:files/x", &collected],
    ] {
        let ran = observer.run(&[words, &["--timeout", "5s"]].concat()).expect(1);
        for node in ["n1", "n2"] {
            let line = ran.of(node);
            assert_eq!(line["state"], "refused", "{words:?}: {line}");
            assert!(text(&line, "error").contains("observer"), "{words:?}: {line}");
        }
    }
    observer.run(&["fleet", "invite"]).expect(2).says("root key");
    observer
        .run(&["fleet", "revoke", "n1"])
        .expect(2)
        .says("root key");
    for node in &fleet.nodes {
        assert!(node.marks().is_empty() && node.files().0.is_empty());
    }
    fleet.station.run(&["ping"]).expect(0);
}

#[test]
fn two_stations_of_one_fleet_share_its_nodes() {
    let fleet = Fleet::linked_with(2, |node| {
        node.tables = "[execute]\nallowed = true\n".to_owned();
    });
    let mut second = second_station(&fleet, "operator");
    second.run(&["call", "all", "slow", "tag=two"]).expect(0);
    fleet.station.run(&["call", "all", "slow", "tag=one"]).expect(0);
    let ids = |station: &Station| {
        let mut ids: Vec<String> = station
            .nodes()
            .iter()
            .map(|node| text(node, "id").to_owned())
            .collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&second), ids(&fleet.station));
    assert_eq!(fleet.nodes[0].status()["links"].as_array().map(Vec::len), Some(2));
    // Everything but running any program.
    let ran = second.run(&["run", "all", "--", "/bin/true"]).expect(1);
    assert!(text(&ran.of("n1"), "error").contains("admin"), "{ran:#?}");
    let small = fleet.field.file("small", b"x").display().to_string();
    second.run(&["send", &small, "all:files/x"]).expect(0);

    // Put out by the first, it is told why, and the nodes hear no more of it.
    fleet.station.run(&["fleet", "revoke", "operator"]).expect(0);
    wait_station_log(&second, "revoked");
    wait_until(PATIENCE, "the nodes have left it", || {
        second.nodes().iter().all(|node| node["state"] == "offline")
    });
    second.run(&["ping", "--timeout", "300ms"]).expect(4);
    second.end(Signal::TERM);
    second.serve();
    second.run(&["ping", "--timeout", "1s"]).expect(4);
    fleet.station.run(&["ping"]).expect(0);
}

#[test]
fn a_node_that_asks_is_taken_in_by_hand() {
    let field = Field::new();
    let mut station = field.station("st", Place::here());
    station.serve();
    station.run(&["fleet", "init"]);
    let mut node = field.node("n1", Place::here());
    node.keys = format!("adoptable = true\nstations = [{:?}]", station.listen());
    node.start(&[]);
    let mut waiting = Vec::new();
    wait_until(PATIENCE, "it waits", || {
        waiting = station.run(&["fleet", "pending"]).expect(0).json();
        !waiting.is_empty()
    });
    assert_eq!((waiting.len(), text(&waiting[0], "node")), (1, "n1"));
    let id = text(&waiting[0], "id").to_owned();
    assert_eq!(id, text(&node.status(), "id"), "what the device says itself");
    // The same short form on both screens.
    let said = station.say(&["fleet", "pending"]).expect(0);
    let short = said
        .out
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
    station.run(&["ping"]).expect(3);

    station.run(&["fleet", "accept", &id[..12]]).expect(0);
    station.wait_online(1);
    station.run(&["ping"]).expect(0);
    assert!(station.run(&["fleet", "pending"]).expect(0).json().is_empty());
    node.end(Signal::KILL);
    node.start(&[]);
    station.wait_online(1);

    // Without that word in its configuration, a node asks nobody.
    let mut shy = field.node("shy", Place::here());
    shy.keys = format!("stations = [{:?}]", station.listen());
    shy.start(&[]);
    let_pass(Duration::from_secs(2));
    assert!(station.run(&["fleet", "pending"]).expect(0).json().is_empty());
    assert_eq!(station.nodes().len(), 1);
}

#[test]
fn two_devices_with_one_key_are_told_apart() {
    let fleet = Fleet::linked(2);
    let mut clone = fleet.field.node("clone", Place::here());
    for name in ["identity.key", "fleet.json", "stations.json"] {
        std::fs::copy(fleet.nodes[0].dir.join(name), clone.dir.join(name)).expect("copied");
    }
    clone.start(&[]);
    fleet.station.wait_nodes("the clone is reported", |nodes| {
        nodes.iter().any(|node| {
            let warnings = node["warnings"].to_string();
            let both = ["n1", "clone", fleet.nodes[0].listen()];
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
    wait_until(PATIENCE, "the clone knows too", || {
        !text(&clone.status(), "last_refusal").is_empty()
    });
    let ran = fleet.station.run(&["call", "all", "slow", "tag=once"]).expect(0);
    assert_eq!(ran.json().len(), 2);
    assert_eq!(fleet.nodes[0].marks().len(), 2, "the first one stays linked");
    assert!(clone.marks().is_empty());
}
