//! The fleet's events in the form of Platypush's event messages.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use swarm_shared::proto::foreign::platypush::{self, id_from_random};
use swarm_shared::proto::id::PeerId;

use super::super::handler::random_id;
use swarm_shared::api::{CommandKind, Event, NodeState, NodeView};

/// The prefix of every event's type.
pub(super) const PREFIX: &str = "platypush.message.event.swarm.";

/// Converts the events of one reader.
#[derive(Debug)]
pub(super) struct EventMapper {
    origin: String,
    /// The state and fields that were last sent of each node.
    nodes: BTreeMap<PeerId, (NodeState, Value)>,
}

impl EventMapper {
    /// For a reader of the station with this name.
    pub(super) fn new(origin: &str) -> Self {
        Self {
            origin: origin.to_owned(),
            nodes: BTreeMap::new(),
        }
    }

    /// The message for an event; `None` if the event has none.
    pub(super) fn map(&mut self, event: Event, unix_ms: u64) -> Option<String> {
        let (kind, fields) = self.map_fields(event)?;
        let Value::Object(fields) = fields else {
            return None;
        };
        let event = platypush::Event {
            id: id_from_random(random_id()),
            origin: self.origin.clone(),
            kind: format!("{PREFIX}{kind}Event"),
            fields,
        };
        Some(event.to_value(unix_ms).to_string())
    }

    fn map_fields(&mut self, event: Event) -> Option<(String, Value)> {
        if let Event::Node(view) = event {
            self.map_node(view)
        } else if let Event::Telemetry { node, values } = event {
            let fields = json!({ "node": node.node, "node_id": node.id, "values": values });
            Some(("Telemetry".to_owned(), fields))
        } else if let Event::Observed {
            kind,
            what,
            who,
            number,
            event,
        } = event
        {
            let (suffix, fields) = map_command_event(*event)?;
            let mut all = Map::new();
            all.insert("action".to_owned(), what.into());
            all.insert("who".to_owned(), who.into());
            all.insert("number".to_owned(), json!(number));
            all.extend(fields);
            Some((format!("{}{suffix}", command_prefix(kind)), Value::Object(all)))
        } else {
            None
        }
    }

    /// A node that is new or has changed: its state, names, tags, stop or warnings. A heartbeat, a self-check and a stop's
    /// journaling are no change.
    fn map_node(&mut self, view: NodeView) -> Option<(String, Value)> {
        let is_forgotten = view.is_forgotten();
        let stopped = view.stopped.map(|stop| {
            let (issuer, number, error) = (stop.issuer, stop.number, stop.error);
            json!({ "issuer": issuer, "number": number, "error": error })
        });
        let fields = json!({
            "node": view.node,
            "node_id": view.id,
            "state": view.state,
            "address": view.address,
            "tags": view.tags,
            "software": view.software,
            "stopped": stopped,
            "stop_unconfirmed": view.stop_unconfirmed,
            "warnings": view.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        let before = if is_forgotten {
            self.nodes.remove(&view.id)
        } else {
            self.nodes.insert(view.id, (view.state, fields.clone()))
        };
        let kind = match (&before, view.state) {
            (Some((_, before)), _) if *before == fields => return None,
            (Some((before, _)), state) if *before == state => "NodeChange",
            (_, NodeState::Online) => "NodeOnline",
            (_, NodeState::Silent) => "NodeSilent",
            (_, NodeState::Offline) => "NodeOffline",
        };
        let mut fields = fields;
        fields["initial"] = before.is_none().into();
        Some((kind.to_owned(), fields))
    }
}

fn command_prefix(kind: CommandKind) -> &'static str {
    match kind {
        CommandKind::Command => "Command",
        CommandKind::Send => "FileSend",
        CommandKind::Fetch => "FileFetch",
        CommandKind::Stop => "Stop",
        CommandKind::Release => "Release",
    }
}

/// The end of an event's type, and its fields, for an event of a command.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the list names what readers know; they are not sent a new event until it is added"
)]
fn map_command_event(event: Event) -> Option<(&'static str, Map<String, Value>)> {
    let (word, fields) = match event {
        Event::Targets { targets } => ("Start", json!({ "targets": targets })),
        Event::Stage { node, stage, ms } => (
            "Stage",
            json!({ "node": node.node, "node_id": node.id, "stage": stage, "ms": ms }),
        ),
        Event::Acknowledged { node, ms } => (
            "Acknowledged",
            json!({ "node": node.node, "node_id": node.id, "ms": ms }),
        ),
        Event::Progress { node, bytes, total } => (
            "Progress",
            json!({ "node": node.node, "node_id": node.id, "bytes": bytes, "total": total }),
        ),
        Event::Delivery(delivery) => (
            "Outcome",
            json!({
                "node": delivery.node,
                "node_id": delivery.id,
                "state": delivery.state,
                "value": delivery.value,
                "output": delivery.output,
                "exit": delivery.exit,
                "error": delivery.error,
                "ms": delivery.ms,
            }),
        ),
        Event::Failed { message, .. } => ("End", json!({ "error": message })),
        Event::End => ("End", json!({ "error": null })),
        _ => return None,
    };
    match fields {
        Value::Object(fields) => Some((word, fields)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
    }
}
