//! Connections on their way to becoming links: accepted or dialled, greeted, or taken into the fleet.
//!
//! How many strangers are greeted at once, and how many of one host: [`super::places`].

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::JoinRequest;
use super::preauth_limit::{PREAUTH_PER_SOURCE_MAX, Places, Vacancy};
use crate::net::handshake::{self, Greeted, HandshakeError, Local, PREAUTH_TIMEOUT, REFUSE_GRACE};
use crate::net::socket::{self, Accepted, KeepaliveConfig, Purpose};
use crate::proto::id::PeerId;
use crate::proto::message::{Channel, Join, RefusalCode, Refused};
use crate::proto::wire::{Frame, Kind};

/// Most strangers at once that wait to be accepted by hand.
pub const JOINS_MAX: usize = 64;
/// How long a stranger is kept waiting on one connection; then it asks again.
pub const JOIN_WAIT: Duration = Duration::from_secs(60);
/// How long to wait when the kernel gives no connection, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a dial may take until TCP is connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What a dial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    /// A link with whoever answers.
    Link,
    /// A connection for files with this peer.
    Files(PeerId),
}

/// A connection that was greeted, or came to nothing.
pub(super) enum Arrival {
    /// A peer dialled us.
    Accepted {
        addr: SocketAddr,
        result: Result<Box<Greeted>, HandshakeError>,
    },
    /// We dialled a peer.
    Dialled {
        addr: SocketAddr,
        errand: Errand,
        result: Result<Box<Greeted>, HandshakeError>,
    },
}

pub(super) struct Listening {
    pub(super) listener: TcpListener,
    pub(super) local: Local,
    pub(super) keepalive: KeepaliveConfig,
    pub(super) arrivals: mpsc::Sender<Arrival>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Accepts until the endpoint stops.
pub(super) async fn listen(this: Listening) {
    let places = Places::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = this.stop.cancelled() => return,
            accepted = accept_next(&this.listener, &places) => accepted,
        };
        let (tcp, addr, vacancy) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = vacancy.take(addr.ip()) else {
            let max = PREAUTH_PER_SOURCE_MAX;
            tracing::debug!(%addr, max, "closed at once: too many of its host are being greeted");
            continue;
        };
        // The channel is not known yet.
        if let Err(error) = socket::tune(&tcp, &this.keepalive, Purpose::Control) {
            tracing::debug!(%addr, %error, "connection dropped");
            continue;
        }
        let (local, arrivals, stop) = (this.local.clone(), this.arrivals.clone(), this.stop.clone());
        this.tasks.spawn(async move {
            let accepted = Accepted::of(&tcp);
            let greeted = tokio::select! {
                () = stop.cancelled() => return,
                greeted = local.accept(tcp, addr) => greeted,
            };
            if let Ok(greeted) = &greeted
                && greeted.hello.channel == Channel::Bulk
            {
                accepted.set_purpose(Purpose::Bulk);
            }
            let arrival = Arrival::Accepted {
                addr,
                result: greeted.map(|greeted| {
                    let place = Some(place);
                    Box::new(Greeted { place, ..greeted })
                }),
            };
            let _stopping = arrivals.send(arrival).await;
        });
    }
}

async fn accept_next(
    listener: &TcpListener,
    places: &Places,
) -> std::io::Result<(TcpStream, SocketAddr, Vacancy)> {
    let vacancy = places.vacancy().await?;
    let (tcp, addr) = listener.accept().await?;
    Ok((tcp, addr, vacancy))
}

/// Dials and greets.
pub(super) async fn dial(
    local: Local,
    keepalive: KeepaliveConfig,
    addr: SocketAddr,
    errand: Errand,
) -> Arrival {
    let (channel, purpose) = match errand {
        Errand::Link => (Channel::Control, Purpose::Control),
        Errand::Files(_) => (Channel::Bulk, Purpose::Bulk),
    };
    let result = async {
        let connected = socket::connect(addr, CONNECT_TIMEOUT, &keepalive, purpose).await;
        let tcp = connected.map_err(std::io::Error::other)?;
        local.dial(tcp, addr, channel).await.map(Box::new)
    };
    Arrival::Dialled {
        addr,
        errand,
        result: result.await,
    }
}

/// Refuses a greeted connection, telling why.
pub(super) async fn refuse(greeted: Box<Greeted>, refused: Refused) {
    let Greeted { conn, place, .. } = *greeted;
    handshake::refuse(conn, &refused).await;
    drop(place);
}

/// Takes a stranger's request to join, and brings it the answer.
pub(super) async fn take_in(mut greeted: Box<Greeted>, joins: Option<mpsc::Sender<JoinRequest>>) {
    let Some(joins) = joins else {
        let reason = "this is a node, and only a station takes others in: dial the station";
        return refuse(greeted, Refused::new(RefusalCode::NotAllowed, reason)).await;
    };
    let asked = timeout(PREAUTH_TIMEOUT, greeted.conn.read_frame()).await;
    let join = match asked {
        Ok(Ok(frame)) if frame.header.kind == Some(Kind::Join) => frame.read::<Join>().ok(),
        Ok(Ok(_) | Err(_)) | Err(_) => None,
    };
    let Some(join) = join else {
        let reason = "expected a request to join";
        return refuse(greeted, Refused::new(RefusalCode::Protocol, reason)).await;
    };
    // Its wait is bounded by the places for those who join.
    greeted.place = None;
    let (answer, answered) = oneshot::channel();
    let request = JoinRequest {
        key: greeted.key,
        name: greeted.hello.name.clone(),
        kind: greeted.hello.kind,
        listens: SocketAddr::new(greeted.addr.ip(), greeted.hello.port),
        proof: join.proof,
        exporter: greeted.exporter,
        answer,
    };
    if joins.try_send(request).is_err() {
        let busy = Refused::new(RefusalCode::Busy, "too many ask to join at once; try again");
        return refuse(greeted, busy).await;
    }
    let answered = tokio::select! {
        answered = timeout(JOIN_WAIT, answered) => answered,
        // It has nothing to say now: whatever ends the reading, nobody waits here any more.
        _ = greeted.conn.read_frame() => return,
    };
    let verdict = match answered {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(_dropped)) => Err(Refused::new(RefusalCode::Busy, "the station is busy; try again")),
        Err(_elapsed) => Err(Refused::new(
            RefusalCode::Pending,
            "waiting for the operator: `ground-station fleet pending` shows this device, `fleet accept` takes it in",
        )),
    };
    match verdict {
        Err(refused) => refuse(greeted, refused).await,
        Ok(joined) => {
            let told = async {
                greeted
                    .conn
                    .put(&Frame::json(Kind::Joined, &joined))
                    .map_err(std::io::Error::other)?;
                greeted.conn.close().await
            };
            if !matches!(timeout(REFUSE_GRACE, told).await, Ok(Ok(()))) {
                tracing::warn!("a peer was taken in, but went before it was told; it will ask again");
            }
        }
    }
}
