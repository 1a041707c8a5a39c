//! `/hook/{name}`: runs a configured action, with arguments from the query and the body.

use std::collections::BTreeMap;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::{Extension, extract};
use serde_json::{Map, Value, json};
use swarm_shared::proto::foreign::platypush::{Request, id_from_random};
use swarm_shared::proto::wire::ContentEncoding;

use super::super::handler::random_id;
use super::Shared;
use crate::config::gateways::platypush_http::{Hook, HookInput};
use crate::gateways::access::Client;
use crate::http::auth::{header_token, is_same_origin};
use crate::http::error::{HttpError, json_response};
use crate::http::serve::ClientInfo;
use crate::http::{body, form};

/// Longest name of a hook or dashboard in a URL, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Headers with secrets, which the response does not repeat.
const SECRET_HEADERS: [header::HeaderName; 3] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::HeaderName::from_static("x-token"),
];

/// Whether a part of a URL is a valid name.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(fits)
}

pub(super) async fn hook(
    State(app): State<Shared>,
    Extension(client_info): Extension<ClientInfo>,
    name: Result<Path<String>, PathRejection>,
    request: extract::Request,
) -> Result<Response, HttpError> {
    let Path(name) = name?;
    let (parts, content) = request.into_parts();
    let Some(hook) = app.config.hooks.get(&name) else {
        let text = "there is no such hook: see [gateways.platypush_http.hooks]";
        return Err(HttpError::new(StatusCode::NOT_FOUND, text));
    };
    let client = Client {
        from: client_info.addr().ip(),
        user: Some(format!("hook {name}")),
    };
    let called = run_hook(&app, hook, &client, &parts, content).await;
    let (query, data, output) = called.map_err(|error| error.for_client(&client))?;
    Ok(json_response(&json!({
        "status": "ok",
        "hook": name,
        "method": parts.method.as_str(),
        "args": query,
        "data": data,
        "headers": visible_headers(&parts.headers),
        "output": output,
    })))
}

type HookResult = (BTreeMap<String, String>, Value, Value);

async fn run_hook(
    app: &Shared,
    hook: &Hook,
    client: &Client,
    parts: &Parts,
    content: axum::body::Body,
) -> Result<HookResult, HttpError> {
    if !hook.methods.is_empty() && !hook.methods.iter().any(|method| method == parts.method.as_str()) {
        return Err(HttpError::method_not_allowed(&hook.methods));
    }
    match (&hook.token, header_token(&parts.headers)) {
        (None, _) => {}
        (Some(token), Some(shown)) if token.matches(shown) => {}
        (Some(_), Some(_)) => {
            let text = "this is not the token of this hook";
            app.authenticator.count_failure(client.from, text)?;
            return Err(HttpError::unauthorized(text));
        }
        (Some(_), None) => {
            let text = "this hook takes a token: X-Token: …, or Authorization: Bearer …";
            return Err(HttpError::unauthorized(text));
        }
    }
    if hook.token.is_none() && !is_same_origin(&parts.headers) {
        let text = "this was sent by a page of another site: give the hook a token";
        return Err(HttpError::new(StatusCode::FORBIDDEN, text));
    }
    let bytes = body::read(content, &app.config.common).await?;
    let query = form::fields(parts.uri.query().unwrap_or_default());
    let data = parse_body(&parts.headers, &bytes)?;
    let given = HookInput {
        query: &query,
        body: data.as_object(),
    };
    let arguments = hook.arguments(given);
    let arguments =
        arguments.map_err(|bad| HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, bad.to_string()))?;
    let request = Request {
        target: hook.target.as_ref().map(|target| target.as_str().to_owned()),
        action: hook.action.clone(),
        args: Value::Object(arguments),
        origin: None,
        id: id_from_random(random_id()),
        token: None,
        timestamp: None,
    };
    let response = app.handler.handle(client, request).await;
    if response.errors.is_empty() {
        Ok((query, data, response.output))
    } else {
        let text = response.errors.join("; ");
        // The handler has audited the request.
        Err(HttpError::new(StatusCode::BAD_GATEWAY, text).audited())
    }
}

/// The body as JSON, as the fields of a form, or as text, by its content type; `null` if it is empty.
fn parse_body(headers: &HeaderMap, bytes: &[u8]) -> Result<Value, HttpError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split_once(';').map_or(kind, |(kind, _)| kind).trim();
    if kind.eq_ignore_ascii_case("application/json") {
        let parsed = swarm_shared::proto::json::parse(bytes, &ContentEncoding::Utf8);
        return parsed.map_err(|error| {
            let text = format!("the body says that it is JSON: {error}");
            HttpError::new(StatusCode::BAD_REQUEST, text)
        });
    }
    let text = String::from_utf8_lossy(bytes);
    if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        let fields = form::fields(&text).into_iter();
        return Ok(fields.map(|(key, value)| (key, Value::String(value))).collect());
    }
    Ok(text.into())
}

fn visible_headers(headers: &HeaderMap) -> Map<String, Value> {
    let open = headers.iter().filter(|(name, _)| !SECRET_HEADERS.contains(name));
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    open.map(|(name, value)| (name.as_str().to_owned(), text(value).into()))
        .collect()
}
