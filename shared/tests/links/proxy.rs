//! A TCP proxy that can cut, pause and half-close its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// How a connection ends.
#[derive(Clone, Copy)]
enum Ending {
    Cut,
    /// Only the dialling side is told.
    HalfOpen,
}

/// Forwards TCP connections to one address. Its own address is not the programs', so that the addresses that they
/// learn through it lead nowhere else.
pub(crate) struct Proxy {
    addr: SocketAddr,
    flows: watch::Sender<bool>,
    endings: watch::Sender<Ending>,
    closed: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let (flows, flowing) = watch::channel(true);
        let (endings, ending) = watch::channel(Ending::Cut);
        let closed = Arc::new(AtomicBool::new(false));
        let is_closed = Arc::clone(&closed);
        tokio::spawn(async move {
            while let Ok((dialler, _from)) = listener.accept().await {
                if is_closed.load(Ordering::Relaxed) {
                    continue;
                }
                let socket = TcpSocket::new_v4().expect("a socket");
                socket.bind(([127, 0, 0, 3], 0).into()).expect("a port");
                if let Ok(dialled) = socket.connect(target).await {
                    let mut ending = ending.clone();
                    ending.mark_unchanged();
                    tokio::spawn(carry(dialler, dialled, flowing.clone(), ending));
                }
            }
        });
        Self {
            addr,
            flows,
            endings,
            closed,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends every connection for both sides. New ones are forwarded.
    pub(crate) fn cut(&self) {
        self.endings.send_replace(Ending::Cut);
    }

    /// Ends every connection for the side that dialled; the other side receives nothing any more.
    pub(crate) fn half_open(&self) {
        self.endings.send_replace(Ending::HalfOpen);
    }

    /// While paused, no byte passes, and no connection ends.
    pub(crate) fn pause(&self, paused: bool) {
        self.flows.send_replace(!paused);
    }

    /// While closed, new connections are closed at once.
    pub(crate) fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }
}

async fn carry(
    dialler: TcpStream,
    dialled: TcpStream,
    flowing: watch::Receiver<bool>,
    mut ending: watch::Receiver<Ending>,
) {
    for stream in [&dialler, &dialled] {
        stream.set_nodelay(true).expect("an option of every kernel");
    }
    let (mut from_dialler, to_dialler) = dialler.into_split();
    let (mut from_dialled, to_dialled) = dialled.into_split();
    let mut kept = Some((to_dialler, to_dialled));
    if let Some((to_dialler, to_dialled)) = &mut kept {
        tokio::select! {
            _ = ending.changed() => {}
            ((), ()) = async {
                tokio::join!(
                    pump(&mut from_dialler, to_dialled, flowing.clone()),
                    pump(&mut from_dialled, to_dialler, flowing),
                )
            } => return,
        }
    }
    let how = *ending.borrow();
    if let (Ending::HalfOpen, Some((to_dialler, to_dialled))) = (how, kept) {
        drop((from_dialler, to_dialler));
        // Held open, so that the kernel tells the dialled side nothing.
        let _until = ending.changed().await;
        drop((from_dialled, to_dialled));
    }
}

async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, mut flowing: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        if flowing.wait_for(|flows| *flows).await.is_err() {
            return;
        }
        match read {
            Ok(bytes @ 1..) => {
                if to.write_all(&buffer[..bytes]).await.is_err() {
                    return;
                }
            }
            Ok(0) | Err(_) => {
                to.shutdown().await.ok();
                return;
            }
        }
    }
}
