//! JSON for programs, one object per line.

use serde::Serialize;

use swarm_shared::api::Event;

/// The line of an event on standard output; `None` for events that are only for people or internal.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the list names what has a promised form; a new event has none until it is added"
)]
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
        _ => None,
    }
}

/// `None` only if a view cannot be JSON, which no view is.
fn object(view: &impl Serialize) -> Option<String> {
    serde_json::to_string(view).ok()
}
