//! The time until a silent node is offline; a brief loss does not make it offline.

use std::time::Duration;

use swarm_shared::net::clock;
use swarm_tests::fleet::TEST_TIMEOUT;
use swarm_tests::process::{Process, Signal, Stream, sleep_for};

use crate::rig::{Rig, print_stderr};

/// The limit in docs/reliability.md.
const OFFLINE_WITHIN: Duration = Duration::from_secs(4);

fn wait_state(watch: &mut Process, node: &str, state: &str) {
    watch.wait_json(TEST_TIMEOUT, &format!("{node} {state}"), |line| {
        line["node"] == node && line["state"] == state
    });
}

fn seconds(time: f64) {
    sleep_for(Duration::from_secs_f64(time));
}

#[test]
fn a_silent_node_is_offline_within_four_seconds() {
    let Some(mut rig) = Rig::linked(2) else { return };
    let mut watch = rig.station.watch();
    wait_state(&mut watch, "n1", "online");
    let mut figures = Vec::new();
    for (round, how) in [
        "interface down",
        "cable pulled",
        "process stopped",
        "interface down",
        "cable pulled",
    ]
    .into_iter()
    .enumerate()
    {
        // At different phases of the heartbeat.
        seconds(0.3 * f64::from(u32::try_from(round).expect("few")));
        let begun = clock::now();
        match how {
            "interface down" => rig.lab.link_down(1),
            "cable pulled" => rig.lab.set_carrier(1, false),
            _ => rig.nodes[0].process().signal(Signal::STOP),
        }
        wait_state(&mut watch, "n1", "offline");
        let took = clock::now() - begun;
        figures.push(format!("{how} {:.2} s", took.as_secs_f64()));
        assert!(took < OFFLINE_WITHIN, "{figures:?}");
        match how {
            "interface down" => rig.lab.link_up(1),
            "cable pulled" => rig.lab.set_carrier(1, true),
            _ => rig.nodes[0].process().signal(Signal::CONT),
        }
        let begun = clock::now();
        wait_state(&mut watch, "n1", "online");
        figures.push(format!("back {:.2} s", (clock::now() - begun).as_secs_f64()));
    }
    print_stderr(&format!("offline after: {}", figures.join(", ")));
    assert!(
        !watch
            .lines(Stream::Out)
            .iter()
            .any(|line| line.contains("\"n2\"") && line.contains("\"offline\"")),
        "the other node was never in doubt"
    );
}

#[test]
fn brief_loss_is_not_reported_offline() {
    let Some(rig) = Rig::linked(2) else { return };
    let mut watch = rig.station.watch();
    wait_state(&mut watch, "n1", "online");
    for _ in 0..2 {
        // Not by the carrier: the kernel takes up to a second to detect its return.
        rig.lab.partition(&[1]);
        seconds(1.0);
        rig.lab.heal();
        seconds(2.5);
    }
    // A radio with interruptions, out of phase with the traffic.
    for round in 0..8_u8 {
        rig.lab.partition(&[1]);
        seconds(0.1);
        rig.lab.heal();
        seconds(0.6 + 0.07 * f64::from(round));
    }
    rig.check_all_linked();
    let lines = watch.lines(Stream::Out);
    let offline: Vec<&String> = lines.iter().filter(|line| line.contains("\"offline\"")).collect();
    assert!(offline.is_empty(), "{offline:#?}");
}
