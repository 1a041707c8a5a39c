//! The engine: carries requests out over the links of this process and the bridged devices of its gateways.
//!
//! A request enters at `dispatch.rs`, in its caller's task: it selects its targets in the registry and starts a task, which
//! owns a `Reporter`. No request waits in a queue of the engine, so an emergency stop passes whatever else is asked.
//!
//! | file or folder | what it does |
//! |---|---|
//! | `start.rs` | starts the engine and shuts it down |
//! | `task.rs` | the engine's own task: events of links, watchers, subscribers |
//! | `dispatch.rs` | starts each request |
//! | `reporter.rs` | tells the caller, the subscribers, the history and the audit what becomes of a request |
//! | `registry.rs` | nodes and bridged devices: what selectors match |
//! | `delivery` | commands: tracker, queries, cancel, retry, history |
//! | `files` | `send` and `fetch` |
//! | `stop` | emergency stops and releases |
//! | `membership` | members of the fleet, users of the gateways |
//! | `observe` | `nodes --watch`, subscribers, the actions that nodes offer |
//! | `transport` | how a command reaches a device: own link or gateway |
//!
//! ARCHITECTURE.md lists the tasks.

#[cfg(test)]
mod bridged_tests;
mod context;
pub(in crate::engine) mod delivery;
mod dispatch;
pub mod files;
mod membership;
pub mod observe;
mod registry;
mod reporter;
mod start;
pub mod stop;
mod task;
pub mod transport;

use context::SharedContext;
pub use delivery::cancel::cancel_only_fleet;
pub use start::{Engine, EngineError, Mode, Settings};
