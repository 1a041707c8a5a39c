//! The table of nodes, and lines about their changes.

use std::collections::BTreeMap;

use swarm_shared::proto::id::{PeerId, PeerKind};

use super::readings::TelemetryColumns;
use super::table::{self, Cell};
use super::{Paint, Style, format_age, sanitize};
use crate::text::natural_key;
use swarm_shared::api::{NodeState, NodeView};

const HEADING: [&str; 8] = [
    "NAME", "ID", "STATE", "HEARD", "ADDRESS", "TAGS", "VERSION", "CHECKS",
];
/// Columns that are dropped where not all fit, in this order: state and checks matter more.
const DROP_ORDER: [&str; 4] = ["VERSION", "TAGS", "ADDRESS", "ID"];
/// Readings that are dropped only after those columns.
const READINGS_KEPT: usize = 3;

/// All nodes, the newest view of each.
#[derive(Debug, Default)]
pub struct NodeTable(BTreeMap<PeerId, NodeView>);

impl NodeTable {
    /// Stores a view; returns a line about the change if it matters. A node that has left is reported once more and
    /// dropped: no update of it follows, and devices that connect under ever new ids must not fill the screen.
    pub fn update(&mut self, view: &NodeView, style: Style) -> Option<String> {
        let old = if view.has_left() {
            self.0.remove(&view.id)
        } else {
            self.0.insert(view.id, view.clone())
        };
        // A departure is reported once.
        let changed = old.map_or(!view.has_left(), |old| {
            (old.state, &old.node, old.address, &old.warnings)
                != (view.state, &view.node, view.address, &view.warnings)
        });
        changed.then(|| change_line(view, style))
    }

    /// The state of the node with this name, if one has it.
    pub fn state(&self, name: &str) -> Option<NodeState> {
        self.0
            .values()
            .find(|view| view.node.as_str() == name)
            .map(|view| view.state)
    }

    /// Whether no node is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The table, then a line of counts. `view_age_ms`: how long ago each view came, to advance its age.
    pub fn table(&self, view_age_ms: impl Fn(&PeerId) -> u64, style: Style) -> Vec<String> {
        if self.0.is_empty() {
            return vec![self.counts(style)];
        }
        let mut views: Vec<&NodeView> = self.0.values().collect();
        views.sort_by_key(|view| (natural_key(&view.node), view.id));
        let readings = TelemetryColumns::from_views(&views);
        let rows: Vec<Vec<Cell>> = views
            .iter()
            .enumerate()
            .map(|(at, view)| {
                // An online node is heard every second, which is not reported to watchers.
                let older = if view.state == NodeState::Online {
                    0
                } else {
                    view_age_ms(&view.id)
                };
                let heard = view.last_heard_ms.map(|ms| ms.saturating_add(older));
                let telemetry = readings.row(at).map(Cell::plain);
                row(view, heard).into_iter().chain(telemetry).collect()
            })
            .collect();
        let names = readings.headings();
        let heading: Vec<&str> = HEADING
            .iter()
            .copied()
            .chain(names.iter().map(String::as_str))
            .collect();
        let (first, more) = names.split_at(names.len().min(READINGS_KEPT));
        let reversed = |names: &'_ [String]| names.iter().rev().cloned().collect::<Vec<String>>();
        let less = [
            reversed(more),
            DROP_ORDER.map(str::to_owned).to_vec(),
            reversed(first),
        ]
        .concat();
        let less: Vec<&str> = less.iter().map(String::as_str).collect();
        let mut lines = table::render(
            &heading,
            &table::drop_columns_to_fit(&heading, &rows, style, &less),
            style,
        );
        for view in &views {
            for warning in &view.warnings {
                let text = format!("{}: {}", view.node, sanitize(&warning.to_string()));
                let text = table::truncate(&text, style.columns.unwrap_or(usize::MAX));
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
                parts.push(style.paint(&format!("{count} {}", state.as_str()), state_paint(state)));
            }
        }
        for (held, word) in [(false, "stopped"), (true, "HELD")] {
            let stops = self.0.values().filter_map(|view| view.stopped.as_ref());
            let count = stops.filter(|stop| stop.held == held).count();
            if count > 0 {
                parts.push(style.paint(&format!("{count} {word}"), Paint::Bad));
            }
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
        .map(|(key, value)| sanitize(&format!("{key}={value}")))
        .collect();
    let name = match view.kind {
        PeerKind::Node => view.node.to_string(),
        PeerKind::Station => format!("{} (station)", view.node),
    };
    vec![
        Cell::plain(name),
        Cell::painted(view.id.short(), Paint::Dim),
        Cell::painted(state_text(view), node_paint(view)),
        Cell::plain(format_age(heard)),
        Cell::optional(view.address),
        Cell::plain(tags.join(" ")),
        Cell::plain(view.software.as_deref().map(sanitize).unwrap_or_default()),
        checks(view),
    ]
}

fn checks(view: &NodeView) -> Cell {
    let bad: Vec<String> = view
        .checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| {
            sanitize(
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

fn change_line(view: &NodeView, style: Style) -> String {
    let address = view
        .address
        .map(|address| format!("  {address}"))
        .unwrap_or_default();
    let warnings: String = view
        .warnings
        .iter()
        .map(|warning| format!("  {}", sanitize(&warning.to_string())))
        .collect();
    let state = style.paint(&state_text(view), node_paint(view));
    format!(
        "{}  {state}{address}{}",
        view.node,
        style.paint(&warnings, Paint::Warning)
    )
}

fn is_unconfirmed(view: &NodeView) -> bool {
    view.stopped.is_none() && view.stop_unconfirmed.is_some()
}

/// `online`, `online, STOPPED` while an emergency stop is in force there, `online, HELD` while the node does not know, or
/// `online, STOP?` if it has not confirmed one.
fn state_text(view: &NodeView) -> String {
    let stopped = match (&view.stopped, view.stop_unconfirmed) {
        (Some(stop), _) if stop.held => ", HELD",
        (Some(_), _) => ", STOPPED",
        (None, Some(_)) => ", STOP?",
        (None, None) => "",
    };
    format!("{}{stopped}", view.state.as_str())
}

fn node_paint(view: &NodeView) -> Paint {
    if view.stopped.is_some() || view.stop_unconfirmed.is_some() {
        Paint::Bad
    } else {
        state_paint(view.state)
    }
}

fn state_paint(state: NodeState) -> Paint {
    match state {
        NodeState::Online => Paint::Good,
        NodeState::Silent => Paint::Warning,
        NodeState::Offline => Paint::Bad,
    }
}
