//! Which peers to dial, where, and when: what a station broadcasts, and the addresses that are known.
//!
//! Nothing here is trusted: a wrong address costs a dial. The links themselves are authenticated.

pub mod address_book;
pub mod ping;
