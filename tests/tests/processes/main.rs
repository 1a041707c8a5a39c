//! The programs as an operator uses them: real processes on loopback, TLS and files and all.

mod at_most_once;
mod cancel;
mod deadlines;
mod examples;
mod files;
mod flight_actions;
mod interrupted_commands;
mod old_state;
mod plugins;
mod queued_commands;
mod stop;
mod subscribers;
mod transfers;
mod trust;
mod verbs;
