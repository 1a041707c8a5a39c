//! Kills a station and nodes under load and checks the result: `cargo run --release -p swarm-tests --bin kills`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use swarm_tests::kills::{Plan, run};

/// SIGKILLs station and nodes at random instants under load, and checks that each delivery ended as it should.
#[derive(Debug, Parser)]
struct Args {
    /// Number of kills.
    #[arg(long, default_value_t = 300)]
    kills: u32,
    /// Number of nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Seed for the victims and times; the kernel's scheduling differs, so that a run does not repeat exactly.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> std::io::Result<ExitCode> {
    let Args { kills, nodes, seed } = Args::parse();
    let tally = run(Plan { kills, nodes, seed });
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "seed {seed}: {} kills of nodes, {} of the station; {} commands to {nodes} nodes; {} began, {} again",
        tally.node_kills, tally.station_kills, tally.commands, tally.started, tally.reruns
    )?;
    for (outcome, count) in &tally.outcomes {
        writeln!(out, "  {outcome}: {count}")?;
    }
    for violation in &tally.violations {
        writeln!(out, "VIOLATION: {violation}")?;
    }
    let sound = tally.violations.is_empty();
    writeln!(out, "{}", if sound { "no violation" } else { "BROKEN" })?;
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
