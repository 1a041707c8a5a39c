//! `/ws/events`: what happens, over a WebSocket.
//!
//! Events wait in the bounded channel of the façade. A reader that is too slow for it has lost some, so it is told how
//! many in the reason of the close frame, and let go; so is one that takes nothing at all for the door's write time-out,
//! though it may never see why. A reader that is silent is pinged, and let go when it does not answer, or when what it
//! showed to come in is good no more.
//!
//! Nothing is expected of a reader but pongs. Whatever else it says is rated as requests are: while its address has no
//! turn, nothing more is read of it, and it is told events all the same. Each ping is answered, and the answer written,
//! before the next message is read; so answers are in order, and no more than one waits.

use std::pin::Pin;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use swarm_shared::net::clock;

use super::Shared;
use super::error::Refusal;
use super::events::Teller;
use super::serve::{Guest, WRITE_TIMEOUT};
use crate::fleet::{Event, Request};
use crate::gateways::access::Visitor;

/// Longest message that a reader may send, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Why a reader is let go, and the code of the close frame.
type Farewell = (u16, String);

pub(super) async fn events(
    State(app): State<Shared>,
    Extension(guest): Extension<Guest>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
    request: axum::extract::Request,
) -> Result<Response, Refusal> {
    let (parts, _) = request.into_parts();
    let caller = app.gatekeeper.caller(&parts, guest.addr().ip(), None).await?;
    caller.check_own_page(&parts, None)?;
    let upgrade = upgrade.map_err(|error| {
        let text = format!("events come over a WebSocket only: {error}");
        Refusal::new(StatusCode::UPGRADE_REQUIRED, text).of(&caller.visitor)
    })?;
    let guard = app.desk.guard();
    guard
        .note(&caller.visitor, "events", "", "begun".to_owned())
        .await;
    let upgrade = upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| {
        let tasks = app.tasks.clone();
        tasks.track_future(async move {
            tell(&app, socket, &parts, &guest, &caller.visitor).await;
            // Until here it has had its place in the hall.
            drop(guest);
        })
    }))
}

async fn tell(app: &Shared, mut socket: WebSocket, parts: &Parts, guest: &Guest, visitor: &Visitor) {
    let guard = app.desk.guard();
    let who = guard.who(visitor);
    let follow = Request::Follow { telemetry: true };
    let mut events = app.fleet.perform_as(follow, who.clone()).await;
    let mut teller = Teller::new(app.name.as_str());
    let idle = app.config.common.limits.idle;
    let mut heard = clock::now();
    let mut ping = tokio::time::interval(idle / 3);
    let patience = WRITE_TIMEOUT.min(idle);
    // Rings when more may be read.
    let mut turn: Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = None;
    let (code, why) = loop {
        let next = tokio::select! {
            biased;
            () = app.stop.cancelled() => break (close_code::AWAY, "the station is shutting down".to_owned()),
            // Before what the reader says: whoever never stops talking is looked at all the same.
            _tick = ping.tick() => {
                if clock::since(heard) > idle {
                    break (close_code::POLICY, format!("no answer to a ping for {idle:?}"));
                }
                if !app.gatekeeper.is_still_good(parts, guest.addr().ip()).await {
                    let why = "what was shown to come in is good no more".to_owned();
                    guard.note(visitor, "events", "", format!("not done: {why}")).await;
                    break (close_code::POLICY, why);
                }
                Some(Message::Ping(Default::default()))
            }
            () = async { if let Some(turn) = &mut turn { turn.await } }, if turn.is_some() => {
                turn = None;
                continue;
            }
            message = socket.recv(), if turn.is_none() => match message {
                None | Some(Err(_) | Ok(Message::Close(_))) => return,
                Some(Ok(message)) => {
                    heard = clock::now();
                    turn = Some(Box::pin(guest.turn()));
                    let Message::Ping(payload) = message else { continue };
                    // In the place of the one that the next reading would send, if it could.
                    Some(Message::Pong(payload))
                }
            },
            event = events.recv() => match message(&mut teller, event) {
                Ok(message) => message,
                Err(farewell) => break farewell,
            },
        };
        if let Some(next) = next
            && !send(&mut socket, next, patience).await
        {
            if let Some(count) = guest.log().count("reader away") {
                tracing::info!(
                    who,
                    count,
                    "a reader of events does not read, or went away; it is let go"
                );
            }
            return;
        }
    };
    if let Some(count) = guest.log().count("reader let go") {
        tracing::info!(who, why, count, "a reader of events is let go");
    }
    let frame = CloseFrame {
        code,
        reason: why.into(),
    };
    send(&mut socket, Message::Close(Some(frame)), patience).await;
}

/// What to send of an event, if anything; or why there is nothing more to send.
fn message(teller: &mut Teller, event: Option<Event>) -> Result<Option<Message>, Farewell> {
    match event {
        None | Some(Event::End) => Err((close_code::AWAY, "the station is shutting down".to_owned())),
        Some(Event::Failed { message, .. }) => Err((close_code::ERROR, message.chars().take(30).collect())),
        Some(Event::Missed { count }) => Err((
            close_code::POLICY,
            format!("too slow: {count} events were lost; connect again"),
        )),
        Some(event) => Ok(teller
            .tell(event, clock::unix_time_ms())
            .map(|text| Message::Text(text.into()))),
    }
}

async fn send(socket: &mut WebSocket, message: Message, patience: Duration) -> bool {
    matches!(
        tokio::time::timeout(patience, socket.send(message)).await,
        Ok(Ok(()))
    )
}
