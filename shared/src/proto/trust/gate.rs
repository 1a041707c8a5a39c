//! Access control: what a linked peer may ask for, by the role that the fleet root granted it.
//!
//! | permission | observer | node | operator | admin |
//! |---|---|---|---|---|
//! | link upkeep, fleet state | yes | yes | yes | yes |
//! | roster, bulk connection, reply, stage, chunk, end of a file, state of a stop, action catalog | | yes | yes | yes |
//! | command that reads | yes | | yes | yes |
//! | emergency stop, command that acts | | | yes | yes |
//! | `execute` | | | | yes, where the node's configuration allows it |
//! | joining frames, kinds of later versions | | | | |
//!
//! Invariants: every match below lists each kind and each role, so that a new one does not compile until its
//! permission is decided; an action that is not known to be harmless counts as modifying.

use crate::proto::message::{Arguments, RefusalCode, Refused};
use crate::proto::wire::Kind;

use super::Role;

/// The effect of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionClass {
    /// Returns information and changes nothing.
    Read,
    /// Changes something that the node's owner has allowed by configuration.
    Modify,
    /// Runs an arbitrary program.
    Execute,
}

/// A request of a peer that needs permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// To have a frame of this kind handled. [`Kind::Command`] counts as [`ActionClass::Execute`]: ask with
    /// [`Permission::Command`] instead.
    Frame(Kind),
    /// To run an action of this class; see [`classify`].
    Command(ActionClass),
}

/// The class of an action. Actions that the owner defines and unknown ones count as modifying.
pub fn classify(action: &str, arguments: &Arguments) -> ActionClass {
    let Arguments { args, kwargs } = arguments;
    match action {
        "execute" => ActionClass::Execute,
        "ping" | "time" | "telemetry" | "selfcheck" => ActionClass::Read,
        // `new_id=` renames; other programs also pass the new name by position.
        "id" if args.is_empty() && kwargs.is_empty() => ActionClass::Read,
        // Without `mode` the configuration is read; drones of clever-show take a lone `config` as the text to write.
        "config" if args.is_empty() && !kwargs.contains_key("mode") && !kwargs.contains_key("config") => {
            ActionClass::Read
        }
        _ => ActionClass::Modify,
    }
}

/// Whether a peer with this role has this permission. A frame without permission is ignored; the link stays.
///
/// # Errors
/// [`Refused`] with [`RefusalCode::NotAllowed`], which names the required role.
pub fn permit(role: Role, permission: &Permission) -> Result<(), Refused> {
    let Some(lack) = missing_role(role, permission) else {
        return Ok(());
    };
    let advice = match required_role(permission) {
        RequiredRole::Operator | RequiredRole::Admin => "; the fleet's admin can invite this key anew as one",
        RequiredRole::AnyMember
        | RequiredRole::NodeOrOperator
        | RequiredRole::Station
        | RequiredRole::Never => "",
    };
    Err(Refused::new(RefusalCode::NotAllowed, format!("{lack}{advice}")))
}

/// The text that names the required role, if `role` does not have the permission. For gateways, whose clients get
/// their roles from the gateway's configuration and not by a grant.
pub fn missing_role(role: Role, wish: &Permission) -> Option<String> {
    let need = required_role(wish);
    let missing_role = || {
        format!(
            "{} may not be asked for by role {role}: {}",
            wish.description(),
            need.description()
        )
    };
    (!need.is_met_by(role)).then(missing_role)
}

fn required_role(wish: &Permission) -> RequiredRole {
    match wish {
        Permission::Frame(kind) => required_role_for_frame(*kind),
        Permission::Command(class) => required_role_for_command(*class),
    }
}

/// The roles that have a permission.
#[derive(Clone, Copy)]
enum RequiredRole {
    AnyMember,
    /// Every member that is not an observer.
    NodeOrOperator,
    /// Every station: observer, operator or admin.
    Station,
    Operator,
    Admin,
    Never,
}

impl RequiredRole {
    fn is_met_by(self, role: Role) -> bool {
        match (self, role) {
            (Self::AnyMember, Role::Observer | Role::Node | Role::Operator | Role::Admin)
            | (Self::NodeOrOperator, Role::Node | Role::Operator | Role::Admin)
            | (Self::Station, Role::Observer | Role::Operator | Role::Admin)
            | (Self::Operator, Role::Operator | Role::Admin)
            | (Self::Admin, Role::Admin) => true,
            (Self::NodeOrOperator, Role::Observer)
            | (Self::Station, Role::Node)
            | (Self::Operator, Role::Observer | Role::Node)
            | (Self::Admin, Role::Observer | Role::Node | Role::Operator)
            | (Self::Never, Role::Observer | Role::Node | Role::Operator | Role::Admin) => false,
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::AnyMember => "it takes a member of the fleet",
            Self::NodeOrOperator => "it takes role node, operator or admin",
            Self::Station => "it takes a station (observer, operator or admin)",
            Self::Operator => "it takes role operator or admin",
            Self::Admin => "it takes role admin",
            Self::Never => "it is not allowed on an open link",
        }
    }
}

fn required_role_for_frame(kind: Kind) -> RequiredRole {
    match kind {
        // The root signed it, so every member may deliver it, and it spreads over every link.
        Kind::FleetState => RequiredRole::AnyMember,
        Kind::Hello | Kind::Welcome | Kind::Refused | Kind::Heartbeat | Kind::Ack => RequiredRole::AnyMember,
        Kind::Roster | Kind::OpenBulk | Kind::Reply | Kind::Chunk | Kind::ChunkEnd => {
            RequiredRole::NodeOrOperator
        }
        Kind::Stage | Kind::Stopped | Kind::Offer => RequiredRole::NodeOrOperator,
        Kind::Stop => RequiredRole::Operator,
        Kind::Command => required_role_for_command(ActionClass::Execute),
        Kind::Join | Kind::Joined | Kind::Unknown => RequiredRole::Never,
    }
}

fn required_role_for_command(class: ActionClass) -> RequiredRole {
    match class {
        ActionClass::Read => RequiredRole::Station,
        ActionClass::Modify => RequiredRole::Operator,
        ActionClass::Execute => RequiredRole::Admin,
    }
}

impl Permission {
    fn description(&self) -> &'static str {
        match self {
            Self::Command(ActionClass::Read) => "a command that reads",
            Self::Command(ActionClass::Modify) => "a command that changes something",
            Self::Command(ActionClass::Execute) | Self::Frame(Kind::Command) => "running a program",
            Self::Frame(Kind::Hello | Kind::Welcome | Kind::Refused | Kind::Heartbeat | Kind::Ack) => {
                "a frame that keeps a link"
            }
            Self::Frame(Kind::FleetState) => "a fleet state",
            Self::Frame(Kind::Roster) => "a roster",
            Self::Frame(Kind::OpenBulk) => "a bulk connection",
            Self::Frame(Kind::Reply) => "a reply",
            Self::Frame(Kind::Chunk | Kind::ChunkEnd) => "a part of a file",
            Self::Frame(Kind::Stage) => "the progress of a command",
            Self::Frame(Kind::Stop) => "an emergency stop",
            Self::Frame(Kind::Stopped) => "the state of an emergency stop",
            Self::Frame(Kind::Offer) => "an action catalog",
            Self::Frame(Kind::Join | Kind::Joined) => "joining",
            Self::Frame(Kind::Unknown) => "a frame of an unknown kind",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ROLES: [Role; 4] = [Role::Observer, Role::Node, Role::Operator, Role::Admin];

    fn allowed(wish: Permission) -> Vec<Role> {
        ROLES
            .into_iter()
            .filter(|role| permit(*role, &wish).is_ok())
            .collect()
    }

    fn class(action: &str, args: Value, kwargs: Value) -> ActionClass {
        let arguments = serde_json::from_value(json!({"args": args, "kwargs": kwargs})).expect("arguments");
        classify(action, &arguments)
    }

    #[test]
    fn gate_permits_exactly_the_documented_table() {
        use Role::{Admin, Node, Observer, Operator};
        for kind in [
            Kind::Hello,
            Kind::Welcome,
            Kind::Refused,
            Kind::Heartbeat,
            Kind::Ack,
            Kind::FleetState,
        ] {
            assert_eq!(allowed(Permission::Frame(kind)), ROLES, "{kind:?}");
        }
        for kind in [
            Kind::Roster,
            Kind::OpenBulk,
            Kind::Reply,
            Kind::Chunk,
            Kind::ChunkEnd,
            Kind::Stage,
            Kind::Stopped,
            Kind::Offer,
        ] {
            assert_eq!(
                allowed(Permission::Frame(kind)),
                [Node, Operator, Admin],
                "{kind:?}"
            );
        }
        assert_eq!(allowed(Permission::Frame(Kind::Stop)), [Operator, Admin]);
        for kind in [Kind::Join, Kind::Joined, Kind::Unknown] {
            assert_eq!(allowed(Permission::Frame(kind)), [], "{kind:?}");
        }
        assert_eq!(
            allowed(Permission::Command(ActionClass::Read)),
            [Observer, Operator, Admin]
        );
        assert_eq!(
            allowed(Permission::Command(ActionClass::Modify)),
            [Operator, Admin]
        );
        assert_eq!(allowed(Permission::Command(ActionClass::Execute)), [Admin]);
        assert_eq!(allowed(Permission::Frame(Kind::Command)), [Admin]);
    }

    #[test]
    fn actions_are_classified_by_reach() {
        for action in ["ping", "id", "time", "telemetry", "selfcheck", "config"] {
            assert_eq!(class(action, json!([]), json!({})), ActionClass::Read, "{action}");
        }
        for action in ["reboot", "takeoff", "filetransfer", "notify", "log", "PING", ""] {
            assert_eq!(
                class(action, json!([]), json!({})),
                ActionClass::Modify,
                "{action}"
            );
        }
        assert_eq!(
            class("id", json!([]), json!({"new_id": "x"})),
            ActionClass::Modify
        );
        assert_eq!(class("id", json!(["x"]), json!({})), ActionClass::Modify);
        let unsaid = json!({"config": {"LED": {"count": 1}}});
        assert_eq!(class("config", json!([]), unsaid), ActionClass::Modify);
        for mode in ["modify", "rewrite"] {
            assert_eq!(
                class("config", json!([]), json!({"mode": mode})),
                ActionClass::Modify
            );
        }
        assert_eq!(
            class("config", json!([{}, "rewrite"]), json!({})),
            ActionClass::Modify
        );
        assert_eq!(
            class("config", json!([]), json!({"send_configspec": true})),
            ActionClass::Read
        );
        assert_eq!(class("execute", json!([]), json!({})), ActionClass::Execute);
    }

    #[test]
    fn gate_refusal_names_the_required_role() {
        let refused = permit(Role::Observer, &Permission::Command(ActionClass::Modify)).expect_err("refused");
        assert_eq!(refused.code, RefusalCode::NotAllowed);
        assert_eq!(
            refused.reason,
            "a command that changes something may not be asked for by role observer: it takes role operator or \
             admin; the fleet's admin can invite this key anew as one"
        );
    }
}
