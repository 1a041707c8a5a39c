//! Who is there.

use std::collections::BTreeMap;

use swarm_shared::proto::id::{PeerId, PeerKind};

use super::fold::natural_key;
use super::readings::Readings;
use super::table::{self, Cell};
use super::{Paint, Style, ago, harmless};
use crate::fleet::{NodeState, NodeView};

const HEADING: [&str; 8] = [
    "NAME", "ID", "STATE", "HEARD", "ADDRESS", "TAGS", "VERSION", "CHECKS",
];
/// What is left out where not all fits, the first first: whether a node is well matters more.
const LESS: [&str; 4] = ["VERSION", "TAGS", "ADDRESS", "ID"];
/// Readings that are left out after those, and not before.
const READINGS_KEPT: usize = 3;

/// All nodes, the newest view of each.
#[derive(Debug, Default)]
pub struct Nodes(BTreeMap<PeerId, NodeView>);

impl Nodes {
    /// Takes in a view; returns the line that says what changed, if it is worth one. Who has left is told of once more,
    /// and not kept: nobody would say any more how it is, and whoever connects under ever new ids would fill the screen.
    pub fn add(&mut self, view: &NodeView, style: Style) -> Option<String> {
        let old = if view.has_left() {
            self.0.remove(&view.id)
        } else {
            self.0.insert(view.id, view.clone())
        };
        // That it has left is told once.
        let changed = old.map_or(!view.has_left(), |old| {
            (old.state, &old.node, old.address, &old.warnings)
                != (view.state, &view.node, view.address, &view.warnings)
        });
        changed.then(|| change(view, style))
    }

    /// The state of the node with this name, if one has it.
    pub fn state(&self, name: &str) -> Option<NodeState> {
        self.0
            .values()
            .find(|view| view.node.as_str() == name)
            .map(|view| view.state)
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The table, and one line that counts. `older_ms`: how long ago each view was taken, for redrawing.
    pub fn table(&self, older_ms: impl Fn(&PeerId) -> u64, style: Style) -> Vec<String> {
        if self.0.is_empty() {
            return vec![self.counts(style)];
        }
        let mut views: Vec<&NodeView> = self.0.values().collect();
        views.sort_by_key(|view| (natural_key(&view.node), view.id));
        let readings = Readings::of(&views);
        let rows: Vec<Vec<Cell>> = views
            .iter()
            .enumerate()
            .map(|(at, view)| {
                // Whoever is online is heard every second, without a word to whoever watches.
                let older = if view.state == NodeState::Online {
                    0
                } else {
                    older_ms(&view.id)
                };
                let heard = view.last_heard_ms.map(|ms| ms.saturating_add(older));
                let told = readings.row(at).map(Cell::plain);
                row(view, heard).into_iter().chain(told).collect()
            })
            .collect();
        let names = readings.names();
        let heading: Vec<&str> = HEADING
            .iter()
            .copied()
            .chain(names.iter().map(String::as_str))
            .collect();
        let (first, more) = names.split_at(names.len().min(READINGS_KEPT));
        let last_first = |names: &'_ [String]| names.iter().rev().cloned().collect::<Vec<String>>();
        let less = [
            last_first(more),
            LESS.map(str::to_owned).to_vec(),
            last_first(first),
        ]
        .concat();
        let less: Vec<&str> = less.iter().map(String::as_str).collect();
        let mut lines = table::render(&heading, &table::fitting(&heading, &rows, style, &less), style);
        for view in &views {
            for warning in &view.warnings {
                let text = format!("{}: {}", view.node, harmless(warning));
                let text = table::cut(&text, style.columns.unwrap_or(usize::MAX));
                lines.push(style.paint(&text, Paint::Warning));
            }
        }
        lines.push(String::new());
        lines.push(self.counts(style));
        lines
    }

    /// `3 online, 1 silent, 2 offline, 1 stopped`.
    fn counts(&self, style: Style) -> String {
        let mut parts = Vec::new();
        for state in [NodeState::Online, NodeState::Silent, NodeState::Offline] {
            let count = self.0.values().filter(|view| view.state == state).count();
            if count > 0 {
                parts.push(style.paint(&format!("{count} {}", state.as_str()), paint_of(state)));
            }
        }
        let stopped = self.0.values().filter(|view| view.stopped.is_some()).count();
        if stopped > 0 {
            parts.push(style.paint(&format!("{stopped} stopped"), Paint::Bad));
        }
        let unconfirmed = self.0.values().filter(|view| is_unconfirmed(view)).count();
        if unconfirmed > 0 {
            parts.push(style.paint(&format!("{unconfirmed} NOT KNOWN TO BE STOPPED"), Paint::Bad));
        }
        if parts.is_empty() {
            "no nodes yet".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

fn row(view: &NodeView, heard: Option<u64>) -> Vec<Cell> {
    let tags: Vec<String> = view
        .tags
        .iter()
        .map(|(key, value)| harmless(&format!("{key}={value}")))
        .collect();
    let name = match view.kind {
        PeerKind::Node => view.node.to_string(),
        PeerKind::Station => format!("{} (station)", view.node),
    };
    vec![
        Cell::plain(name),
        Cell::painted(view.id.short(), Paint::Dim),
        Cell::painted(state(view), paint(view)),
        Cell::plain(ago(heard)),
        Cell::plain(
            view.address
                .map(|address| address.to_string())
                .unwrap_or_default(),
        ),
        Cell::plain(tags.join(" ")),
        Cell::plain(view.software.as_deref().map(harmless).unwrap_or_default()),
        checks(view),
    ]
}

fn checks(view: &NodeView) -> Cell {
    let bad: Vec<String> = view
        .checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| {
            harmless(
                &check
                    .text
                    .as_ref()
                    .map_or(check.name.clone(), |text| format!("{}: {text}", check.name)),
            )
        })
        .collect();
    match (view.checks.is_empty(), bad.is_empty()) {
        (true, _) => Cell::plain(""),
        (false, true) => Cell::painted("ok", Paint::Good),
        (false, false) => Cell::painted(bad.join("; "), Paint::Bad),
    }
}

fn change(view: &NodeView, style: Style) -> String {
    let address = view
        .address
        .map(|address| format!("  {address}"))
        .unwrap_or_default();
    let warnings: String = view
        .warnings
        .iter()
        .map(|warning| format!("  {}", harmless(warning)))
        .collect();
    let state = style.paint(&state(view), paint(view));
    format!(
        "{}  {state}{address}{}",
        view.node,
        style.paint(&warnings, Paint::Warning)
    )
}

fn is_unconfirmed(view: &NodeView) -> bool {
    view.stopped.is_none() && view.stop_unconfirmed.is_some()
}

/// `online`, `online, STOPPED` while an emergency stop is in force there, or `online, STOP?` if it has not confirmed one.
fn state(view: &NodeView) -> String {
    let stopped = match (&view.stopped, view.stop_unconfirmed) {
        (Some(_), _) => ", STOPPED",
        (None, Some(_)) => ", STOP?",
        (None, None) => "",
    };
    format!("{}{stopped}", view.state.as_str())
}

fn paint(view: &NodeView) -> Paint {
    if view.stopped.is_some() || view.stop_unconfirmed.is_some() {
        Paint::Bad
    } else {
        paint_of(view.state)
    }
}

fn paint_of(state: NodeState) -> Paint {
    match state {
        NodeState::Online => Paint::Good,
        NodeState::Silent => Paint::Warning,
        NodeState::Offline => Paint::Bad,
    }
}
