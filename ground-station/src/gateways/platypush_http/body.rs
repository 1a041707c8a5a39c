//! Bodies: of requests, bounded in bytes and in time; of answers, as JSON.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::AppState;
use super::error::HttpError;

/// How long a body may take.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer; its line ends, for people who look at it.
pub(super) fn json(value: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, format!("{value}\n")).into_response()
}

/// Reads all of it.
pub(super) async fn read(body: Body, app: &AppState) -> Result<Bytes, HttpError> {
    let most = app.config.common.limits.message_bytes;
    let stall_timeout = BODY_TIMEOUT.min(app.config.common.limits.idle);
    let collected = tokio::time::timeout(stall_timeout, Limited::new(body, most).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body is longer than {most} bytes");
            Err(HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => {
            let text = format!("the body was not read: {error}");
            Err(HttpError::new(StatusCode::BAD_REQUEST, text))
        }
        Err(_late) => {
            let text = format!("the body took longer than {stall_timeout:?}");
            Err(HttpError::new(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}
