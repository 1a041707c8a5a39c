//! `gateway …`: users, tokens and peers of gateways.

use super::CommonOptions;
use super::screen::{CliError, Screen};

mod peers;
mod users;

/// Manage users and tokens of gateways, and the peers that are connected at one
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Send a message to peers that are connected at a gateway, such as socktools
    Send(peers::SendArgs),
    /// List the peers that are connected at a gateway
    Peers(peers::PeersArgs),
    #[command(flatten)]
    Users(users::Verb),
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    match args.verb {
        Verb::Send(args) => peers::send(args, common, screen).await,
        Verb::Peers(args) => peers::list(args, common, screen).await,
        Verb::Users(verb) => users::run(verb, common, screen).await,
    }
}
