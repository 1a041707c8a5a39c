//! The session's timers, limits and faults, with time moved by hand.

mod clocks;
mod deadlines;
mod links;
mod paths;
mod queues;
mod rig;
