//! Asking a fleet.
//!
//! [`Station::connect`] reaches a running `ground-station serve` through the control socket in its state directory, and
//! has a method for each common request. Below it is [`Fleet`]: any [`Request`](crate::api::Request) in, a stream of
//! [`Event`](crate::api::Event)s out, over any [`Backend`]: the control socket, or an engine in this process.
//!
//! ```no_run
//! use swarm_shared::client::Station;
//! use swarm_shared::proto::message::Arguments;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let station = Station::connect("/var/lib/ground-station").await?;
//! let color = Arguments {
//!     args: Vec::new(),
//!     kwargs: [("color".to_owned(), "#ff0000".into())].into_iter().collect(),
//! };
//! for delivery in station.call("drone-*", "led", color).await? {
//!     println!("{}: {}", delivery.node, delivery.state);
//! }
//! # Ok(())
//! # }
//! ```

pub mod control;
mod event_stream;
mod fleet;
pub mod os_user;
mod station;

pub use event_stream::{EventStream, RequestError};
pub use fleet::{Backend, BackendFuture, EVENTS_MAX, Fleet, REQUESTS_MAX, RequestEnvelope};
pub use station::{ConnectError, Station};
