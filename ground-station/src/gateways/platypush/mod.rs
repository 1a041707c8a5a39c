//! Platypush's request messages, over TCP and HTTP; socktools' gateway takes them too.

pub mod handler;
#[cfg(feature = "gateway-platypush-http")]
pub mod http;
mod parsed_action;
#[cfg(feature = "gateway-platypush-tcp")]
pub mod tcp;
