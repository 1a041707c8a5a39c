//! Platypush over HTTP: request messages, hooks, files, pages, and events over a WebSocket. `crate::http` is the server.
//!
//! | module | routes |
//! |---|---|
//! | `execute` | `/execute`: request messages |
//! | `hook` | `/hook/{name}`: configured actions |
//! | `login` | `/auth`, `/login`, `/logout` |
//! | `page` | `/`, `/dashboard/{name}`, `/openapi.json` |
//! | `range`, `resources` | `/resources/{name}/…`: files |
//! | `events`, `socket` | `/ws/events`: events in Platypush's form |
//!
//! Invariants: without credentials only hooks, the login form and `openapi.json` are served. A hook does what its
//! configuration and `allow` permit. `routes` lists every route, and `openapi.json` describes each.

mod events;
mod execute;
mod hook;
mod login;
mod page;
mod range;
mod resources;
mod socket;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::{MethodRouter, any, get, post};
use swarm_shared::net::roots::Roots;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handler::RequestHandler;
use crate::config::gateways::PlatypushHttpConfig;
use crate::config::gateways::platypush_http::Tls;
use crate::gateways::access;
use crate::gateways::context::{GatewayContext, GatewayError};
use crate::gateways::listener::GatewayListener;
use crate::http::auth::{Authenticator, Caller};
use crate::http::error::HttpError;
use crate::http::serve::ClientInfo;
use crate::http::tls::TlsOptions;
use crate::http::{middleware, serve};
use crate::store::Store;
use swarm_shared::client::Fleet;

/// The gateway's name in the configuration.
const GATEWAY: &str = PlatypushHttpConfig::NAME;
/// The service that programs look for by mDNS.
const SERVICE: &str = "_platypush-http._tcp.local.";
/// The route of events; on the port for older clients, events have every path.
const EVENTS_PATH: &str = "/ws/events";
/// The description of all routes for programs.
const OPENAPI: &str = include_str!("openapi.json");

/// What all requests share.
#[derive(Debug)]
struct AppState {
    name: String,
    config: PlatypushHttpConfig,
    handler: RequestHandler,
    authenticator: Authenticator,
    roots: Roots,
    store: Store,
    fleet: Fleet,
    /// Whether browsers may send cookies over TLS only.
    secure_cookies: bool,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

type Shared = Arc<AppState>;

/// A route that takes a `Caller` serves authenticated clients only.
impl FromRequestParts<Shared> for Caller {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, HttpError> {
        let client_info = parts.extensions.get::<ClientInfo>().cloned();
        let client_info = client_info.ok_or_else(|| {
            let text = "the connection of this request is unknown";
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
        })?;
        app.authenticator
            .authenticate(parts, client_info.addr().ip(), None)
            .await
    }
}

/// Opens the gateway.
///
/// # Errors
/// [`GatewayError`].
pub(in crate::gateways) async fn open(
    config: &PlatypushHttpConfig,
    context: &GatewayContext,
) -> Result<(), GatewayError> {
    let wrong = |reason: String| GatewayError::Configuration {
        gateway: GATEWAY,
        reason,
    };
    let app = AppState::new(config, context).map_err(wrong)?;
    app.check_hooks().map_err(wrong)?;
    app.warn_without_credentials().await.map_err(wrong)?;
    let state_dir = context.store.path().parent().unwrap_or(Path::new(""));
    let tls = tls_options(config)
        .acceptor(state_dir, &app.name, config.common.listen.ip())
        .map_err(wrong)?;
    let app = Arc::new(app);
    let listener = GatewayListener::open(GATEWAY, &config.common, context)?;
    let listens = listener.local_addr().unwrap_or(config.common.listen);
    let mut listeners = Vec::new();
    if let Some(port) = config.websocket_port {
        let mut common = config.common.clone();
        common.listen.set_port(port);
        let older = GatewayListener::open(GATEWAY, &common, context)?.share_limits_with(&listener);
        listeners.push((older, events_router(&app)));
    }
    listeners.push((listener, router(&app)));
    let idle = config.common.idle;
    for (listener, router) in listeners {
        let tls = tls.clone();
        let served = listener
            .serve(move |stream, permit| serve::serve(stream, permit, router.clone(), tls.clone(), idle));
        context.tasks.spawn(served);
    }
    context.publish(SERVICE, listens).await;
    Ok(())
}

fn tls_options(config: &PlatypushHttpConfig) -> TlsOptions {
    TlsOptions {
        self_signed: config.tls == Tls::SelfMade,
        ssl_cert: config.ssl_cert.clone(),
        ssl_key: config.ssl_key.clone(),
        ssl_cafile: config.ssl_cafile.clone(),
        ssl_capath: config.ssl_capath.clone(),
    }
}

impl AppState {
    fn new(config: &PlatypushHttpConfig, context: &GatewayContext) -> Result<Self, String> {
        let authenticator = Authenticator::new(context.store.clone(), config.common.token.clone());
        Ok(Self {
            name: context.advertisement.name.as_str().to_owned(),
            config: config.clone(),
            handler: RequestHandler::new(GATEWAY, &config.common, context),
            authenticator: authenticator.map_err(|error| error.to_string())?,
            roots: Roots::new(config.resources.clone()),
            store: context.store.clone(),
            fleet: context.fleet.clone(),
            secure_cookies: tls_options(config).is_enabled(),
            shutdown: context.shutdown.clone(),
            tasks: context.tasks.clone(),
        })
    }

    /// Warns if no client can be authenticated. No error, since a user may be added while the gateway is open.
    async fn warn_without_credentials(&self) -> Result<(), String> {
        let none = self.authenticator.has_no_credentials().await;
        if none.map_err(|error| error.to_string())? {
            tracing::warn!(
                gateway = GATEWAY,
                "No client can be authenticated, except by a hook: there is neither a user nor a `token`; type \
                 `ground-station gateway user add NAME` on the station"
            );
        }
        Ok(())
    }

    /// Finds hooks that could never run, and warns of hooks without a token on an address that other machines reach.
    fn check_hooks(&self) -> Result<(), String> {
        for (name, hook) in &self.config.hooks {
            let given: Vec<&str> = hook.parameters.keys().map(String::as_str).collect();
            self.handler
                .check_permitted(&hook.action, &given)
                .map_err(|why| format!("hook {name}: {why}"))?;
            if let Some(target) = &hook.target {
                access::parse_selector(target.as_str()).map_err(|why| format!("hook {name}: {why}"))?;
            }
            if hook.token.is_none() && !self.config.common.listen.ip().is_loopback() {
                let action = &hook.action;
                tracing::warn!(
                    hook = name,
                    action,
                    "Hook has no token: every host that reaches this gateway may call it"
                );
            }
        }
        Ok(())
    }
}

/// Every route, with its methods; `ANY` stands for all.
fn routes() -> Vec<(&'static str, &'static [&'static str], MethodRouter<Shared>)> {
    vec![
        ("/", &["GET"], get(page::home)),
        ("/auth", &["POST"], post(login::auth)),
        ("/execute", &["POST"], post(execute::execute)),
        ("/hook/{name}", &["ANY"], any(hook::hook)),
        ("/resources/{name}/{*path}", &["GET"], get(resources::resource)),
        ("/dashboard/{name}", &["GET"], get(page::dashboard)),
        (
            "/login",
            &["GET", "POST"],
            get(login::form_page).post(login::login),
        ),
        ("/logout", &["POST"], post(login::logout)),
        (EVENTS_PATH, &["GET"], get(socket::events)),
        ("/openapi.json", &["GET"], get(page::openapi)),
    ]
}

fn router(app: &Shared) -> Router {
    let mut router = Router::new();
    for (path, _, methods) in routes() {
        router = router.route(path, methods);
    }
    let router = router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    with_middleware(router, app)
}

/// The routes of the port for older clients: events, whatever the path.
fn events_router(app: &Shared) -> Router {
    with_middleware(Router::new().fallback(get(socket::events)), app)
}

fn with_middleware(router: Router<Shared>, app: &Shared) -> Router {
    let router = router.with_state(Arc::clone(app));
    middleware::apply(router, app.handler.access().clone(), EVENTS_PATH)
}

async fn not_found() -> HttpError {
    // Not in the audit: a path that does not exist is no use of the gateway.
    HttpError::new(StatusCode::NOT_FOUND, "nothing is here; see /openapi.json").audited()
}

async fn method_not_allowed() -> HttpError {
    HttpError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "not with this method; see /openapi.json",
    )
}
