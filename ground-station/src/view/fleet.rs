//! The fleet: this station's role, members, invitations and pending devices.

use std::time::Duration;

use swarm_shared::proto::trust::Role;

use super::table::{self, Cell};
use super::{Paint, Style, format_age};
use crate::duration;
use swarm_shared::api::{InvitationView, MemberView, MembershipView, PendingView};

/// Lines about this station and its fleet.
pub fn membership(view: &MembershipView, style: Style) -> String {
    let root = if view.has_root {
        ", and holds the fleet's root key"
    } else {
        ""
    };
    format!(
        "fleet {}\nthis station is {} ({}), {}{root}\n",
        style.paint(&view.fleet.short(), Paint::Strong),
        style.paint(view.node.as_str(), Paint::Strong),
        view.id.short(),
        view.role,
    )
}

/// A new code, and how to use it. The code is alone on the first line, so that scripts can cut it out.
pub fn invitation(view: &InvitationView, style: Style) -> String {
    let valid = duration::show(Duration::from_millis(view.valid_for_ms));
    let uses = match view.uses {
        1 => "once".to_owned(),
        uses => format!("{uses} times"),
    };
    let (join, config) = match view.role {
        Role::Node => (
            "swarm-node join",
            format!("or put join = {:?} into its configuration\n", view.code),
        ),
        Role::Observer | Role::Operator | Role::Admin => ("ground-station fleet join", String::new()),
    };
    format!(
        "{}\nvalid {uses}, for {valid}, as {}; on the other machine:\n  {join} {}\n{config}keep `ground-station serve` running here until it has joined\n",
        style.paint(&view.code, Paint::Strong),
        view.role,
        view.code,
    )
}

/// The table of members.
pub fn members_table(views: &[MemberView], style: Style) -> Vec<String> {
    let rows: Vec<Vec<Cell>> = views
        .iter()
        .map(|view| {
            let standing = if view.revoked {
                Cell::painted("revoked", Paint::Bad)
            } else {
                Cell::painted("member", Paint::Good)
            };
            vec![
                Cell::plain(view.node.as_str()),
                Cell::painted(view.id.short(), Paint::Dim),
                Cell::plain(view.role.to_string()),
                standing,
                Cell::plain(format_age(view.last_heard_ms)),
                Cell::optional(view.address),
            ]
        })
        .collect();
    table::render(
        &["NAME", "ID", "ROLE", "STANDING", "HEARD", "ADDRESS"],
        &rows,
        style,
    )
}

/// The table of pending devices, and how to accept one.
pub fn pending_table(views: &[PendingView], style: Style) -> Vec<String> {
    if views.is_empty() {
        let text = "no device waits; a node asks to be accepted if its configuration has adoptable = true";
        return vec![text.to_owned()];
    }
    let rows: Vec<Vec<Cell>> = views
        .iter()
        .map(|view| {
            vec![
                Cell::plain(view.node.as_str()),
                Cell::plain(view.id.short()),
                Cell::plain(format_age(Some(view.waiting_ms))),
                Cell::optional(view.address),
            ]
        })
        .collect();
    let mut lines = table::render(&["NAME", "ID", "SINCE", "ADDRESS"], &rows, style);
    lines.push(String::new());
    lines.push(
        "compare the id with the one in the node's log, then: ground-station fleet accept NODE".to_owned(),
    );
    lines
}
