//! Events of one session on their way to the application.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::PeerEvent;
use crate::proto::wire::Kind;

/// The channel that an event goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Application,
    /// The application's delivery task, if it has one.
    Deliveries,
}

impl Route {
    /// The channel for a frame.
    pub(super) fn of_kind(kind: Option<Kind>) -> Self {
        match kind {
            Some(Kind::Stage | Kind::Reply) => Self::Deliveries,
            _ => Self::Application,
        }
    }
}

/// Sends events to the application's channels. An event whose channel is full waits, and so do all after it: their
/// order is kept over both channels.
pub(super) struct EventQueue {
    application: mpsc::Sender<PeerEvent>,
    deliveries: Option<mpsc::Sender<PeerEvent>>,
    waiting: VecDeque<(Route, PeerEvent)>,
}

impl EventQueue {
    pub(super) fn new(
        application: mpsc::Sender<PeerEvent>,
        deliveries: Option<mpsc::Sender<PeerEvent>>,
    ) -> Self {
        Self {
            application,
            deliveries,
            waiting: VecDeque::new(),
        }
    }

    /// Whether no event waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends an event, or queues it. An event whose receiver has ended is dropped.
    pub(super) fn push(&mut self, route: Route, event: PeerEvent) {
        if !self.is_empty() {
            self.waiting.push_back((route, event));
        } else if let Err(mpsc::error::TrySendError::Full(event)) = self.sender(route).try_send(event) {
            self.waiting.push_back((route, event));
        }
    }

    /// Sends an event of the link itself to each channel, so that each has it in order with its frames.
    pub(super) fn push_to_all(&mut self, event: impl Fn() -> PeerEvent) {
        if self.deliveries.is_some() {
            self.push(Route::Deliveries, event());
        }
        self.push(Route::Application, event());
    }

    /// Waits until the first waiting event has been sent; drops it if its receiver has ended. Cancel-safe.
    pub(super) async fn deliver_first(&mut self) {
        let Some((route, _)) = self.waiting.front() else {
            return;
        };
        let permit = self.sender(*route).clone().reserve_owned().await;
        if let (Some((_, event)), Ok(permit)) = (self.waiting.pop_front(), permit) {
            permit.send(event);
        }
    }

    /// Sends all waiting events without waiting for room. Returns false if some were dropped.
    pub(super) fn try_deliver_all(&mut self) -> bool {
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        waiting.all(|(route, event)| self.sender(route).try_send(event).is_ok())
    }

    fn sender(&self, route: Route) -> &mpsc::Sender<PeerEvent> {
        match (route, &self.deliveries) {
            (Route::Deliveries, Some(deliveries)) => deliveries,
            (Route::Deliveries | Route::Application, _) => &self.application,
        }
    }
}
