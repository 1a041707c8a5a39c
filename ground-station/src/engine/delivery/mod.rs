//! Commands: from a request to one outcome for each target.
//!
//! | file | what it holds |
//! |---|---|
//! | `durable_command.rs` | actions: one delivery for each target, in batches |
//! | `task.rs` | the task that owns the tracker |
//! | `query.rs` | reads: sent once to linked nodes, not stored |
//! | `cancel.rs`, `retry.rs` | what a user does with stored commands |
//! | `history_writer.rs` | puts files, stops, releases and administration into the history |

pub(in crate::engine) mod cancel;
pub(in crate::engine) mod durable_command;
pub(in crate::engine) mod history_writer;
pub(in crate::engine) mod query;
pub(in crate::engine) mod retry;
pub(in crate::engine) mod task;
