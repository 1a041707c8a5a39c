//! Plants ten bugs, one at a time, and has the simulator find each: `cargo test -p swarm-tests --features
//! planted-bugs --test planted -- --nocapture`.
#![cfg(feature = "planted-bugs")]
#![allow(
    clippy::print_stdout,
    reason = "which promise caught which bug is what one wants to see"
)]

use swarm_shared::proto::planted::{Bug, plant};
use swarm_tests::simulation::{Invariant, Options, run};

/// Small fleets within which each bug must be found.
const SEEDS_MAX: u64 = 300;

/// The first seed that finds the bug, the violated invariant, and the report.
fn find_bug(bug: Bug) -> Option<(u64, Invariant, String)> {
    plant(Some(bug));
    let found = (0..SEEDS_MAX).find_map(|seed| {
        let options = Options {
            seed,
            nodes: Some(3),
            trace: false,
        };
        let violation = run(&options).err()?;
        Some((seed, violation.invariant, violation.what))
    });
    plant(None);
    if let Some((seed, ..)) = found {
        let options = Options {
            seed,
            nodes: Some(3),
            trace: false,
        };
        let without = run(&options);
        assert!(
            without.is_ok(),
            "seed {seed} breaks a promise without {bug:?}, too"
        );
    }
    found
}

#[test]
fn simulator_finds_every_planted_bug() {
    let mut missed = Vec::new();
    let half = Bug::ALL.len() / 2;
    let look = |bugs: &'static [Bug]| bugs.iter().map(|bug| (*bug, find_bug(*bug))).collect::<Vec<_>>();
    let found = std::thread::scope(|scope| {
        let (first, second) = const { &Bug::ALL }.split_at(half);
        let first = scope.spawn(move || look(first));
        let mut all = look(second);
        all.extend(first.join().expect("no panic"));
        all
    });
    for (bug, found) in found {
        match found {
            Some((seed, invariant, what)) => println!("{bug:?}: seed {seed}: {invariant}: {what}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found in {SEEDS_MAX} seeds: {missed:?}");
}
