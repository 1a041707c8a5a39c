//! A station's fleet: the engine that owns the links, and what answers requests without links.
//!
//! Clients ask through [`Fleet`]; nothing in here prints.

pub mod engine;
pub mod files;
pub mod gateway_peers;
pub mod offline_history;
pub mod stop_broadcast;

pub use swarm_shared::api::*;
pub use swarm_shared::client::{EVENTS_MAX, Fleet, REQUESTS_MAX, RequestEnvelope};
