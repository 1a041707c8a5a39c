//! Connections: from the hall through TLS, if there is any, to the routes.
//!
//! | what takes too long | after |
//! |---|---|
//! | the TLS handshake | [`HANDSHAKE_TIMEOUT`] |
//! | the head of a request, and the silence before it | [`HEAD_TIMEOUT`], or `idle` if that is shorter |
//! | a body | [`super::body::BODY_TIMEOUT`], or `idle` |
//! | nothing is read of what we send | [`WRITE_TIMEOUT`] |
//!
//! A visitor that has said all and closed its side, or has gone, is no reason to leave off what it asked for: see
//! `keep_order`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::patient::Patient;
use crate::gateways::access::Visitor;
use crate::gateways::listener::{Entrance, Log};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a visitor may not read what we send.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// Whose connection it is; it keeps its place in the hall as long as this lives.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    addr: SocketAddr,
    /// None where a test plays the guest.
    entrance: Option<Arc<Entrance>>,
}

impl Guest {
    fn new(entrance: Entrance) -> Self {
        Self {
            addr: entrance.addr,
            entrance: Some(Arc::new(entrance)),
        }
    }

    /// One without a connection.
    #[cfg(test)]
    pub(super) fn from(addr: SocketAddr) -> Self {
        Self { addr, entrance: None }
    }

    /// Where from.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What tells of it in the log.
    pub(super) fn log(&self) -> Log {
        self.entrance
            .as_ref()
            .map(|entrance| entrance.log())
            .unwrap_or_default()
    }

    /// Nobody yet.
    pub(super) fn visitor(&self) -> Visitor {
        Visitor {
            from: self.addr.ip(),
            user: None,
        }
    }

    /// Waits until one more request of this address may be taken.
    pub(super) async fn turn(&self) {
        if let Some(entrance) = &self.entrance {
            entrance.turn().await;
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    entrance: Entrance,
    router: Router,
    tls: Option<TlsAcceptor>,
    idle: Duration,
) {
    let guest = Guest::new(entrance);
    let addr = guest.addr();
    let stream = Patient::new(stream, WRITE_TIMEOUT.min(idle), guest.log());
    let Some(tls) = tls else {
        return converse(stream, guest, router, idle).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT.min(idle), tls.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, guest, router, idle).await,
        Ok(Err(error)) => tracing::debug!(%addr, %error, "no TLS came about"),
        Err(_late) => tracing::debug!(%addr, "a TLS handshake took too long"),
    }
}

/// The same, over anything that carries bytes.
pub(super) async fn converse<S>(stream: S, guest: Guest, router: Router, idle: Duration)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let addr = guest.addr();
    let service = router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(guest.clone());
        request.map(Body::new)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .half_close(true)
        .header_read_timeout(HEAD_TIMEOUT.min(idle))
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%addr, %error, "a connection ended early");
    }
}
