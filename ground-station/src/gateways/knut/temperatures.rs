//! The nodes' present and past temperatures in Knut's form, by node name.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};
use swarm_shared::proto::foreign::knut::Message;
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::selector::{NodeAttributes, Selector};

use crate::config::gateways::KnutConfig;
use swarm_shared::api::{Event, NodeRef, NodeState, NodeView};

/// Knut's `apiId` of temperatures.
pub(super) const TEMPERATURE: i64 = 1;
/// `msgId` of one temperature; its answer is pushed too.
const STATUS: i64 = 1;
/// `msgId` of all temperatures.
const LIST: i64 = 2;
/// `msgId` of past temperatures.
const HISTORY: i64 = 3;
/// Added to a request's `msgId` for its answer.
pub(super) const RESPONSE_OFFSET: i64 = 0x0100;

/// Knut's unit.
const UNIT: &str = "°C";
/// The glyph of the Weather Icons font in Knut's documentation.
const CONDITION: &str = "\u{f002}";
/// Knut's value of a thermometer that does not exist or has not measured.
const NOT_MEASURED: f64 = -273.15;

/// Most readings in a warning.
const NAMES_SHOWN: usize = 16;

/// The temperatures of all nodes.
#[derive(Debug)]
pub(super) struct TemperatureCache {
    /// The path of the temperature in a node's telemetry.
    path: Vec<String>,
    target: Selector,
    history_max: usize,
    nodes: BTreeMap<PeerId, Node>,
    has_warned: bool,
}

#[derive(Debug)]
struct Node {
    name: NodeName,
    tags: BTreeMap<String, String>,
    /// Its name for Knut's clients, with a prefix of its id if other nodes have the same name; `None` if the gateway's
    /// `target` does not match it.
    display_name: Option<String>,
    online: bool,
    /// Whether it has sent telemetry.
    has_reported: bool,
    /// Degrees Celsius, rounded to a tenth.
    temperature: Option<f64>,
    /// Degrees, and milliseconds since 1970; oldest first.
    history: VecDeque<(f64, u64)>,
}

impl Node {
    fn new(name: NodeName) -> Self {
        Self {
            name,
            tags: BTreeMap::new(),
            display_name: None,
            online: true,
            has_reported: false,
            temperature: None,
            history: VecDeque::new(),
        }
    }
}

impl TemperatureCache {
    /// An empty cache.
    pub(super) fn new(config: &KnutConfig) -> Self {
        Self {
            path: config.temperature.clone(),
            target: config.common.target.clone(),
            history_max: config.history,
            nodes: BTreeMap::new(),
            has_warned: false,
        }
    }

    /// Updates the cache. Returns a message to push if a temperature has changed.
    pub(super) fn on_event(&mut self, event: Event) -> Option<Message> {
        if let Event::Telemetry { node, values } = event {
            return self.on_telemetry(node, &values);
        }
        if let Event::Node(view) = event {
            self.on_node(view);
        }
        None
    }

    fn on_node(&mut self, view: NodeView) {
        if view.has_left() {
            // Another node may have this name to itself now.
            if self.nodes.remove(&view.id).is_some() {
                self.assign_names();
            }
            return;
        }
        let NodeView {
            node: name,
            id,
            state,
            tags,
            ..
        } = view;
        let online = state != NodeState::Offline;
        if let Some(known) = self.nodes.get_mut(&id)
            && (&known.name, &known.tags) == (&name, &tags)
        {
            known.online = online;
            return;
        }
        let node = self.nodes.entry(id).or_insert_with(|| Node::new(name.clone()));
        (node.name, node.tags, node.online) = (name, tags, online);
        self.assign_names();
    }

    /// Updates the display names of all nodes. Not per request, since there may be thousands of either.
    fn assign_names(&mut self) {
        let Self { nodes, target, .. } = self;
        let mut names: BTreeMap<NodeName, usize> = BTreeMap::new();
        for (id, node) in nodes.iter_mut() {
            let meant = NodeAttributes {
                name: &node.name,
                id,
                tags: &node.tags,
            };
            node.display_name = target.matches(&meant).then(|| node.name.to_string());
            if node.display_name.is_some() {
                *names.entry(node.name.clone()).or_default() += 1;
            }
        }
        for (id, node) in nodes.iter_mut() {
            if let Some(name) = &mut node.display_name
                && names.get(&node.name).is_some_and(|&called_so| called_so > 1)
            {
                *name = format!("{} {}", node.name, id.short());
            }
        }
    }

    /// A warning, once, if a node's first telemetry has no temperature at the configured path: a misspelt path would look like
    /// a fleet without thermometers.
    pub(super) fn missing_sensor_warning(&mut self, event: &Event) -> Option<String> {
        let Event::Telemetry { node, values } = event else {
            return None;
        };
        let is_new = |id| self.nodes.get(id).is_none_or(|known| !known.has_reported);
        if self.has_warned || !is_new(&node.id) || self.read_temperature(values).flatten().is_some() {
            return None;
        }
        self.nodes.get(&node.id)?.display_name.as_ref()?;
        self.has_warned = true;
        let names: Vec<&str> = values.keys().take(NAMES_SHOWN).map(String::as_str).collect();
        Some(format!(
            "{} tells no number at {:?}, so Knut's clients get no temperature of it; it tells {}: set `temperature` in \
             [gateways.knut] if another is meant",
            node.node,
            self.path.join("."),
            names.join(", "),
        ))
    }

    /// The temperature in telemetry: `None` if it is absent, `Some(None)` if it is no number any more.
    fn read_temperature(&self, values: &Map<String, Value>) -> Option<Option<f64>> {
        let (first, rest) = self.path.split_first()?;
        let value = values.get(first)?;
        let value = rest.iter().try_fold(value, |value, name| value.get(name));
        let temperature = value.and_then(Value::as_f64);
        Some(temperature.map(|degrees| (degrees * 10.0).round() / 10.0))
    }

    fn on_telemetry(&mut self, node: NodeRef, values: &Map<String, Value>) -> Option<Message> {
        let NodeRef { node: name, id } = node;
        let found = self.read_temperature(values);
        if let Entry::Vacant(place) = self.nodes.entry(id) {
            place.insert(Node::new(name));
            self.assign_names();
        }
        let node = self.nodes.get_mut(&id)?;
        node.has_reported = true;
        let temperature = found?;
        let before = std::mem::replace(&mut node.temperature, temperature);
        if temperature.is_none() || temperature == before {
            return None;
        }
        let name = node.display_name.as_ref()?;
        Some(Message {
            api: TEMPERATURE,
            id: RESPONSE_OFFSET + STATUS,
            msg: json!({ name: node_json(node) }),
        })
    }

    /// Appends the present temperatures of online nodes to their histories.
    pub(super) fn record_history(&mut self, now_ms: u64) {
        for node in self.nodes.values_mut() {
            if let (Some(temperature), true) = (node.temperature, node.online) {
                node.history.push_back((temperature, now_ms));
            }
            while node.history.len() > self.history_max {
                node.history.pop_front();
            }
        }
    }

    /// The kind of request, for the audit, and the answer: the message itself if its `msgId` is unknown.
    pub(super) fn respond(&self, message: &Message) -> (&'static str, Message) {
        let (what, msg) = match message.id {
            STATUS => ("status", self.status_json(message)),
            LIST => ("list", self.all_json()),
            HISTORY => ("history", self.history_json(message)),
            _ => return ("unknown message", message.clone()),
        };
        let answer = Message {
            api: TEMPERATURE,
            id: RESPONSE_OFFSET + message.id,
            msg,
        };
        (what, answer)
    }

    /// All present temperatures, as one push.
    pub(super) fn all_as_push(&self) -> Message {
        Message {
            api: TEMPERATURE,
            id: RESPONSE_OFFSET + STATUS,
            msg: self.all_json(),
        }
    }

    fn all_json(&self) -> Value {
        let measured = self
            .shown_nodes()
            .filter(|(_, node)| node.online && node.temperature.is_some());
        let told = measured.map(|(name, node)| (name.to_owned(), node_json(node)));
        Value::Object(told.collect())
    }

    fn status_json(&self, message: &Message) -> Value {
        let Some(asked) = requested_name(message) else {
            return self.all_json();
        };
        let found = self.find_by_name(asked).map(node_json);
        let none = || json!({ "location": "", "unit": UNIT, "condition": "", "temperature": NOT_MEASURED });
        json!({ asked: found.unwrap_or_else(none) })
    }

    fn history_json(&self, message: &Message) -> Value {
        let asked = requested_name(message).unwrap_or_default();
        let past = self.find_by_name(asked).map(|node| node.history.iter().copied());
        // Knut's time: seconds since 1970, with fractions.
        let past = past
            .into_iter()
            .flatten()
            .map(|(degrees, at_ms)| (degrees, to_seconds(at_ms)));
        let (temperature, time): (Vec<f64>, Vec<f64>) = past.unzip();
        json!({ "id": asked, "temperature": temperature, "time": time })
    }

    /// The nodes that the gateway's `target` matches, with their display names.
    fn shown_nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        let nodes = self.nodes.values();
        nodes.filter_map(|node| Some((node.display_name.as_deref()?, node)))
    }

    fn find_by_name(&self, asked: &str) -> Option<&Node> {
        let mut shown = self.shown_nodes();
        shown.find_map(|(name, node)| (name == asked).then_some(node))
    }
}

fn node_json(node: &Node) -> Value {
    json!({
        "location": node.name,
        "unit": UNIT,
        "condition": CONDITION,
        "temperature": node.temperature.unwrap_or(NOT_MEASURED),
    })
}

/// The requested node; older clients have another key for it.
fn requested_name(message: &Message) -> Option<&str> {
    let name = |key| message.msg.get(key).and_then(Value::as_str);
    name("id").or_else(|| name("uniqueName"))
}

fn to_seconds(at_ms: u64) -> f64 {
    std::time::Duration::from_millis(at_ms).as_secs_f64()
}
