//! Files to and from peers, over their bulk connections.

use std::time::Instant;

use swarm_shared::net::clock;
use swarm_shared::net::endpoint::Endpoint;
use swarm_shared::net::peer::{ChunkBytes, PeerEvent, PeerLink};
use swarm_shared::proto::delivery::CommandId;
use swarm_shared::proto::message::FileEnd;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::session::Outgoing;
use swarm_shared::proto::session::window::SENT_CHUNK_BYTES_MIN;
use swarm_shared::proto::wire::encoded::EncodedFrame;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::{mpsc, oneshot};

use super::CommandContext;
use super::replies::{REPLY_TIMEOUT, parse_arguments, send_reply};
use crate::actions::Command;
use crate::transfers::{ChunkSink, Transfers};

/// The action that moves files. It may be repeated: a file is visible only when it is complete.
pub(super) const FILE_TRANSFER: &str = "filetransfer";
/// Chunks of one outgoing file that wait for its session.
const CHUNK_QUEUE_MAX: usize = 2;

/// Sends the file that the peer asks for over its bulk session. Returns the reply to the command.
pub(super) async fn send_file(endpoint: &Endpoint, transfers: &Transfers, command: &Command) -> Reply {
    let (chunks, frames) = mpsc::channel::<Frame>(CHUNK_QUEUE_MAX);
    let chunk_bytes = ChunkBytes::new(SENT_CHUNK_BYTES_MIN);
    let sink = ChunkSink {
        frames: chunks,
        chunk_bytes: chunk_bytes.clone(),
    };
    let mut outcome = transfers.begin(command.id, &command.arguments, sink);
    let ended = |outcome: Result<Reply, _>| {
        outcome.unwrap_or_else(|_: oneshot::error::RecvError| Reply::failed("the node is shutting down"))
    };
    let sending = async move {
        // Dropped when nothing can be sent any more, so that the transfer ends at once.
        let mut frames = frames;
        let Ok(bulk) = endpoint.open_bulk_session(command.id.issuer).await else {
            return;
        };
        let best = bulk.chunk_bytes();
        while let Some(frame) = frames.recv().await {
            chunk_bytes.set(best.get());
            let Ok(frame) = EncodedFrame::new(&frame) else {
                return;
            };
            let outgoing = Outgoing {
                frame,
                lane: Lane::Bulk,
                deadline: None,
            };
            if bulk.send(outgoing).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(sending);
    let reply = tokio::select! {
        outcome = &mut outcome => outcome,
        // Nothing can be sent any more: the transfer notices that its channel is closed, and gives the reason.
        () = &mut sending => return ended(outcome.await),
    };
    let reply = ended(reply);
    if reply.state == Outcome::Done {
        // The whole file is read. The last chunks wait for room, which never comes if the peer stays away.
        if tokio::time::timeout(REPLY_TIMEOUT, sending).await.is_err() {
            return Reply::failed("the connection stalled before the end of the file was sent");
        }
    }
    reply
}

/// Handles the frames of a peer's bulk session, in order. A full disk queue holds back this peer only.
pub(super) async fn receive_files(
    context: CommandContext,
    bulk: PeerLink,
    mut events: mpsc::Receiver<PeerEvent>,
) {
    let peer_id = bulk.id();
    while let Some(event) = events.recv().await {
        let PeerEvent::Frame { frame, deadline, .. } = event else {
            continue;
        };
        let named = || context.transfers.find(peer_id, &frame.header);
        match frame.header.kind {
            Some(Kind::Chunk) => {
                let offset = frame.header.offset.unwrap_or_default();
                if let Some(id) = named() {
                    context.transfers.on_chunk(id, offset, frame.content).await;
                }
            }
            Some(Kind::ChunkEnd) => match frame.parse_content::<FileEnd>() {
                Ok(end) => {
                    if let Some(id) = named() {
                        context.transfers.on_end(id, end);
                    }
                }
                Err(error) => tracing::warn!(%error, id = frame.header.id, "End of a file unreadable"),
            },
            Some(Kind::Command) => begin_transfer(&context, &bulk, *frame, deadline),
            _ => tracing::debug!(kind = ?frame.header.kind, "Unexpected frame ignored"),
        }
    }
}

/// Begins the transfer that a command announces, before the next frame is read. The reply goes out on the same session,
/// where the peer waits for it.
fn begin_transfer(context: &CommandContext, link: &PeerLink, frame: Frame, deadline: Option<Instant>) {
    if frame.header.action.as_deref() != Some(FILE_TRANSFER) {
        let reply = Reply::refused("a bulk connection takes no other action than filetransfer");
        return context.reply_in_background(link, &frame.header, &reply);
    }
    if deadline.is_some_and(|deadline| clock::now() >= deadline) {
        let reply = Reply::ended(Outcome::Expired, "its time to live had ended when it arrived");
        return context.reply_in_background(link, &frame.header, &reply);
    }
    let arguments = match parse_arguments(&frame) {
        Ok(arguments) => arguments,
        Err(reply) => return context.reply_in_background(link, &frame.header, &reply),
    };
    let id = CommandId {
        issuer: link.id(),
        epoch: frame.header.epoch.unwrap_or_default(),
        seq: frame.header.id.unwrap_or_default(),
    };
    // An incoming file sends no frames.
    let (frames, _unread) = mpsc::channel(1);
    let chunk_bytes = link.chunk_bytes();
    let sink = ChunkSink { frames, chunk_bytes };
    let outcome = context.transfers.begin(id, &arguments, sink);
    let link = link.clone();
    context.tasks.spawn(async move {
        let reply = outcome
            .await
            .unwrap_or_else(|_ended| Reply::failed("the node is shutting down"));
        send_reply(&link, &frame.header, &reply).await;
    });
}
