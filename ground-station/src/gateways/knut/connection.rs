//! One connection: what is read is answered in its order; beside the answers go pushes and heartbeats.

use std::io;
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::proto::knut::{Decoder, END, Item};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::super::access::Visitor;
use super::super::framing::write_on;
use super::super::listener::Entrance;
use super::{DOOR, Desk, FIRST_WORD, HEARTBEAT, MESSAGE_TIME, WRITE_TIME};

/// Bytes that are read at once.
const READ_BYTES: usize = 8 * 1024;
/// Answers that wait to be written; the next question is not read before there is room.
const ANSWERS_MAX: usize = 1;

/// Longest method of HTTP that is looked for, in bytes.
const METHOD_MAX: usize = 32;

/// Why a connection ended, if not by its other side.
#[derive(Debug, thiserror::Error)]
pub(super) enum Left {
    /// At first.
    #[error("said nothing for {FIRST_WORD:?}")]
    Silent,
    /// Within a message.
    #[error("a message took longer than {MESSAGE_TIME:?}")]
    Trickle,
    /// The other side takes nothing.
    #[error("read nothing for {WRITE_TIME:?}")]
    DoesNotRead,
    /// At first: most likely a web page had a browser send it, with messages in its body.
    #[error("began with a request of HTTP, which this door does not speak")]
    Http,
    /// The connection.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The first bytes of a connection. What a browser sends for a page of anybody's begins with a method, which is never
/// how a message begins.
#[derive(Debug, Default)]
struct Opening {
    begun: Vec<u8>,
    over: bool,
}

impl Opening {
    /// Whether these bytes, after those before, begin with a request of HTTP.
    fn is_http(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if self.over {
                break;
            }
            if self.begun.is_empty() && byte.is_ascii_whitespace() {
                continue;
            }
            if self.begun.len() < METHOD_MAX && (byte.is_ascii_uppercase() || *byte == b'-') {
                self.begun.push(*byte);
                continue;
            }
            self.over = true;
            return *byte == b' ' && !self.begun.is_empty();
        }
        false
    }
}

fn visitor(entrance: &Entrance) -> Visitor {
    Visitor {
        from: entrance.addr.ip(),
        user: None,
    }
}

/// Serves one client until either side has had enough.
pub(super) async fn serve(desk: &Desk, stream: TcpStream, entrance: &Entrance) {
    let addr = entrance.addr;
    let (from, to) = stream.into_split();
    let (answers, outgoing) = mpsc::channel(ANSWERS_MAX);
    let pushes = desk.pushes.subscribe();
    let mut reading = pin!(read(desk, from, entrance, answers));
    let mut writing = pin!(write(desk, to, outgoing, pushes));
    let ended = tokio::select! {
        ended = &mut writing => ended,
        ended = &mut reading => match ended {
            // It has said all; what was answered still goes out.
            Ok(()) => writing.await,
            Err(left) => Err(left),
        },
    };
    if let Err(wrong @ (Left::Http | Left::Trickle)) = &ended {
        desk.guard
            .note_wrong(&visitor(entrance), &wrong.to_string())
            .await;
    }
    match ended {
        Ok(()) => tracing::debug!(door = DOOR, %addr, "left"),
        Err(left) => match entrance.log().count("closed") {
            Some(count) => tracing::info!(door = DOOR, %addr, why = %left, count, "closed"),
            None => tracing::debug!(door = DOOR, %addr, why = %left, "closed"),
        },
    }
}

/// Takes what a client says, until it has said all.
pub(super) async fn read(
    desk: &Desk,
    mut from: impl AsyncRead + Unpin,
    entrance: &Entrance,
    answers: mpsc::Sender<Bytes>,
) -> Result<(), Left> {
    let visitor = visitor(entrance);
    let mut opening = Opening::default();
    let mut decoder = Decoder::new(desk.config.common.limits.message_bytes);
    let mut buffer = [0; READ_BYTES];
    // Until something has been said, and since when something has begun.
    let mut first = Some(clock::now() + FIRST_WORD);
    let mut begun = None::<Instant>;
    loop {
        let reading = from.read(&mut buffer);
        let count = match (begun.map(|begun| begun + MESSAGE_TIME), first) {
            (Some(until), _) => clock::timeout_at(until, reading)
                .await
                .map_err(|_late| Left::Trickle)?,
            (None, Some(until)) => clock::timeout_at(until, reading)
                .await
                .map_err(|_late| Left::Silent)?,
            (None, None) => reading.await,
        }?;
        if count == 0 {
            return Ok(());
        }
        let mut bytes = buffer.get(..count).unwrap_or_default();
        if opening.is_http(bytes) {
            return Err(Left::Http);
        }
        while let Some(item) = decoder.take(&mut bytes) {
            (first, begun) = (None, None);
            entrance.turn().await;
            let message = match item {
                Item::Heartbeat => continue,
                Item::Message(message) => message,
                Item::Bad(error) => {
                    let addr = entrance.addr;
                    match entrance.log().count("not a message") {
                        Some(count) => {
                            tracing::info!(door = DOOR, %addr, %error, count, "not a message; passed over");
                        }
                        None => tracing::debug!(door = DOOR, %addr, %error, "not a message; passed over"),
                    }
                    desk.guard.note_wrong(&visitor, &error.to_string()).await;
                    continue;
                }
            };
            if let Some(answer) = desk.answer(&visitor, message).await
                && answers.send(answer.encode().into()).await.is_err()
            {
                return Ok(());
            }
        }
        begun = if decoder.is_midway() {
            begun.or_else(|| Some(clock::now()))
        } else {
            None
        };
    }
}

pub(super) async fn write(
    desk: &Desk,
    mut to: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Bytes>,
    mut pushes: broadcast::Receiver<Bytes>,
) -> Result<(), Left> {
    let mut beat = clock::now() + HEARTBEAT;
    loop {
        let bytes = tokio::select! {
            biased;
            () = clock::sleep_until(beat) => {
                beat = clock::now() + HEARTBEAT;
                Bytes::from_static(&[END])
            }
            answer = answers.recv() => match answer {
                Some(answer) => answer,
                None => return Ok(()),
            },
            push = pushes.recv() => match push {
                Ok(push) => push,
                Err(RecvError::Lagged(_)) => {
                    let everything = desk.board().everything();
                    everything.encode().into()
                }
                Err(RecvError::Closed) => return Ok(()),
            },
        };
        if !write_on(&mut to, &bytes, WRITE_TIME).await? {
            return Err(Left::DoesNotRead);
        }
    }
}
