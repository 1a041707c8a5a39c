//! The history: commands, their deliveries and the audit.
//!
//! ```text
//! NO  WHEN       WHO  WHAT               TO       ENDED
//! 12  3 min ago  pi   led color=#ff0000  drone-*  11 done, 1 no-answer
//! ```
//!
//! ```text
//! command 12: led color=#ff0000
//! by pi, 2026-11-21 05:16:19Z (3 min ago), to drone-*, time to live 30.0 s
//!
//! drone-[01-11] (11 nodes)  done  received 0.31 ms to 2.10 ms, accepted …, started …, finished …
//!   LED set to #ff0000
//! drone-12  open  received 0.31 ms
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::outcome::Outcome;

use super::datetime::{age_or_date, utc_datetime};
use super::deliveries::{self, DeliveryReport};
use super::table::{self, Cell};
use super::{Paint, Style, format_ms, sanitize};
use crate::duration;
use crate::text::natural_key;
use swarm_shared::api::{AuditView, CommandKind, CommandView, Event, HistoryDelivery, HistoryState, NodeRef};

/// Widest description of a command in a table, in columns.
const SUMMARY_COLUMNS_MAX: usize = 48;

/// Deliveries with equal state, details and stages are one group.
type GroupKey = (HistoryState, Vec<String>, Vec<Stage>);

/// The answer of the history.
#[derive(Debug, Default)]
pub struct HistoryReport {
    commands: Vec<CommandView>,
    deliveries: Vec<HistoryDelivery>,
    audit: Vec<AuditView>,
}

impl HistoryReport {
    /// Handles an event; those of other requests are ignored.
    pub fn on_event(&mut self, event: &Event) {
        if let Event::Command(view) | Event::CommandDetails(view) = event {
            self.commands.push(view.clone());
        } else if let Event::HistoryDelivery(view) = event {
            self.deliveries.push(view.clone());
        } else if let Event::Audit(view) = event {
            self.audit.push(view.clone());
        }
    }

    /// Whether the answer is empty.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.audit.is_empty()
    }

    /// Whether a command came without deliveries.
    pub fn has_no_deliveries(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// The commands, newest first.
    pub fn commands_table(&self, now_ms: u64, style: Style) -> Vec<String> {
        let rows: Vec<Vec<Cell>> = self
            .commands
            .iter()
            .map(|view| {
                vec![
                    Cell::plain(view.command.to_string()),
                    Cell::plain(age_or_date(view.at_ms, now_ms)),
                    Cell::plain(sanitize(&view.who)),
                    Cell::plain(table::truncate(
                        &one_line(&command_summary(view)),
                        SUMMARY_COLUMNS_MAX,
                    )),
                    Cell::plain(table::truncate(&one_line(&view.selector), SUMMARY_COLUMNS_MAX)),
                    outcomes_cell(view),
                ]
            })
            .collect();
        table::render(&["NO", "WHEN", "WHO", "WHAT", "TO", "ENDED"], &rows, style)
    }

    /// The audit, newest first.
    pub fn audit_table(&self, now_ms: u64, style: Style) -> Vec<String> {
        let rows: Vec<Vec<Cell>> = self
            .audit
            .iter()
            .map(|entry| {
                vec![
                    Cell::plain(age_or_date(entry.at_ms, now_ms)),
                    Cell::plain(one_line(&entry.who)),
                    Cell::plain(one_line(&entry.what)),
                    Cell::plain(one_line(&entry.detail)),
                    Cell::plain(one_line(&entry.outcome)),
                ]
            })
            .collect();
        table::render(&["WHEN", "WHO", "WHAT", "DETAIL", "OUTCOME"], &rows, style)
    }

    /// One command with its deliveries: equal ones in one group, successes first.
    pub fn command_details(&self, now_ms: u64, style: Style) -> String {
        let Some(view) = self.commands.first() else {
            return String::new();
        };
        let mut text = format!(
            "{}\nby {}, {} ({}), to {}, time to live {}\n",
            style.paint(
                &format!("command {}: {}", view.command, one_line(&command_summary(view))),
                Paint::Strong
            ),
            sanitize(&view.who),
            utc_datetime(view.at_ms),
            age_or_date(view.at_ms, now_ms),
            sanitize(&view.selector),
            duration::show(Duration::from_millis(view.ttl_ms)),
        );
        if let Some(number) = view.retry_of {
            text.push_str(&format!("repeats command {number}\n"));
        }
        if let [first, more @ ..] = view.retried_by.as_slice() {
            let all = more
                .iter()
                .fold(first.to_string(), |all, number| format!("{all}, {number}"));
            let commands = if more.is_empty() { "command" } else { "commands" };
            text.push_str(&format!("repeated by {commands} {all}\n"));
        }
        if let Some(batch) = &view.batch {
            text.push_str(&format!("in batches of {}\n", sanitize(batch)));
        }
        text.push('\n');
        text.push_str(&self.groups(style));
        text
    }

    fn groups(&self, style: Style) -> String {
        let mut report = DeliveryReport::default();
        let target = |delivery: &HistoryDelivery| NodeRef {
            node: delivery.node.clone(),
            id: delivery.id,
        };
        report.on_event(&Event::Targets {
            targets: self.deliveries.iter().map(target).collect(),
        });
        let mut groups: BTreeMap<GroupKey, Vec<&HistoryDelivery>> = BTreeMap::new();
        for delivery in &self.deliveries {
            let stages = delivery.stages.keys().copied().collect();
            groups
                .entry((delivery.state, delivery_lines(delivery), stages))
                .or_default()
                .push(delivery);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        for (_, members) in &mut groups {
            members.sort_by_key(|delivery| (natural_key(&delivery.node), delivery.id));
        }
        groups.sort_by_key(|((state, _, _), members)| {
            (*state, members.first().map(|first| natural_key(&first.node)))
        });
        let mut text = String::new();
        for ((state, lines, _), members) in groups {
            let who = report.format_nodes(members.iter().map(|delivery| (&delivery.node, delivery.id)));
            let times = stage_times(state, &members);
            let times = if times.is_empty() {
                times
            } else {
                format!("  {}", style.paint(&times, Paint::Dim))
            };
            text.push_str(&format!(
                "{}  {}{times}\n",
                style.paint(&who, Paint::Strong),
                style.paint(state.as_str(), state_paint(state))
            ));
            for line in lines {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }

    /// Whether any delivery has not ended.
    pub fn has_open_deliveries(&self) -> bool {
        self.deliveries
            .iter()
            .any(|delivery| delivery.state == HistoryState::Open)
    }

    /// The exit status for one command, as if it had just ended; open deliveries count as not answered.
    pub fn exit_status(&self) -> u8 {
        let worst = self.deliveries.iter().map(|delivery| match delivery.state {
            HistoryState::Ended(Outcome::Done) => 0,
            HistoryState::Ended(Outcome::NoAnswer) | HistoryState::Open => 1,
            HistoryState::Ended(Outcome::Failed | Outcome::Refused | Outcome::Expired | Outcome::Unknown) => {
                2
            }
        });
        match worst.max() {
            None | Some(0) => 0,
            Some(1) => 4,
            Some(_) => 1,
        }
    }
}

/// A command in one line: `led color=#ff0000`, `send shows/take1.csv`.
fn command_summary(view: &CommandView) -> String {
    match view.kind {
        CommandKind::Command => {
            let mut words = vec![view.action.clone()];
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if let Some(args) = view.arguments.get("args").and_then(Value::as_array) {
                words.extend(args.iter().map(shown));
            }
            if let Some(fields) = view.arguments.get("kwargs").and_then(Value::as_object) {
                words.extend(
                    fields
                        .iter()
                        .map(|(key, value)| format!("{key}={}", shown(value))),
                );
            }
            words.join(" ")
        }
        CommandKind::Send | CommandKind::Fetch => format!("{} {}", view.kind, view.action),
        CommandKind::Stop | CommandKind::Release => view.action.clone(),
    }
}

fn one_line(text: &str) -> String {
    sanitize(text).replace(['\n', '\t'], " ")
}

/// `11 done, 1 open`, in the colour of the worst state.
fn outcomes_cell(view: &CommandView) -> Cell {
    let parts: Vec<String> = view
        .states
        .iter()
        .map(|(state, count)| format!("{count} {}", state.as_str()))
        .collect();
    let worst = view
        .states
        .keys()
        .map(|state| state_paint(*state))
        .max_by_key(|paint| match paint {
            Paint::Bad => 2,
            Paint::Warning => 1,
            Paint::Good | Paint::Strong | Paint::Dim => 0,
        });
    let text = parts.join(", ");
    match worst {
        Some(worst) => Cell::painted(text, worst),
        None => Cell::plain(text),
    }
}

fn delivery_lines(delivery: &HistoryDelivery) -> Vec<String> {
    let about = delivery.about.as_deref().map(sanitize);
    let end = deliveries::result_lines(
        delivery.output.as_deref(),
        delivery.value.as_ref(),
        delivery.exit,
        delivery.error.as_deref(),
    );
    about.into_iter().chain(end).collect()
}

/// `received 0.31 ms, accepted 0.40 ms to 2.10 ms`; for an outcome without the node, the time of the outcome.
fn stage_times(state: HistoryState, members: &[&HistoryDelivery]) -> String {
    let mut parts = Vec::new();
    for stage in [Stage::Received, Stage::Accepted, Stage::Started, Stage::Finished] {
        let at = members
            .iter()
            .filter_map(|delivery| delivery.stages.get(&stage).copied());
        parts.extend(format_range(at).map(|range| format!("{stage} {range}")));
    }
    let by_node = matches!(
        state,
        HistoryState::Ended(Outcome::Done | Outcome::Failed) | HistoryState::Open
    );
    if !by_node {
        let at = members.iter().filter_map(|delivery| delivery.ms);
        parts.extend(format_range(at).map(|range| format!("after {range}")));
    }
    parts.join(", ")
}

fn format_range(times: impl Iterator<Item = f64>) -> Option<String> {
    let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
    for time in times {
        least = least.min(time);
        most = most.max(time);
    }
    if least > most {
        return None;
    }
    let (least, most) = (format_ms(least), format_ms(most));
    Some(if least == most {
        most
    } else {
        format!("{least} to {most}")
    })
}

fn state_paint(state: HistoryState) -> Paint {
    match state {
        HistoryState::Ended(outcome) => deliveries::outcome_paint(outcome),
        HistoryState::Open => Paint::Warning,
    }
}
