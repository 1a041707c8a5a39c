//! Connections before they become links: accepting, dialling, handshakes, and requests to join.
//!
//! [`crate::net::preauth_limit`] bounds unauthenticated connections, in all and for each host.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::JoinRequest;
use crate::net::clock;
use crate::net::dial_claims::DialClaims;
use crate::net::handshake::{
    self, AuthenticatedConn, HandshakeError, LocalPeer, PREAUTH_TIMEOUT, REFUSE_GRACE,
};
use crate::net::preauth_limit::{PREAUTH_PER_SOURCE_MAX, PreauthLimiter, Slot};
use crate::net::socket::{self, AcceptedSocket, KeepaliveConfig, SegmentSize, TrafficClass};
use crate::proto::discovery::narrow_paths::NarrowPaths;
use crate::proto::id::PeerId;
use crate::proto::message::{Channel, Join, RefusalCode, Refused};
use crate::proto::wire::{Frame, Kind};

/// Most join requests at once that wait for the operator.
pub const PENDING_JOINS_MAX: usize = 64;
/// How long a join request waits on one connection; then the peer asks again.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept; the most frequent cause is a lack of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long a dial may take until TCP is connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What a dialled connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DialPurpose {
    /// A control link with any peer that answers.
    Link,
    /// A bulk connection with this peer.
    Bulk(PeerId),
}

/// The result of a handshake.
pub(super) enum HandshakeResult {
    /// Of an accepted connection.
    Accepted {
        addr: SocketAddr,
        result: Result<Box<AuthenticatedConn>, HandshakeError>,
    },
    /// Of a dialled connection.
    Dialled {
        addr: SocketAddr,
        dial_purpose: DialPurpose,
        result: Result<Box<AuthenticatedConn>, HandshakeError>,
    },
}

pub(super) struct AcceptLoop {
    pub(super) listener: TcpListener,
    pub(super) local: LocalPeer,
    pub(super) keepalive: KeepaliveConfig,
    pub(super) narrow_paths: watch::Receiver<NarrowPaths>,
    pub(super) handshake_results: mpsc::Sender<HandshakeResult>,
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Accepts until the endpoint stops.
pub(super) async fn run_accept_loop(params: AcceptLoop) {
    let limiter = PreauthLimiter::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = params.shutdown.cancelled() => return,
            accepted = accept_next(&params.listener, &limiter) => accepted,
        };
        let (tcp, addr, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "Connection not accepted");
                sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let Some(slot_guard) = slot.assign_to(addr.ip()) else {
            let max = PREAUTH_PER_SOURCE_MAX;
            tracing::debug!(%addr, max, "Connection closed: too many unauthenticated ones of its host");
            continue;
        };
        // The channel is not known yet.
        if let Err(error) = socket::configure_accepted(&tcp, &params.keepalive, TrafficClass::Control) {
            tracing::debug!(%addr, %error, "Connection dropped");
            continue;
        }
        let (local, results, shutdown) = (
            params.local.clone(),
            params.handshake_results.clone(),
            params.shutdown.clone(),
        );
        let is_narrow = params.narrow_paths.borrow().contains(addr.ip(), clock::now());
        params.tasks.spawn(async move {
            let accepted = AcceptedSocket::new(&tcp);
            let result = tokio::select! {
                () = shutdown.cancelled() => return,
                greeted = local.accept(tcp, addr, is_narrow) => greeted,
            };
            if let Ok(authenticated) = &result
                && authenticated.hello.channel == Channel::Bulk
            {
                accepted.set_traffic_class(TrafficClass::Bulk);
            }
            let handshake = HandshakeResult::Accepted {
                addr,
                result: result.map(|authenticated| {
                    let preauth_slot = Some(slot_guard);
                    Box::new(AuthenticatedConn {
                        preauth_slot,
                        ..authenticated
                    })
                }),
            };
            // Fails only during shutdown.
            results.send(handshake).await.ok();
        });
    }
}

async fn accept_next(
    listener: &TcpListener,
    limiter: &PreauthLimiter,
) -> std::io::Result<(TcpStream, SocketAddr, Slot)> {
    let slot = limiter.acquire().await?;
    let (tcp, addr) = listener.accept().await?;
    Ok((tcp, socket::to_canonical(addr), slot))
}

/// Dials, then runs the handshake.
pub(super) async fn dial(
    local: LocalPeer,
    keepalive: KeepaliveConfig,
    addr: SocketAddr,
    dial_purpose: DialPurpose,
    segments: SegmentSize,
    claims: DialClaims,
) -> HandshakeResult {
    let (channel, traffic_class, claims) = match dial_purpose {
        DialPurpose::Link => (Channel::Control, TrafficClass::Control, Some(&claims)),
        DialPurpose::Bulk(_) => (Channel::Bulk, TrafficClass::Bulk, None),
    };
    let result = async {
        let connected =
            socket::connect_with_segments(addr, CONNECT_TIMEOUT, &keepalive, traffic_class, segments).await;
        let tcp = connected.map_err(std::io::Error::other)?;
        local.dial(tcp, addr, channel, claims).await.map(Box::new)
    };
    HandshakeResult::Dialled {
        addr,
        dial_purpose,
        result: result.await,
    }
}

/// Sends a refusal on an authenticated connection, and closes it.
pub(super) async fn refuse(peer: Box<AuthenticatedConn>, refused: Refused) {
    let AuthenticatedConn {
        conn, preauth_slot, ..
    } = *peer;
    handshake::refuse(conn, &refused).await;
    drop(preauth_slot);
}

/// Hands a request to join to the application, and sends the peer its answer.
pub(super) async fn handle_join_request(
    mut peer: Box<AuthenticatedConn>,
    joins: Option<mpsc::Sender<JoinRequest>>,
) {
    let Some(joins) = joins else {
        let reason = "this is a node, and only a station admits members: dial the station";
        return refuse(peer, Refused::new(RefusalCode::NotAllowed, reason)).await;
    };
    let received = timeout(PREAUTH_TIMEOUT, peer.conn.read_frame()).await;
    let join = match received {
        Ok(Ok(frame)) if frame.header.kind == Some(Kind::Join) => frame.parse_content::<Join>().ok(),
        Ok(Ok(_) | Err(_)) | Err(_) => None,
    };
    let Some(join) = join else {
        let reason = "expected a request to join";
        return refuse(peer, Refused::new(RefusalCode::Protocol, reason)).await;
    };
    // Join permits bound how many wait at once, so the slot is free again.
    peer.preauth_slot = None;
    let (reply, reply_receiver) = oneshot::channel();
    let request = JoinRequest {
        key: peer.key,
        name: peer.hello.name.clone(),
        kind: peer.hello.kind,
        listen_addr: socket::with_port(peer.addr, peer.hello.port),
        proof: join.proof,
        exporter: peer.exporter,
        reply,
    };
    if joins.try_send(request).is_err() {
        let busy = Refused::new(RefusalCode::Busy, "too many ask to join at once; try again");
        return refuse(peer, busy).await;
    }
    let result = tokio::select! {
        answered = timeout(JOIN_TIMEOUT, reply_receiver) => answered,
        // The peer has nothing to send now: when reading ends, it no longer waits.
        _ = peer.conn.read_frame() => return,
    };
    let decision = match result {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(_dropped)) => Err(Refused::new(RefusalCode::Busy, "the station is busy; try again")),
        Err(_elapsed) => Err(Refused::new(
            RefusalCode::Pending,
            "waiting for the operator: `ground-station fleet pending` shows this device, `fleet accept` admits it",
        )),
    };
    match decision {
        Err(refused) => refuse(peer, refused).await,
        Ok(joined) => {
            let sent = async {
                peer.conn
                    .queue_frame(&Frame::json(Kind::Joined, &joined))
                    .map_err(std::io::Error::other)?;
                peer.conn.close().await
            };
            if !matches!(timeout(REFUSE_GRACE, sent).await, Ok(Ok(()))) {
                tracing::warn!("Join result not sent: the peer has disconnected, and will ask again");
            }
        }
    }
}
