//! Programs of other systems at the doors of real stations and nodes.

mod knut;
mod platypush_http;
mod platypush_tcp;
