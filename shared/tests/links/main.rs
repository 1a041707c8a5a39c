//! Links over real sockets on loopback, by theme.

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
