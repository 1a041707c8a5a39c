//! Users of gateways and their tokens.

use super::table::{self, Cell};
use super::{Style, datetime};
use swarm_shared::api::{TokenView, UserView};

/// Lines about changes of users.
pub fn user_change_lines(views: &[UserView]) -> String {
    let line = |view: &UserView| match view.now.as_deref() {
        Some("changed") => format!(
            "{} has a new password; earlier tokens and logins are no longer valid\n",
            view.user
        ),
        Some(now) => format!("{} was {now}\n", view.user),
        None => String::new(),
    };
    views.iter().map(line).collect()
}

/// The table of users.
pub fn users_table(views: &[UserView], style: Style) -> String {
    if views.is_empty() {
        return "no users yet: type `ground-station gateway user add NAME`\n".to_owned();
    }
    let rows: Vec<Vec<Cell>> = views
        .iter()
        .map(|view| {
            vec![
                Cell::plain(&view.user),
                Cell::plain(view.tokens.to_string()),
                Cell::plain(datetime::utc_datetime(view.added_ms)),
            ]
        })
        .collect();
    table::render(&["USER", "TOKENS", "ADDED"], &rows, style).join("\n")
}

/// New tokens, one a line and nothing else, for scripts.
pub fn new_token_lines(views: &[TokenView]) -> String {
    let tokens = views.iter().filter_map(|view| view.token.as_deref());
    tokens.map(|token| format!("{token}\n")).collect()
}

/// A note for people about a new token.
pub fn new_token_note(view: &TokenView) -> String {
    format!(
        "token {} of {}, valid until {}; it is not shown again",
        view.number,
        view.user,
        datetime::utc_datetime(view.expires_ms),
    )
}

/// The table of tokens.
pub fn tokens_table(views: &[TokenView], style: Style) -> String {
    if views.is_empty() {
        return "no tokens\n".to_owned();
    }
    let rows: Vec<Vec<Cell>> = views
        .iter()
        .map(|view| {
            vec![
                Cell::plain(view.number.to_string()),
                Cell::plain(&view.user),
                Cell::plain(&view.kind),
                Cell::plain(super::sanitize(&view.label)),
                Cell::plain(datetime::utc_datetime(view.made_ms)),
                Cell::plain(datetime::utc_datetime(view.expires_ms)),
            ]
        })
        .collect();
    let heading = ["ID", "USER", "KIND", "LABEL", "MADE", "VALID UNTIL"];
    table::render(&heading, &rows, style).join("\n")
}
