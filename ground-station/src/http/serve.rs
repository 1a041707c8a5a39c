//! Connections: from the listener through TLS, if it is on, to a router.
//!
//! | limit | value |
//! |---|---|
//! | TLS handshake | [`HANDSHAKE_TIMEOUT`] |
//! | headers of a request, and idle time before them | [`HEADERS_TIMEOUT`], or `idle` if that is shorter |
//! | body of a request | [`super::body::BODY_TIMEOUT`], or `idle` |
//! | no byte of a response read | [`WRITE_TIMEOUT`], or `idle` |
//!
//! A client may close its sending side before it has read the response; [`super::middleware`] says what happens to its
//! request if it disconnects.

use std::error::Error as _;
use std::io;
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
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::gateways::access::Client;
use crate::gateways::listener::{ConnectionPermit, ThrottledLog, log_throttled};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the headers of a request may take.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may read nothing of what it is sent.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest headers of a request with its first line, in bytes.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// The client of a connection, which every request carries as an extension. The connection keeps its permit as long as a
/// clone of this exists.
#[derive(Clone, Debug)]
pub(crate) struct ClientInfo {
    addr: SocketAddr,
    /// `None` in tests without a connection.
    permit: Option<Arc<ConnectionPermit>>,
}

impl ClientInfo {
    fn new(permit: ConnectionPermit) -> Self {
        Self {
            addr: permit.addr,
            permit: Some(Arc::new(permit)),
        }
    }

    /// A client without a connection.
    #[cfg(test)]
    pub(crate) fn for_test(addr: SocketAddr) -> Self {
        Self { addr, permit: None }
    }

    /// The other end of the connection.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Throttles log lines about this client.
    pub(crate) fn log(&self) -> ThrottledLog {
        let permit = self.permit.as_ref();
        permit.map(|permit| permit.throttled_log()).unwrap_or_default()
    }

    /// The client before it is authenticated.
    pub(crate) fn client(&self) -> Client {
        Client::at(self.addr.ip())
    }

    /// Waits until the rate of the client's source permits one more request.
    pub(crate) async fn throttle(&self) {
        if let Some(permit) = &self.permit {
            permit.throttle().await;
        }
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(
    stream: TcpStream,
    permit: ConnectionPermit,
    router: Router,
    tls: Option<TlsAcceptor>,
    idle: Duration,
) {
    let client_info = ClientInfo::new(permit);
    let addr = client_info.addr();
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(WRITE_TIMEOUT.min(idle)));
    let stream = Box::pin(stream);
    let Some(tls) = tls else {
        return serve_http(stream, client_info, router, idle).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT.min(idle), tls.accept(stream)).await {
        Ok(Ok(stream)) => serve_http(stream, client_info, router, idle).await,
        Ok(Err(error)) => tracing::debug!(%addr, %error, "TLS handshake failed"),
        Err(_elapsed) => tracing::debug!(%addr, "TLS handshake timed out"),
    }
}

/// The same on any stream, without TLS and the write time-out.
pub(crate) async fn serve_http<S>(stream: S, client_info: ClientInfo, router: Router, idle: Duration)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (addr, log) = (client_info.addr(), client_info.log());
    let service = router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(client_info.clone());
        request.map(Body::new)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .half_close(true)
        .header_read_timeout(HEADERS_TIMEOUT.min(idle))
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    if let Err(error) = connection.await {
        if is_write_timeout(&error) {
            log_throttled!(log, "does not read", info, %addr, "Connection closed: the client does not read");
        } else {
            tracing::debug!(%addr, %error, "Connection ended early");
        }
    }
}

/// Whether the write time-out ended a connection, and not one of the kernel's.
fn is_write_timeout(error: &hyper::Error) -> bool {
    let error = error.source().and_then(|error| error.downcast_ref::<io::Error>());
    error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none())
}
