//! The events that answer one request.

use std::fmt;
use std::pin::Pin;

use tokio::sync::mpsc;

use super::control::Exchange;
use super::fleet::EVENTS_MAX;
use crate::api::{Delivery, Event, Failure};
use crate::proto::selector::BadSelector;

/// A request was not carried out. Outcomes of single deliveries are not errors: see
/// [`Delivery::state`](crate::api::Delivery).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The selector cannot be parsed.
    #[error(transparent)]
    Selector(#[from] BadSelector),
    /// The station refused the request, or could not carry it out.
    #[error("{message}")]
    Failed {
        /// The reason, for programs.
        failure: Failure,
        /// The reason and a remedy, for people.
        message: String,
    },
    /// The answer ended before it was complete.
    #[error(
        "the station ended before its answer was complete; `ground-station history` shows what it had begun: look there before you ask again"
    )]
    CutOff,
}

impl RequestError {
    /// The reason, for programs.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Selector(_) => Failure::Usage,
            Self::Failed { failure, .. } => *failure,
            Self::CutOff => Failure::ShutDown,
        }
    }
}

/// The events of one request. Dropping it cancels the request.
#[derive(Debug)]
pub struct EventStream(Source);

enum Source {
    /// An engine in this process.
    Channel(mpsc::Receiver<Event>),
    /// A running station: the read that is under way, with the rest of the exchange if its event is not the last.
    Socket(Pin<Box<dyn Future<Output = (Event, Option<Exchange>)> + Send>>),
    /// The last event was returned.
    Ended,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Channel(_) => "Channel",
            Self::Socket(_) => "Socket",
            Self::Ended => "Ended",
        })
    }
}

impl EventStream {
    /// A stream of the events that a backend in this process sends; it holds [`EVENTS_MAX`] unread ones.
    pub fn channel() -> (mpsc::Sender<Event>, Self) {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        (sender, Self(Source::Channel(receiver)))
    }

    pub(super) fn socket(exchange: Exchange) -> Self {
        Self(Source::Socket(Box::pin(exchange.next())))
    }

    /// The next event, [`Event::End`] and [`Event::Failed`] included; `None` after the last one, or if the backend ended
    /// without one. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = match &mut self.0 {
            Source::Channel(receiver) => receiver.recv().await?,
            Source::Socket(reading) => {
                let (event, rest) = reading.as_mut().await;
                self.0 = rest.map_or(Source::Ended, |exchange| {
                    Source::Socket(Box::pin(exchange.next()))
                });
                return Some(event);
            }
            Source::Ended => return None,
        };
        if event.is_last() {
            self.0 = Source::Ended;
        }
        Some(event)
    }

    /// The next event; `None` after the last one. Cancel safe.
    ///
    /// # Errors
    /// [`RequestError::Failed`] in place of [`Event::Failed`], [`RequestError::CutOff`] if no last event came.
    pub async fn next(&mut self) -> Result<Option<Event>, RequestError> {
        if matches!(self.0, Source::Ended) {
            return Ok(None);
        }
        let event = self.recv().await.ok_or(RequestError::CutOff)?;
        if let Event::Failed { failure, message } = event {
            return Err(RequestError::Failed { failure, message });
        }
        Ok((event != Event::End).then_some(event))
    }

    /// Whether [`EventStream::recv`] would wait, as far as that is known without reading.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Source::Channel(receiver) => receiver.is_empty(),
            Source::Socket(_) | Source::Ended => true,
        }
    }

    /// Waits for the end and collects the outcomes.
    ///
    /// # Errors
    /// As [`EventStream::next`].
    pub async fn deliveries(mut self) -> Result<Vec<Delivery>, RequestError> {
        let mut deliveries = Vec::new();
        while let Some(event) = self.next().await? {
            if let Event::Delivery(delivery) = event {
                deliveries.push(delivery);
            }
        }
        Ok(deliveries)
    }
}
