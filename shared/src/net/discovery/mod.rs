//! How peers learn of one another without being told: mDNS, notifier pings, and the interfaces that both use.
//!
//! Everything heard here is a hint of where to dial. It can make a peer dial; it can never make it trust: who
//! the other end is, only TLS and its grant decide. So nothing here fails a program: a network that is down,
//! unplugged or filtered is waited for.
//!
//! | part | owns | ends |
//! |---|---|---|
//! | [`interfaces::watch`] | the list of addresses | when its token is cancelled |
//! | [`pings::send`] | one socket for each IPv4 address | when its token is cancelled |
//! | [`pings::receive`] | the receiving socket, the rate limit | when its token is cancelled or its channel closes |
//! | [`presence::start`] | which of it all is used, and what follows | [`presence::Presence::shutdown`] |
//! | [`mdns::MdnsSd`] | the mDNS thread, the published record | [`mdns::Mdns::shutdown`], within [`mdns::SHUTDOWN_MAX`] |

pub mod interfaces;
pub mod mdns;
pub mod pings;
pub mod presence;
