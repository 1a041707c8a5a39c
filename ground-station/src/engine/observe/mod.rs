//! Observation: watchers of nodes, subscribers to all events, the actions that nodes offer, and the history without a running
//! station.

pub(in crate::engine) mod action_catalogs;
pub(in crate::engine) mod observed_request;
pub mod offline_history;
pub(in crate::engine) mod subscribers;
pub(in crate::engine) mod watchers;
