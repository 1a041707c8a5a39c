//! The same round trips over plain TCP, without TLS, sessions or JSON: what the kernel alone takes on this machine.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use swarm_shared::net::{clock, random};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::node_host::{NodeHosts, end_with_parent};
use super::{Samples, SeededFleet};

/// Bytes of a command, and of a reply: about as many as a `ping` has on a link.
const MESSAGE_BYTES: usize = 256;
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Sends one message to each of `nodes` connections and waits for all replies, `runs` times with `pause` in between.
/// Returns the milliseconds of each round.
///
/// # Errors
/// If the nodes do not connect, or a reply is missing.
pub async fn round_trips(
    nodes: u32,
    runs: usize,
    processes: u32,
    pause: Duration,
) -> anyhow::Result<Samples> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let arguments = ["--station".to_owned(), addr.to_string()];
    let members = SeededFleet::from_seed(random::bytes()?)?;
    let _hosts = NodeHosts::start_as("tcp-host", &arguments, &members, nodes, processes)?;
    let (replied, mut replies) = mpsc::channel(nodes as usize);
    let mut writers = Vec::new();
    while writers.len() < nodes as usize {
        let accepted = timeout(TEST_TIMEOUT, listener.accept()).await;
        let (stream, _from) = accepted.context("not all nodes connect")??;
        stream.set_nodelay(true)?;
        let (mut reader, writer) = stream.into_split();
        let replied = replied.clone();
        tokio::spawn(async move {
            let mut reply = [0; MESSAGE_BYTES];
            while reader.read_exact(&mut reply).await.is_ok() && replied.send(()).await.is_ok() {}
        });
        writers.push(writer);
    }
    let mut latency = Samples::default();
    for run in 0..=runs {
        sleep(pause).await;
        let started = clock::now();
        for writer in &mut writers {
            writer.write_all(&[run.to_le_bytes()[0]; MESSAGE_BYTES]).await?;
        }
        for _ in 0..nodes {
            let reply = timeout(TEST_TIMEOUT, replies.recv()).await;
            reply
                .context("replies are missing")?
                .context("a reader has ended")?;
        }
        // The first round is a rehearsal.
        if run > 0 {
            latency.add(clock::since(started).as_secs_f64() * 1_000.0);
        }
    }
    Ok(latency)
}

/// Runs `count` connections to `station` that send back each message, until the parent process ends.
///
/// # Errors
/// If a connection cannot be opened.
pub async fn run_nodes(count: u32, station: SocketAddr) -> anyhow::Result<()> {
    end_with_parent()?;
    for _ in 0..count {
        let mut stream = TcpStream::connect(station).await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut message = [0; MESSAGE_BYTES];
            while stream.read_exact(&mut message).await.is_ok() && stream.write_all(&message).await.is_ok() {}
        });
    }
    std::future::pending().await
}
