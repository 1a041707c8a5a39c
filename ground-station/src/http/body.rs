//! Reads request bodies, within a limit of bytes and time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::HttpError;
use crate::config::gateways::CommonOptions;

/// How long a body may take.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a whole body of at most `message_bytes`, within [`BODY_TIMEOUT`] or `idle` if that is shorter.
pub(crate) async fn read(body: Body, common: &CommonOptions) -> Result<Bytes, HttpError> {
    let max = common.message_bytes;
    let timeout = BODY_TIMEOUT.min(common.idle);
    let collected = tokio::time::timeout(timeout, Limited::new(body, max).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body is longer than {max} bytes");
            Err(HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => {
            let text = format!("the body was not read: {error}");
            Err(HttpError::new(StatusCode::BAD_REQUEST, text))
        }
        Err(_elapsed) => {
            let text = format!("the body took longer than {timeout:?}");
            Err(HttpError::new(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}
