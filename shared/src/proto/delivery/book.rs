//! The station's book of deliveries.

mod change;

pub use change::{Change, Issued, IssuedTo, OpenCommand, OpenDelivery, Order, Standing};
