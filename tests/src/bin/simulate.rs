//! Runs the simulator: `cargo run --release -p swarm-tests --bin simulate -- --seeds 100000`. docs/testing.md says
//! what it simulates. Exits with 1 if an invariant was violated, and prints the command that repeats it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use swarm_shared::net::clock;
use swarm_tests::simulation::{Fault, Options, Report, Violation, run};

/// Simulates whole fleets under faults, and checks every invariant in each step.
#[derive(Parser)]
struct Args {
    /// Number of seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Runs only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of nodes in each fleet; chosen by the seed if absent: most have 3, some up to 20.
    #[arg(long)]
    nodes: Option<usize>,
    /// Prints every event; needs --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Seeds that run at the same time; one for each processor if absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Continues after a violation, and counts them.
    #[arg(long)]
    keep_going: bool,
}

#[expect(clippy::print_stdout, reason = "this program is there to print")]
fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let began = clock::now();
    let (report, violations) = match args.seed {
        Some(seed) => run_seed(&args, seed),
        None => run_seeds(&args),
    };
    if let Some(first) = violations.first() {
        println!("{first}\n");
    }
    for other in violations.iter().skip(1) {
        println!("seed {}: {}: {}", other.seed, other.invariant, other.what);
    }
    print_report(&report, clock::since(began));
    if violations.is_empty() {
        return std::process::ExitCode::SUCCESS;
    }
    println!(
        "{} of {} runs broke a promise",
        violations.len(),
        report.runs + violations.len() as u64
    );
    std::process::ExitCode::FAILURE
}

fn run_seed(args: &Args, seed: u64) -> (Report, Vec<Violation>) {
    let options = Options {
        seed,
        nodes: args.nodes,
        trace: args.trace,
    };
    match run(&options) {
        Ok(report) => (report, Vec::new()),
        Err(violation) => (Report::default(), vec![*violation]),
    }
}

fn run_seeds(args: &Args) -> (Report, Vec<Violation>) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(args.from);
    let end = args.from.saturating_add(args.seeds);
    let broken = AtomicBool::new(false);
    let sum = Mutex::new((Report::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..args.threads.unwrap_or(cores) {
            scope.spawn(|| {
                while args.keep_going || !broken.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let (report, violations) = run_seed(args, seed);
                    let Ok(mut sum) = sum.lock() else { break };
                    sum.0.add(&report);
                    if !violations.is_empty() {
                        broken.store(true, Ordering::Relaxed);
                    }
                    sum.1.extend(violations);
                }
            });
        }
    });
    sum.into_inner().unwrap_or_default()
}

#[expect(clippy::print_stdout, reason = "this program is there to print")]
fn print_report(report: &Report, took: Duration) {
    println!(
        "{} runs in {:.1} s: {} steps, {} events, {} commands, {} executions, {} stops latched, {} released",
        report.runs,
        took.as_secs_f64(),
        report.steps,
        report.events,
        report.issued,
        report.executed,
        report.stops.0,
        report.stops.1
    );
    for (outcome, count) in &report.outcomes {
        println!("  {outcome:<24} {count:>10}");
    }
    println!("faults that happened:");
    for fault in Fault::ALL {
        println!("  {fault:<24} {:>10}", report.faults.count_of(fault));
    }
    if report.runs == 1 {
        println!("trace {}", report.digest);
    }
}
