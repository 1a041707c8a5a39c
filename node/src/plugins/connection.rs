//! One plug-in's connection: drains what the conversation wants done, then takes one input.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::Value;
use swarm_shared::net::clock;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::plugin::{Conversation, Event, LIMITS, LIMITS_GREETING, LogLevel};
use swarm_shared::proto::wire::{Frame, FrameReader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Line, ORDERS_MAX, Order, Plugins, Seat};

/// How long a plug-in may read nothing while something waits for it.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// What may wait to be written, in bytes: a frame of the longest kind and a little. Beyond it, calls are busy and the
/// plug-in is not read from.
const OUT_BYTES_MAX: usize = 1024 * 1024 + 64 * 1024;
/// How much is read at once, in bytes, where no frame says how long it is.
const READ_BYTES: usize = 8 * 1024;
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What there is besides the socket.
struct Talk {
    plugins: Plugins,
    welcome: Value,
    pid: Option<i32>,
    conversation: Conversation,
    seat: Option<Seat>,
    line: Line,
    waiting: BTreeMap<u64, oneshot::Sender<Reply>>,
    reader: FrameReader,
    out: BytesMut,
    /// Bytes ever put into `out`, and taken from it.
    put: u64,
    taken: u64,
    /// Calls that are done when so many bytes are taken.
    handovers: VecDeque<(u64, u64)>,
    /// When `out` last was empty or became shorter.
    moved: Instant,
    /// Nothing can be written any more; what the program said before is still read.
    deaf: bool,
    closed: Option<String>,
}

/// Serves one program until it goes, is told to, or `stop`.
pub(super) async fn serve(stream: UnixStream, plugins: Plugins, welcome: Value, stop: CancellationToken) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let (mut read, mut write) = stream.into_split();
    let (sender, mut orders) = mpsc::channel(ORDERS_MAX);
    let given_up = Arc::new(Notify::new());
    let now = clock::now();
    let mut talk = Talk {
        plugins,
        welcome,
        pid,
        conversation: Conversation::new(now),
        seat: None,
        line: Line {
            orders: sender,
            given_up: Arc::clone(&given_up),
        },
        waiting: BTreeMap::new(),
        reader: FrameReader::new(LIMITS_GREETING),
        out: BytesMut::new(),
        put: 0,
        taken: 0,
        handovers: VecDeque::new(),
        moved: now,
        deaf: false,
        closed: None,
    };
    let mut inbox = BytesMut::new();
    let closed = loop {
        talk.carry_out();
        if let Some(why) = talk.closed.take() {
            break why;
        }
        inbox.reserve(talk.reader.lacking().max(READ_BYTES));
        let wait = talk.due().saturating_duration_since(clock::now());
        tokio::select! {
            biased;
            () = stop.cancelled() => talk.conversation.close("the node is shutting down"),
            () = given_up.notified() => talk.call_off(),
            Some(order) = orders.recv() => talk.take_order(order),
            wrote = write.write_buf(&mut talk.out), if !talk.out.is_empty() && !talk.deaf => talk.wrote(wrote),
            bytes = read.read_buf(&mut inbox), if talk.out.len() < OUT_BYTES_MAX => talk.read(bytes, &mut inbox),
            () = tokio::time::sleep(wait) => talk.handle_timeout(clock::now()),
        }
    };
    let name = talk.name().to_owned();
    // From here on nobody finds it.
    talk.seat = None;
    orders.close();
    while let Ok(order) = orders.try_recv() {
        let why = format!("the plug-in {name} went away before {} began", order.call.name);
        let _asker_gone = order.done.send(Reply::refused(why));
    }
    tracing::info!(plugin = name, pid, why = closed, "plug-in gone");
    // Whoever is gone, or does not read, cannot be told.
    let _untold = tokio::time::timeout(LAST_WORDS, write.write_all_buf(&mut talk.out)).await;
}

impl Talk {
    fn name(&self) -> &str {
        self.seat.as_ref().map_or("?", |seat| &seat.name)
    }

    fn due(&self) -> Instant {
        let deaf = (!self.out.is_empty()).then(|| self.moved + READ_PATIENCE);
        let next = [deaf, self.conversation.poll_timeout()]
            .into_iter()
            .flatten()
            .min();
        next.unwrap_or_else(|| clock::now() + READ_PATIENCE)
    }

    fn handle_timeout(&mut self, now: Instant) {
        if !self.out.is_empty() && now >= self.moved + READ_PATIENCE {
            self.conversation
                .lost(&format!("it read nothing for {READ_PATIENCE:?}"));
        }
        self.conversation.handle_timeout(now);
    }

    /// Calls off each call that nobody waits for any more.
    fn call_off(&mut self) {
        let given_up = self.waiting.iter().filter(|(_, done)| done.is_closed());
        let numbers: Vec<u64> = given_up.map(|(number, _)| *number).collect();
        for number in numbers {
            self.conversation.cancel(number);
        }
    }

    fn take_order(&mut self, Order { call, done }: Order) {
        if done.is_closed() {
            return tracing::debug!(action = call.name, "called off before it began");
        }
        if self.out.len() >= OUT_BYTES_MAX {
            let why = format!("busy: the plug-in {} does not read; try again", self.name());
            tracing::debug!(action = call.name, why, "refused");
            let _asker_gone = done.send(Reply::refused(why));
            return;
        }
        self.waiting.insert(call.number, done);
        self.conversation.begin(call, clock::now(), clock::boot_time_ms());
    }

    fn wrote(&mut self, wrote: io::Result<usize>) {
        match wrote {
            Err(_read_says_why) => self.deaf = true,
            Ok(bytes) => {
                self.moved = clock::now();
                self.taken += bytes as u64;
            }
        }
        while let Some((at, number)) = self.handovers.front().copied()
            && at <= self.taken
        {
            self.handovers.pop_front();
            self.conversation.handed_over(number);
        }
    }

    fn read(&mut self, bytes: io::Result<usize>, inbox: &mut BytesMut) {
        match bytes {
            Ok(0) => return self.conversation.lost("it closed its connection"),
            // The same, before it had read all.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return self.conversation.lost("it closed its connection");
            }
            Err(error) => return self.conversation.lost(&error.to_string()),
            Ok(_) => {}
        }
        while !self.conversation.is_closed() {
            match self.reader.next_frame(inbox) {
                Ok(Some(frame)) => {
                    self.conversation.handle_frame(&frame, clock::now());
                    self.carry_out();
                }
                Ok(None) => return,
                Err(error) => self.conversation.close(&format!("not a frame: {error}")),
            }
        }
    }

    /// Does what the conversation wants done.
    fn carry_out(&mut self) {
        while let Some(event) = self.conversation.poll_event() {
            match event {
                Event::Send(frame, handover) => self.send(&frame, handover),
                Event::Register(registration) => {
                    let name = registration.name.clone();
                    let seat = self.plugins.seat(registration, self.line.clone(), self.pid);
                    self.conversation.admit(match seat {
                        Ok(seat) => {
                            tracing::info!(plugin = name, pid = self.pid, "plug-in registered");
                            self.seat = Some(seat);
                            self.reader.set_limits(LIMITS);
                            Ok(self.welcome.clone())
                        }
                        Err(why) => Err(why),
                    });
                }
                Event::Ended(number, reply) => {
                    if let Some(done) = self.waiting.remove(&number) {
                        let _asker_gone = done.send(reply);
                    }
                }
                Event::Fields(fields) => {
                    if let Some(seat) = &self.seat {
                        seat.note(fields, clock::now());
                    }
                }
                Event::Log(level, text) => log(self.name(), level, &text),
                Event::PassedOver(note) => tracing::debug!(plugin = self.name(), note, "passed over"),
                Event::Close(why) => {
                    if self.seat.is_none() {
                        tracing::warn!(pid = self.pid, why, "a program did not become a plug-in");
                    }
                    self.closed = Some(why);
                }
            }
        }
    }

    fn send(&mut self, frame: &Frame, handover: Option<u64>) {
        if self.out.is_empty() {
            self.moved = clock::now();
        }
        let before = self.out.len();
        if let Err(error) = frame.encode(&mut self.out) {
            tracing::warn!(plugin = self.name(), %error, "a frame for a plug-in cannot be written");
            return self.conversation.lost(&error.to_string());
        }
        self.put += (self.out.len() - before) as u64;
        if let Some(number) = handover {
            self.handovers.push_back((self.put, number));
        }
    }
}

fn log(plugin: &str, level: LogLevel, text: &str) {
    match level {
        LogLevel::Debug => tracing::debug!(plugin, ?text, "says"),
        LogLevel::Info => tracing::info!(plugin, ?text, "says"),
        LogLevel::Warning => tracing::warn!(plugin, ?text, "says"),
        LogLevel::Error => tracing::error!(plugin, ?text, "says"),
    }
}
