//! `door send` and `door peers`.

use data_encoding::BASE64;

use crate::cli::Common;
use crate::cli::connect::Connection;
use crate::cli::request::{Ended, follow};
use crate::cli::screen::{CliError, EXIT_FAILED, EXIT_INTERRUPTED, Screen};
use crate::fleet::{Event, Request};
use crate::view;

/// Arguments of `door send`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ground-station door send socktools 'hello'                       to every connected peer
  ground-station door send socktools --peer 10.0.0.9:7423 'hello'  to one
  ground-station door send socktools --peer 10.0.0.9 --base64 AAEC bytes, to all of one address

Exit status: 0 all of it is written; 1 some peer did not take it; 3 no such peer is connected.")]
pub(super) struct SendArgs {
    /// Which door: socktools
    door: String,
    /// What to send
    message: String,
    /// To whom: ADDR:PORT, or ADDR for all of that address [default: every connected peer]
    #[arg(long, value_name = "ADDR[:PORT]")]
    peer: Option<String>,
    /// MESSAGE is base64 of the bytes to send
    #[arg(long)]
    base64: bool,
}

/// Arguments of `door peers`.
#[derive(Debug, clap::Args)]
pub(super) struct PeersArgs {
    /// Which door: socktools
    door: String,
}

pub(super) async fn send(args: SendArgs, common: &Common, screen: &mut Screen) -> Result<u8, CliError> {
    let message = if args.base64 {
        let decoded = BASE64.decode(args.message.as_bytes());
        decoded.map_err(|error| CliError::usage(format!("MESSAGE is not base64: {error}")))?;
        args.message
    } else {
        BASE64.encode(args.message.as_bytes())
    };
    let request = Request::Tell {
        door: args.door,
        peer: args.peer,
        message,
    };
    ask(request, common, screen).await
}

pub(super) async fn list(args: PeersArgs, common: &Common, screen: &mut Screen) -> Result<u8, CliError> {
    ask(Request::Peers { door: args.door }, common, screen).await
}

async fn ask(request: Request, common: &Common, screen: &mut Screen) -> Result<u8, CliError> {
    let told = matches!(request, Request::Tell { .. });
    // Without `serve` no door is open, and links would be brought up for nothing.
    let Some(connection) = Connection::open_running(common).await? else {
        let text = "no station serves here, so no door is open: start `ground-station serve`";
        return Err(CliError::usage(text));
    };
    let mut peers = Vec::new();
    let ended = follow(&connection.fleet, request, screen, |event, _screen| {
        if let Some(Event::Peer(peer)) = event {
            peers.push(peer.clone());
        }
        Ok(())
    })
    .await;
    connection.close().await;
    match ended? {
        Ended::Whole => {
            if !screen.json {
                screen.result(&view::peers::table(&peers, told, screen.style).join("\n"))?;
            }
            let all = peers.iter().all(|peer| peer.error.is_none());
            Ok(if all { 0 } else { EXIT_FAILED })
        }
        Ended::Interrupted => Ok(EXIT_INTERRUPTED),
        Ended::Failed(failure, message) => Ok(screen.fault(&CliError::request(failure, message))),
    }
}
