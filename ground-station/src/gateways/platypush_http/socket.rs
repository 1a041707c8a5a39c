//! `/ws/events`: what happens, over a WebSocket.
//!
//! Events wait in the bounded channel of the façade. A reader that is too slow for it has lost some, so it is told how
//! many in the reason of the close frame, and let go; so is one that takes nothing at all for the gateway's write time-out,
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
use super::error::HttpError;
use super::events::EventMapper;
use super::serve::{ClientInfo, WRITE_TIMEOUT};
use crate::fleet::{Event, NodesRequest};
use crate::gateways::access::Client;

/// Longest message that a reader may send, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Why a reader is let go, and the code of the close frame.
type CloseReason = (u16, String);

pub(super) async fn events(
    State(app): State<Shared>,
    Extension(client_info): Extension<ClientInfo>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
    request: axum::extract::Request,
) -> Result<Response, HttpError> {
    let (parts, _) = request.into_parts();
    let caller = app
        .authenticator
        .authenticate(&parts, client_info.addr().ip(), None)
        .await?;
    caller.check_same_origin(&parts, None)?;
    let upgrade = upgrade.map_err(|error| {
        let text = format!("events come over a WebSocket only: {error}");
        HttpError::new(StatusCode::UPGRADE_REQUIRED, text).for_client(&caller.client)
    })?;
    let access = app.handler.access();
    access
        .audit(&caller.client, "events", "", "begun".to_owned())
        .await;
    let upgrade = upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| {
        let tasks = app.tasks.clone();
        tasks.track_future(async move {
            stream_events(&app, socket, &parts, &client_info, &caller.client).await;
            // Until here it has had its place in the listener.
            drop(client_info);
        })
    }))
}

async fn stream_events(
    app: &Shared,
    mut socket: WebSocket,
    parts: &Parts,
    client_info: &ClientInfo,
    client: &Client,
) {
    let access = app.handler.access();
    let who = access.client_label(client);
    let follow = NodesRequest::Follow { telemetry: true };
    let mut events = app.fleet.perform_as(follow, who.clone()).await;
    let mut mapper = EventMapper::new(app.name.as_str());
    let idle = app.config.common.limits.idle;
    let mut heard = clock::now();
    let mut ping = tokio::time::interval(idle / 3);
    let stall_timeout = WRITE_TIMEOUT.min(idle);
    // Rings when more may be read.
    let mut turn: Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = None;
    let (code, why) = loop {
        let next = tokio::select! {
            biased;
            () = app.shutdown.cancelled() => break (close_code::AWAY, "the station is shutting down".to_owned()),
            // Before what the reader says: whoever never stops talking is looked at all the same.
            _tick = ping.tick() => {
                if clock::since(heard) > idle {
                    break (close_code::POLICY, format!("no answer to a ping for {idle:?}"));
                }
                if !app.authenticator.is_still_valid(parts, client_info.addr().ip()).await {
                    let why = "what was shown to come in is good no more".to_owned();
                    access.audit(client, "events", "", format!("not done: {why}")).await;
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
                    turn = Some(Box::pin(client_info.throttle()));
                    let Message::Ping(payload) = message else { continue };
                    // In the place of the one that the next reading would send, if it could.
                    Some(Message::Pong(payload))
                }
            },
            event = events.recv() => match to_message(&mut mapper, event) {
                Ok(message) => message,
                Err(farewell) => break farewell,
            },
        };
        if let Some(next) = next
            && !send(&mut socket, next, stall_timeout).await
        {
            if let Some(count) = client_info.log().count("reader away") {
                tracing::info!(
                    who,
                    count,
                    "a reader of events does not read, or went away; it is let go"
                );
            }
            return;
        }
    };
    if let Some(count) = client_info.log().count("reader let go") {
        tracing::info!(who, why, count, "a reader of events is let go");
    }
    let frame = CloseFrame {
        code,
        reason: why.into(),
    };
    send(&mut socket, Message::Close(Some(frame)), stall_timeout).await;
}

/// What to send of an event, if anything; or why there is nothing more to send.
fn to_message(mapper: &mut EventMapper, event: Option<Event>) -> Result<Option<Message>, CloseReason> {
    match event {
        None | Some(Event::End) => Err((close_code::AWAY, "the station is shutting down".to_owned())),
        Some(Event::Failed { message, .. }) => Err((close_code::ERROR, message.chars().take(30).collect())),
        Some(Event::Lagged { count }) => Err((
            close_code::POLICY,
            format!("too slow: {count} events were lost; connect again"),
        )),
        Some(event) => Ok(mapper
            .map(event, clock::unix_time_ms())
            .map(|text| Message::Text(text.into()))),
    }
}

async fn send(socket: &mut WebSocket, message: Message, stall_timeout: Duration) -> bool {
    matches!(
        tokio::time::timeout(stall_timeout, socket.send(message)).await,
        Ok(Ok(()))
    )
}
