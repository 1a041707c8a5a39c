//! A station starts again: how long until its store is open and it knows what is still to be done.

use std::path::Path;
use std::time::Duration;

use ground_station::store::deliveries::{Origin, apply};
use ground_station::store::moment::Moment;
use ground_station::store::{STORE_FILE, Store, prepare};
use rusqlite::Connection;
use swarm_shared::net::clock;
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::delivery::book::{Change, Issued, IssuedTo, Order, Standing};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::Lane;

use super::{Samples, Table};

/// Nodes of each command.
const NODES: u64 = 1_000;
/// Commands of which the last delivery is still open.
const OPEN_COMMANDS: u64 = 10;
const OWN: PeerId = PeerId([7; 32]);

/// Fills a store with `deliveries` and opens it `runs` times.
///
/// # Errors
/// If the disk is full, or something that was open is not found.
pub async fn station(deliveries: u64, runs: usize, dir: &Path) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(dir)?;
    let path = dir.path().join(STORE_FILE);
    let commands = deliveries.div_ceil(NODES);
    let filling = clock::now();
    tokio::task::spawn_blocking({
        let path = path.clone();
        move || fill(&path, commands)
    })
    .await??;
    let fill_s = clock::now().duration_since(filling).as_secs_f64();
    let (mut opened, mut recovered) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        let started = clock::now();
        let store = Store::open(dir.path()).await?;
        opened.add(clock::now().duration_since(started).as_secs_f64() * 1_000.0);
        let open = store.recover(OWN).await?;
        recovered.add(clock::now().duration_since(started).as_secs_f64() * 1_000.0);
        anyhow::ensure!(
            open.len() as u64 == OPEN_COMMANDS.min(commands),
            "{} commands are open",
            open.len()
        );
    }
    let mut table = Table::new();
    let many = commands * NODES;
    table.row(format!("a store with {many} deliveries: open"), "ms", &opened);
    table.row(
        format!("a store with {many} deliveries: open, and all that is open found"),
        "ms",
        &recovered,
    );
    let mut size = Samples::default();
    size.add(f64::from(u32::try_from(
        std::fs::metadata(&path)?.len() / 1_048_576,
    )?));
    table.row("its file", "MiB", &size);
    let mut filled = Samples::default();
    filled.add(fill_s);
    table.row(
        "filling it, a commit for each command's issue and end",
        "s",
        &filled,
    );
    Ok(table.print()?)
}

/// Writes commands to [`NODES`] nodes each, all ended but one delivery of the newest few.
fn fill(path: &Path, commands: u64) -> anyhow::Result<()> {
    let mut connection = Connection::open(path)?;
    prepare(&mut connection, path, clock::unix_time_ms(), 1)?;
    let names: Vec<(NodeName, PeerId)> = (0..NODES)
        .map(|number| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            Ok((NodeName::parse(&format!("node-{number:04}"))?, PeerId(id)))
        })
        .collect::<anyhow::Result<_>>()?;
    let now = Moment::now();
    for seq in 1..=commands {
        let id = CommandId {
            issuer: OWN,
            epoch: 1,
            seq,
        };
        let issued = Change::Issued(Issued {
            order: order(id),
            selector: "all".to_owned(),
            deliveries: names
                .iter()
                .map(|(name, to)| IssuedTo {
                    to: *to,
                    name: name.clone(),
                    standing: Standing::Sent,
                    deadline: now.instant + Duration::from_secs(3_600),
                })
                .collect(),
        });
        let left_open = usize::from(seq + OPEN_COMMANDS > commands);
        let ends = names.iter().skip(left_open).map(|(_, to)| Change::Ended {
            id,
            to: *to,
            reply: Reply::done("LED set to #ff0000".into()),
        });
        let changes: Vec<Change> = std::iter::once(issued).chain(ends).collect();
        let transaction = connection.transaction()?;
        apply(&transaction, &changes, &[(id, Origin::of("pi"))].into(), &now)?;
        transaction.commit()?;
    }
    Ok(())
}

fn order(id: CommandId) -> Order {
    Order {
        id,
        action: "led".to_owned(),
        arguments: "{\"args\":[],\"kwargs\":{\"color\":\"#ff0000\"}}".to_owned(),
        lane: Lane::Control,
        life_ms: 3_600_000,
    }
}
