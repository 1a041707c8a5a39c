//! Discovery of peers: the station's broadcast, and the addresses to dial.
//!
//! Nothing here is trusted: a wrong address costs one dial. The links themselves are authenticated.

pub mod address_book;
pub mod narrow_paths;
pub mod ping;
