//! Translates clever-show's actions and requests to ours, and our replies to its responses. Pure.
//!
//! | clever-show | ours |
//! |---|---|
//! | `execute{command}` | `execute` of `/bin/sh -c command` |
//! | `reboot_all` | `reboot` |
//! | `id{new_id}` | `id`, by clever-show's rule: `/hostname`, `/ip` and `/default` are special |
//! | `config{config, mode}` | `config`: `modify` with the object as values, `rewrite` with it as the whole file |
//! | anything else | the action of that name |
//!
//! An action of the owner takes precedence over a name in this table that the node does not have itself.

use serde_json::{Value, json};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};

use super::Readings;
use crate::config;

/// Sources of special names.
pub(super) struct NameSources {
    pub(super) address: fn() -> String,
    /// A random number below 10,000.
    pub(super) number: fn() -> u64,
}

type Translated = Result<(String, Arguments), String>;

/// The node's action for an action of the server.
///
/// # Errors
/// Which argument is missing or invalid.
pub(super) fn action(
    name: &str,
    given: Arguments,
    own: impl Fn(&str) -> bool,
    names: &NameSources,
) -> Translated {
    let arguments = match name {
        "execute" => {
            let command = text_argument(&given, "command")?;
            kwargs([("program", json!("/bin/sh")), ("args", json!(["-c", command]))])
        }
        "reboot_all" if !own(name) => return Ok(("reboot".to_owned(), Arguments::default())),
        "id" => rename_arguments(&text_argument(&given, "new_id")?, names),
        "config" => config_arguments(&given)?,
        _ => given,
    };
    Ok((name.to_owned(), arguments))
}

/// The node's action for a request of the server.
///
/// # Errors
/// Which argument is missing or invalid.
pub(super) fn request(
    name: &str,
    given: Arguments,
    own: impl Fn(&str) -> bool,
    names: &NameSources,
) -> Translated {
    match name {
        // Later servers rename a drone by a request.
        "id" if given.kwargs.get("new_id").is_some_and(|id| !id.is_null()) => action(name, given, own, names),
        "id" | "time" | "telemetry" | "selfcheck" | "config" => Ok((name.to_owned(), Arguments::default())),
        _ => action(name, given, own, names),
    }
}

/// Whether a request for `config` asks for the allowed keys too.
pub(super) fn wants_spec(given: &Arguments) -> bool {
    given.kwargs.get("send_configspec") == Some(&Value::Bool(true))
}

/// The response to a request; `None` if there is none. `now` is in seconds since 1970.
pub(super) fn response_value(name: &str, reply: &Reply, with_spec: bool, now: f64) -> Option<Value> {
    let value = reply.value.clone().unwrap_or_default();
    if name == "selfcheck" {
        return match reply.state {
            Outcome::Done => Some(json!("OK")),
            Outcome::Failed => Some(failed_checks(&value)),
            Outcome::Refused | Outcome::Expired | Outcome::Unknown | Outcome::NoAnswer => None,
        };
    }
    if reply.state != Outcome::Done {
        return None;
    }
    Some(match (name, value) {
        ("id", value) => value.get("name").cloned().unwrap_or_default(),
        ("time", _) => json!(now),
        ("telemetry", Value::Object(value)) => Value::Object(readings(value, now)),
        ("config", config) if with_spec => json!({ "config": config, "configspec": config::spec() }),
        ("config", config) => json!({ "config": config }),
        (_, Value::Null) => reply.output.clone().map_or(Value::Null, Value::String),
        (_, value) => value,
    })
}

/// Readings in clever-show's form: `time_delta` is the node's clock, and readings of plug-ins are added under their own
/// names, unless a reading of the node has that name.
pub(super) fn readings(mut value: Readings, now: f64) -> Readings {
    let from_plugins: Vec<(String, Value)> = value
        .get("plugins")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|plugins| plugins.values().filter_map(Value::as_object).flatten())
        .filter_map(|(field, reading)| Some((field.clone(), reading.get("value")?.clone())))
        .collect();
    for (field, reading) in from_plugins {
        value.entry(field).or_insert(reading);
    }
    value.insert("time_delta".to_owned(), json!(now));
    value
}

/// The failed checks, each with its reason.
fn failed_checks(checks: &Value) -> Value {
    let checks = checks.as_array().map(Vec::as_slice).unwrap_or_default();
    let bad = checks.iter().filter(|check| check["ok"] == false);
    let text = |key: &str, check: &Value| check[key].as_str().unwrap_or_default().to_owned();
    bad.map(|check| Value::String(format!("{}: {}", text("check", check), text("detail", check))))
        .collect()
}

fn kwargs<const N: usize>(pairs: [(&str, Value); N]) -> Arguments {
    let pairs = pairs.map(|(key, value)| (key.to_owned(), value));
    Arguments {
        args: Vec::new(),
        kwargs: pairs.into_iter().collect(),
    }
}

/// An argument by its name, or the first by position.
fn text_argument(given: &Arguments, name: &str) -> Result<String, String> {
    let value = given.kwargs.get(name).or(given.args.first());
    let text = value.and_then(Value::as_str);
    text.map(str::to_owned)
        .ok_or_else(|| format!("argument {name} is missing: it must be a text"))
}

fn rename_arguments(new_id: &str, names: &NameSources) -> Arguments {
    let name = match new_id.to_ascii_lowercase().as_str() {
        "/ip" => (names.address)().replace(['.', ':'], "-"),
        "/default" => format!("copter{:04}", (names.number)()),
        // `id` handles /hostname, and refuses an invalid name.
        "/hostname" => "/hostname".to_owned(),
        _ => new_id.to_owned(),
    };
    kwargs([("new_id", name.into())])
}

fn config_arguments(given: &Arguments) -> Result<Arguments, String> {
    let config = given.kwargs.get("config").or(given.args.first());
    let config = config.filter(|config| config.is_object());
    let config = config.ok_or("argument config is missing: it must be an object")?;
    match given
        .kwargs
        .get("mode")
        .or(given.args.get(1))
        .and_then(Value::as_str)
    {
        None | Some("modify") => Ok(kwargs([("mode", json!("modify")), ("values", config.clone())])),
        Some("rewrite") => {
            let text = swarm_shared::config::toml::to_string(config)
                .map_err(|error| format!("this configuration has no form in TOML: {error}"))?;
            Ok(kwargs([("mode", json!("rewrite")), ("text", text.into())]))
        }
        Some(mode) => Err(format!("mode {mode:?} is not known: use modify or rewrite")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: NameSources = NameSources {
        address: || "10.0.0.7".to_owned(),
        number: || 42,
    };

    fn given(args: Value, kwargs: Value) -> Arguments {
        serde_json::from_value(json!({ "args": args, "kwargs": kwargs })).expect("arguments")
    }

    fn acted(name: &str, args: Value, kwargs: Value) -> Result<(String, Value), String> {
        let (action, arguments) = action(name, given(args, kwargs), |name| name == "own", &NAMES)?;
        Ok((action, json!(arguments.kwargs)))
    }

    #[test]
    fn clever_show_actions_are_translated() {
        let shell = json!({"program": "/bin/sh", "args": ["-c", "ls /"]});
        for (args, by_name) in [
            (json!([]), json!({"command": "ls /"})),
            (json!(["ls /"]), json!({})),
        ] {
            assert_eq!(
                acted("execute", args, by_name),
                Ok(("execute".to_owned(), shell.clone()))
            );
        }
        let reboot = acted("reboot_all", json!([]), json!({"x": 1}));
        assert_eq!(reboot, Ok(("reboot".to_owned(), json!({}))));
        let (name, arguments) = action("reboot_all", given(json!([]), json!({"x": 1})), |_| true, &NAMES)
            .expect("the owner's own");
        assert_eq!(
            (name.as_str(), json!(arguments.kwargs)),
            ("reboot_all", json!({"x": 1}))
        );
        for (new_id, name) in [
            ("drone-7", "drone-7"),
            ("/hostname", "/hostname"),
            ("/ip", "10-0-0-7"),
            ("/default", "copter0042"),
            ("-bad", "-bad"),
        ] {
            let renamed = acted("id", json!([]), json!({ "new_id": new_id }));
            assert_eq!(renamed, Ok(("id".to_owned(), json!({ "new_id": name }))));
        }
        let config = json!({"telemetry": {"interval": "2s"}});
        assert_eq!(
            acted("config", json!([]), json!({ "config": config })),
            Ok(("config".to_owned(), json!({"mode": "modify", "values": config})))
        );
        assert_eq!(
            acted(
                "config",
                json!([]),
                json!({ "config": config, "mode": "rewrite" })
            ),
            Ok((
                "config".to_owned(),
                json!({"mode": "rewrite", "text": "[telemetry]\ninterval = \"2s\"\n"})
            ))
        );
        acted("config", json!([]), json!({ "config": config, "mode": "x" })).expect_err("no such mode");
        acted("config", json!([]), json!({})).expect_err("nothing to change");
        acted("execute", json!([]), json!({})).expect_err("no command");
        let led = json!({"red": 1});
        assert_eq!(acted("led", json!([]), led.clone()), Ok(("led".to_owned(), led)));
    }

    #[test]
    fn read_only_requests_stay_read_only() {
        use swarm_shared::proto::trust::gate::{ActionClass, classify};
        for name in ["id", "time", "telemetry", "selfcheck", "config"] {
            let strange = given(json!([1]), json!({"mode": "rewrite", "config": {}, "x": 2}));
            let (action, arguments) = request(name, strange, |_| false, &NAMES).expect("a question");
            assert_eq!(classify(&action, &arguments), ActionClass::Read, "{name}");
        }
        let renaming = given(json!([]), json!({"new_id": "x"}));
        let (action, arguments) = request("id", renaming, |_| false, &NAMES).expect("a renaming");
        assert_eq!(classify(&action, &arguments), ActionClass::Modify);
    }

    #[test]
    fn responses_have_the_shape_that_a_server_expects() {
        let done = |value| Reply::done(value);
        let answered = |name: &str, reply: &Reply| response_value(name, reply, false, 1.5);
        assert_eq!(
            answered("id", &done(json!({"name": "n1", "id": "…"}))),
            Some(json!("n1"))
        );
        assert_eq!(answered("time", &done(json!({"unix_ms": 1}))), Some(json!(1.5)));
        assert_eq!(answered("selfcheck", &done(json!([]))), Some(json!("OK")));
        let unfit = Reply {
            value: Some(
                json!([{"check": "disk", "ok": false, "detail": "full"}, {"check": "x", "ok": true}]),
            ),
            ..Reply::failed("disk: full")
        };
        assert_eq!(answered("selfcheck", &unfit), Some(json!(["disk: full"])));
        assert_eq!(
            answered("config", &done(json!({"name": "n1"}))),
            Some(json!({"config": {"name": "n1"}}))
        );
        let with_spec = response_value("config", &done(json!({})), true, 0.0).expect("answered");
        assert_eq!(with_spec["configspec"]["telemetry"]["interval"], "string");
        let printed = Reply {
            output: Some("12.1\n".to_owned()),
            ..Reply::done(Value::Null)
        };
        assert_eq!(answered("batt_voltage", &printed), Some(json!("12.1\n")));
        assert_eq!(answered("batt_voltage", &Reply::failed("no")), None);
        assert_eq!(answered("selfcheck", &Reply::refused("no")), None);
    }

    #[test]
    fn plugin_readings_are_merged_into_the_sample() {
        let sample = json!({
            "load": 1,
            "plugins": { "copter": { "battery": { "value": [12.1, 0.9], "age_s": 0.1 }, "load": { "value": 2 } } },
        });
        let Value::Object(sample) = sample else {
            panic!("an object")
        };
        let told = readings(sample, 1.5);
        assert_eq!(told["battery"], json!([12.1, 0.9]));
        assert_eq!((&told["load"], &told["time_delta"]), (&json!(1), &json!(1.5)));
    }
}
