//! Temperatures of the nodes, now and before, as Knut's clients know them: each by the name of its node.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::knut::Message;
use swarm_shared::proto::selector::{Selector, Target};

use crate::config::gateways::Knut;
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
    target: Selector,
    past_max: usize,
    nodes: BTreeMap<PeerId, Node>,
    complained: bool,
}

#[derive(Debug)]
struct Node {
    name: NodeName,
    tags: BTreeMap<String, String>,
    /// How Knut's clients know it, if this door shows it: by its name, and the beginning of its id too if another has
    /// the same.
    shown_as: Option<String>,
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
            shown_as: None,
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
            target: config.common.target.clone(),
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
        if view.has_left() {
            // What is called so now has the name to itself.
            if self.nodes.remove(&view.id).is_some() {
                self.call();
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
        self.call();
    }

    /// Finds out whom this door shows, and what they are called: not for each question, as there may be thousands.
    fn call(&mut self) {
        let Self { nodes, target, .. } = self;
        let mut names: BTreeMap<NodeName, usize> = BTreeMap::new();
        for (id, node) in nodes.iter_mut() {
            let meant = Target {
                name: &node.name,
                id,
                tags: &node.tags,
            };
            node.shown_as = target.matches(&meant).then(|| node.name.to_string());
            if node.shown_as.is_some() {
                *names.entry(node.name.clone()).or_default() += 1;
            }
        }
        for (id, node) in nodes.iter_mut() {
            if let Some(name) = &mut node.shown_as
                && names.get(&node.name).is_some_and(|&called_so| called_so > 1)
            {
                *name = format!("{} {}", node.name, id.short());
            }
        }
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
        self.nodes.get(&node.id)?.shown_as.as_ref()?;
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
        if let Entry::Vacant(place) = self.nodes.entry(id) {
            place.insert(Node::new(name));
            self.call();
        }
        let node = self.nodes.get_mut(&id)?;
        node.told = true;
        let temperature = found?;
        let before = std::mem::replace(&mut node.temperature, temperature);
        if temperature.is_none() || temperature == before {
            return None;
        }
        let name = node.shown_as.as_ref()?;
        Some(Message {
            api: TEMPERATURE,
            id: ANSWER + STATUS,
            msg: json!({ name: of(node) }),
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
            .filter(|(_, node)| node.online && node.temperature.is_some());
        let told = measured.map(|(name, node)| (name.to_owned(), of(node)));
        Value::Object(told.collect())
    }

    fn status(&self, message: &Message) -> Value {
        let Some(asked) = asked(message) else {
            return self.all();
        };
        let found = self.called(asked).map(of);
        let none = || json!({ "location": "", "unit": UNIT, "condition": "", "temperature": NOT_MEASURED });
        json!({ asked: found.unwrap_or_else(none) })
    }

    fn history(&self, message: &Message) -> Value {
        let asked = asked(message).unwrap_or_default();
        let past = self.called(asked).map(|node| node.past.iter().copied());
        // As Knut says the time: seconds since 1970, with parts.
        let past = past
            .into_iter()
            .flatten()
            .map(|(degrees, at_ms)| (degrees, seconds(at_ms)));
        let (temperature, time): (Vec<f64>, Vec<f64>) = past.unzip();
        json!({ "id": asked, "temperature": temperature, "time": time })
    }

    /// The nodes that this door shows, each with the name that Knut's clients know it by.
    fn shown(&self) -> impl Iterator<Item = (&str, &Node)> {
        let nodes = self.nodes.values();
        nodes.filter_map(|node| Some((node.shown_as.as_deref()?, node)))
    }

    fn called(&self, asked: &str) -> Option<&Node> {
        let mut shown = self.shown();
        shown.find_map(|(name, node)| (name == asked).then_some(node))
    }
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
