//! Files to and from nodes: `send`, `fetch`, the names of the copies, and the memory that bridged devices' files take.

pub(in crate::engine) mod fetch;
pub(in crate::engine) mod memory_budget;
pub mod names;
pub(in crate::engine) mod send;
