//! Users of doors and their tokens.

use super::table::{self, Cell};
use super::{Paint, Style, when};
use crate::fleet::{TokenView, UserView};

/// What became of users just now.
pub fn changed(views: &[UserView]) -> String {
    let line = |view: &UserView| match view.now.as_deref() {
        Some("changed") => format!(
            "{} has another password; tokens and logins of before are good no more\n",
            view.user
        ),
        Some(now) => format!("{} was {now}\n", view.user),
        None => String::new(),
    };
    views.iter().map(line).collect()
}

/// All users.
pub fn users(views: &[UserView], style: Style) -> String {
    if views.is_empty() {
        return "no users yet: type `ground-station door user add NAME`\n".to_owned();
    }
    let rows: Vec<Vec<Cell>> = views
        .iter()
        .map(|view| {
            vec![
                Cell::plain(&view.user),
                Cell::plain(view.tokens.to_string()),
                Cell::plain(when::exact(view.added_ms)),
            ]
        })
        .collect();
    table::render(&["USER", "TOKENS", "ADDED"], &rows, style).join("\n")
}

/// A new token, alone on the first line so that it can be cut out.
pub fn made(views: &[TokenView], style: Style) -> String {
    let text = |view: &TokenView| {
        let token = view.token.as_deref().unwrap_or_default();
        format!(
            "{}\ntoken {} of {}, good until {}; it is not shown again\n",
            style.paint(token, Paint::Strong),
            view.number,
            view.user,
            when::exact(view.expires_ms),
        )
    };
    views.iter().map(text).collect()
}

/// All tokens.
pub fn tokens(views: &[TokenView], style: Style) -> String {
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
                Cell::plain(super::harmless(&view.label)),
                Cell::plain(when::exact(view.made_ms)),
                Cell::plain(when::exact(view.expires_ms)),
            ]
        })
        .collect();
    let heading = ["ID", "USER", "KIND", "LABEL", "MADE", "GOOD UNTIL"];
    table::render(&heading, &rows, style).join("\n")
}
