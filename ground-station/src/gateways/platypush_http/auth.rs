//! Who asks: by name and password, by token, or by the cookie of a login.
//!
//! | shown | as |
//! |---|---|
//! | name and password | `Authorization: Basic …` |
//! | a token | `Authorization: Bearer …`, `X-Token: …`, `?token=…`, `token` of a request message |
//! | a login | cookie `session_token` |
//!
//! The first of these that is there decides. A browser sends passwords and cookies by itself, also for a page of
//! somebody else; so what comes with them and changes anything has to come from a page of this gateway, and with a cookie it
//! has to carry the login's `X-CSRF-Token` too, which no other page can read.

use std::collections::{BTreeMap, VecDeque};
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

/// The cookie of a login.
pub(super) const SESSION_COOKIE: &str = "session_token";
/// The cookie from which a page of this gateway takes what it shows as [`CSRF_HEADER`].
pub(super) const CSRF_COOKIE: &str = "csrf_token";
/// What has to come with a login's cookie.
pub(super) const CSRF_HEADER: &str = "x-csrf-token";
/// Most passwords that are known to be right without looking again.
const VERIFIED_PASSWORDS_MAX: usize = 64;

/// Somebody who may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// For access and audit.
    pub(super) client: Client,
    /// What they showed.
    pub(super) credential: Credential,
}

/// What somebody showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    Password,
    Token,
    Session { number: u64, csrf: String },
}

/// Finds out who asks.
#[derive(Debug)]
pub(super) struct Authenticator {
    store: Store,
    /// The gateway's own.
    token: Option<Secret>,
    hasher: PasswordChecker,
    throttle: Mutex<LoginThrottle>,
    /// What passwords were found to be right, under a key of this process.
    verified: Mutex<VecDeque<hmac::Tag>>,
    key: hmac::Key,
}

impl Authenticator {
    pub(super) fn new(store: Store, token: Option<Secret>) -> Result<Self, random::NoRandomness> {
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

    /// Who asks, from the head of a request and the token that its message carries.
    pub(super) async fn authenticate(
        &self,
        parts: &Parts,
        from: IpAddr,
        in_message: Option<&str>,
    ) -> Result<Caller, HttpError> {
        let query = form::fields(parts.uri.query().unwrap_or_default());
        let headers = &parts.headers;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
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
        let bearer = authorization
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, shown)| shown.trim());
        let token = bearer
            .or_else(|| text("x-token"))
            .or_else(|| query.get("token").map(String::as_str))
            .or(in_message);
        if let Some(token) = token {
            return self.authenticate_token(token, from).await;
        }
        match cookies(headers).remove(SESSION_COOKIE) {
            Some(session) => self.authenticate_session(&session, from).await,
            None => Err(self.missing_credentials().await?),
        }
    }

    /// Whether what let somebody in has not been taken back since. Whoever cannot be asked now is asked again later.
    pub(super) async fn is_still_valid(&self, parts: &Parts, from: IpAddr) -> bool {
        let password = authorization_header(&parts.headers)
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, shown)| parse_basic(shown));
        let Some((name, password)) = password else {
            let caller = self.authenticate(parts, from, None).await;
            return caller.map_or_else(|error| error.status().is_server_error(), |_good| true);
        };
        // Nobody guesses here: it was right. So whoever guesses from the same address is not in its way.
        match self.store.password_hash(name.clone()).await {
            Ok(None) => false,
            Ok(Some(kept)) if self.is_verified(&self.password_tag(&name, &password, &kept)) => true,
            Ok(Some(kept)) => self.hasher.verify(password, Some(kept)).await.unwrap_or(true),
            Err(error) => {
                tracing::warn!(%error, "cannot ask for a user");
                true
            }
        }
    }

    /// Whether a user has this password; then what is kept of it.
    pub(super) async fn verify_password(
        &self,
        name: &str,
        password: Password,
        from: IpAddr,
    ) -> Result<String, HttpError> {
        let kept = self.store.password_hash(name.to_owned()).await?;
        if kept.is_none() && !self.store.has_users().await? {
            return Err(no_users_error());
        }
        // Before it is looked whether it is known: else an address that waits could go on guessing, and would see that it
        // is right by not being told to wait.
        self.check_throttle(from)?;
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
                // Nobody looked at it.
                self.cancel_attempt(counted);
                return Err(error.into());
            }
        };
        let Some((tag, kept)) = tag.filter(|_| right) else {
            let user: String = name.chars().take(users::NAME_BYTES_MAX).collect();
            tracing::warn!(%from, user, "wrong name or password");
            return Err(HttpError::unauthorized("wrong name or password"));
        };
        self.reset_throttle(from);
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
                client: Client { from, user: None },
                credential: Credential::Token,
            });
        }
        // Found by its hash: how long that takes tells nothing of the token.
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

    async fn missing_credentials(&self) -> Result<HttpError, HttpError> {
        if self.no_credentials_exist().await? {
            return Ok(no_users_error());
        }
        let text = "show a token (Authorization: Bearer …, X-Token: … or ?token=…), or a name and a password";
        Ok(HttpError::unauthorized(text))
    }

    fn check_throttle(&self, from: IpAddr) -> Result<(), HttpError> {
        let throttle = self.throttle.lock();
        throttle
            .check(from, clock::now())
            .map_err(HttpError::too_many_attempts)
    }

    fn begin_attempt(&self, from: IpAddr) -> Result<Attempt, HttpError> {
        let mut throttle = self.throttle.lock();
        throttle
            .begin_attempt(from, clock::now())
            .map_err(HttpError::too_many_attempts)
    }

    fn cancel_attempt(&self, counted: Attempt) {
        let mut throttle = self.throttle.lock();
        throttle.cancel_attempt(counted);
    }

    fn reset_throttle(&self, from: IpAddr) {
        let mut throttle = self.throttle.lock();
        throttle.reset(from);
    }

    /// Nobody guesses a token; whoever shows wrong ones is slowed all the same, and one with a good one is not.
    pub(super) fn count_failure(&self, from: IpAddr, text: &str) -> Result<(), HttpError> {
        self.begin_attempt(from)?;
        // No oftener than the throttle lets it through.
        tracing::warn!(%from, text, "turned away");
        Ok(())
    }

    async fn reject(&self, from: IpAddr, text: &str) -> Result<HttpError, HttpError> {
        self.count_failure(from, text)?;
        if self.no_credentials_exist().await? {
            return Ok(no_users_error());
        }
        Ok(HttpError::unauthorized(text))
    }

    async fn no_credentials_exist(&self) -> Result<bool, HttpError> {
        Ok(self.has_no_credentials().await?)
    }

    /// Whether there is neither a user nor a token of the gateway.
    pub(super) async fn has_no_credentials(&self) -> Result<bool, StoreError> {
        Ok(self.token.is_none() && !self.store.has_users().await?)
    }

    /// Of a name, a password and what is kept of it: another one as soon as any of them changes.
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
    /// Refuses what another page may have had a browser send.
    pub(super) fn check_same_origin(&self, parts: &Parts, in_form: Option<&str>) -> Result<(), HttpError> {
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
            // A page of another site cannot open one: the browser says whose page it is, always.
            Some(_) if parts.method.is_safe() => Ok(()),
            // Compared by their hashes: how long that takes tells nothing of either.
            Some(csrf) if shown.or(in_form).map(token_hash) != Some(token_hash(csrf)) => Err(forbidden(
                "a login's cookie needs its token too: X-CSRF-Token, from the cookie csrf_token",
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// Whether a browser says that a page of this gateway sent it, or no page did.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
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

/// Scheme and credentials.
fn authorization_header(headers: &HeaderMap) -> Option<(&str, &str)> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')
}

/// Name and password, of what the scheme Basic carries.
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

/// What goes with a login, and cannot be told from the cookie by whoever does not have it.
pub(super) fn csrf_token(session: &str) -> String {
    hex::encode(&token_hash(&format!("csrf of {session}"))[..16])
}

fn cookies(headers: &HeaderMap) -> BTreeMap<String, String> {
    let lines = headers.get_all(header::COOKIE).into_iter();
    let texts = lines.filter_map(|line| line.to_str().ok());
    let pairs = texts
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}
