//! `serve`: runs the station until it is interrupted.

use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::CommonOptions;
use super::connect::Connection;
use super::screen::{CliError, Screen};

/// Run the station: keep the links, find nodes, serve other verbs and gateways
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address for links of nodes and stations; port 0 picks a free one [default: 0.0.0.0:7421]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// UDP port of notifier pings [default: 7422]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ping_port: Option<u16>,
    /// Do not broadcast notifier pings
    #[arg(long)]
    no_pings: bool,
    /// Neither publish nor browse by multicast DNS
    #[arg(long)]
    no_mdns: bool,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| CliError::failed(format!("cannot listen for SIGTERM: {error}")))?;
    let adjust = |config: &mut crate::config::Config| {
        config.listen = args.listen.unwrap_or(config.listen);
        config.ping_port = args.ping_port.unwrap_or(config.ping_port);
        config.pings &= !args.no_pings;
        config.mdns &= !args.no_mdns;
    };
    raise_file_limit();
    let connection = Connection::serve(common, adjust, screen).await?;
    screen.print_note("serving; other verbs use these links; Ctrl-C ends it");
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => {
            outcome.map_err(|error| CliError::failed(format!("cannot listen for Ctrl-C: {error}")))?;
        }
        _ = terminate.recv() => {}
    }
    connection.close().await;
    Ok(0)
}

/// Each link takes a file descriptor, and many systems start a process with 1,024: a fleet of 500 needs twice that.
fn raise_file_limit() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}
