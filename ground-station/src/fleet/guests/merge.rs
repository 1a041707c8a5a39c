//! Two answers made one: the engine's, and the guests'.

use swarm_shared::proto::outcome::Outcome;
use tokio::sync::mpsc;

use super::Guests;
use crate::fleet::{Event, Failure, Fleet, NodeRef, Request};

/// The engine's half of an answer, as far as its targets.
pub(super) struct Own {
    events: mpsc::Receiver<Event>,
    /// Who may be called like its nodes.
    guests: Guests,
    /// Whom the engine asks.
    pub(super) targets: Vec<NodeRef>,
    /// Its last event, once it has come.
    last: Option<Event>,
    /// Whether all that has ended so far is done.
    pub(super) done: bool,
    /// Whether it is a fault that the engine knows nobody who is meant: no guest is either.
    pub(super) alone: bool,
}

/// Whoever asked has gone.
pub(super) struct Gone;

impl Own {
    /// Asks the engine, and passes on what it says up to its targets.
    pub(super) async fn begin(
        (engine, guests): (&Fleet, &Guests),
        request: impl Into<Request>,
        who: String,
        to: &mpsc::Sender<Event>,
    ) -> Result<Self, Gone> {
        let mut own = Self {
            events: engine.perform_as(request, who).await,
            guests: guests.clone(),
            targets: Vec::new(),
            last: None,
            done: true,
            alone: false,
        };
        while let Some(event) = own.next(to).await? {
            if let Event::Targets { targets } = event {
                own.targets = targets;
                break;
            }
            to.send(event).await.map_err(|_gone| Gone)?;
        }
        Ok(own)
    }

    /// Nothing: the engine is not asked.
    pub(super) fn none(guests: &Guests) -> Self {
        Self {
            events: mpsc::channel(1).1,
            guests: guests.clone(),
            targets: Vec::new(),
            last: Some(Event::End),
            done: true,
            alone: false,
        }
    }

    /// The next event that is not its last.
    async fn next(&mut self, to: &mpsc::Sender<Event>) -> Result<Option<Event>, Gone> {
        if self.last.is_some() {
            return Ok(None);
        }
        let event = tokio::select! {
            biased;
            () = to.closed() => return Err(Gone),
            event = self.events.recv() => event,
        };
        let mut event = event
            .unwrap_or_else(|| Event::failed(Failure::ShutDown, "the station is shutting down; ask again"));
        if let Event::Delivery(delivery) = &event {
            self.done &= delivery.state == Outcome::Done;
        }
        if let Event::Node(view) = &mut event {
            self.guests.warn(view);
        }
        let is_last = matches!(event, Event::End | Event::Failed { .. });
        if is_last {
            self.guests.name_in(&mut event);
            self.last = Some(event);
            return Ok(None);
        }
        Ok(Some(event))
    }

    /// That the engine knows nobody who is meant is no fault where guests are; nor is it one that it has no fleet.
    /// Whether that was so.
    pub(super) fn forgive(&mut self, any_failure: bool) -> bool {
        let forgiven = matches!(&self.last, Some(Event::Failed { failure, .. })
            if !self.alone && self.targets.is_empty() && (*failure == Failure::NoMatch || any_failure));
        if forgiven {
            self.last = Some(Event::End);
        }
        forgiven
    }

    /// Its last event, if it says that nothing can be done, for another reason than that nobody is meant.
    pub(super) fn refusal(&self) -> Option<Event> {
        let refused =
            |event: &&Event| matches!(event, Event::Failed { failure, .. } if *failure != Failure::NoMatch);
        self.last.as_ref().filter(refused).cloned()
    }

    /// Says more of it that the engine knows nobody who is meant.
    pub(super) fn amend(&mut self, more: &str) {
        if let Some(Event::Failed {
            failure: Failure::NoMatch,
            message,
        }) = &mut self.last
        {
            message.push_str("; ");
            message.push_str(more);
        }
    }

    /// Passes on what is left, without the last.
    pub(super) async fn rest(&mut self, to: &mpsc::Sender<Event>) -> Result<(), Gone> {
        while let Some(event) = self.next(to).await? {
            to.send(event).await.map_err(|_gone| Gone)?;
        }
        Ok(())
    }

    /// Passes on both halves, and the one end.
    pub(super) async fn join(
        mut self,
        mut guests: mpsc::Receiver<Event>,
        to: &mpsc::Sender<Event>,
    ) -> Result<(), Gone> {
        let mut guests_open = true;
        while guests_open || self.last.is_none() {
            let event = tokio::select! {
                biased;
                () = to.closed() => return Err(Gone),
                event = guests.recv(), if guests_open => {
                    guests_open = event.is_some();
                    event
                }
                event = self.next(to), if self.last.is_none() => event?,
            };
            if let Some(event) = event {
                to.send(event).await.map_err(|_gone| Gone)?;
            }
        }
        self.forgive(false);
        to.send(self.last.unwrap_or(Event::End))
            .await
            .map_err(|_gone| Gone)
    }
}
