//! Users of gateways, and their tokens, for the operator of this station.

use swarm_shared::net::clock;

use crate::engine::reporter::Reporter;
use crate::store::users::{NewToken, PutUserResult, TokenKind, TokenRow, USERS_MAX, UserRow};
use crate::store::{Store, StoreError};
use crate::users::{self, PasswordChecker};
use swarm_shared::api::{Event, Failure, TokenView, UserRequest, UserView};

/// Why it was not done.
struct UserError(Failure, String);

impl From<StoreError> for UserError {
    fn from(error: StoreError) -> Self {
        Self(Failure::Failed, error.to_string())
    }
}

fn usage_error(text: impl Into<String>) -> UserError {
    UserError(Failure::Usage, text.into())
}

pub(crate) async fn respond(store: Store, request: UserRequest, reporter: Reporter) {
    let done = execute(&store, request).await;
    reporter
        .finish(done.map_err(|UserError(failure, message)| (failure, message)))
        .await;
}

async fn execute(store: &Store, request: UserRequest) -> Result<Vec<Event>, UserError> {
    let now_ms = clock::unix_time_ms();
    Ok(match request {
        UserRequest::Add { name, password } => {
            users::validate_name(&name).map_err(usage_error)?;
            password.validate().map_err(usage_error)?;
            let kept = PasswordChecker::default().hash(password).await;
            let kept = kept.map_err(|error| UserError(Failure::Failed, error.to_string()))?;
            let now = match store.put_user(name.clone(), kept, now_ms).await? {
                PutUserResult::Created => "added",
                PutUserResult::PasswordChanged => "changed",
                PutUserResult::LimitReached => {
                    let text = format!("there are {USERS_MAX} users, which is the most; remove one first");
                    return Err(usage_error(text));
                }
            };
            let users = store.users().await?;
            let user = users.into_iter().find(|user| user.name == name);
            user.map(|user| user_event(user, Some(now))).into_iter().collect()
        }
        UserRequest::Remove { name } => {
            let user = store.users().await?.into_iter().find(|user| user.name == name);
            match user {
                Some(user) if store.remove_user(name.clone()).await? => {
                    vec![user_event(user, Some("removed"))]
                }
                Some(_) | None => return Err(no_such_user(store, &name).await?),
            }
        }
        UserRequest::List => {
            let users = store.users().await?.into_iter();
            users.map(|user| user_event(user, None)).collect()
        }
        UserRequest::MakeToken { name, days, label } => {
            if !(1..=users::TOKEN_DAYS_MAX).contains(&days) {
                let most = users::TOKEN_DAYS_MAX;
                return Err(usage_error(format!(
                    "a token is good for 1 to {most} days, not {days}"
                )));
            }
            if label.len() > users::LABEL_BYTES_MAX {
                let most = users::LABEL_BYTES_MAX;
                return Err(usage_error(format!("a label has at most {most} bytes")));
            }
            let (token, hash) =
                users::new_token().map_err(|error| UserError(Failure::Failed, error.to_string()))?;
            let new = NewToken {
                kind: TokenKind::Program,
                label,
                hash,
                created_ms: now_ms,
                expires_ms: users::expiry_ms(now_ms, days),
                password_hash: None,
            };
            let row = |number| TokenRow {
                number,
                user: name.clone(),
                kind: new.kind,
                label: new.label.clone(),
                created_ms: new.created_ms,
                expires_ms: new.expires_ms,
            };
            match store.put_token(name.clone(), new.clone()).await? {
                Some(number) => vec![token_event(row(number), Some(token))],
                None => return Err(no_such_user(store, &name).await?),
            }
        }
        UserRequest::Tokens => {
            let tokens = store.tokens(now_ms).await?.into_iter();
            tokens.map(|token| token_event(token, None)).collect()
        }
        UserRequest::Revoke { number } => {
            if !store.revoke_token(number).await? {
                let text = format!("there is no token {number}; see `ground-station gateway tokens`");
                return Err(UserError(Failure::NoMatch, text));
            }
            Vec::new()
        }
        _ => return Err(usage_error("this request is of a later version")),
    })
}

async fn no_such_user(store: &Store, name: &str) -> Result<UserError, StoreError> {
    let names: Vec<String> = store.users().await?.into_iter().map(|user| user.name).collect();
    let known = if names.is_empty() {
        "there is none yet: type `ground-station gateway user add NAME`".to_owned()
    } else {
        format!("there are {}", names.join(", "))
    };
    let text = format!("no user is called {name:?}: {known}");
    Ok(UserError(Failure::NoMatch, text))
}

fn user_event(user: UserRow, now: Option<&str>) -> Event {
    Event::User(UserView {
        user: user.name,
        added_ms: user.created_ms,
        tokens: user.tokens,
        now: now.map(str::to_owned),
    })
}

fn token_event(row: TokenRow, token: Option<String>) -> Event {
    Event::Token(TokenView {
        number: row.number,
        user: row.user,
        kind: match row.kind {
            TokenKind::Program => "program".to_owned(),
            TokenKind::Session => "session".to_owned(),
        },
        label: row.label,
        made_ms: row.created_ms,
        expires_ms: row.expires_ms,
        token,
    })
}
