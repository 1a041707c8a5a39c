//! How another process of this machine asks a running station: the Unix socket `control.sock` (mode 0600) and the
//! file `lock`, both in the state directory.
//!
//! One connection carries one request: the client writes a [`Request`](crate::fleet::Request) as one line of JSON,
//! the server answers with lines of [`Event`](crate::fleet::Event), the last of them `end` or `failed`, and closes.
//! A client that closes early cancels its request. Lines are bounded both ways.
//!
//! One process owns a state directory: the one that holds [`lock::StateLock`]. Only it may bind the socket, so a
//! socket file that nobody answers on is a leftover and is replaced.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

pub mod client;
pub mod lock;
pub mod server;

#[cfg(test)]
mod tests;

/// Name of the socket in the state directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Longest request line, in bytes: the largest arguments, and room for escapes.
pub const REQUEST_LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest event line, in bytes: the largest reply, each byte escaped.
pub const EVENT_LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Reads one line without its end; `None` at the end of the stream.
async fn read_line(from: &mut (impl AsyncBufRead + Unpin), bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let part = from.fill_buf().await?;
        if part.is_empty() {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the last line was cut off");
            return if line.is_empty() { Ok(None) } else { Err(cut) };
        }
        let end = part.iter().position(|b| *b == b'\n');
        let taken = end.unwrap_or(part.len());
        if line.len() + taken > bytes_max {
            let long = format!("a line is longer than {bytes_max} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, long));
        }
        line.extend_from_slice(&part[..taken]);
        from.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}
