//! The task of one plug-in's connection: applies the protocol's effects, then takes one input.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::Value;
use swarm_shared::net::clock;
use swarm_shared::proto::foreign::plugin::{Event, LIMITS, LIMITS_UNREGISTERED, LogLevel, PluginProtocol};
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::wire::{Frame, FrameReader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{CALL_QUEUE_MAX, CallRequest, CallSender, PluginGuard, Plugins};

/// How long a plug-in may read nothing while bytes wait for it.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that may wait to be written: one frame of the longest kind, and a little. Beyond it, calls are busy and
/// nothing is read from the plug-in.
const OUT_BYTES_MAX: usize = 1024 * 1024 + 64 * 1024;
/// Bytes that are read at once while no frame announces its length.
const READ_BYTES: usize = 8 * 1024;
/// Time to write the last bytes.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Everything but the socket.
struct PluginConnection {
    plugins: Plugins,
    welcome: Value,
    pid: Option<i32>,
    protocol: PluginProtocol,
    guard: Option<PluginGuard>,
    calls: CallSender,
    pending: BTreeMap<u64, oneshot::Sender<Reply>>,
    reader: FrameReader,
    out_buffer: BytesMut,
    /// Bytes ever added to `out`, and removed from it.
    queued_bytes: u64,
    written_bytes: u64,
    /// Calls that are done once so many bytes are written.
    handovers: VecDeque<(u64, u64)>,
    /// When `out` was last empty or became shorter.
    last_progress: Instant,
    /// Writing has failed; bytes that the program sent before are still read.
    write_failed: bool,
    close_reason: Option<String>,
}

/// Serves one program until it disconnects, is disconnected, or `shutdown`.
pub(super) async fn serve(stream: UnixStream, plugins: Plugins, welcome: Value, shutdown: CancellationToken) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let (mut read, mut write) = stream.into_split();
    let (sender, mut call_queue) = mpsc::channel(CALL_QUEUE_MAX);
    let abandoned = Arc::new(Notify::new());
    let now = clock::now();
    let mut connection = PluginConnection {
        plugins,
        welcome,
        pid,
        protocol: PluginProtocol::new(now),
        guard: None,
        calls: CallSender {
            queue: sender,
            abandoned: Arc::clone(&abandoned),
        },
        pending: BTreeMap::new(),
        reader: FrameReader::new(LIMITS_UNREGISTERED),
        out_buffer: BytesMut::new(),
        queued_bytes: 0,
        written_bytes: 0,
        handovers: VecDeque::new(),
        last_progress: now,
        write_failed: false,
        close_reason: None,
    };
    let mut inbox = BytesMut::new();
    let closed = loop {
        connection.apply_events();
        if let Some(why) = connection.close_reason.take() {
            break why;
        }
        inbox.reserve(connection.reader.missing_bytes().max(READ_BYTES));
        let wait = connection.next_timeout().saturating_duration_since(clock::now());
        tokio::select! {
            biased;
            () = shutdown.cancelled() => connection.protocol.close("the node is shutting down"),
            () = abandoned.notified() => connection.cancel_abandoned(),
            Some(order) = call_queue.recv() => connection.on_call(order),
            wrote = write.write_buf(&mut connection.out_buffer), if !connection.out_buffer.is_empty() && !connection.write_failed => connection.on_written(wrote),
            bytes = read.read_buf(&mut inbox), if connection.out_buffer.len() < OUT_BYTES_MAX => connection.on_read(bytes, &mut inbox),
            () = tokio::time::sleep(wait) => connection.handle_timeout(clock::now()),
        }
    };
    let name = connection.name().to_owned();
    // New callers cannot find it from here on.
    connection.guard = None;
    call_queue.close();
    while let Ok(order) = call_queue.try_recv() {
        let why = format!("the plug-in {name} went away before {} began", order.call.name);
        let _asker_gone = order.reply.send(Reply::refused(why));
    }
    tracing::info!(plugin = name, pid, why = closed, "Plug-in disconnected");
    // A program that is gone or does not read cannot be notified.
    let _untold = tokio::time::timeout(FLUSH_TIMEOUT, write.write_all_buf(&mut connection.out_buffer)).await;
}

impl PluginConnection {
    fn name(&self) -> &str {
        self.guard.as_ref().map_or("?", |seat| &seat.name)
    }

    fn next_timeout(&self) -> Instant {
        let write_deadline = (!self.out_buffer.is_empty()).then(|| self.last_progress + READ_TIMEOUT);
        let next = [write_deadline, self.protocol.poll_timeout()]
            .into_iter()
            .flatten()
            .min();
        next.unwrap_or_else(|| clock::now() + READ_TIMEOUT)
    }

    fn handle_timeout(&mut self, now: Instant) {
        if !self.out_buffer.is_empty() && now >= self.last_progress + READ_TIMEOUT {
            self.protocol
                .on_disconnected(&format!("it read nothing for {READ_TIMEOUT:?}"));
        }
        self.protocol.handle_timeout(now);
    }

    /// Cancels each call whose caller has stopped waiting.
    fn cancel_abandoned(&mut self) {
        let abandoned = self.pending.iter().filter(|(_, done)| done.is_closed());
        let numbers: Vec<u64> = abandoned.map(|(number, _)| *number).collect();
        for number in numbers {
            self.protocol.cancel(number);
        }
    }

    fn on_call(&mut self, CallRequest { call, reply: done }: CallRequest) {
        if done.is_closed() {
            return tracing::debug!(action = call.name, "Call cancelled before it started");
        }
        if self.out_buffer.len() >= OUT_BYTES_MAX {
            let why = format!("busy: the plug-in {} does not read; try again", self.name());
            tracing::debug!(action = call.name, why, "Call refused");
            let _asker_gone = done.send(Reply::refused(why));
            return;
        }
        self.pending.insert(call.number, done);
        self.protocol
            .start_call(call, clock::now(), clock::boot_time_ms());
    }

    fn on_written(&mut self, wrote: io::Result<usize>) {
        match wrote {
            Err(_read_says_why) => self.write_failed = true,
            Ok(bytes) => {
                self.last_progress = clock::now();
                self.written_bytes += bytes as u64;
            }
        }
        while let Some((at, number)) = self.handovers.front().copied()
            && at <= self.written_bytes
        {
            self.handovers.pop_front();
            self.protocol.on_written(number);
        }
    }

    fn on_read(&mut self, bytes: io::Result<usize>, inbox: &mut BytesMut) {
        match bytes {
            Ok(0) => return self.protocol.on_disconnected("it closed its connection"),
            // The same, before all bytes were read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return self.protocol.on_disconnected("it closed its connection");
            }
            Err(error) => return self.protocol.on_disconnected(&error.to_string()),
            Ok(_) => {}
        }
        while !self.protocol.is_closed() {
            match self.reader.next_frame(inbox) {
                Ok(Some(frame)) => {
                    self.protocol.handle_frame(&frame, clock::now());
                    self.apply_events();
                }
                Ok(None) => return,
                Err(error) => self.protocol.close(&format!("not a frame: {error}")),
            }
        }
    }

    /// Applies the protocol's effects.
    fn apply_events(&mut self) {
        while let Some(event) = self.protocol.poll_event() {
            match event {
                Event::Send(frame, handover) => self.queue_frame(&frame, handover),
                Event::Register(registration) => {
                    let name = registration.name.clone();
                    let registered = self.plugins.register(registration, self.calls.clone(), self.pid);
                    self.protocol.finish_registration(match registered {
                        Ok(seat) => {
                            tracing::info!(plugin = name, pid = self.pid, "Plug-in registered");
                            self.guard = Some(seat);
                            self.reader.set_limits(LIMITS);
                            Ok(self.welcome.clone())
                        }
                        Err(why) => Err(why),
                    });
                }
                Event::CallEnded(number, reply) => {
                    if let Some(done) = self.pending.remove(&number) {
                        let _asker_gone = done.send(reply);
                    }
                }
                Event::Telemetry(fields) => {
                    if let Some(seat) = &self.guard {
                        seat.record_readings(fields, clock::now());
                    }
                }
                Event::Log(level, text) => log(self.name(), level, &text),
                Event::Ignored(note) => {
                    tracing::debug!(plugin = self.name(), note, "Message of plug-in ignored");
                }
                Event::Close(why) => {
                    if self.guard.is_none() {
                        tracing::warn!(pid = self.pid, why, "Plug-in registration failed");
                    }
                    self.close_reason = Some(why);
                }
            }
        }
    }

    fn queue_frame(&mut self, frame: &Frame, handover: Option<u64>) {
        if self.out_buffer.is_empty() {
            self.last_progress = clock::now();
        }
        let before = self.out_buffer.len();
        if let Err(error) = frame.encode(&mut self.out_buffer) {
            tracing::warn!(plugin = self.name(), %error, "Frame for plug-in not written");
            return self.protocol.on_disconnected(&error.to_string());
        }
        self.queued_bytes += (self.out_buffer.len() - before) as u64;
        if let Some(number) = handover {
            self.handovers.push_back((self.queued_bytes, number));
        }
    }
}

fn log(plugin: &str, level: LogLevel, text: &str) {
    match level {
        LogLevel::Debug => tracing::debug!(plugin, ?text, "Plug-in logged"),
        LogLevel::Info => tracing::info!(plugin, ?text, "Plug-in logged"),
        LogLevel::Warning => tracing::warn!(plugin, ?text, "Plug-in logged"),
        LogLevel::Error => tracing::error!(plugin, ?text, "Plug-in logged"),
    }
}
