//! A path with a smaller MTU than the interfaces', whose ICMP is lost: it drops large packets and passes small ones.

use swarm_tests::process::Signal;

use crate::rig::Rig;

/// The MTU of many tunnels, and the least that IPv6 permits.
const PATH_MTU_BYTES: u32 = 1_280;
/// Answers with 2,000 bytes, whatever the length of its argument.
const LONG_ACTION: &str = r#"
[actions.long]
command = ["/bin/sh", "-c", "head -c 2000 /dev/zero | tr '\\0' x", "sh", "{text}"]
args.text = { type = "string", default = "" }
"#;
const NARROW_PATH_WARNING: &str = "drops large packets";

/// A station and a node, linked, behind such a path.
fn narrow_rig(flags: &[&str]) -> Option<Rig> {
    let mut rig = Rig::new(1)?;
    LONG_ACTION.clone_into(&mut rig.nodes[0].tables);
    rig.start_and_join(flags);
    rig.lab.set_silent_path_mtu(1, PATH_MTU_BYTES);
    Some(rig)
}

fn check_answers_pings(rig: &Rig) {
    for _ in 0..8 {
        rig.station.run(&["ping", "--timeout", "2s"]).expect_status(0);
    }
}

#[test]
fn long_replies_arrive_where_large_packets_are_lost() {
    let Some(rig) = narrow_rig(&[]) else { return };
    rig.station
        .run(&["call", "n1", "long", "--timeout", "30s"])
        .expect_status(0);
    check_answers_pings(&rig);
    rig.nodes[0].wait_log(NARROW_PATH_WARNING);
    // The next links of the node do not lose time again.
    rig.station
        .run(&["call", "n1", "long", "--timeout", "2s"])
        .expect_status(0);
    let source = rig.test_dir.random_file("take", 300_000).display().to_string();
    rig.station
        .run(&["send", &source, "n1:files/take", "--timeout", "5s"])
        .expect_status(0);
}

/// The station loses the link and cannot dial the node, so its hello has to ask the node for small segments.
#[test]
fn listener_asks_its_dialler_for_small_segments() {
    let Some(mut rig) = Rig::new(1) else { return };
    LONG_ACTION.clone_into(&mut rig.nodes[0].tables);
    rig.nodes[0].set_listen_addr("127.0.0.1:7420");
    rig.start_and_join(&["--no-pings", "--no-mdns", "--station", "10.77.0.1:7421"]);
    rig.lab.set_silent_path_mtu(1, PATH_MTU_BYTES);
    let text = format!("text={}", "y".repeat(2_000));
    rig.station
        .run(&["call", "n1", "long", &text, "--timeout", "30s"])
        .expect_status(0);
    check_answers_pings(&rig);
}

#[test]
fn files_arrive_where_large_packets_are_lost() {
    let Some(rig) = narrow_rig(&[]) else { return };
    let source = rig.test_dir.random_file("take", 300_000).display().to_string();
    rig.station
        .run(&["send", &source, "n1:files/take", "--timeout", "30s"])
        .expect_status(0);
    assert_eq!(rig.nodes[0].files().0, ["take"]);
}

/// With these tags neither the hellos nor the answer to a request to join fit into one packet.
#[test]
fn node_joins_and_links_where_large_packets_are_lost() {
    let Some(mut rig) = Rig::new(1) else { return };
    rig.lab.set_silent_path_mtu(1, PATH_MTU_BYTES);
    let tags: Vec<String> = (0..20)
        .map(|number| format!("tag{number} = {:?}", "v".repeat(60)))
        .collect();
    rig.nodes[0].keys = format!("tags = {{ {} }}", tags.join(", "));
    rig.start_and_join(&[]);
    rig.nodes[0].signal_and_wait(Signal::TERM);
    rig.nodes[0].start(&[]);
    rig.check_all_linked();
}
