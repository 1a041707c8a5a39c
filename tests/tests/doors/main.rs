//! Programs of other systems at the doors of real stations and nodes.

mod knut;
mod platypush_tcp;
mod socktools;
