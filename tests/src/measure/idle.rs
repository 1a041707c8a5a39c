//! Memory of programs that are linked and have nothing to do.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use swarm_shared::net::random;
use tempfile::TempDir;
use tokio::time::sleep;

use super::node_host::NodeHosts;
use super::real_station::RealStation;
use super::{Samples, SeededFleet, Table, memory_of};
use crate::process::Process;

/// How long a program is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(6);

/// A real node's process, linked.
///
/// # Errors
/// If it does not link.
pub async fn node(runs: usize) -> anyhow::Result<()> {
    let (mut rss, mut anon, mut file) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..runs {
        let station = RealStation::start().await?;
        let node = station.node("drone-1", "").await?;
        sleep(SETTLE).await;
        let memory = memory_of(node.pid())?;
        rss.add(memory.rss as f64 / 1024.0);
        anon.add(memory.anon as f64 / 1024.0);
        file.add(memory.file as f64 / 1024.0);
    }
    let mut table = Table::new();
    table.add_row("an idle, linked swarm-node: resident", "MiB", &rss);
    table.add_row("  of its own (heap, stacks)", "MiB", &anon);
    table.add_row("  of files (program, libraries)", "MiB", &file);
    Ok(table.print()?)
}

/// A station's endpoint alone in its process, with many links.
///
/// # Errors
/// If the nodes do not link.
pub async fn links(nodes: u32, runs: usize, processes: u32) -> anyhow::Result<()> {
    let mut each = Samples::default();
    for _ in 0..runs {
        let members = SeededFleet::from_seed(random::bytes()?)?;
        let logs = TempDir::with_prefix("measure-")?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("station-host")
            .args(["--seed", &members.seed()])
            .args(["--listen", &addr.to_string()]);
        let station = Process::spawn(command, "station", logs.path());
        sleep(SETTLE / 4).await;
        let before = memory_of(station.pid())?.rss;
        let _hosts = NodeHosts::start(&members, nodes, processes, addr)?;
        let mut linked = 0;
        for _ in 0..20 {
            sleep(SETTLE / 2).await;
            linked = connections(station.pid())?;
            if linked >= nodes as usize {
                break;
            }
        }
        ensure!(linked >= nodes as usize, "{linked} of {nodes} nodes are linked");
        sleep(SETTLE).await;
        let after = memory_of(station.pid())?.rss;
        each.add((after - before) as f64 / f64::from(nodes));
    }
    let mut table = Table::new();
    table.add_row(
        format!("a station's memory for each of {nodes} links"),
        "KiB",
        &each,
    );
    Ok(table.print()?)
}

/// How many sockets a process holds beyond those that an endpoint needs for itself.
fn connections(pid: u32) -> anyhow::Result<usize> {
    let mut sockets = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = std::fs::read_link(entry?.path()).unwrap_or_default();
        sockets += usize::from(target.to_string_lossy().starts_with("socket:"));
    }
    Ok(sockets.saturating_sub(1))
}
