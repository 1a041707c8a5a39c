//! A minimal program that shows whether two hosts reach one another: answers, calls, or sends bytes over TCP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

/// Bytes in one write.
const BLOCK_BYTES: usize = 16 * 1024;

#[derive(Parser)]
enum Args {
    /// Reads until the end of each connection and answers `done`, one connection after the other.
    Listen { addr: SocketAddr },
    /// Connects within this many seconds and reads the answer.
    Call { addr: SocketAddr, seconds: u64 },
    /// Sends this many bytes and waits for the answer.
    Send { addr: SocketAddr, bytes: usize },
}

fn main() -> anyhow::Result<()> {
    match Args::parse() {
        Args::Listen { addr } => {
            let listener = TcpListener::bind(addr)?;
            writeln!(std::io::stdout(), "listening")?;
            loop {
                let (stream, _from) = listener.accept()?;
                // A caller that is cut off must not end the program for the next one.
                let _cut_off = answer(stream);
            }
        }
        Args::Call { addr, seconds } => call(addr, Duration::from_secs(seconds), 0),
        Args::Send { addr, bytes } => call(addr, Duration::from_secs(60), bytes),
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    std::io::copy(&mut stream, &mut std::io::sink())?;
    stream.write_all(b"done")
}

fn call(addr: SocketAddr, patience: Duration, bytes: usize) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&addr, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let block = [0; BLOCK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(BLOCK_BYTES);
        stream.write_all(&block[..now])?;
        left -= now;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    (answer == "done").then_some(()).context("no answer")
}
