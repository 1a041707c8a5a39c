//! Discovery of peers on the local network: mDNS, notifier pings, and the list of interfaces that both use.
//!
//! Everything received here is a hint where to dial and is never trusted: TLS and the grant authenticate a peer. No
//! fault of a network ends a program: one that is down, unplugged or filtered is retried.
//!
//! | part | owns | ends |
//! |---|---|---|
//! | [`interfaces::watch`] | the list of addresses | when its token is cancelled |
//! | [`pings::send`] | one socket for each IPv4 address | when its token is cancelled |
//! | [`pings::receive`] | the receiving socket, the rate limit | when its token is cancelled or its channel closes |
//! | [`presence::start`] | the methods in use, and their effect on the endpoint | [`presence::Presence::shutdown`] |
//! | [`mdns::MdnsSd`] | the mDNS thread, the published record | [`mdns::Mdns::shutdown`], within [`mdns::SHUTDOWN_TIMEOUT`] |

pub mod interfaces;
pub mod mdns;
pub mod pings;
pub mod presence;
