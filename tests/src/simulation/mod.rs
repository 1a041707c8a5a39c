//! Whole fleets in one thread, from a seed: stations, nodes, a network and disks that fail, and what must hold all the
//! same.
//!
//! The code under test is the product's: sessions and their frames, the station's book and SQL, the node's desks,
//! ledger and journal, the emergency stop, the gate. Simulated are sockets, disks, clocks and the processes themselves.
//! Everything that happens follows from the seed, so that a violation can be replayed to the byte.
//!
//! | module | what it holds |
//! |---|---|
//! | `plan` | what is ordered and what goes wrong |
//! | `run` | one run, from its plan to its verdict |
//! | `world` | what is outside of every process: clocks, who is who, what was done to whom |
//! | `truth`, `check` | what really happened, and the promises that it is held against |
//! | `node`, `station`, `outsider` | the processes: thin drivers of the product's cores |
//! | `link`, `door`, `disk`, `store` | what the product's sockets and files are replaced by |
//!
//! Invariant: nothing here reads a clock, draws a random number that is not from the seed, or goes through anything in
//! an order that the seed does not give.

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
