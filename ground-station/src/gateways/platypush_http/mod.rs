//! Platypush over HTTP: request messages, hooks, files, a page, and events over a WebSocket.
//!
//! | module | what it does |
//! |---|---|
//! | `serve`, `patient`, `tls`, `certificate` | connections: time-outs, bounds, TLS |
//! | `auth`, `brake`, `login` | who asks; guessing is slowed |
//! | `execute`, `hook`, `resources`, `page` | one module for each kind of route |
//! | `events`, `socket` | what happens, in Platypush's form |
//! | `refusal`, `body`, `form`, `range` | the small parts of HTTP |
//!
//! Invariants: nothing but hooks, the login form and the description of this door is served to whoever has not shown
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

use super::listener::Hall;
use super::platypush_handler::Desk;
use super::{DoorError, House, access};
use crate::config::gateways::PlatypushHttp;
use crate::fleet::Fleet;
use crate::store::Store;
use auth::Gatekeeper;
use error::{Refusal, Unnoted};
use serve::Guest;

/// As the configuration calls this door.
const DOOR: &str = "platypush_http";
/// What programs look for by mDNS.
const SERVICE: &str = "_platypush-http._tcp.local.";
/// Where events are read; on the port of older clients, whatever the path.
const EVENTS: &str = "/ws/events";
/// This door, described for programs.
const OPENAPI: &str = include_str!("openapi.json");

/// What all requests share.
#[derive(Debug)]
struct App {
    name: String,
    config: PlatypushHttp,
    desk: Desk,
    gatekeeper: Gatekeeper,
    roots: Roots,
    store: Store,
    fleet: Fleet,
    /// Whether cookies are for TLS only.
    secure: bool,
    stop: CancellationToken,
    tasks: TaskTracker,
}

type Shared = Arc<App>;

/// Opens this door.
///
/// # Errors
/// [`DoorError`].
pub(super) async fn open(config: &PlatypushHttp, house: &House) -> Result<(), DoorError> {
    let wrong = |reason: String| DoorError::Configuration { door: DOOR, reason };
    let app = App::new(config, house).map_err(wrong)?;
    app.check_hooks().map_err(wrong)?;
    app.check_visitors().await.map_err(wrong)?;
    let state_dir = house.store.path().parent().map(std::path::Path::to_owned);
    let tls = tls::acceptor(config, &state_dir.unwrap_or_default(), &app.name).map_err(wrong)?;
    let app = Arc::new(app);
    let hall = Hall::open(DOOR, &config.common, house)?;
    let listens = hall.listens().unwrap_or(config.common.listen);
    let mut halls = Vec::new();
    if let Some(port) = config.websocket_port {
        let mut common = config.common.clone();
        common.listen.set_port(port);
        let older = Hall::open(DOOR, &common, house)?.beside(&hall);
        halls.push((older, events_only(&app)));
    }
    halls.push((hall, router(&app)));
    let idle = config.common.limits.idle;
    for (hall, router) in halls {
        let tls = tls.clone();
        let receive = hall.receive(move |stream, entrance| {
            serve::serve(stream, entrance, router.clone(), tls.clone(), idle)
        });
        house.tasks.spawn(receive);
    }
    house.publish(SERVICE, listens).await;
    Ok(())
}

impl App {
    fn new(config: &PlatypushHttp, house: &House) -> Result<Self, String> {
        let gatekeeper = Gatekeeper::new(house.store.clone(), config.common.token.clone());
        Ok(Self {
            name: house.face.name.as_str().to_owned(),
            config: config.clone(),
            desk: Desk::new(DOOR, &config.common, house),
            gatekeeper: gatekeeper.map_err(|error| error.to_string())?,
            roots: Roots::new(config.resources.clone()),
            store: house.store.clone(),
            fleet: house.fleet.clone(),
            secure: tls::is_on(config),
            stop: house.stop.clone(),
            tasks: house.tasks.clone(),
        })
    }

    /// A door that nobody can pass is worth a word: a user may still be made while it is open.
    async fn check_visitors(&self) -> Result<(), String> {
        if self
            .gatekeeper
            .is_for_nobody()
            .await
            .map_err(|error| error.to_string())?
        {
            tracing::warn!(
                door = DOOR,
                "nobody can come in, other than by a hook: there is neither a user nor a `token`; type \
                 `ground-station door user add NAME` on the station"
            );
        }
        Ok(())
    }

    /// A hook that could never do anything is a mistake; one without a token is worth a word.
    fn check_hooks(&self) -> Result<(), String> {
        for (name, hook) in &self.config.hooks {
            let given: Vec<&str> = hook.parameters.keys().map(String::as_str).collect();
            self.desk
                .permits(&hook.action, &given)
                .map_err(|why| format!("hook {name}: {why}"))?;
            if let Some(target) = &hook.target {
                access::selector(target.as_str()).map_err(|why| format!("hook {name}: {why}"))?;
            }
            if hook.token.is_none() && !self.config.common.listen.ip().is_loopback() {
                let action = &hook.action;
                tracing::warn!(
                    hook = name,
                    action,
                    "whoever reaches this door may set off this hook: it has no token"
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
        (EVENTS, &["GET"], get(socket::events)),
        ("/openapi.json", &["GET"], get(page::openapi)),
    ]
}

fn router(app: &Shared) -> Router {
    let mut router = Router::new();
    for (path, _, methods) in routes() {
        router = router.route(path, methods);
    }
    let router = router.fallback(not_here).method_not_allowed_fallback(not_so);
    finish(router, app)
}

/// What older clients find on a port of its own: events, whatever the path.
fn events_only(app: &Shared) -> Router {
    finish(Router::new().fallback(get(socket::events)), app)
}

fn finish(router: Router<Shared>, app: &Shared) -> Router {
    router
        .layer(middleware::from_fn_with_state(Arc::clone(app), keep_order))
        .with_state(Arc::clone(app))
}

/// One address is served no faster than `rate`; what has begun goes on though whoever asked for it leaves, until the
/// station stops; whatever is refused, by whichever route, is in the audit; and no browser makes more of an answer than
/// it is.
async fn keep_order(
    State(app): State<Shared>,
    Extension(guest): Extension<Guest>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    guest.turn().await;
    let (tasks, stop) = (app.tasks.clone(), app.stop.clone());
    // In a task of its own, as a connection that fails takes with it whatever it waits for. It keeps its visitor's
    // place meanwhile, so what goes on is bounded as connections are.
    let begun = tasks.spawn(async move {
        stop.run_until_cancelled(carry_out(app, guest, route, request, next))
            .await
    });
    match begun.await {
        Ok(Some(response)) => response,
        Ok(None) => {
            let text = "the station is shutting down; ask again";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        Err(error) => {
            tracing::error!(door = DOOR, %error, "a request was not carried to its end");
            let text = "the station has failed; its log says how";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn carry_out(
    app: Shared,
    guest: Guest,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if let Some(refused) = response.extensions_mut().remove::<Unnoted>() {
        let by = refused.by.map_or_else(|| guest.visitor(), |by| *by);
        let route = route.as_ref().map_or(EVENTS, MatchedPath::as_str);
        let outcome = format!("not done: {}", refused.message);
        app.desk.guard().note(&by, route, &path, outcome).await;
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, page::POLICY),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

async fn not_here() -> Refusal {
    // What is not here is not used.
    Refusal::new(StatusCode::NOT_FOUND, "nothing is here; see /openapi.json").noted()
}

async fn not_so() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "not with this method; see /openapi.json",
    )
}
