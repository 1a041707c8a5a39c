//! `/resources/{name}/…`: regular files below configured directories, whole or in part.

use std::fs::Metadata;
use std::io::{ErrorKind, SeekFrom};
use std::os::unix::fs::MetadataExt;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use swarm_shared::net::roots::FileError;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::Shared;
use super::range::{Part, part};
use crate::http::auth::Caller;
use crate::http::error::HttpError;

/// Bytes of a file that are read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// `GET /resources/{name}/{*path}`: a file, or a part of it.
pub(super) async fn resource(
    State(app): State<Shared>,
    path: Result<Path<(String, String)>, PathRejection>,
    caller: Result<Caller, HttpError>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let (Path((name, path)), caller) = (path?, caller?);
    let path = format!("{name}/{path}");
    let answered = respond(&app, &path, &method, &headers).await;
    let outcome = match &answered {
        Ok(response) => response.status().to_string(),
        Err(error) => format!("not done: {}", error.message()),
    };
    let access = app.handler.access();
    access.audit(&caller.client, "resource", &path, outcome).await;
    answered.map_err(HttpError::audited)
}

async fn respond(
    app: &Shared,
    path: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, HttpError> {
    let (roots, asked) = (app.roots.clone(), path.to_owned());
    let opened = tokio::task::spawn_blocking(move || {
        let file = roots.open(&asked)?;
        let meta = file.metadata();
        let meta = meta.map_err(|error| FileError::io(&asked, "examine it", error))?;
        Ok::<_, FileError>((file, meta))
    });
    let opened = opened.await.map_err(|error| internal_error(&error))?;
    let (file, meta) = opened.map_err(|error| to_http_error(path, &error))?;
    let tag = etag(&meta);
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let same = |tags: &str| {
        tags.split(',')
            .map(str::trim)
            .any(|one| one == "*" || one.trim_start_matches("W/") == tag)
    };
    let mut response = Response::new(Body::empty());
    set_header(&mut response, header::ETAG, &tag);
    set_header(&mut response, header::ACCEPT_RANGES, "bytes");
    set_header(&mut response, header::CACHE_CONTROL, "private, no-cache");
    if text(header::IF_NONE_MATCH).is_some_and(same) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    // A part of a changed file would not fit the part that the client has.
    let range = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|wanted| wanted == tag));
    let range = range.filter(|_| method == Method::GET);
    let length = meta.len();
    let (from, count) = match part(range, length) {
        Part::All => (0, length),
        Part::Bytes(first, last) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set_header(
                &mut response,
                header::CONTENT_RANGE,
                &format!("bytes {first}-{last}/{length}"),
            );
            (first, last - first + 1)
        }
        Part::Beyond => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set_header(&mut response, header::CONTENT_RANGE, &format!("bytes */{length}"));
            return Ok(response);
        }
    };
    set_header(&mut response, header::CONTENT_TYPE, content_type(path));
    set_header(&mut response, header::CONTENT_LENGTH, &count.to_string());
    // An HTML file must not be able to use the login of the user who opens it.
    set_header(&mut response, header::CONTENT_SECURITY_POLICY, "sandbox");
    if method != Method::HEAD {
        let mut file = tokio::fs::File::from_std(file);
        file.seek(SeekFrom::Start(from))
            .await
            .map_err(|error| internal_error(&error))?;
        let stream = ReaderStream::with_capacity(file.take(count), CHUNK_BYTES);
        *response.body_mut() = Body::from_stream(stream);
    }
    Ok(response)
}

/// 404 unless the path is a file below the directory, so that a response says nothing about files outside.
fn to_http_error(path: &str, error: &FileError) -> HttpError {
    match error {
        FileError::Outside { .. } => {
            tracing::warn!(%error, "Resource refused: outside of its directory");
            file_not_found(path)
        }
        FileError::BadPath { .. }
        | FileError::UnknownRoot { .. }
        | FileError::NotFound { .. }
        | FileError::NotAFile { .. } => file_not_found(path),
        FileError::Io { source, .. } if is_not_a_file(source.kind()) => file_not_found(path),
        FileError::Full { .. }
        | FileError::Mismatch { .. }
        | FileError::Changed { .. }
        | FileError::Io { .. } => internal_error(error),
    }
}

/// Errors of the kernel for paths that no file can have.
fn is_not_a_file(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
}

fn file_not_found(path: &str) -> HttpError {
    let path: String = path.chars().take(200).collect();
    HttpError::new(StatusCode::NOT_FOUND, format!("there is no file {path:?}"))
}

fn internal_error(error: &dyn std::fmt::Display) -> HttpError {
    tracing::warn!(%error, "Resource not served");
    HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "the file cannot be read")
}

/// An entity tag that changes with the file: inode, size and modification time.
fn etag(meta: &Metadata) -> String {
    let (ino, size) = (meta.ino(), meta.size());
    format!("\"{ino:x}-{size:x}-{:x}-{:x}\"", meta.mtime(), meta.mtime_nsec())
}

fn set_header(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn content_type(path: &str) -> &'static str {
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "txt" | "log" | "md" | "csv" => "text/plain; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        "mp3" => "audio/mpeg",
        "ogg" | "oga" => "audio/ogg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "pdf" => "application/pdf",
        _ => "application/octet-stream",
    }
}
