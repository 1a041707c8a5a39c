//! The outcomes of a request's deliveries: equal ones in one group, then a summary.
//!
//! ```text
//! drone-[01-12] (12 nodes)  done  0.21 ms to 3.10 ms
//!   LED set to #ff0000
//! drone-13  no-answer
//!   nothing heard within 10 s; see `ground-station nodes`
//!
//! 12 done, 1 no-answer in 0.31 s
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use swarm_shared::proto::delivery::Stage;
use swarm_shared::proto::id::{NodeName, PeerId};
use swarm_shared::proto::outcome::Outcome;

use super::{Paint, Style, format_ms, sanitize};
use crate::text::{fold, natural_key};
use swarm_shared::api::{Delivery, Event, NodeRef};

/// The deliveries of a request so far.
#[derive(Debug, Default)]
pub struct DeliveryReport {
    targets: Vec<NodeRef>,
    deliveries: Vec<Delivery>,
    bytes: BTreeMap<NodeRef, (u64, u64)>,
    stages: BTreeMap<PeerId, Stage>,
}

impl DeliveryReport {
    /// Handles an event; those of other requests are ignored.
    pub fn on_event(&mut self, event: &Event) {
        if let Event::Targets { targets } = event {
            self.targets.extend(targets.iter().cloned());
        } else if let Event::Delivery(delivery) = event {
            self.deliveries.push(delivery.clone());
        } else if let Event::Progress { node, bytes, total } = event {
            self.bytes.insert(node.clone(), (*bytes, *total));
        } else if let Event::Stage { node, stage, .. } = event {
            self.stages.insert(node.id, *stage);
        }
    }

    /// Deliveries that ended, and deliveries in all.
    pub fn counts(&self) -> (usize, usize) {
        (
            self.deliveries.len(),
            self.targets.len().max(self.deliveries.len()),
        )
    }

    /// Progress in numbers: `12 of 16 done · 1 failed · 2 started · 1 waiting`.
    pub fn progress_text(&self) -> String {
        let (_, all) = self.counts();
        let mut ended: BTreeMap<Outcome, usize> = BTreeMap::new();
        for delivery in &self.deliveries {
            *ended.entry(delivery.state).or_default() += 1;
        }
        let done = ended.remove(&Outcome::Done).unwrap_or(0);
        let mut parts = vec![format!("{done} of {all} done")];
        parts.extend(ended.into_iter().map(|(state, count)| format!("{count} {state}")));
        let mut open: BTreeMap<Option<Stage>, usize> = BTreeMap::new();
        for target in self.unanswered_targets() {
            *open.entry(self.stages.get(&target.id).copied()).or_default() += 1;
        }
        // The latest stage first; a delivery without one waits for its node.
        parts.extend(open.into_iter().rev().map(|(stage, count)| {
            stage.map_or_else(|| format!("{count} waiting"), |stage| format!("{count} {stage}"))
        }));
        parts.join(" · ")
    }

    /// Bytes transferred, and bytes in all, as far as they are known; `None` if nothing is being transferred.
    pub fn bytes_transferred(&self) -> Option<(u64, u64)> {
        self.bytes
            .values()
            .copied()
            .reduce(|(bytes, total), (more, of)| (bytes.saturating_add(more), total.saturating_add(of)))
    }

    /// Targets whose delivery has not ended, one entry for each such delivery.
    pub fn unanswered_targets(&self) -> Vec<NodeRef> {
        let mut ended: BTreeMap<_, usize> = BTreeMap::new();
        for delivery in &self.deliveries {
            *ended.entry(delivery.id).or_default() += 1;
        }
        let open = |target: &&NodeRef| match ended.get_mut(&target.id) {
            Some(left) if *left > 0 => {
                *left -= 1;
                false
            }
            Some(_) | None => true,
        };
        self.targets.iter().filter(open).cloned().collect()
    }

    /// Whether every delivery has ended with this outcome.
    pub fn all_ended_as(&self, outcome: Outcome) -> bool {
        let so = self.deliveries.iter().all(|delivery| delivery.state == outcome);
        so && !self.deliveries.is_empty() && self.unanswered_targets().is_empty()
    }

    /// The exit status: 1 if any delivery failed, was refused, expired or is unknown; else 4 if any gave no answer
    /// or none yet; else 0. A failure outweighs a missing answer, since waiting does not mend it.
    pub fn exit_status(&self) -> u8 {
        let mut status = if self.unanswered_targets().is_empty() {
            0
        } else {
            4
        };
        for delivery in &self.deliveries {
            status = match (delivery.state, status) {
                (_, 1) | (Outcome::Failed | Outcome::Refused | Outcome::Expired | Outcome::Unknown, _) => 1,
                (Outcome::NoAnswer, _) => 4,
                (Outcome::Done, status) => status,
            };
        }
        status
    }

    /// The groups: successes first, failures last, next to the prompt.
    pub fn groups(&self, style: Style) -> String {
        let mut groups: BTreeMap<ResultKey, Vec<&Delivery>> = BTreeMap::new();
        for delivery in &self.deliveries {
            groups
                .entry(ResultKey::from_delivery(delivery))
                .or_default()
                .push(delivery);
        }
        let mut groups: Vec<(ResultKey, Vec<&Delivery>)> = groups.into_iter().collect();
        for (_, members) in &mut groups {
            members.sort_by_key(|delivery| (natural_key(&delivery.node), delivery.id));
        }
        groups
            .sort_by_key(|(end, members)| (end.state, members.first().map(|first| natural_key(&first.node))));

        let mut text = String::new();
        for (end, members) in groups {
            let who = self.format_nodes(members.iter().map(|delivery| (&delivery.node, delivery.id)));
            let state = style.paint(end.state.as_str(), outcome_paint(end.state));
            let times = if end.state == Outcome::NoAnswer {
                String::new()
            } else {
                time_range(&members)
            };
            let times = if times.is_empty() {
                times
            } else {
                format!("  {}", style.paint(&times, Paint::Dim))
            };
            text.push_str(&format!("{}  {state}{times}\n", style.paint(&who, Paint::Strong)));
            for line in end.lines {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }

    /// `12 done, 1 no-answer in 0.31 s`, with the names that have not answered.
    pub fn summary(&self, took: Duration, style: Style) -> String {
        let mut counts: BTreeMap<Outcome, usize> = BTreeMap::new();
        for delivery in &self.deliveries {
            *counts.entry(delivery.state).or_default() += 1;
        }
        let mut parts: Vec<String> = counts
            .into_iter()
            .map(|(state, count)| style.paint(&format!("{count} {state}"), outcome_paint(state)))
            .collect();
        let open = self.unanswered_targets();
        if !open.is_empty() {
            let who = self.format_nodes(open.iter().map(|target| (&target.node, target.id)));
            let text = format!("{} not answered yet: {who}", open.len());
            parts.push(style.paint(&text, Paint::Warning));
        }
        if parts.is_empty() {
            parts.push("nothing sent".to_owned());
        }
        format!(
            "{} in {}",
            parts.join(", "),
            format_ms(took.as_secs_f64() * 1_000.0)
        )
    }

    /// Names folded; nodes that share a name with another are told apart by id.
    pub(super) fn format_nodes<'a>(
        &self,
        who: impl Iterator<Item = (&'a NodeName, swarm_shared::proto::id::PeerId)>,
    ) -> String {
        let mut clear = Vec::new();
        let mut shared = Vec::new();
        let mut ids = std::collections::BTreeSet::new();
        for (name, id) in who {
            if !ids.insert(id) {
                continue;
            }
            let twin = |other: &NodeRef| other.node == *name && other.id != id;
            if self.targets.iter().any(twin) {
                shared.push(format!("{name} (id:{})", id.short()));
            } else {
                clear.push(name);
            }
        }
        let mut parts = Vec::new();
        if !clear.is_empty() {
            parts.push(fold(clear.iter().copied()));
        }
        parts.extend(shared);
        let count = if ids.len() > 1 {
            format!(" ({} nodes)", ids.len())
        } else {
            String::new()
        };
        format!("{}{count}", parts.join(", "))
    }
}

/// Deliveries with equal keys are one group.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ResultKey {
    state: Outcome,
    lines: Vec<String>,
}

impl ResultKey {
    fn from_delivery(delivery: &Delivery) -> Self {
        Self {
            state: delivery.state,
            lines: result_lines(
                delivery.output.as_deref(),
                delivery.value.as_ref(),
                delivery.exit,
                delivery.error.as_deref(),
            ),
        }
    }
}

/// A delivery's value, output and error, for people.
pub(super) fn result_lines(
    output: Option<&str>,
    value: Option<&Value>,
    exit: Option<i32>,
    error: Option<&str>,
) -> Vec<String> {
    let exit = exit
        .filter(|status| *status != 0)
        .map(|status| format!("exit status {status}"));
    // The error of a failed program names its exit status.
    let exit = exit.filter(|_| error.is_none());
    let texts = [
        output.map(sanitize),
        value.and_then(format_value),
        exit,
        error.map(sanitize),
    ];
    let lines = |text: String| -> Vec<String> { text.trim_end().lines().map(str::to_owned).collect() };
    texts.into_iter().flatten().flat_map(lines).collect()
}

/// A value for people: text as it is, an object as `key: value` lines, anything else as JSON; nothing if it is empty.
fn format_value(value: &Value) -> Option<String> {
    let inner = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = match value {
        Value::Null => return None,
        Value::Object(fields) => {
            let lines: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key}: {}", inner(value)))
                .collect();
            lines.join("\n")
        }
        Value::Array(items) => format_checks(items).unwrap_or_else(|| inner(value)),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => inner(value),
    };
    (!text.is_empty()).then(|| sanitize(&text))
}

/// The points of a self-check, one a line: `ok   disk: 12.1 GB free`. `None` if it is something else.
fn format_checks(items: &[Value]) -> Option<String> {
    let line = |item: &Value| {
        let name = item.get("check")?.as_str()?;
        let verdict = if item.get("ok")?.as_bool()? { "ok " } else { "BAD" };
        let detail = item.get("detail").and_then(Value::as_str);
        let detail = detail.map_or(String::new(), |detail| format!(": {}", detail.replace('\n', " ")));
        Some(format!("{verdict}  {name}{detail}"))
    };
    let lines: Option<Vec<String>> = items.iter().map(line).collect();
    lines
        .filter(|lines| !lines.is_empty())
        .map(|lines| lines.join("\n"))
}

fn time_range(members: &[&Delivery]) -> String {
    let least = members
        .iter()
        .map(|delivery| delivery.ms)
        .fold(f64::INFINITY, f64::min);
    let most = members.iter().map(|delivery| delivery.ms).fold(0.0, f64::max);
    let (least, most) = (format_ms(least), format_ms(most));
    if least == most {
        most
    } else {
        format!("{least} to {most}")
    }
}

pub(super) fn outcome_paint(state: Outcome) -> Paint {
    match state {
        Outcome::Done => Paint::Good,
        Outcome::NoAnswer => Paint::Warning,
        Outcome::Failed | Outcome::Refused | Outcome::Expired | Outcome::Unknown => Paint::Bad,
    }
}
