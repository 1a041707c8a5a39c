//! JSON for programs, one object per line.

use serde::Serialize;

use swarm_shared::api::Event;

/// The line of an event on standard output; `None` for events that are only for people or internal.
pub fn line(event: &Event) -> Option<String> {
    match event {
        Event::Delivery(view) => object(view),
        Event::Node(view) => object(&view.clone().with_texts()),
        Event::Membership(view) => object(view),
        Event::Invitation(view) => object(view),
        Event::Member(view) => object(view),
        Event::Pending(view) => object(view),
        Event::Command(view) => object(view),
        Event::HistoryDelivery(view) => object(view),
        Event::Audit(view) => object(view),
        Event::User(view) => object(view),
        Event::Token(view) => object(view),
        Event::Peer(view) => object(view),
        Event::Targets { .. }
        | Event::CommandDetails(_)
        | Event::Progress { .. }
        | Event::Stage { .. }
        | Event::Acknowledged { .. }
        | Event::Note { .. }
        | Event::Issued { .. }
        | Event::Observed { .. }
        | Event::Telemetry { .. }
        | Event::Lagged { .. }
        | Event::Failed { .. }
        | Event::End => None,
    }
}

/// `None` only if a view cannot be JSON, which no view is.
fn object(view: &impl Serialize) -> Option<String> {
    serde_json::to_string(view).ok()
}
