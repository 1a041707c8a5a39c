//! The last words to whoever asked.

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::office::OfficeError;
use crate::fleet::Event;

/// Sends what came of a request, and its end, from a task of its own: whoever does not read holds nobody up.
pub(super) fn finish(
    tasks: &TaskTracker,
    events: mpsc::Sender<Event>,
    done: Result<Vec<Event>, OfficeError>,
) {
    let all = match done {
        Ok(mut all) => {
            all.push(Event::End);
            all
        }
        Err(error) => vec![Event::failed(error.failure(), error.to_string())],
    };
    tasks.spawn(async move { say_all(&events, all).await });
}

/// Says it until nobody listens any more.
pub(super) async fn say_all(events: &mpsc::Sender<Event>, all: Vec<Event>) {
    for event in all {
        if events.send(event).await.is_err() {
            // Nobody wants to know; it is done all the same.
            return;
        }
    }
}
