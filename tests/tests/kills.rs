//! A few kills of each kind; `cargo run --release -p swarm-tests --bin kills` runs hundreds.

use swarm_tests::kills::{Plan, run};

#[test]
fn no_kill_runs_a_command_twice_or_loses_an_outcome() {
    let tally = run(Plan {
        kills: 12,
        nodes: 2,
        seed: 20,
    });
    assert!(tally.violations.is_empty(), "{tally:#?}");
    assert!(tally.node_kills > 0 && tally.station_kills > 0, "{tally:#?}");
    assert!(
        tally.outcomes.get("done").is_some_and(|done| *done > 0),
        "{tally:#?}"
    );
}
