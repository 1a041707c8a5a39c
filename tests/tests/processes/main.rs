//! The programs as an operator uses them: real processes with real files and TLS links, on loopback.

mod at_most_once;
mod cancel;
mod deadlines;
mod examples;
mod files;
mod flight_actions;
mod interrupted_commands;
mod lost_link;
mod old_state;
mod plugins;
mod queued_commands;
mod stop;
mod stop_during_faults;
mod stop_record;
mod subscribers;
mod transfers;
mod trust;
mod verbs;
