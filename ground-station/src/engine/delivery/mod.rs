//! Commands: from a request to one outcome for each target.
//!
//! | file | content |
//! |---|---|
//! | `durable_command.rs` | actions: one delivery for each target, in batches |
//! | `handle.rs`, `task.rs` | the handle to the task that owns the tracker; that task |
//! | `query.rs` | reads: sent once to linked nodes, not stored |
//! | `cancel.rs`, `retry.rs` | cancels and repeats commands of the history |
//! | `history_writer.rs` | stores files, stops, releases and administration in the history |

pub(super) mod cancel;
pub(super) mod durable_command;
pub(super) mod handle;
pub(super) mod history_writer;
pub(super) mod query;
pub(super) mod retry;
pub(super) mod task;
