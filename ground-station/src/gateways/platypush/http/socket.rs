//! `/ws/events`: the fleet's events over a WebSocket.
//!
//! | reader | then |
//! |---|---|
//! | slower than its bounded channel | closed; the close frame's reason holds the number of lost events |
//! | reads nothing for [`WRITE_TIMEOUT`] | closed; it may not receive the close frame |
//! | does not answer a ping within `idle`, or its credentials are no longer valid | closed |
//!
//! A reader has to send pongs only. Other messages count as requests: while the rate of its source permits none, nothing is
//! read, and events go on. Each ping is answered before the next message is read, so that at most one pong waits.

use std::pin::Pin;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use swarm_shared::net::clock;

use super::Shared;
use super::events::EventMapper;
use crate::gateways::access::Client;
use crate::http::auth::Caller;
use crate::http::error::HttpError;
use crate::http::serve::{ClientInfo, WRITE_TIMEOUT};
use swarm_shared::api::{Event, NodesRequest};

/// Longest message that a reader may send, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Code and reason of a close frame.
type CloseReason = (u16, String);

/// `GET /ws/events`: upgrades to a WebSocket.
pub(super) async fn events(
    State(app): State<Shared>,
    Extension(client_info): Extension<ClientInfo>,
    caller: Caller,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    request: axum::extract::Request,
) -> Result<Response, HttpError> {
    let (parts, _) = request.into_parts();
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
            // The connection counts until here.
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
    let idle = app.config.common.idle;
    let mut heard = clock::now();
    let mut ping = tokio::time::interval(idle / 3);
    let stall_timeout = WRITE_TIMEOUT.min(idle);
    // Ready when the rate permits the next message.
    let mut turn: Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = None;
    let (code, why) = loop {
        let next = tokio::select! {
            biased;
            () = app.shutdown.cancelled() => break (close_code::AWAY, "the station is shutting down".to_owned()),
            // Before the reader's messages, so that a reader that sends without pause is checked too.
            _tick = ping.tick() => {
                if clock::since(heard) > idle {
                    break (close_code::POLICY, format!("no answer to a ping for {idle:?}"));
                }
                if !app.authenticator.is_still_valid(parts, client_info.addr().ip()).await {
                    let why = "its credentials are no longer valid";
                    access.audit_refusal(client, "events", "", &why).await;
                    break (close_code::POLICY, why.to_owned());
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
                    // Sent here, since the library sends it with the next read only.
                    Some(Message::Pong(payload))
                }
            },
            event = events.recv() => match to_message(&mut mapper, event) {
                Ok(message) => message,
                Err(reason) => break reason,
            },
        };
        if let Some(next) = next
            && !send(&mut socket, next, stall_timeout).await
        {
            if let Some(count) = client_info.log().count("reader gone") {
                tracing::info!(
                    who,
                    count,
                    "Event reader closed: it does not read, or has disconnected"
                );
            }
            return;
        }
    };
    if let Some(count) = client_info.log().count("reader closed") {
        tracing::info!(who, why, count, "Event reader closed");
    }
    let frame = CloseFrame {
        code,
        reason: why.into(),
    };
    send(&mut socket, Message::Close(Some(frame)), stall_timeout).await;
}

/// The message for an event, if it has one; an error if the stream ends.
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
