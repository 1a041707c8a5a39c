//! Platypush over HTTP: request messages, hooks, files, a page, and events over a WebSocket.
//!
//! | module | what it does |
//! |---|---|
//! | `serve`, `patient`, `tls`, `certificate` | connections: time-outs, bounds, TLS |
//! | `auth`, `throttle`, `login` | who asks; guessing is slowed |
//! | `execute`, `hook`, `resources`, `page` | one module for each kind of route |
//! | `events`, `socket` | what happens, in Platypush's form |
//! | `error`, `body`, `form`, `range` | the small parts of HTTP |
//!
//! Invariants: nothing but hooks, the login form and the description of this gateway is served to whoever has not shown
//! who they are; what a hook may do is in its configuration, and in `allow`; heads, bodies, silences and what waits to be
//! read are all bounded; whatever is refused is in the audit; `routes` is all there is, and `openapi.json` describes each.

mod auth;
mod body;
mod certificate;
mod error;
mod events;
mod execute;
mod form;
mod hook;
mod login;
mod login_throttle;
mod page;
mod patient;
mod range;
mod resources;
mod serve;
mod socket;
#[cfg(test)]
mod tests;
mod tls;

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, get, post};
use axum::{Extension, Router};
use swarm_shared::net::roots::Roots;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listener::GatewayListener;
use super::platypush_handler::RequestHandler;
use super::{GatewayContext, GatewayError, access};
use crate::config::gateways::PlatypushHttpConfig;
use crate::fleet::Fleet;
use crate::store::Store;
use auth::Authenticator;
use error::{HttpError, Unaudited};
use serve::ClientInfo;

/// As the configuration calls this gateway.
const GATEWAY: &str = "platypush_http";
/// What programs look for by mDNS.
const SERVICE: &str = "_platypush-http._tcp.local.";
/// Where events are read; on the port of older clients, whatever the path.
const EVENTS_PATH: &str = "/ws/events";
/// This gateway, described for programs.
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
    /// Whether cookies are for TLS only.
    secure_cookies: bool,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

type Shared = Arc<AppState>;

/// Opens this gateway.
///
/// # Errors
/// [`DoorError`].
pub(super) async fn open(config: &PlatypushHttpConfig, context: &GatewayContext) -> Result<(), GatewayError> {
    let wrong = |reason: String| GatewayError::Configuration {
        gateway: GATEWAY,
        reason,
    };
    let app = AppState::new(config, context).map_err(wrong)?;
    app.check_hooks().map_err(wrong)?;
    app.check_credentials_exist().await.map_err(wrong)?;
    let state_dir = context.store.path().parent().map(std::path::Path::to_owned);
    let tls = tls::acceptor(config, &state_dir.unwrap_or_default(), &app.name).map_err(wrong)?;
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
    let idle = config.common.limits.idle;
    for (listener, router) in listeners {
        let tls = tls.clone();
        let receive = listener
            .serve(move |stream, permit| serve::serve(stream, permit, router.clone(), tls.clone(), idle));
        context.tasks.spawn(receive);
    }
    context.publish(SERVICE, listens).await;
    Ok(())
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
            secure_cookies: tls::is_enabled(config),
            shutdown: context.shutdown.clone(),
            tasks: context.tasks.clone(),
        })
    }

    /// A gateway that nobody can pass is worth a word: a user may still be made while it is open.
    async fn check_credentials_exist(&self) -> Result<(), String> {
        if self
            .authenticator
            .has_no_credentials()
            .await
            .map_err(|error| error.to_string())?
        {
            tracing::warn!(
                gateway = GATEWAY,
                "nobody can come in, other than by a hook: there is neither a user nor a `token`; type \
                 `ground-station gateway user add NAME` on the station"
            );
        }
        Ok(())
    }

    /// A hook that could never do anything is a mistake; one without a token is worth a word.
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
                    "whoever reaches this gateway may set off this hook: it has no token"
                );
            }
        }
        Ok(())
    }
}

/// Every route, with the methods that it takes; `ANY` is any.
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

/// What older clients find on a port of its own: events, whatever the path.
fn events_router(app: &Shared) -> Router {
    with_middleware(Router::new().fallback(get(socket::events)), app)
}

fn with_middleware(router: Router<Shared>, app: &Shared) -> Router {
    router
        .layer(middleware::from_fn_with_state(
            Arc::clone(app),
            throttle_and_audit,
        ))
        .with_state(Arc::clone(app))
}

/// One address is served no faster than `rate`; what has begun goes on though whoever asked for it leaves, until the
/// station stops; whatever is refused, by whichever route, is in the audit; and no browser makes more of an answer than
/// it is.
async fn throttle_and_audit(
    State(app): State<Shared>,
    Extension(client_info): Extension<ClientInfo>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    client_info.throttle().await;
    let (tasks, shutdown) = (app.tasks.clone(), app.shutdown.clone());
    // In a task of its own, as a connection that fails takes with it whatever it waits for. It keeps its client's
    // place meanwhile, so what goes on is bounded as connections are.
    let begun = tasks.spawn(async move {
        shutdown
            .run_until_cancelled(run_and_audit(app, client_info, route, request, next))
            .await
    });
    match begun.await {
        Ok(Some(response)) => response,
        Ok(None) => {
            let text = "the station is shutting down; ask again";
            HttpError::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        Err(error) => {
            tracing::error!(gateway = GATEWAY, %error, "a request was not carried to its end");
            let text = "the station has failed; its log says how";
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn run_and_audit(
    app: Shared,
    client_info: ClientInfo,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if let Some(refused) = response.extensions_mut().remove::<Unaudited>() {
        let by = refused.client.map_or_else(|| client_info.client(), |by| *by);
        let route = route.as_ref().map_or(EVENTS_PATH, MatchedPath::as_str);
        let outcome = format!("not done: {}", refused.message);
        app.handler.access().audit(&by, route, &path, outcome).await;
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            page::CONTENT_SECURITY_POLICY_VALUE,
        ),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

async fn not_found() -> HttpError {
    // What is not here is not used.
    HttpError::new(StatusCode::NOT_FOUND, "nothing is here; see /openapi.json").audited()
}

async fn method_not_allowed() -> HttpError {
    HttpError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "not with this method; see /openapi.json",
    )
}
