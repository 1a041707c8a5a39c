//! Links over real sockets on loopback, by topic.

mod bulk;
mod common;
mod deadlines;
mod disconnects;
mod hostile;
mod joining;
mod messaging;
mod proxy;
mod simultaneous_open;
mod trust;
