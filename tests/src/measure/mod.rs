//! How fast and how large the product is: each measurement is a verb of the program `measure`.
//!
//! Nodes are real endpoints over real TLS links on loopback; where it matters, they are real `swarm-node` processes.

pub mod bare_tcp;
pub mod crypto;
pub mod durable;
pub mod fanout;
pub mod file;
pub mod gateways;
pub mod idle;
pub mod node_host;
mod proc;
pub mod real_station;
pub mod reconnect;
pub mod recovery;
pub mod saturated;
mod seeded_fleet;
pub mod silence;
pub mod stop;
pub mod stop_host;
mod table;

pub use proc::{Memory, cpu_time, cpu_time_of, memory_of, raise_file_limit};
pub use seeded_fleet::{RunningMember, SeededFleet};
pub use table::{Samples, Table};
