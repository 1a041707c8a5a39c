//! `/auth`, `/login` and `/logout`: exchange a password for a token or a cookie.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::{Extension, extract};
use serde_json::{Value, json};
use swarm_shared::net::clock;

use super::{Shared, page};
use crate::http::auth::{CSRF_COOKIE, Caller, Credential, SESSION_COOKIE, csrf_token, is_same_origin};
use crate::http::error::{HttpError, json_response};
use crate::http::serve::ClientInfo;
use crate::http::{body, form};
use crate::store::users::{NewToken, TokenKind};
use crate::users::{self, Password};

/// Validity of a token of `/auth` unless the request says otherwise, in days.
const TOKEN_DAYS: u32 = 30;
/// Validity of a login, in days.
const SESSION_DAYS: u32 = 7;

/// `POST /auth`: a token for a name and a password.
pub(super) async fn auth(
    State(app): State<Shared>,
    Extension(client_info): Extension<ClientInfo>,
    request: extract::Request,
) -> Result<Response, HttpError> {
    if !is_same_origin(request.headers()) {
        return Err(cross_site_error());
    }
    let bytes = body::read(request.into_body(), &app.config.common).await?;
    let asked: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = |key: &str| asked[key].as_str();
    let (Some(name), Some(password)) = (text("username"), text("password")) else {
        let text = "the body has to be {\"username\": \"…\", \"password\": \"…\"}";
        return Err(HttpError::new(StatusCode::BAD_REQUEST, text));
    };
    let days = match asked.get("expiry_days").filter(|days| !days.is_null()) {
        None => Some(TOKEN_DAYS),
        Some(days) => days.as_u64().and_then(|days| u32::try_from(days).ok()),
    };
    let days = days.filter(|days| (1..=users::TOKEN_DAYS_MAX).contains(days));
    let days = days.ok_or_else(|| {
        let text = format!("expiry_days has to be 1 to {}", users::TOKEN_DAYS_MAX);
        HttpError::new(StatusCode::BAD_REQUEST, text)
    })?;
    let (token, expires_ms) = log_in(&app, &client_info, name, password, TokenKind::Program, days).await?;
    let made = json!({ "token": token, "user": name, "expires_at": expires_ms / 1_000 });
    Ok(json_response(&made))
}

/// `GET /login`: the login form.
pub(super) async fn form_page(State(app): State<Shared>, request: extract::Request) -> Html<String> {
    let query = form::fields(request.uri().query().unwrap_or_default());
    let to = query.get("redirect").map_or("", String::as_str);
    Html(page::render_login(&app.name, local_path(to), None))
}

/// `POST /login`: a sent login form.
pub(super) async fn login(
    State(app): State<Shared>,
    Extension(client_info): Extension<ClientInfo>,
    request: extract::Request,
) -> Result<Response, HttpError> {
    if !is_same_origin(request.headers()) {
        return Err(cross_site_error());
    }
    let bytes = body::read(request.into_body(), &app.config.common).await?;
    let fields = form::fields(&String::from_utf8_lossy(&bytes));
    let field = |key: &str| fields.get(key).map_or("", String::as_str);
    let to = local_path(field("redirect"));
    let kind = TokenKind::Session;
    let logged_in = log_in(
        &app,
        &client_info,
        field("username"),
        field("password"),
        kind,
        SESSION_DAYS,
    )
    .await;
    let session = match logged_in {
        Ok((session, _)) => session,
        Err(error) => {
            // Without the header WWW-Authenticate, which would make a browser show its own dialog.
            let page = page::render_login(&app.name, to, Some(error.message()));
            return Ok((error.status(), Html(page)).into_response());
        }
    };
    let mut response = Redirect::to(to).into_response();
    let life = u64::from(SESSION_DAYS) * 24 * 3_600;
    let csrf = csrf_token(&session);
    set_cookie(&mut response, &app, SESSION_COOKIE, &session, "; HttpOnly", life);
    set_cookie(&mut response, &app, CSRF_COOKIE, &csrf, "", life);
    Ok(response)
}

/// `POST /logout`: ends the login of the cookie.
pub(super) async fn logout(
    State(app): State<Shared>,
    caller: Caller,
    request: extract::Request,
) -> Result<Response, HttpError> {
    let (parts, content) = request.into_parts();
    let bytes = body::read(content, &app.config.common).await?;
    let fields = form::fields(&String::from_utf8_lossy(&bytes));
    caller.check_same_origin(&parts, fields.get("csrf_token").map(String::as_str))?;
    let Credential::Session { number, .. } = caller.credential else {
        let text = "only a login's cookie can log out; a token is taken back by `gateway token revoke`";
        return Err(HttpError::new(StatusCode::BAD_REQUEST, text).for_client(&caller.client));
    };
    app.store.revoke_token(number).await?;
    let access = app.handler.access();
    access
        .begin_audit(&caller.client, "logout", "")
        .finish("done".to_owned())
        .await;
    let mut response = Redirect::to("/login").into_response();
    for name in [SESSION_COOKIE, CSRF_COOKIE] {
        set_cookie(&mut response, &app, name, "", "", 0);
    }
    Ok(response)
}

/// Refuses logins from other sites: a page could guess passwords with its visitors' browsers, and have them throttled.
fn cross_site_error() -> HttpError {
    HttpError::new(StatusCode::FORBIDDEN, "this was sent by a page of another site")
}

async fn log_in(
    app: &Shared,
    client_info: &ClientInfo,
    name: &str,
    password: &str,
    kind: TokenKind,
    days: u32,
) -> Result<(String, u64), HttpError> {
    let from = client_info.addr().ip();
    let made = async {
        let kept = app
            .authenticator
            .verify_password(name, Password::new(password), from);
        let kept = kept.await?;
        let (token, hash) = users::new_token()
            .map_err(|error| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        let now_ms = clock::unix_time_ms();
        let expires_ms = users::expiry_ms(now_ms, days);
        let new = NewToken {
            kind,
            label: format!("from {from}"),
            hash,
            created_ms: now_ms,
            expires_ms,
            password_hash: Some(kept),
        };
        match app.store.put_token(name.to_owned(), new).await? {
            Some(_) => Ok((token, expires_ms)),
            // The user was removed or has a new password since the check.
            None => Err(HttpError::unauthorized("wrong name or password")),
        }
    };
    let made = made.await;
    let outcome = match &made {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("not done: {}", error.message()),
    };
    let shown: String = name.chars().take(users::NAME_BYTES_MAX).collect();
    let begun = app
        .handler
        .access()
        .begin_audit(&client_info.client(), "login", &shown);
    begun.aggregate_if(made.is_err()).finish(outcome).await;
    made.map_err(HttpError::audited)
}

/// The target of the redirect after a login: a path of this server, or the dashboard.
fn local_path(to: &str) -> &str {
    let plain = |c: char| c.is_ascii_graphic() && c != '\\';
    let here = to.starts_with('/') && !to.starts_with("//") && to.chars().all(plain);
    if here { to } else { "/dashboard/main" }
}

fn set_cookie(response: &mut Response, app: &Shared, name: &str, value: &str, more: &str, seconds: u64) {
    let secure = if app.secure_cookies { "; Secure" } else { "" };
    let text = format!("{name}={value}; Path=/; SameSite=Strict; Max-Age={seconds}{more}{secure}");
    if let Ok(text) = HeaderValue::from_str(&text) {
        response.headers_mut().append(header::SET_COOKIE, text);
    }
}

#[cfg(test)]
mod tests {
    use super::local_path;

    #[test]
    fn login_redirects_to_local_paths_only() {
        assert_eq!(local_path("/dashboard/x?y=1"), "/dashboard/x?y=1");
        for bad in ["", "//evil", "https://evil", "/\\evil", "/a b", "/a\r\nb", "x"] {
            assert_eq!(local_path(bad), "/dashboard/main", "{bad:?}");
        }
    }
}
