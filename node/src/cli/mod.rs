//! The command line. Each verb ends in an exit status: 0 done, 1 failed, 2 usage or configuration.

mod render;
mod settings;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use swarm_shared::net::identity::{self, KeyFile};
use swarm_shared::proto::trust::invite::Invitation;

use crate::config::{Config, ConfigError};
use crate::logging::{self, LogRing};
use crate::state::StateDir;
use crate::status::{self, Joined, Request, StatusView};
use crate::{daemon, process};

pub use settings::RunArgs;

/// How long threads that wait for a disk may hold up the end of the process.
const BLOCKING_GRACE: Duration = process::TERM_GRACE;

/// The daemon that runs on every device of a swarm. Without a verb it runs.
#[derive(Debug, Parser)]
#[command(
    name = "swarm-node",
    version,
    args_conflicts_with_subcommands = true,
    max_term_width = 110
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon.
    Run(RunArgs),
    /// Join a fleet with a code from `ground-station fleet invite`, and end. A running daemon is told to join.
    Join {
        /// The invitation code.
        code: String,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Show this node's name and id.
    Id(QueryArgs),
    /// Show what the running daemon is doing.
    Status(QueryArgs),
    /// Check a configuration file, and say what is wrong with it.
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct QueryArgs {
    /// Where keys and the fleet are kept [default: /var/lib/swarm-node, else ~/.local/state/swarm-node]
    #[arg(long, value_name = "DIR", env = "SWARM_NODE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("swarm-node: {error:#}\n");
            // Where else could that be told?
            let _no_screen = std::io::stderr().write_all(text.as_bytes());
            let usage = error.is::<ConfigError>() || error.is::<settings::UsageError>();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        None => run_daemon(cli.run, None),
        Some(Verb::Run(run)) => run_daemon(run, None),
        Some(Verb::Join { code, run }) => join(run, code),
        Some(Verb::Id(ask)) => id(ask),
        Some(Verb::Status(ask)) => status(ask),
        Some(Verb::CheckConfig { file }) => check_config(&file),
    }
}

fn run_daemon(args: RunArgs, code: Option<String>) -> anyhow::Result<()> {
    let ring = LogRing::new();
    let level = args.log.clone();
    let settings = args.into_settings(ring.clone(), code)?;
    logging::init(&level, &ring).map_err(|error| settings::UsageError(format!("{error:#}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(daemon::run(settings));
    runtime.shutdown_timeout(BLOCKING_GRACE);
    ended
}

fn join(args: RunArgs, code: String) -> anyhow::Result<()> {
    if let Err(error) = code.parse::<Invitation>() {
        return Err(settings::UsageError(error.to_string()).into());
    }
    let dir = args.state_dir();
    let request = Request::Join {
        code: code.clone(),
        progress: true,
    };
    let asked = status::query_with_progress(&StateDir::socket(&dir), &request, |word| {
        // Who cannot read it still gets the end.
        let _no_screen = writeln!(std::io::stderr(), "{word}");
    });
    let Some(line) = asked.with_context(|| query_failed(&dir))? else {
        check_owner(&dir)?;
        return run_daemon(args, Some(code));
    };
    let joined: Joined = serde_json::from_str(&line).context("the daemon's answer is unreadable")?;
    match (joined.fleet, joined.error) {
        (Some(fleet), _) => print(&format!("joined fleet {fleet}\n")),
        (None, error) => bail!("not joined: {}", error.unwrap_or_default()),
    }
}

/// Root would leave a key behind that the directory's owner cannot read, and the daemon would not start again.
fn check_owner(dir: &std::path::Path) -> anyhow::Result<()> {
    let owner = std::fs::metadata(dir).map_or(0, |meta| meta.uid());
    if rustix::process::geteuid().is_root() && owner != 0 {
        bail!(
            "{} belongs to user {owner} and its daemon is not running: start the daemon first, or be that user",
            dir.display()
        );
    }
    Ok(())
}

fn id(ask: QueryArgs) -> anyhow::Result<()> {
    let dir = ask.state_dir.unwrap_or_else(StateDir::default_path);
    let running = query_status(&dir)
        .ok()
        .flatten()
        .map(|view| (Some(view.name), view.id));
    let shown = match running {
        Some(shown) => Some(shown),
        None => identity::load(&dir, KeyFile::Identity)?.map(|key| (None, key.public().id().to_string())),
    };
    let Some((name, id)) = shown else {
        bail!(
            "there is no key in {} yet: it is made when the daemon starts",
            dir.display()
        );
    };
    print(&render::id(name.as_deref(), &id, ask.json))
}

fn status(ask: QueryArgs) -> anyhow::Result<()> {
    let dir = ask.state_dir.unwrap_or_else(StateDir::default_path);
    let Some(view) = query_status(&dir)? else {
        bail!(
            "no daemon runs with the state directory {}: start one, or name another with --state-dir",
            dir.display()
        );
    };
    print(&render::status(&view, ask.json)?)
}

fn query_status(dir: &std::path::Path) -> anyhow::Result<Option<StatusView>> {
    let line = status::query(&StateDir::socket(dir), &Request::Status).with_context(|| query_failed(dir))?;
    line.map(|line| serde_json::from_str(&line).context("the daemon's answer is unreadable"))
        .transpose()
}

fn query_failed(dir: &std::path::Path) -> String {
    format!(
        "cannot ask the daemon in {}: be its user or in its group, or use sudo",
        dir.display()
    )
}

fn check_config(file: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(Some(file), std::iter::empty())?;
    if let Some(Err(error)) = config.join.as_deref().map(str::parse::<Invitation>) {
        // Found here, and not on twenty SD cards.
        return Err(settings::UsageError(format!("{}: join: {error}", file.display())).into());
    }
    print(&format!("{}: ok\n", file.display()))
}

/// The one place that writes to standard output.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader closed the pipe.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
