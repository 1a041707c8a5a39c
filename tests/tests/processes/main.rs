//! The programs as an operator uses them: real processes on loopback, TLS and files and all.

mod cancel;
mod commands;
mod deadlines;
mod files;
mod flight;
mod follow;
mod plugins;
mod queue;
mod repeats;
mod stop;
mod transfers;
mod trust;
mod verbs;
