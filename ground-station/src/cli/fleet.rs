//! `fleet …`: makes a fleet and manages its members.

use std::time::Duration;

use swarm_shared::proto::trust::Role;

use super::CommonOptions;
use super::connect::Connection;
use super::request::follow;
use super::screen::{CliError, Screen};
use crate::duration::{self, to_ms};
use crate::view;
use swarm_shared::api::{Event, FleetRequest};

/// Make a fleet, invite or accept members, revoke them
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a fleet whose root key is on this machine
    Init,
    /// Make an invitation code for nodes or other stations
    Invite {
        /// The role of the new member: a device, or a station that reads, commands or enrols
        #[arg(long, value_enum, default_value = "node")]
        role: RoleName,
        /// How many may join with it; for SD-card images, as many as there are cards
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        uses: u32,
        /// How long it is valid
        #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration::parse)]
        valid_for: Duration,
    },
    /// Join another machine's fleet as a station, with a code from there
    Join {
        /// What `ground-station fleet invite --role operator` printed
        code: String,
    },
    /// List the devices that wait to be accepted
    Pending,
    /// Accept a waiting device; compare its id with its log first
    Accept {
        /// Its name, or the first digits of its id
        node: String,
    },
    /// Revoke a member for good; its links close
    Revoke {
        /// Its name, or the first digits of its id
        node: String,
    },
    /// List the members
    Members,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RoleName {
    Node,
    Observer,
    Operator,
    Admin,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let request = match args.verb {
        Verb::Init => FleetRequest::Init,
        Verb::Invite {
            role,
            uses,
            valid_for,
        } => {
            let role = match role {
                RoleName::Node => Role::Node,
                RoleName::Observer => Role::Observer,
                RoleName::Operator => Role::Operator,
                RoleName::Admin => Role::Admin,
            };
            FleetRequest::Invite {
                role,
                uses,
                valid_for_ms: to_ms(valid_for),
            }
        }
        Verb::Join { code } => FleetRequest::Join {
            code,
            timeout_ms: to_ms(common.timeout),
        },
        Verb::Pending => FleetRequest::Pending,
        Verb::Accept { node } => FleetRequest::Accept { node },
        Verb::Revoke { node } => FleetRequest::Revoke { node },
        Verb::Members => FleetRequest::Members,
    };
    let connection = Connection::open(common, "fleet", screen).await?;
    let is_pending_query = request == FleetRequest::Pending;
    let mut members = Vec::new();
    let mut pending = Vec::new();
    let ended = follow(&connection.fleet, request, screen, |event, screen| {
        let Some(event) = event else { return Ok(()) };
        if let Event::Member(shown) = event {
            members.push(shown.clone());
        } else if let Event::Pending(shown) = event {
            pending.push(shown.clone());
        } else if screen.json {
            // Printed already.
        } else if let Event::Membership(shown) = event {
            screen.print_result(&view::fleet::membership(shown, screen.style))?;
        } else if let Event::Invitation(shown) = event {
            screen.print_result(&view::fleet::invitation(shown, screen.style))?;
        }
        Ok(())
    })
    .await;
    connection.close().await;
    let ended = ended?;
    if !screen.json && !members.is_empty() {
        screen.print_result(&view::fleet::members_table(&members, screen.style).join("\n"))?;
    }
    ended.into_result()?;
    if is_pending_query && !screen.json {
        screen.print_result(&view::fleet::pending_table(&pending, screen.style).join("\n"))?;
    }
    Ok(0)
}
