//! Programs of other systems at the doors of real stations and nodes.

mod platypush_http;
mod platypush_tcp;
