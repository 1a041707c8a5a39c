//! Telemetry in columns: each reading that is one value has a column, named by its path. JSON has
//! all readings unchanged.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{sanitize, table};
use crate::text::pluralize;
use swarm_shared::api::NodeView;

/// Most columns of readings.
const COLUMNS_MAX: usize = 8;
/// Longest reading, and longest name of one, in columns of the terminal.
const CHARS_MAX: usize = 24;
/// Deepest nesting of objects that becomes columns.
const DEPTH_MAX: usize = 4;
/// Most readings of one node that are considered.
const FIELDS_MAX: usize = 512;

/// The columns and their cells.
pub(super) struct TelemetryColumns {
    /// Paths, the shortest first.
    paths: Vec<String>,
    /// The cells of each view, as text.
    values: Vec<BTreeMap<String, String>>,
}

impl TelemetryColumns {
    pub(super) fn from_views(views: &[&NodeView]) -> Self {
        let values: Vec<BTreeMap<String, String>> =
            views.iter().map(|view| flatten(&view.telemetry)).collect();
        let all: BTreeSet<(usize, &String)> = values
            .iter()
            .flat_map(BTreeMap::keys)
            .map(|path| (path.matches('.').count(), path))
            .collect();
        let paths = all
            .into_iter()
            .take(COLUMNS_MAX)
            .map(|(_, path)| path.clone())
            .collect();
        Self { paths, values }
    }

    /// The columns' names.
    pub(super) fn headings(&self) -> Vec<String> {
        let name = |path: &String| table::truncate(&sanitize(path).to_uppercase(), CHARS_MAX);
        self.paths.iter().map(name).collect()
    }

    /// The cells of one row, in the order of the columns.
    pub(super) fn row(&self, view: usize) -> impl Iterator<Item = &str> {
        let values = self.values.get(view);
        let text = move |path: &String| {
            values
                .and_then(|values| values.get(path))
                .map_or("", String::as_str)
        };
        self.paths.iter().map(text)
    }
}

/// Each value that is no object, by its path.
fn flatten(telemetry: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (name, value) in telemetry {
        flatten_into(name, value, 0, &mut found);
    }
    found
}

fn flatten_into(path: &str, value: &Value, depth: usize, found: &mut BTreeMap<String, String>) {
    if found.len() >= FIELDS_MAX {
        return;
    }
    if let Value::Object(fields) = value
        && depth < DEPTH_MAX
    {
        for (name, value) in fields {
            flatten_into(&format!("{path}.{name}"), value, depth + 1, found);
        }
        return;
    }
    let short = table::truncate(&sanitize(&format_value(value)), CHARS_MAX);
    found.insert(path.to_owned(), short);
}

/// A value in few characters.
fn format_value(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(is) => is.to_string(),
        Value::Number(number) => number.as_f64().filter(|_| number.is_f64()).map_or_else(
            || number.to_string(),
            |float| {
                let short = format!("{float:.3}");
                short.trim_end_matches('0').trim_end_matches('.').to_owned()
            },
        ),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(|item| !item.is_array() && !item.is_object()) => {
            let items: Vec<String> = items.iter().take(CHARS_MAX).map(format_value).collect();
            items.join(" ")
        }
        Value::Array(items) => pluralize(items.len(), "item"),
        Value::Object(fields) => pluralize(fields.len(), "field"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flattened(value: Value) -> Vec<(String, String)> {
        let telemetry = serde_json::from_value(value).expect("an object");
        flatten(&telemetry).into_iter().collect()
    }

    #[test]
    fn telemetry_values_are_shortened() {
        let telemetry = flattened(json!({
            "battery": [12.199_999_8, 0.98],
            "disks": [{"path": "/"}, {"path": "/boot"}],
            "memory": {"total": 4_000_000, "swap": {"free": 0.5}},
            "mode": "STANDBY\u{1b}[31m and much more than there is room for",
            "nowhere": null,
            "none": {},
        }));
        let expected = [
            ("battery", "12.2 0.98"),
            ("disks", "2 items"),
            ("memory.swap.free", "0.5"),
            ("memory.total", "4000000"),
        ];
        for (at, (path, text)) in expected.into_iter().enumerate() {
            assert_eq!((telemetry[at].0.as_str(), telemetry[at].1.as_str()), (path, text));
        }
        assert_eq!(telemetry.len(), 6, "an empty object is nothing: {telemetry:?}");
        assert!(
            !telemetry[4].1.contains('\u{1b}') && table::width(&telemetry[4].1) <= CHARS_MAX,
            "{telemetry:?}"
        );
        assert_eq!(telemetry[5], ("nowhere".to_owned(), "-".to_owned()));
    }

    #[test]
    fn telemetry_depth_and_field_count_are_bounded() {
        let deep = (0..100).fold(json!(1), |inner, _| json!({ "a": inner }));
        assert_eq!(flattened(json!({ "deep": deep }))[0].1, "1 field");
        let many: serde_json::Map<String, Value> = (0..9_999).map(|n| (format!("r{n}"), json!(n))).collect();
        assert_eq!(flattened(Value::Object(many)).len(), FIELDS_MAX);
    }
}
