//! `gateway send` and `gateway peers`: the programs that are connected at a gateway.

use data_encoding::BASE64;

use crate::cli::CommonOptions;
use crate::cli::connect::Connection;
use crate::cli::request::follow;
use crate::cli::screen::{CliError, EXIT_FAILED, Screen};
use crate::view;
use swarm_shared::api::{AdminRequest, Event};

/// Arguments of `gateway send`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ground-station gateway send socktools 'hello'                       to every connected peer
  ground-station gateway send socktools --peer 10.0.0.9:7423 'hello'  to one
  ground-station gateway send socktools --peer 10.0.0.9 --base64 AAEC bytes, to all of one address

Exit status: 0 all of it is written; 1 some peer did not take it; 3 no such peer is connected.")]
pub(super) struct SendArgs {
    /// The gateway: socktools
    gateway: String,
    /// The message
    message: String,
    /// The receiver: ADDR:PORT, or ADDR for all peers of that address [default: every connected peer]
    #[arg(long, value_name = "ADDR[:PORT]")]
    peer: Option<String>,
    /// MESSAGE is base64 of the bytes to send
    #[arg(long)]
    base64: bool,
}

/// Arguments of `gateway peers`.
#[derive(Debug, clap::Args)]
pub(super) struct PeersArgs {
    /// The gateway: socktools
    gateway: String,
}

pub(super) async fn send(
    args: SendArgs,
    common: &CommonOptions,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    let message = if args.base64 {
        let decoded = BASE64.decode(args.message.as_bytes());
        decoded.map_err(|error| CliError::usage(format!("MESSAGE is not base64: {error}")))?;
        args.message
    } else {
        BASE64.encode(args.message.as_bytes())
    };
    let request = AdminRequest::SendToPeers {
        gateway: args.gateway,
        peer: args.peer,
        message,
    };
    send_request(request, common, screen).await
}

pub(super) async fn list(
    args: PeersArgs,
    common: &CommonOptions,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    send_request(
        AdminRequest::Peers {
            gateway: args.gateway,
        },
        common,
        screen,
    )
    .await
}

async fn send_request(
    request: AdminRequest,
    common: &CommonOptions,
    screen: &mut Screen,
) -> Result<u8, CliError> {
    let told = matches!(request, AdminRequest::SendToPeers { .. });
    // Without `serve` no gateway is open, so links are of no use.
    let Some(connection) = Connection::open_running(common).await? else {
        let text = "no station serves here, so no gateway is open: start `ground-station serve`";
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
    ended?.into_result()?;
    if !screen.json {
        screen.print_result(&view::peers::table(&peers, told, screen.style).join("\n"))?;
    }
    let all = peers.iter().all(|peer| peer.error.is_none());
    Ok(if all { 0 } else { EXIT_FAILED })
}
