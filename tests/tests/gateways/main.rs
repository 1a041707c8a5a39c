//! Programs of other systems at the gateways of real stations and nodes: written from the documentation of the real
//! ones, with Python's standard library only.

mod clever_show;
mod clever_show_library;
mod clever_show_node;
mod knut;
mod platypush_http;
mod platypush_tcp;
mod socktools;
