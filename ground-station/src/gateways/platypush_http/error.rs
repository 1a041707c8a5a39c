//! What is answered when something is not done: `{"code", "error", "message"}`, as Platypush has it. Whatever handler
//! says it, it goes into the audit: with the answer travels an [`Unnoted`], which the last layer takes off and notes.

use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::body;
use crate::gateways::access::Client;
use crate::store::StoreError;
use crate::users::PasswordError;

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpError {
    status: StatusCode,
    message: String,
    header: Option<(header::HeaderName, String)>,
    /// Who asked, where that was found out.
    client: Option<Box<Client>>,
    /// Whether it is in the audit already, or does not belong there.
    is_audited: bool,
}

/// A error that is not in the audit yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unaudited {
    /// Why.
    pub(super) message: String,
    /// Who asked, where that was found out.
    pub(super) client: Option<Box<Client>>,
}

impl HttpError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            header: None,
            client: None,
            is_audited: false,
        }
    }

    /// Of somebody who is known.
    pub(super) fn for_client(self, client: &Client) -> Self {
        Self {
            client: Some(Box::new(client.clone())),
            ..self
        }
    }

    /// One that is in the audit already, or does not belong there.
    pub(super) fn audited(self) -> Self {
        Self {
            is_audited: true,
            ..self
        }
    }

    /// What is left to note of it.
    pub(super) fn unaudited(&self) -> Option<Unaudited> {
        (!self.is_audited).then(|| Unaudited {
            message: self.message.clone(),
            client: self.client.clone(),
        })
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
    pub(super) fn too_many_attempts(wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let text = format!("too many wrong passwords or tokens from this address; try again in {seconds} s");
        Self {
            header: Some((header::RETRY_AFTER, seconds.to_string())),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, text)
        }
    }

    /// Called in another way than it may be.
    pub(super) fn method_not_allowed(allowed: &[String]) -> Self {
        let allowed = allowed.join(", ");
        let text = format!("this takes {allowed} only");
        Self {
            header: Some((header::ALLOW, allowed)),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, text)
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<StoreError> for HttpError {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<PasswordError> for HttpError {
    fn from(error: PasswordError) -> Self {
        let status = match error {
            PasswordError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            PasswordError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<PathRejection> for HttpError {
    fn from(rejection: PathRejection) -> Self {
        let text = format!("the path is not text in UTF-8: {rejection}");
        Self::new(StatusCode::BAD_REQUEST, text)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let said = json!({
            "code": self.status.as_u16(),
            "error": self.status.canonical_reason().unwrap_or("Error"),
            "message": self.message,
        });
        let mut response = body::json(&said);
        *response.status_mut() = self.status;
        if let Some(unnoted) = self.unaudited() {
            response.extensions_mut().insert(unnoted);
        }
        if let Some((name, value)) = self.header
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
