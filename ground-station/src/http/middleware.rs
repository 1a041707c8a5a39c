//! What is done for every request, whichever route serves it.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};

use super::error::{HttpError, Unaudited};
use super::serve::ClientInfo;
use crate::gateways::access::AccessPolicy;

/// What a page may do in a browser unless its route says otherwise: show itself, and send its forms to this server.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; \
    base-uri 'none'; frame-ancestors 'none'";

/// Adds to a router, for every request: the rate limit of its source, the audit of refusals, and headers that restrict
/// browsers. A request is carried to its end although its client disconnects, until the station shuts down. Refusals of a
/// fallback are audited under `fallback_route`.
pub(crate) fn apply(router: Router, access: AccessPolicy, fallback_route: &'static str) -> Router {
    let state = (access, fallback_route);
    router.layer(middleware::from_fn_with_state(state, throttle_and_audit))
}

async fn throttle_and_audit(
    State((access, fallback_route)): State<(AccessPolicy, &'static str)>,
    Extension(client_info): Extension<ClientInfo>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    client_info.throttle().await;
    let route = route.map_or_else(|| fallback_route.to_owned(), |route| route.as_str().to_owned());
    let context = access.context();
    let (tasks, shutdown) = (context.tasks.clone(), context.shutdown.clone());
    let handled = run_and_audit(access.clone(), client_info, route, request, next);
    // In a task of its own, since a connection that fails drops the future that it waits for. The task holds the
    // connection's permit, so the number of such tasks is bounded like that of connections.
    let task = tasks.spawn(async move { shutdown.run_until_cancelled(handled).await });
    match task.await {
        Ok(Some(response)) => response,
        Ok(None) => {
            let text = "the station is shutting down; ask again";
            HttpError::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        Err(error) => {
            tracing::error!(gateway = access.gateway(), %error, "Request handler panicked");
            let text = "the station has failed; its log says how";
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn run_and_audit(
    access: AccessPolicy,
    client_info: ClientInfo,
    route: String,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if let Some(refused) = response.extensions_mut().remove::<Unaudited>() {
        let client = refused
            .client
            .map_or_else(|| client_info.client(), |client| *client);
        let outcome = format!("not done: {}", refused.message);
        access.audit(&client, &route, &path, outcome).await;
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
