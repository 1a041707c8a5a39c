//! The programs on real hosts: a bridge, network namespaces, broadcast and multicast, cables that are pulled.

mod changes;
mod means;
mod rig;
mod silence;
mod stop;
