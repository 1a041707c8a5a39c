//! Temperatures of the nodes, now and before, as Knut's clients know them: each by the name of its node.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::knut::Message;
use swarm_shared::proto::selector::{Selector, Target};

use crate::config::doors::Knut;
use crate::fleet::{Event, NodeRef, NodeState, NodeView};

/// Knut's number for temperatures.
pub(super) const TEMPERATURE: i64 = 1;
/// One temperature; its answer is pushed too.
const STATUS: i64 = 1;
/// All of them.
const LIST: i64 = 2;
/// Past ones.
const HISTORY: i64 = 3;
/// What an answer's number has beyond its question's.
pub(super) const ANSWER: i64 = 0x0100;

/// As Knut writes it.
const UNIT: &str = "°C";
/// The sign of the Weather Icons font that Knut's documentation shows.
const CONDITION: &str = "\u{f002}";
/// As Knut says of a thermometer that there is not, or that has not measured.
const NOT_MEASURED: f64 = -273.15;

/// Most readings that a complaint names.
const NAMES_SHOWN: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Board {
    /// Where telemetry has the temperature.
    path: Vec<String>,
    shown: Selector,
    past_max: usize,
    nodes: BTreeMap<PeerId, Node>,
    complained: bool,
}

#[derive(Debug)]
struct Node {
    name: NodeName,
    tags: BTreeMap<String, String>,
    online: bool,
    /// Whether it has told any readings.
    told: bool,
    /// In degrees, to a tenth.
    temperature: Option<f64>,
    /// Degrees, and when in milliseconds since 1970; oldest first.
    past: VecDeque<(f64, u64)>,
}

impl Node {
    fn new(name: NodeName) -> Self {
        Self {
            name,
            tags: BTreeMap::new(),
            online: true,
            told: false,
            temperature: None,
            past: VecDeque::new(),
        }
    }
}

impl Board {
    pub(super) fn new(config: &Knut) -> Self {
        Self {
            path: config.temperature.clone(),
            shown: config.common.target.clone(),
            past_max: config.history,
            nodes: BTreeMap::new(),
            complained: false,
        }
    }

    /// Takes in what concerns it; what is to be pushed.
    pub(super) fn take(&mut self, event: Event) -> Option<Message> {
        match event {
            Event::Node(view) => {
                self.see(view);
                None
            }
            Event::Telemetry { node, values } => self.read(node, &values),
            Event::Targets { .. }
            | Event::Progress { .. }
            | Event::Stage { .. }
            | Event::Acknowledged { .. }
            | Event::Delivery(_)
            | Event::Note { .. }
            | Event::Issued { .. }
            | Event::Membership(_)
            | Event::Invitation(_)
            | Event::Member(_)
            | Event::Pending(_)
            | Event::Peer(_)
            | Event::Command(_)
            | Event::About(_)
            | Event::Past(_)
            | Event::Audit(_)
            | Event::User(_)
            | Event::Token(_)
            | Event::Told { .. }
            | Event::Missed { .. }
            | Event::Failed { .. }
            | Event::End => None,
        }
    }

    fn see(&mut self, view: NodeView) {
        let NodeView {
            node: name,
            id,
            state,
            tags,
            ..
        } = view;
        let node = self.nodes.entry(id).or_insert_with(|| Node::new(name.clone()));
        (node.name, node.tags) = (name, tags);
        node.online = state != NodeState::Offline;
    }

    /// Once, if the first readings of a node that is shown have no temperature where the configuration says: a slip there
    /// would else look like a fleet without thermometers.
    pub(super) fn complaint(&mut self, event: &Event) -> Option<String> {
        let Event::Telemetry { node, values } = event else {
            return None;
        };
        let is_new = |id| self.nodes.get(id).is_none_or(|known| !known.told);
        if self.complained || !is_new(&node.id) || self.find(values).flatten().is_some() {
            return None;
        }
        let here = self.nodes.get(&node.id).map(|known| &known.tags);
        let is_shown = here.is_some_and(|tags| {
            self.shown.matches(&Target {
                name: &node.node,
                id: &node.id,
                tags,
            })
        });
        if !is_shown {
            return None;
        }
        self.complained = true;
        let names: Vec<&str> = values.keys().take(NAMES_SHOWN).map(String::as_str).collect();
        Some(format!(
            "{} tells no number at {:?}, so Knut's clients get no temperature of it; it tells {}: set `temperature` in \
             [doors.knut] if another is meant",
            node.node,
            self.path.join("."),
            names.join(", "),
        ))
    }

    /// The temperature among new readings: `None` if they say nothing of it, `Some(None)` if there is none any more.
    fn find(&self, values: &Map<String, Value>) -> Option<Option<f64>> {
        let (first, rest) = self.path.split_first()?;
        let value = values.get(first)?;
        let value = rest.iter().try_fold(value, |value, name| value.get(name));
        let temperature = value.and_then(Value::as_f64);
        Some(temperature.map(|degrees| (degrees * 10.0).round() / 10.0))
    }

    fn read(&mut self, node: NodeRef, values: &Map<String, Value>) -> Option<Message> {
        let NodeRef { node: name, id } = node;
        let found = self.find(values);
        let node = self.nodes.entry(id).or_insert_with(|| Node::new(name));
        node.told = true;
        let temperature = found?;
        let before = std::mem::replace(&mut node.temperature, temperature);
        if temperature.is_none() || temperature == before {
            return None;
        }
        let (name, status) = self.shown().find(|(shown, ..)| *shown == id).map(status)?;
        Some(Message {
            api: TEMPERATURE,
            id: ANSWER + STATUS,
            msg: json!({ name: status }),
        })
    }

    /// Notes the present temperatures.
    pub(super) fn remember(&mut self, now_ms: u64) {
        for node in self.nodes.values_mut() {
            if let (Some(temperature), true) = (node.temperature, node.online) {
                node.past.push_back((temperature, now_ms));
            }
            while node.past.len() > self.past_max {
                node.past.pop_front();
            }
        }
    }

    /// The answer, and what was asked; a message that Knut does not know comes back.
    pub(super) fn answer(&self, message: &Message) -> (&'static str, Message) {
        let (what, msg) = match message.id {
            STATUS => ("status", self.status(message)),
            LIST => ("list", self.all()),
            HISTORY => ("history", self.history(message)),
            _ => return ("unknown message", message.clone()),
        };
        let answer = Message {
            api: TEMPERATURE,
            id: ANSWER + message.id,
            msg,
        };
        (what, answer)
    }

    /// All present temperatures, as one push.
    pub(super) fn everything(&self) -> Message {
        Message {
            api: TEMPERATURE,
            id: ANSWER + STATUS,
            msg: self.all(),
        }
    }

    fn all(&self) -> Value {
        let measured = self
            .shown()
            .filter(|(_, _, node)| node.online && node.temperature.is_some());
        Value::Object(measured.map(status).collect())
    }

    fn status(&self, message: &Message) -> Value {
        let Some(asked) = asked(message) else {
            return self.all();
        };
        let found = self.shown().find(|(_, name, _)| name == asked);
        let found = found.map(|(_, _, node)| of(node));
        let none = || json!({ "location": "", "unit": UNIT, "condition": "", "temperature": NOT_MEASURED });
        json!({ asked: found.unwrap_or_else(none) })
    }

    fn history(&self, message: &Message) -> Value {
        let asked = asked(message).unwrap_or_default();
        let found = self.shown().find(|(_, name, _)| name == asked);
        let past = found.map(|(_, _, node)| node.past.iter().copied());
        // As Knut says the time: seconds since 1970, with parts.
        let past = past
            .into_iter()
            .flatten()
            .map(|(degrees, at_ms)| (degrees, seconds(at_ms)));
        let (temperature, time): (Vec<f64>, Vec<f64>) = past.unzip();
        json!({ "id": asked, "temperature": temperature, "time": time })
    }

    /// The nodes that this door shows, each with the name that Knut's clients know it by: its own, and the beginning of
    /// its id too if another has the same.
    fn shown(&self) -> impl Iterator<Item = (PeerId, String, &Node)> {
        let meant = |(id, node): &(&PeerId, &Node)| {
            self.shown.matches(&Target {
                name: &node.name,
                id,
                tags: &node.tags,
            })
        };
        let mut names: BTreeMap<&NodeName, usize> = BTreeMap::new();
        for (_, node) in self.nodes.iter().filter(meant) {
            *names.entry(&node.name).or_default() += 1;
        }
        self.nodes.iter().filter(meant).map(move |(id, node)| {
            let name = match names.get(&node.name) {
                Some(1) => node.name.to_string(),
                _ => format!("{} {}", node.name, id.short()),
            };
            (*id, name, node)
        })
    }
}

fn status((_, name, node): (PeerId, String, &Node)) -> (String, Value) {
    (name, of(node))
}

fn of(node: &Node) -> Value {
    json!({
        "location": node.name,
        "unit": UNIT,
        "condition": CONDITION,
        "temperature": node.temperature.unwrap_or(NOT_MEASURED),
    })
}

/// Whose temperature is asked for; older clients call it otherwise.
fn asked(message: &Message) -> Option<&str> {
    let name = |key| message.msg.get(key).and_then(Value::as_str);
    name("id").or_else(|| name("uniqueName"))
}

fn seconds(at_ms: u64) -> f64 {
    std::time::Duration::from_millis(at_ms).as_secs_f64()
}
