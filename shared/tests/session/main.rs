//! The session's clocks, bounds and faults, with time moved by hand.

mod clocks;
mod links;
mod queues;
mod rig;
