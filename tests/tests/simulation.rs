//! Thousands of small fleets and dozens of large ones under faults: docs/testing.md says what is simulated.
//!
//! A violation prints the command that replays it. Other seeds: `cargo run --release -p swarm-tests --bin simulate`.
#![allow(
    clippy::print_stdout,
    reason = "how often each fault happened is what one wants to see"
)]

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use swarm_shared::proto::outcome::Outcome;
use swarm_tests::simulation::{Fault, Options, Report, run};

/// Number of fleets of three nodes.
const SMALL: u64 = 2_000;
/// Number of fleets of twenty nodes.
const LARGE: u64 = 50;
const LARGE_NODES: usize = 20;
/// Threads that run seeds at the same time; each simulation uses one thread.
const THREADS: usize = 2;
/// Seeds that are run twice.
const REPLAYED: [u64; 8] = [1, 2, 3, 7, 105, 154, 1311, 77_777];

fn simulate(seed: u64, nodes: usize) -> Report {
    let options = Options {
        seed,
        nodes: Some(nodes),
        trace: false,
    };
    run(&options).unwrap_or_else(|violation| panic!("{violation}"))
}

/// Runs these seeds; returns the sum of their reports.
fn sweep(seeds: u64, nodes: usize) -> Report {
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < seeds
                {
                    let report = simulate(seed, nodes);
                    sum.lock().expect("no other thread panicked").add(&report);
                }
            });
        }
    });
    sum.into_inner().expect("no thread panicked")
}

fn print(report: &Report) {
    println!(
        "{} runs, {} steps, {} events, {} commands, {} executions, stops latched {} and released {}",
        report.runs,
        report.steps,
        report.events,
        report.issued,
        report.executed,
        report.stops.0,
        report.stops.1
    );
    println!("outcomes: {:?}", report.outcomes);
    for fault in Fault::ALL {
        println!("{fault:<24} {:>8}", report.faults.count_of(fault));
    }
}

#[test]
fn small_fleets_hold_all_invariants_under_every_fault() {
    let report = sweep(SMALL, 3);
    print(&report);
    assert_eq!(report.faults.never_counted(), [], "faults that never happened");
    for outcome in [
        Outcome::Done,
        Outcome::Failed,
        Outcome::Refused,
        Outcome::Expired,
        Outcome::Unknown,
        Outcome::NoAnswer,
    ] {
        assert!(
            report.outcomes.contains_key(&outcome),
            "nothing ended as {outcome}"
        );
    }
    assert!(report.stops.0 > 0 && report.stops.1 > 0, "{:?}", report.stops);
}

#[test]
fn large_fleets_hold_all_invariants() {
    print(&sweep(LARGE, LARGE_NODES));
}

#[test]
fn same_seed_gives_identical_trace() {
    for seed in REPLAYED {
        let (first, second) = (simulate(seed, 3), simulate(seed, 3));
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(simulate(1, 3).digest, simulate(2, 3).digest);
}

#[test]
fn same_seed_gives_identical_trace_in_another_process() {
    let here = simulate(105, 3).digest;
    let output = Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(["--seed", "105", "--nodes", "3"])
        .output()
        .expect("the simulator starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains(&format!("trace {here}")),
        "{here} is not in:\n{said}"
    );
}
