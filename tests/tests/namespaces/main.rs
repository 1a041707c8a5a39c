//! The programs on real hosts: a bridge, network namespaces, broadcast and multicast, cables that are unplugged.

mod discovery_methods;
mod narrow_path;
mod network_changes;
mod rig;
mod silence;
mod stop;
