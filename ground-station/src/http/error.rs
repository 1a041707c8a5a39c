//! Errors as responses: `{"code", "error", "message"}` in JSON, the form of Platypush.
//!
//! Every error goes into the audit: an [`Unaudited`] travels with the response as an extension, and the outermost layer
//! ([`super::middleware`]) removes and audits it.

use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::gateways::access::Client;
use crate::store::StoreError;
use crate::users::PasswordError;

/// A response that reports an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpError {
    status: StatusCode,
    message: String,
    header: Option<(header::HeaderName, String)>,
    /// The client, if it is known.
    client: Option<Box<Client>>,
    /// Whether it is in the audit already, or does not belong there.
    is_audited: bool,
}

/// An error that is not in the audit yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unaudited {
    /// The error's text.
    pub(crate) message: String,
    /// The client, if it is known.
    pub(crate) client: Option<Box<Client>>,
}

impl HttpError {
    /// An error with this status and text.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            header: None,
            client: None,
            is_audited: false,
        }
    }

    /// Adds the client, for the audit.
    pub(crate) fn for_client(self, client: &Client) -> Self {
        Self {
            client: Some(Box::new(client.clone())),
            ..self
        }
    }

    /// Marks it as audited already, or as not to be audited.
    pub(crate) fn audited(self) -> Self {
        Self {
            is_audited: true,
            ..self
        }
    }

    /// What has to be audited of it, if anything.
    pub(crate) fn unaudited(&self) -> Option<Unaudited> {
        (!self.is_audited).then(|| Unaudited {
            message: self.message.clone(),
            client: self.client.clone(),
        })
    }

    /// 401, with the challenge that makes a browser ask for a name and a password.
    pub(crate) fn unauthorized(message: &str) -> Self {
        let ask = "Basic realm=\"ground-station\", charset=\"UTF-8\"".to_owned();
        Self {
            header: Some((header::WWW_AUTHENTICATE, ask)),
            ..Self::new(StatusCode::UNAUTHORIZED, message)
        }
    }

    /// 429, with the seconds until the next attempt.
    pub(crate) fn too_many_attempts(wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let text = format!("too many wrong passwords or tokens from this address; try again in {seconds} s");
        Self {
            header: Some((header::RETRY_AFTER, seconds.to_string())),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, text)
        }
    }

    /// 405, with the methods that are allowed.
    pub(crate) fn method_not_allowed(allowed: &[String]) -> Self {
        let allowed = allowed.join(", ");
        let text = format!("this takes {allowed} only");
        Self {
            header: Some((header::ALLOW, allowed)),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, text)
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn message(&self) -> &str {
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

/// A response of JSON, ended by a newline for terminals.
pub(crate) fn json_response(value: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, format!("{value}\n")).into_response()
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let body = json!({
            "code": self.status.as_u16(),
            "error": self.status.canonical_reason().unwrap_or("Error"),
            "message": self.message,
        });
        let mut response = json_response(&body);
        *response.status_mut() = self.status;
        if let Some(unaudited) = self.unaudited() {
            response.extensions_mut().insert(unaudited);
        }
        if let Some((name, value)) = self.header
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
