//! Authentication of requests: name and password, token, or the cookie of a login.
//!
//! | credential | where |
//! |---|---|
//! | name and password | `Authorization: Basic …` |
//! | token | `Authorization: Bearer …`, `X-Token: …`, `?token=…`, or in the message |
//! | login | cookie `session_token` |
//!
//! The first that is present decides. Browsers send passwords and cookies with requests of other sites' pages too. So a
//! request with one of them that changes anything has to come from a page of this server, and with a cookie it needs the
//! login's `X-CSRF-Token` as well, which pages of other sites cannot read.

use std::collections::VecDeque;
use std::net::IpAddr;

use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use data_encoding::BASE64;
use ring::hmac;
use swarm_shared::net::sync::Mutex;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::hex;

use super::error::HttpError;
use super::form;
use super::login_throttle::{Attempt, LoginThrottle};
use crate::config::gateways::Secret;
use crate::gateways::access::Client;
use crate::store::users::TokenKind;
use crate::store::{Store, StoreError};
use crate::users::{self, Password, PasswordChecker, token_hash};

/// Name of a login's cookie.
pub(crate) const SESSION_COOKIE: &str = "session_token";
/// Name of the cookie from which a page takes the value of [`CSRF_HEADER`].
pub(crate) const CSRF_COOKIE: &str = "csrf_token";
/// The header that a request with a login's cookie needs.
pub(crate) const CSRF_HEADER: &str = "x-csrf-token";
/// Verified passwords that are remembered, since each check takes 19 MiB and tens of milliseconds.
const VERIFIED_PASSWORDS_MAX: usize = 64;

/// The error of a request without credentials.
const MISSING_CREDENTIALS: &str =
    "show a token (Authorization: Bearer …, X-Token: … or ?token=…), or a name and a password";

/// An authenticated client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Its address and user, for access and audit.
    pub(crate) client: Client,
    /// How it was authenticated.
    pub(crate) credential: Credential,
}

/// What authenticated a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Name and password.
    Password,
    /// A token of the configuration or of a user.
    Token,
    /// A login: its number in the store, and its CSRF token.
    Session { number: u64, csrf: String },
}

/// Checks the credentials of requests.
#[derive(Debug)]
pub(crate) struct Authenticator {
    store: Store,
    /// The configuration's `token`.
    token: Option<Secret>,
    hasher: PasswordChecker,
    throttle: Mutex<LoginThrottle>,
    /// Tags of passwords that were verified, under a key of this process.
    verified: Mutex<VecDeque<hmac::Tag>>,
    key: hmac::Key,
}

impl Authenticator {
    /// An authenticator for the users of `store`, and for `token` if it is configured.
    pub(crate) fn new(store: Store, token: Option<Secret>) -> Result<Self, random::NoRandomness> {
        let secret: [u8; 32] = random::bytes()?;
        Ok(Self {
            store,
            token,
            hasher: PasswordChecker::default(),
            throttle: Mutex::default(),
            verified: Mutex::default(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
        })
    }

    /// Authenticates a request by its headers, its query and the token in its message.
    ///
    /// # Errors
    /// 401 without valid credentials, 412 if there are none to have, 429 after too many failures.
    pub(crate) async fn authenticate(
        &self,
        parts: &Parts,
        from: IpAddr,
        in_message: Option<&str>,
    ) -> Result<Caller, HttpError> {
        let query = form::fields(parts.uri.query().unwrap_or_default());
        let headers = &parts.headers;
        let authorization = authorization_header(headers);
        if let Some((scheme, shown)) = authorization
            && scheme.eq_ignore_ascii_case("basic")
        {
            let Some((name, password)) = parse_basic(shown) else {
                return Err(HttpError::unauthorized(
                    "Authorization: Basic needs NAME:PASSWORD in base64",
                ));
            };
            self.verify_password(&name, password, from).await?;
            return Ok(user_caller(name, from, Credential::Password));
        }
        let token = header_token(headers)
            .or_else(|| query.get("token").map(String::as_str))
            .or(in_message);
        if let Some(token) = token {
            return self.authenticate_token(token, from).await;
        }
        match cookie(headers, SESSION_COOKIE) {
            Some(session) => self.authenticate_session(session, from).await,
            None => Err(self.unauthorized(MISSING_CREDENTIALS).await?),
        }
    }

    /// Whether the credentials that opened a long-lived connection are still valid. `true` if the store cannot tell now.
    pub(crate) async fn is_still_valid(&self, parts: &Parts, from: IpAddr) -> bool {
        let password = authorization_header(&parts.headers)
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, shown)| parse_basic(shown));
        let Some((name, password)) = password else {
            let caller = self.authenticate(parts, from, None).await;
            return caller.map_or_else(|error| error.status().is_server_error(), |_good| true);
        };
        // It was valid before, so it is no guess: failed logins of the same source must not end it.
        match self.store.password_hash(name.clone()).await {
            Ok(None) => false,
            Ok(Some(kept)) if self.is_verified(&self.password_tag(&name, &password, &kept)) => true,
            Ok(Some(kept)) => self.hasher.verify(password, Some(kept)).await.unwrap_or(true),
            Err(error) => {
                tracing::warn!(%error, "User not read from the store");
                true
            }
        }
    }

    /// Checks a user's password. Returns its stored hash.
    ///
    /// # Errors
    /// 401 if it is wrong, 412 if there are no users, 429 after too many failures, 503 if too many wait.
    pub(crate) async fn verify_password(
        &self,
        name: &str,
        password: Password,
        from: IpAddr,
    ) -> Result<String, HttpError> {
        let kept = self.store.password_hash(name.to_owned()).await?;
        if kept.is_none() && !self.store.has_users().await? {
            return Err(no_users_error());
        }
        // Before the remembered passwords: otherwise a throttled source could go on guessing, and would know a right
        // password by not being told to wait.
        let permitted = self.throttle.lock().check(from, clock::now());
        permitted.map_err(HttpError::too_many_attempts)?;
        let tag = kept
            .as_ref()
            .map(|kept| (self.password_tag(name, &password, kept), kept.clone()));
        if let Some((tag, kept)) = &tag
            && self.is_verified(tag)
        {
            return Ok(kept.clone());
        }
        let counted = self.begin_attempt(from)?;
        let right = match self.hasher.verify(password, kept).await {
            Ok(right) => right,
            Err(error) => {
                // It was not checked.
                self.throttle.lock().cancel_attempt(counted);
                return Err(error.into());
            }
        };
        let Some((tag, kept)) = tag.filter(|_| right) else {
            let user: String = name.chars().take(users::NAME_BYTES_MAX).collect();
            tracing::warn!(%from, user, "Login failed: wrong name or password");
            return Err(HttpError::unauthorized("wrong name or password"));
        };
        self.throttle.lock().reset(from);
        let mut known = self.verified.lock();
        if known.len() >= VERIFIED_PASSWORDS_MAX {
            known.pop_front();
        }
        known.push_back(tag);
        Ok(kept)
    }

    async fn authenticate_token(&self, shown: &str, from: IpAddr) -> Result<Caller, HttpError> {
        if self.token.as_ref().is_some_and(|token| token.matches(shown)) {
            return Ok(Caller {
                client: Client::at(from),
                credential: Credential::Token,
            });
        }
        // Found by its hash, so that the time it takes says nothing about the token.
        let found = self.store.token(token_hash(shown), clock::unix_time_ms()).await?;
        match found.filter(|found| found.kind == TokenKind::Program) {
            Some(found) => Ok(user_caller(found.user, from, Credential::Token)),
            None => Err(self
                .reject(from, "this token is not good, or not any more")
                .await?),
        }
    }

    async fn authenticate_session(&self, shown: &str, from: IpAddr) -> Result<Caller, HttpError> {
        let found = self.store.token(token_hash(shown), clock::unix_time_ms()).await?;
        match found.filter(|found| found.kind == TokenKind::Session) {
            Some(found) => {
                let by = Credential::Session {
                    number: found.number,
                    csrf: csrf_token(shown),
                };
                Ok(user_caller(found.user, from, by))
            }
            None => Err(self.reject(from, "this login is over; log in again").await?),
        }
    }

    /// 412 if no credentials exist, else 401 with this text.
    async fn unauthorized(&self, text: &str) -> Result<HttpError, HttpError> {
        if self.has_no_credentials().await? {
            return Ok(no_users_error());
        }
        Ok(HttpError::unauthorized(text))
    }

    fn begin_attempt(&self, from: IpAddr) -> Result<Attempt, HttpError> {
        let attempt = self.throttle.lock().begin_attempt(from, clock::now());
        attempt.map_err(HttpError::too_many_attempts)
    }

    /// Counts a failed attempt, of tokens too: they cannot be guessed, but the log must not be filled.
    ///
    /// # Errors
    /// 429 after too many failures.
    pub(crate) fn count_failure(&self, from: IpAddr, text: &str) -> Result<(), HttpError> {
        self.begin_attempt(from)?;
        // As rarely as the throttle permits attempts.
        tracing::warn!(%from, text, "Authentication failed");
        Ok(())
    }

    async fn reject(&self, from: IpAddr, text: &str) -> Result<HttpError, HttpError> {
        self.count_failure(from, text)?;
        self.unauthorized(text).await
    }

    /// Whether there is neither a user nor a configured token.
    pub(crate) async fn has_no_credentials(&self) -> Result<bool, StoreError> {
        Ok(self.token.is_none() && !self.store.has_users().await?)
    }

    /// Identifies a name, a password and its stored hash.
    fn password_tag(&self, name: &str, password: &Password, kept: &str) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [name, password.as_str(), kept] {
            context.update(&part.len().to_be_bytes());
            context.update(part.as_bytes());
        }
        context.sign()
    }

    fn is_verified(&self, tag: &hmac::Tag) -> bool {
        let known = self.verified.lock();
        known.iter().any(|known| known.as_ref() == tag.as_ref())
    }
}

impl Caller {
    /// Refuses a request that a page of another site may have had a browser send.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn check_same_origin(&self, parts: &Parts, in_form: Option<&str>) -> Result<(), HttpError> {
        self.verify_same_origin(parts, in_form)
            .map_err(|error| error.for_client(&self.client))
    }

    fn verify_same_origin(&self, parts: &Parts, in_form: Option<&str>) -> Result<(), HttpError> {
        let reads = parts.method.is_safe() && !parts.headers.contains_key(header::UPGRADE);
        let csrf = match &self.credential {
            Credential::Token => return Ok(()),
            _any if reads => return Ok(()),
            Credential::Password => None,
            Credential::Session { csrf, .. } => Some(csrf.as_str()),
        };
        if !is_same_origin(&parts.headers) {
            return Err(forbidden("this was sent by a page of another site"));
        }
        let shown = parts
            .headers
            .get(CSRF_HEADER)
            .and_then(|value| value.to_str().ok());
        match csrf {
            // A WebSocket: browsers always send the origin of the page that opens it.
            Some(_) if parts.method.is_safe() => Ok(()),
            // Compared by hashes, so that the time it takes says nothing about the token.
            Some(csrf) if shown.or(in_form).map(token_hash) != Some(token_hash(csrf)) => Err(forbidden(
                "a login's cookie needs its token too: X-CSRF-Token, from the cookie csrf_token",
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// Whether a request comes from a page of this server, or from no page, as browsers report it.
pub(crate) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or("unreadable"))
    };
    if text("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site)) {
        return false;
    }
    match text(header::ORIGIN.as_str()) {
        None => true,
        Some(origin) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.is_some() && authority == text(header::HOST.as_str())
        }
    }
}

/// Scheme and credentials of the header `Authorization`.
fn authorization_header(headers: &HeaderMap) -> Option<(&str, &str)> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')
}

/// The token of `Authorization: Bearer …` or `X-Token: …`.
pub(crate) fn header_token(headers: &HeaderMap) -> Option<&str> {
    let authorization = authorization_header(headers);
    let bearer = authorization.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let bearer = bearer.map(|(_, token)| token.trim());
    bearer.or_else(|| headers.get("x-token")?.to_str().ok())
}

/// Name and password of the scheme Basic.
fn parse_basic(shown: &str) -> Option<(String, Password)> {
    let decoded = BASE64.decode(shown.trim().as_bytes()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (name, password) = decoded.split_once(':')?;
    Some((name.to_owned(), Password::new(password)))
}

fn user_caller(user: String, from: IpAddr, by: Credential) -> Caller {
    let user = Some(user);
    Caller {
        client: Client { from, user },
        credential: by,
    }
}

fn forbidden(text: &str) -> HttpError {
    HttpError::new(StatusCode::FORBIDDEN, text)
}

fn no_users_error() -> HttpError {
    let text = "there is no user yet: type `ground-station gateway user add NAME` on the station";
    HttpError::new(StatusCode::PRECONDITION_FAILED, text)
}

/// The CSRF token of a login, derived from its cookie.
pub(crate) fn csrf_token(session: &str) -> String {
    hex::encode(&token_hash(&format!("csrf of {session}"))[..16])
}

/// The value of a cookie; of several with this name, the last.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).into_iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('='));
    let mut named = pairs.filter(|(key, _)| key.trim() == name);
    named.next_back().map(|(_, value)| value.trim())
}
