//! The command line. A verb is `Args` plus `run`, one file each; it asks a [`Fleet`](swarm_shared::client::Fleet) and prints a
//! [`view`](crate::view). All printing goes through one `Screen`.
//!
//! | exit status | meaning |
//! |---|---|
//! | 0 | every delivery `done` |
//! | 1 | some `failed`, `refused`, `expired` or `unknown`, or the request itself failed; weighs more than 4 |
//! | 2 | usage or configuration |
//! | 3 | no node matched the selector |
//! | 4 | some nodes gave no answer |
//! | 130 | interrupted by Ctrl-C |
//! | 141 | the reader of the output is gone |

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::duration;

mod call;
mod cancel;
mod completions;
mod connect;
mod demo;
mod fetch;
mod fleet;
mod gateway;
mod history;
mod man;
mod nodes;
mod notify;
mod ping;
mod release;
mod request;
mod rolling;
mod run;
mod screen;
mod send;
mod serve;
mod stop;

use screen::{CliError, Screen};

const EXAMPLES: &str = "\
Examples:
  ground-station demo                          see it work on this machine, no set-up
  ground-station fleet invite                  a code that a new node joins with
  ground-station nodes --watch                 who is there, redrawn in place
  ground-station ping 'drone-*,!drone-07'      all drones but one
  ground-station call tag:row=3 led color=#ff0000
  ground-station run all -- uptime             a program, on every node that allows it
  ground-station send take1.csv all:shows/     the same file to every node
  ground-station send --per-node takes/ 'drone-*:shows/take1.csv'
  ground-station fetch all:logs/flight.log ./collected
  ground-station history                       what was sent, and how it ended

SELECTOR is a comma-separated list: all, a name or glob (drone-*, drone-[01-12]),
tag:KEY, tag:KEY=VALUE, id:PREFIX; !TERM excludes.

Exit status: 0 all done; 1 some failed, were refused, expired or are unknown;
2 usage or configuration; 3 no node matched; 4 some gave no answer.";

/// Find and command a fleet of drones or Raspberry Pis from one machine, and send files to it.
#[derive(Debug, Parser)]
#[command(
    name = "ground-station",
    version,
    after_help = EXAMPLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    common: CommonOptions,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
struct CommonOptions {
    /// Directory of keys, members and history [default: below $XDG_STATE_HOME]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "GROUND_STATION_STATE_DIR",
        hide_env = true
    )]
    state_dir: Option<PathBuf>,
    /// Configuration file [default: config.toml in the state directory]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "GROUND_STATION_CONFIG",
        hide_env = true
    )]
    config: Option<PathBuf>,
    /// Whether the option was given.
    #[arg(skip)]
    config_given: bool,
    /// How long a command may still start [default: 30s]
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", hide_default_value = true, value_parser = duration::parse)]
    ttl: Duration,
    /// Whether the option was given.
    #[arg(skip)]
    ttl_given: bool,
    /// How long to wait for answers; for files, the longest pause [default: 10s]
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", hide_default_value = true, value_parser = duration::parse)]
    timeout: Duration,
    /// Whether --timeout was typed: an emergency stop ends by it only then.
    #[arg(skip)]
    timeout_given: bool,
    /// Print one JSON object per line on standard output, and nothing else there
    #[arg(long, global = true)]
    json: bool,
    /// Print results and errors only: no notes, no progress, no summary
    #[arg(long, global = true)]
    quiet: bool,
    /// Print no colours (as with NO_COLOR set)
    #[arg(long, global = true)]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Fleet(fleet::Args),
    Serve(serve::Args),
    Nodes(nodes::Args),
    Ping(ping::Args),
    Call(call::Args),
    Run(run::Args),
    Send(send::Args),
    Fetch(fetch::Args),
    Notify(notify::Args),
    History(history::Args),
    Cancel(cancel::Args),
    Stop(stop::Args),
    Release(release::Args),
    Gateway(gateway::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the verb of the command line; returns its exit status.
pub fn main() -> ExitCode {
    let cli = parse_command_line();
    init_logging(&cli);
    let mut screen = Screen::new(cli.common.json, cli.common.quiet, cli.common.no_color);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(cli, &mut screen));
            // A blocking read of a huge file must not delay the exit.
            runtime.shutdown_timeout(Duration::from_millis(100));
            outcome
        }
        Err(error) => Err(CliError::failed(format!("cannot start: {error}"))),
    };
    ExitCode::from(outcome.unwrap_or_else(|error| screen.print_error(&error)))
}

async fn run(cli: Cli, screen: &mut Screen) -> Result<u8, CliError> {
    let common = &cli.common;
    match cli.verb {
        Verb::Demo(args) => demo::run(args, screen).await,
        Verb::Fleet(args) => fleet::run(args, common, screen).await,
        Verb::Serve(args) => serve::run(args, common, screen).await,
        Verb::Nodes(args) => nodes::run(args, common, screen).await,
        Verb::Ping(args) => ping::run(args, common, screen).await,
        Verb::Call(args) => call::run(args, common, screen).await,
        Verb::Run(args) => run::run(args, common, screen).await,
        Verb::Send(args) => send::run(args, common, screen).await,
        Verb::Fetch(args) => fetch::run(args, common, screen).await,
        Verb::Notify(args) => notify::run(args, common, screen).await,
        Verb::History(args) => history::run(args, common, screen).await,
        Verb::Gateway(args) => gateway::run(args, common, screen).await,
        Verb::Cancel(args) => cancel::run(args, common, screen).await,
        Verb::Stop(args) => stop::run(args, common, screen).await,
        Verb::Release(args) => release::run(args, common, screen).await,
        Verb::Completions(args) => completions::run(&args, &mut Cli::command(), screen),
        Verb::Man(args) => man::run(&args, Cli::command(), screen),
    }
}

fn parse_command_line() -> Cli {
    let matches = Cli::command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let given = |option: &str| {
        let typed = |matches: &ArgMatches| matches.value_source(option) == Some(ValueSource::CommandLine);
        typed(&matches) || matches.subcommand().is_some_and(|(_, matches)| typed(matches))
    };
    cli.common.ttl_given = given("ttl");
    cli.common.config_given = given("config");
    cli.common.timeout_given = given("timeout");
    cli
}

/// `GROUND_STATION_LOG` filters the log on standard error: `debug`, or `swarm_shared=trace`.
fn init_logging(cli: &Cli) {
    let level = match (&cli.verb, cli.common.quiet) {
        (_, true) => LevelFilter::ERROR,
        (Verb::Serve(_), false) => LevelFilter::INFO,
        (_, false) => LevelFilter::WARN,
    };
    let filter: Option<Targets> = std::env::var("GROUND_STATION_LOG")
        .ok()
        .and_then(|filter| filter.parse().ok());
    let screen = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(screen::wants_color(cli.common.no_color, &std::io::stderr()));
    tracing_subscriber::registry()
        .with(filter.unwrap_or_else(|| Targets::new().with_default(level)))
        .with(screen)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_definition_is_valid() {
        Cli::command().debug_assert();
    }
}
