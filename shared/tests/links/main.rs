//! Links over real sockets on loopback, by theme.

mod bulk;
mod common;
mod crossing;
mod cuts;
mod deadlines;
mod hostile;
mod joining;
mod proxy;
mod talking;
mod trust;
