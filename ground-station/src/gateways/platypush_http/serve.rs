//! Connections: from the listener through TLS, if there is any, to the routes.
//!
//! | what takes too long | after |
//! |---|---|
//! | the TLS handshake | [`HANDSHAKE_TIMEOUT`] |
//! | the head of a request, and the silence before it | [`HEAD_TIMEOUT`], or `idle` if that is shorter |
//! | a body | [`super::body::BODY_TIMEOUT`], or `idle` |
//! | nothing is read of what we send | [`WRITE_TIMEOUT`] |
//!
//! A client that has said all and closed its side, or has gone, is no reason to leave off what it asked for: see
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
use crate::gateways::access::Client;
use crate::gateways::listener::{ConnectionPermit, ThrottledLog};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may not read what we send.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// Whose connection it is; it keeps its place in the listener as long as this lives.
#[derive(Clone, Debug)]
pub(super) struct ClientInfo {
    addr: SocketAddr,
    /// None where a test plays the client_info.
    permit: Option<Arc<ConnectionPermit>>,
}

impl ClientInfo {
    fn new(permit: ConnectionPermit) -> Self {
        Self {
            addr: permit.addr,
            permit: Some(Arc::new(permit)),
        }
    }

    /// One without a connection.
    #[cfg(test)]
    pub(super) fn for_test(addr: SocketAddr) -> Self {
        Self { addr, permit: None }
    }

    /// Where from.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What tells of it in the log.
    pub(super) fn log(&self) -> ThrottledLog {
        self.permit
            .as_ref()
            .map(|permit| permit.throttled_log())
            .unwrap_or_default()
    }

    /// Nobody yet.
    pub(super) fn client(&self) -> Client {
        Client {
            from: self.addr.ip(),
            user: None,
        }
    }

    /// Waits until one more request of this address may be taken.
    pub(super) async fn throttle(&self) {
        if let Some(permit) = &self.permit {
            permit.throttle().await;
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    permit: ConnectionPermit,
    router: Router,
    tls: Option<TlsAcceptor>,
    idle: Duration,
) {
    let client_info = ClientInfo::new(permit);
    let addr = client_info.addr();
    let stream = Patient::new(stream, WRITE_TIMEOUT.min(idle), client_info.log());
    let Some(tls) = tls else {
        return serve_http(stream, client_info, router, idle).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT.min(idle), tls.accept(stream)).await {
        Ok(Ok(stream)) => serve_http(stream, client_info, router, idle).await,
        Ok(Err(error)) => tracing::debug!(%addr, %error, "no TLS came about"),
        Err(_late) => tracing::debug!(%addr, "a TLS handshake took too long"),
    }
}

/// The same, over anything that carries bytes.
pub(super) async fn serve_http<S>(stream: S, client_info: ClientInfo, router: Router, idle: Duration)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let addr = client_info.addr();
    let service = router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(client_info.clone());
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
