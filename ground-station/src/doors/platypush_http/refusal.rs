//! What is answered when something is not done: `{"code", "error", "message"}`, as Platypush has it.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::store::StoreError;
use crate::users::PasswordError;

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
    header: Option<(header::HeaderName, String)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            header: None,
        }
    }

    /// Nobody who may come in.
    pub(super) fn unauthorized(message: &str) -> Self {
        let ask = "Basic realm=\"ground-station\", charset=\"UTF-8\"".to_owned();
        Self {
            header: Some((header::WWW_AUTHENTICATE, ask)),
            ..Self::new(StatusCode::UNAUTHORIZED, message)
        }
    }

    /// Too often wrong.
    pub(super) fn slow_down(wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let text = format!("too many wrong passwords or tokens from this address; try again in {seconds} s");
        Self {
            header: Some((header::RETRY_AFTER, seconds.to_string())),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, text)
        }
    }

    /// Called in another way than it may be.
    pub(super) fn not_so(allowed: &[String]) -> Self {
        let allowed = allowed.join(", ");
        Self {
            message: format!("this takes {allowed} only"),
            header: Some((header::ALLOW, allowed)),
            status: StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<PasswordError> for Refusal {
    fn from(error: PasswordError) -> Self {
        let status = match error {
            PasswordError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            PasswordError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({
            "code": self.status.as_u16(),
            "error": self.status.canonical_reason().unwrap_or("Error"),
            "message": self.message,
        });
        let mut response = (self.status, Json(body)).into_response();
        if let Some((name, value)) = self.header
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
