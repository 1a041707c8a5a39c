//! The HTTP server that gateways share: connections, TLS, authentication, limits, errors. Routes are their own.
//!
//! | module | contents |
//! |---|---|
//! | [`serve`], [`tls`], `certificate` | connections and their time-outs |
//! | [`auth`], `login_throttle` | who the client is; failed logins wait |
//! | [`middleware`] | what is done for every request: rate, audit, headers |
//! | [`error`], [`body`], [`form`] | error responses, request bodies, forms |
//!
//! Invariants: headers, bodies, idle time and unread responses are bounded; every refused request is in the audit.

pub(crate) mod auth;
pub(crate) mod body;
mod certificate;
pub(crate) mod error;
pub(crate) mod form;
mod login_throttle;
pub(crate) mod middleware;
pub(crate) mod serve;
pub(crate) mod tls;
