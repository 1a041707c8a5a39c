//! Users of doors, and their tokens, for whoever runs this station.

use swarm_shared::net::clock;
use tokio::sync::mpsc;

use super::respond::say_all;
use crate::fleet::{Event, Failure, TokenView, UserAsk, UserView};
use crate::store::users::{Added, NewToken, TokenKind, TokenRow, USERS_MAX, UserRow};
use crate::store::{Store, StoreError};
use crate::users::{self, Desk};

/// Why it was not done.
struct NotDone(Failure, String);

impl From<StoreError> for NotDone {
    fn from(error: StoreError) -> Self {
        Self(Failure::Failed, error.to_string())
    }
}

fn usage(text: impl Into<String>) -> NotDone {
    NotDone(Failure::Usage, text.into())
}

pub(super) async fn answer(store: Store, ask: UserAsk, events: mpsc::Sender<Event>) {
    let all = match carry_out(&store, ask).await {
        Ok(mut all) => {
            all.push(Event::End);
            all
        }
        Err(NotDone(failure, message)) => vec![Event::failed(failure, message)],
    };
    say_all(&events, all).await;
}

async fn carry_out(store: &Store, ask: UserAsk) -> Result<Vec<Event>, NotDone> {
    let now_ms = clock::unix_time_ms();
    Ok(match ask {
        UserAsk::Add { name, password } => {
            users::check_name(&name).map_err(usage)?;
            password.check().map_err(usage)?;
            let kept = Desk::default().hash(password).await;
            let kept = kept.map_err(|error| NotDone(Failure::Failed, error.to_string()))?;
            let now = match store.put_user(name.clone(), kept, now_ms).await? {
                Added::New => "added",
                Added::Changed => "changed",
                Added::Full => {
                    let text = format!("there are {USERS_MAX} users, which is the most; remove one first");
                    return Err(usage(text));
                }
            };
            let users = store.users().await?;
            let user = users.into_iter().find(|user| user.name == name);
            user.map(|user| shown(user, Some(now))).into_iter().collect()
        }
        UserAsk::Remove { name } => {
            let user = store.users().await?.into_iter().find(|user| user.name == name);
            match user {
                Some(user) if store.remove_user(name.clone()).await? => vec![shown(user, Some("removed"))],
                Some(_) | None => return Err(no_user(store, &name).await?),
            }
        }
        UserAsk::List => {
            let users = store.users().await?.into_iter();
            users.map(|user| shown(user, None)).collect()
        }
        UserAsk::MakeToken { name, days, label } => {
            if !(1..=users::TOKEN_DAYS_MAX).contains(&days) {
                let most = users::TOKEN_DAYS_MAX;
                return Err(usage(format!("a token is good for 1 to {most} days, not {days}")));
            }
            if label.len() > users::LABEL_BYTES_MAX {
                let most = users::LABEL_BYTES_MAX;
                return Err(usage(format!("a label has at most {most} bytes")));
            }
            let (token, hash) =
                users::new_token().map_err(|error| NotDone(Failure::Failed, error.to_string()))?;
            let new = NewToken {
                kind: TokenKind::Program,
                label,
                hash,
                made_ms: now_ms,
                expires_ms: users::expiry_ms(now_ms, days),
                password: None,
            };
            let row = |number| TokenRow {
                number,
                user: name.clone(),
                kind: new.kind,
                label: new.label.clone(),
                made_ms: new.made_ms,
                expires_ms: new.expires_ms,
            };
            match store.put_token(name.clone(), new.clone()).await? {
                Some(number) => vec![told(row(number), Some(token))],
                None => return Err(no_user(store, &name).await?),
            }
        }
        UserAsk::Tokens => {
            let tokens = store.tokens(now_ms).await?.into_iter();
            tokens.map(|token| told(token, None)).collect()
        }
        UserAsk::Revoke { number } => {
            if !store.revoke_token(number).await? {
                let text = format!("there is no token {number}; see `ground-station door tokens`");
                return Err(NotDone(Failure::NobodyMatched, text));
            }
            Vec::new()
        }
    })
}

async fn no_user(store: &Store, name: &str) -> Result<NotDone, StoreError> {
    let names: Vec<String> = store.users().await?.into_iter().map(|user| user.name).collect();
    let known = if names.is_empty() {
        "there is none yet: type `ground-station door user add NAME`".to_owned()
    } else {
        format!("there are {}", names.join(", "))
    };
    let text = format!("no user is called {name:?}: {known}");
    Ok(NotDone(Failure::NobodyMatched, text))
}

fn shown(user: UserRow, now: Option<&str>) -> Event {
    Event::User(UserView {
        user: user.name,
        added_ms: user.made_ms,
        tokens: user.tokens,
        now: now.map(str::to_owned),
    })
}

fn told(row: TokenRow, token: Option<String>) -> Event {
    Event::Token(TokenView {
        number: row.number,
        user: row.user,
        kind: match row.kind {
            TokenKind::Program => "program".to_owned(),
            TokenKind::Session => "session".to_owned(),
        },
        label: row.label,
        made_ms: row.made_ms,
        expires_ms: row.expires_ms,
        token,
    })
}
