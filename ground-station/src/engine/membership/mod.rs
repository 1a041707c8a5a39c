//! The fleet's members, and the users of the station's gateways: invitations, grants, revocations, passwords, tokens.

pub(super) mod authority;
pub(super) mod task;
pub(super) mod users;
