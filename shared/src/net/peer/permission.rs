//! The permission that a received frame needs.

use crate::proto::message::{Arguments, RefusalCode, Refused};
use crate::proto::trust::Role;
use crate::proto::trust::gate::{ActionClass, Permission, classify, permit};
use crate::proto::wire::{Frame, Kind};

/// Checks that a peer with this role may send the frame. Returns the class of a command, `None` for other frames and
/// for commands with unreadable arguments.
///
/// # Errors
/// The refusal that the peer gets.
pub(super) fn check_permission(role: Role, frame: &Frame) -> Result<Option<ActionClass>, Refused> {
    let Some(kind) = frame.header.kind else {
        return Err(Refused::new(
            RefusalCode::Protocol,
            "a frame without a kind on a link of ours",
        ));
    };
    if kind != Kind::Command {
        return permit(role, &Permission::Frame(kind)).map(|()| None);
    }
    let action = frame.header.action.as_deref().unwrap_or_default();
    // Most commands are classified by their action alone. Unreadable arguments need the highest permission.
    let arguments: Arguments = match action {
        "id" | "config" => match frame.parse_content() {
            Ok(arguments) => arguments,
            Err(_unreadable) => return permit(role, &Permission::Frame(Kind::Command)).map(|()| None),
        },
        _ => Arguments::default(),
    };
    let class = classify(action, &arguments);
    permit(role, &Permission::Command(class)).map(|()| Some(class))
}
