//! `POST /execute`: a request message in, its response message out.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, extract};
use swarm_shared::proto::foreign::platypush::Request;

use super::error::HttpError;
use super::serve::ClientInfo;
use super::{Shared, body};
use crate::gateways::platypush_handler::random_id;

pub(super) async fn execute(
    State(app): State<Shared>,
    Extension(client_info): Extension<ClientInfo>,
    request: extract::Request,
) -> Result<Response, HttpError> {
    let (parts, content) = request.into_parts();
    let bytes = body::read(content, &app).await?;
    let parsed = Request::parse(&bytes, random_id());
    let token = match &parsed {
        Ok(request) => request.token.as_deref(),
        Err(bad) => bad.token.as_deref(),
    };
    let caller = app
        .authenticator
        .authenticate(&parts, client_info.addr().ip(), token)
        .await?;
    caller.check_same_origin(&parts, None)?;
    let (status, response) = match parsed {
        Ok(request) => (StatusCode::OK, app.handler.handle(&caller.client, request).await),
        Err(bad) => (
            StatusCode::BAD_REQUEST,
            app.handler.reject(&caller.client, bad).await,
        ),
    };
    let json = [(header::CONTENT_TYPE, "application/json")];
    let mut line = app.handler.encode(&response);
    line.push(b'\n');
    Ok((status, json, line).into_response())
}
