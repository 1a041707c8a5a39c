//! `POST /execute`: a request message in, its response message out.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, extract};
use swarm_shared::proto::platypush::Request;

use super::error::Refusal;
use super::serve::Guest;
use super::{Shared, body};
use crate::gateways::platypush_handler::random_id;

pub(super) async fn execute(
    State(app): State<Shared>,
    Extension(guest): Extension<Guest>,
    request: extract::Request,
) -> Result<Response, Refusal> {
    let (parts, content) = request.into_parts();
    let bytes = body::read(content, &app).await?;
    let parsed = Request::parse(&bytes, random_id());
    let token = match &parsed {
        Ok(request) => request.token.as_deref(),
        Err(bad) => bad.token.as_deref(),
    };
    let caller = app.gatekeeper.caller(&parts, guest.addr().ip(), token).await?;
    caller.check_own_page(&parts, None)?;
    let (status, response) = match parsed {
        Ok(request) => (StatusCode::OK, app.desk.answer(&caller.visitor, request).await),
        Err(bad) => (
            StatusCode::BAD_REQUEST,
            app.desk.turn_down(&caller.visitor, bad).await,
        ),
    };
    let json = [(header::CONTENT_TYPE, "application/json")];
    let mut line = app.desk.encode(&response);
    line.push(b'\n');
    Ok((status, json, line).into_response())
}
