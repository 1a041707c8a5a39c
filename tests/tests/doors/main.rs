//! Programs of other systems at our doors: in Python's standard library, written against what is known of the real
//! ones, and real processes of ours.

mod drone;
mod library;
