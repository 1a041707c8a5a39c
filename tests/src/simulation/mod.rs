//! Simulates whole fleets in one thread, from a seed: stations, nodes, a network and disks that fail, and the
//! invariants that must hold all the same.
//!
//! The code under test is the product's: sessions and their frames, the station's tracker and SQL, the node's
//! executor, deduplication table and journal, the emergency stop, the gate. Sockets, disks, clocks and processes are
//! simulated. Everything follows from the seed, so that a violation can be replayed exactly.
//!
//! | module | content |
//! |---|---|
//! | `plan` | the requests and faults of a run |
//! | `run` | one run, from its plan to its result |
//! | `world` | everything outside of the processes: clocks, identities, the current faults |
//! | `ground_truth`, `check` | what really happened, and the invariants |
//! | `node`, `station`, `outsider` | the processes: thin drivers of the product's state machines |
//! | `link`, `endpoint`, `disk`, `store` | replacements of the product's sockets and files |
//!
//! Invariant: nothing here reads a clock, draws a random number that is not from the seed, or iterates in an order
//! that the seed does not determine.

mod check;
mod disk;
mod endpoint;
mod fault;
mod fleet;
mod ground_truth;
mod link;
mod node;
mod outsider;
mod plan;
mod rng;
mod run;
mod station;
mod store;
mod trace;
mod world;

pub use fault::{Fault, FaultCounts};
pub use ground_truth::Invariant;
pub use run::{Options, Report, Violation, run};
