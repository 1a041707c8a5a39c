//! The fleet's members, and the users of the station's gateways: invitations, grants, revocations, passwords, tokens.

pub(in crate::engine) mod authority;
pub(in crate::engine) mod task;
pub(in crate::engine) mod users;
