//! The last words to whoever asked.

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::engine::membership::authority::AuthorityError;
use swarm_shared::api::Event;

/// Sends what came of a request, and its end; see [`say`].
pub(in crate::engine) fn respond(
    tasks: &TaskTracker,
    events: mpsc::Sender<Event>,
    done: Result<Vec<Event>, AuthorityError>,
) {
    let all = match done {
        Ok(mut all) => {
            all.push(Event::End);
            all
        }
        Err(error) => vec![Event::failed(error.failure(), error.to_string())],
    };
    send_events_or_spawn(tasks, events, all);
}

/// Says it at once; where there is no room for all of it, from a task of its own: whoever does not read holds nobody up.
pub(in crate::engine) fn send_events_or_spawn(
    tasks: &TaskTracker,
    events: mpsc::Sender<Event>,
    all: Vec<Event>,
) {
    if let Ok(places) = events.try_reserve_many(all.len()) {
        for (place, event) in places.zip(all) {
            place.send(event);
        }
        return;
    }
    tasks.spawn(async move { send_events(&events, all).await });
}

/// Says it until nobody listens any more.
pub(in crate::engine) async fn send_events(events: &mpsc::Sender<Event>, all: Vec<Event>) {
    for event in all {
        if events.send(event).await.is_err() {
            // Nobody wants to know; it is done all the same.
            return;
        }
    }
}
