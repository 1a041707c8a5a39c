//! `POST /execute`: a request message, answered by its response message.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, extract};
use swarm_shared::proto::foreign::platypush::Request;

use super::super::handler::random_id;
use super::Shared;
use crate::http::body;
use crate::http::error::HttpError;
use crate::http::serve::ClientInfo;

pub(super) async fn execute(
    State(app): State<Shared>,
    Extension(client_info): Extension<ClientInfo>,
    request: extract::Request,
) -> Result<Response, HttpError> {
    let (parts, content) = request.into_parts();
    let bytes = body::read(content, &app.config.common).await?;
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
