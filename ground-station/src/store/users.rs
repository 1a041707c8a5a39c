//! Users of gateways with authentication, and their tokens. A password is stored as its argon2id hash and a token as its
//! SHA-256, so the file alone gives no access to a gateway.

use rusqlite::{Connection, Row, params};

use super::sql::{execute, from_sql, query_all, query_first, to_sql};
use super::{Store, StoreError};

/// Most users.
pub const USERS_MAX: u64 = 1_000;
/// Most tokens of one kind of one user; the oldest makes room for another.
pub const TOKENS_MAX: u64 = 100;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// Number, which is never reused.
    pub number: u64,
    /// The name.
    pub name: String,
    /// Time of creation, in milliseconds since 1970.
    pub created_ms: u64,
    /// Number of tokens.
    pub tokens: u64,
}

/// The use of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Of a program.
    Program,
    /// A login of a browser.
    Session,
}

impl TokenKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Session => "session",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        match text {
            "program" => Ok(Self::Program),
            "session" => Ok(Self::Session),
            _ => Err(StoreError::bad_row(
                "token",
                format!("{text:?} is no kind of token"),
            )),
        }
    }
}

/// A stored token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Its number.
    pub number: u64,
    /// Name of its user.
    pub user: String,
    /// Its use.
    pub kind: TokenKind,
    /// Label that its user gave it.
    pub label: String,
    /// Time of creation, in milliseconds since 1970.
    pub created_ms: u64,
    /// Time of expiry, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// A token to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Its use.
    pub kind: TokenKind,
    /// Label that its user gives it.
    pub label: String,
    /// Its SHA-256.
    pub hash: [u8; 32],
    /// Time of creation, in milliseconds since 1970.
    pub created_ms: u64,
    /// Time of expiry, in milliseconds since 1970.
    pub expires_ms: u64,
    /// Hash of the password of the login that makes it: the token is not stored if the user has another password now.
    pub password_hash: Option<String>,
}

/// Result of [`Store::put_user`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutUserResult {
    /// The user is new.
    Created,
    /// The user existed: the password is changed, and the user's tokens are deleted.
    PasswordChanged,
    /// There are [`USERS_MAX`] already.
    LimitReached,
}

impl Store {
    /// Adds a user, or changes the password of one.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn put_user(
        &self,
        name: String,
        password_hash: String,
        now_ms: u64,
    ) -> Result<PutUserResult, StoreError> {
        self.write(move |connection| upsert_user(connection, &name, &password_hash, now_ms))
            .await
    }

    /// Removes a user with all tokens; whether there was one of this name.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn remove_user(&self, name: String) -> Result<bool, StoreError> {
        self.write(
            move |connection| Ok(execute(connection, "DELETE FROM users WHERE name = ?1", [name])? > 0),
        )
        .await
    }

    /// All users, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn users(&self) -> Result<Vec<UserRow>, StoreError> {
        self.read(query_users).await
    }

    /// Whether there is any user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_users(&self) -> Result<bool, StoreError> {
        self.read(|connection| {
            Ok(connection.query_row("SELECT EXISTS (SELECT 1 FROM users)", [], |row| row.get(0))?)
        })
        .await
    }

    /// The argon2id hash of a user's password; `None` if there is no such user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn password_hash(&self, name: String) -> Result<Option<String>, StoreError> {
        self.read(move |connection| {
            let sql = "SELECT password FROM users WHERE name = ?1";
            query_first(connection, sql, [name], |row| Ok(row.get(0)?))
        })
        .await
    }

    /// Adds a token of a user and returns its number; `None` if there is no such user, or not with that password.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn put_token(&self, user: String, token: NewToken) -> Result<Option<u64>, StoreError> {
        self.write(move |connection| put_token(connection, &user, &token))
            .await
    }

    /// The token with this SHA-256, unless it has expired.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn token(&self, hash: [u8; 32], now_ms: u64) -> Result<Option<TokenRow>, StoreError> {
        self.read(move |connection| {
            let sql = format!("{SELECT_TOKENS_SQL} WHERE tokens.hash = ?1 AND tokens.expires_ms > ?2");
            query_first(connection, &sql, params![hash, to_sql(now_ms)], read_token)
        })
        .await
    }

    /// All tokens that have not expired, the newest last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tokens(&self, now_ms: u64) -> Result<Vec<TokenRow>, StoreError> {
        self.read(move |connection| {
            let sql = format!("{SELECT_TOKENS_SQL} WHERE tokens.expires_ms > ?1 ORDER BY tokens.number");
            query_all(connection, &sql, [to_sql(now_ms)], read_token)
        })
        .await
    }

    /// Revokes a token; whether there was one of that number.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing changed.
    pub async fn revoke_token(&self, number: u64) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let sql = "DELETE FROM tokens WHERE number = ?1";
            Ok(execute(connection, sql, [to_sql(number)])? > 0)
        })
        .await
    }
}

fn upsert_user(
    connection: &Connection,
    name: &str,
    password_hash: &str,
    now_ms: u64,
) -> Result<PutUserResult, StoreError> {
    let sql = "UPDATE users SET password = ?2 WHERE name = ?1";
    if execute(connection, sql, params![name, password_hash])? > 0 {
        // Logins with the old password end.
        let sql = "DELETE FROM tokens WHERE user = (SELECT number FROM users WHERE name = ?1)";
        execute(connection, sql, [name])?;
        return Ok(PutUserResult::PasswordChanged);
    }
    let count: i64 = connection.query_row("SELECT count(*) FROM users", [], |row| row.get(0))?;
    if from_sql(count) >= USERS_MAX {
        return Ok(PutUserResult::LimitReached);
    }
    let sql = "INSERT INTO users (name, password, made_ms) VALUES (?1, ?2, ?3)";
    execute(connection, sql, params![name, password_hash, to_sql(now_ms)])?;
    Ok(PutUserResult::Created)
}

fn query_users(connection: &Connection) -> Result<Vec<UserRow>, StoreError> {
    let sql = "SELECT number, name, made_ms,
                      (SELECT count(*) FROM tokens WHERE tokens.user = users.number)
               FROM users ORDER BY name";
    query_all(connection, sql, [], |row| {
        Ok(UserRow {
            number: from_sql(row.get(0)?),
            name: row.get(1)?,
            created_ms: from_sql(row.get(2)?),
            tokens: from_sql(row.get(3)?),
        })
    })
}

fn put_token(connection: &Connection, user: &str, token: &NewToken) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT number FROM users WHERE name = ?1 AND (?2 IS NULL OR password = ?2)";
    let user: Option<i64> = query_first(connection, sql, params![user, token.password_hash], |row| {
        Ok(row.get(0)?)
    })?;
    let Some(user) = user else { return Ok(None) };
    let sql = "DELETE FROM tokens WHERE expires_ms <= ?1";
    execute(connection, sql, [to_sql(token.created_ms)])?;
    let kind = token.kind.as_str();
    let sql = "DELETE FROM tokens WHERE number IN
                   (SELECT number FROM tokens WHERE user = ?1 AND kind = ?2 ORDER BY number DESC LIMIT -1 OFFSET ?3)";
    execute(connection, sql, params![user, kind, to_sql(TOKENS_MAX - 1)])?;
    let sql =
        "INSERT INTO tokens (user, kind, label, hash, made_ms, expires_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let row = params![
        user,
        kind,
        token.label,
        token.hash,
        to_sql(token.created_ms),
        to_sql(token.expires_ms),
    ];
    execute(connection, sql, row)?;
    Ok(Some(from_sql(connection.last_insert_rowid())))
}

const SELECT_TOKENS_SQL: &str = "SELECT tokens.number, users.name, tokens.kind, tokens.label, tokens.made_ms,
    tokens.expires_ms FROM tokens JOIN users ON users.number = tokens.user";

fn read_token(row: &Row<'_>) -> Result<TokenRow, StoreError> {
    Ok(TokenRow {
        number: from_sql(row.get(0)?),
        user: row.get(1)?,
        kind: TokenKind::parse(&row.get::<_, String>(2)?)?,
        label: row.get(3)?,
        created_ms: from_sql(row.get(4)?),
        expires_ms: from_sql(row.get(5)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a directory");
        (Store::open(dir.path()).await.expect("opens"), dir)
    }

    fn token(byte: u8, expires_ms: u64) -> NewToken {
        NewToken {
            kind: TokenKind::Program,
            label: format!("t{byte}"),
            hash: [byte; 32],
            created_ms: 10,
            expires_ms,
            password_hash: None,
        }
    }

    #[tokio::test]
    async fn changing_a_password_revokes_its_tokens() {
        let (store, _dir) = store().await;
        assert!(!store.has_users().await.expect("reads"));
        let put = |password: &str| store.put_user("ann".to_owned(), password.to_owned(), 5);
        assert_eq!(put("one").await.expect("kept"), PutUserResult::Created);
        assert!(store.has_users().await.expect("reads"));
        store
            .put_token("ann".to_owned(), token(1, 100))
            .await
            .expect("kept")
            .expect("a user");
        assert_eq!(store.users().await.expect("reads")[0].tokens, 1);
        assert_eq!(put("two").await.expect("kept"), PutUserResult::PasswordChanged);
        assert_eq!(store.token([1; 32], 20).await.expect("reads"), None);
        let password = store.password_hash("ann".to_owned()).await.expect("reads");
        assert_eq!(password.as_deref(), Some("two"));
        // One that was asked for with the old password comes too late.
        let of = |password: &str| NewToken {
            password_hash: Some(password.to_owned()),
            ..token(2, 100)
        };
        let put = |password: &str| store.put_token("ann".to_owned(), of(password));
        assert_eq!(put("one").await.expect("asked"), None);
        assert!(put("two").await.expect("asked").is_some());
        assert_eq!(store.password_hash("bob".to_owned()).await.expect("reads"), None);
    }

    #[tokio::test]
    async fn tokens_end_by_expiry_revocation_or_user_removal() {
        let (store, _dir) = store().await;
        let none = store
            .put_token("ann".to_owned(), token(1, 100))
            .await
            .expect("asked");
        assert_eq!(none, None, "no user has this token");
        store
            .put_user("ann".to_owned(), "x".to_owned(), 5)
            .await
            .expect("kept");
        let keep = |byte, expires| store.put_token("ann".to_owned(), token(byte, expires));
        let first = keep(1, 100).await.expect("kept").expect("a user");
        keep(2, 200).await.expect("kept");
        let found = store.token([1; 32], 99).await.expect("reads").expect("good");
        assert_eq!((found.number, found.user.as_str()), (first, "ann"));
        assert_eq!(store.token([1; 32], 100).await.expect("reads"), None, "over");
        assert_eq!(store.tokens(150).await.expect("reads").len(), 1);
        assert!(store.revoke_token(first).await.expect("asked"));
        assert!(!store.revoke_token(first).await.expect("asked"));
        assert_eq!(store.token([1; 32], 50).await.expect("reads"), None);
        assert!(store.remove_user("ann".to_owned()).await.expect("asked"));
        assert!(!store.remove_user("ann".to_owned()).await.expect("asked"));
        assert_eq!(store.token([2; 32], 50).await.expect("reads"), None);
    }

    #[tokio::test]
    async fn oldest_token_is_evicted_at_the_limit() {
        let (store, _dir) = store().await;
        store
            .put_user("ann".to_owned(), "x".to_owned(), 5)
            .await
            .expect("kept");
        for byte in 0..=u8::try_from(TOKENS_MAX).expect("few") {
            store
                .put_token("ann".to_owned(), token(byte, 100))
                .await
                .expect("kept");
        }
        let left = store.tokens(20).await.expect("reads");
        assert_eq!((left.len(), left[0].label.as_str()), (100, "t1"));
    }
}
