//! Parses the action and arguments of a request message.

use data_encoding::BASE64;
use serde_json::{Map, Value, json};
use swarm_shared::proto::foreign::platypush;
use swarm_shared::proto::message::Arguments;

use crate::duration;
use swarm_shared::api::{HistoryQuery, HistoryState};

/// The action that sends to peers of the gateway socktools.
pub(super) const SEND_TO_PEERS: &str = "socktools.send";
/// Commands of the history in a response unless the request says otherwise.
const HISTORY_LIMIT: u32 = 20;
/// Most commands of the history in a response.
const HISTORY_LIMIT_MAX: u32 = 1_000;
/// The shell that runs the line of `shell.exec`.
const SHELL_PROGRAM: &str = "/bin/sh";
/// The error of `shell.exec` without a line.
const MISSING_CMD: &str = "shell.exec takes cmd: a line for the shell";
/// The error of `socktools.send` with neither or both of `text` and `data`.
const SEND_USAGE: &str = "socktools.send takes text, or data in base64, and peer";

/// A valid action with its arguments.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ParsedAction {
    Command {
        action: String,
        arguments: Arguments,
        /// Whether a failed program is an error of the response.
        failures_count: bool,
    },
    Nodes,
    History(HistoryQuery),
    Stop,
    Release,
    SendToPeers {
        peer: Option<String>,
        message: Vec<u8>,
    },
}

/// Parses a request's action and arguments; the error says what is wrong with them.
pub(super) fn parse(action: String, args: Value) -> Result<ParsedAction, String> {
    if action == SEND_TO_PEERS {
        return parse_send(args);
    }
    let Some(station) = action.strip_prefix("station.") else {
        if action == "shell.exec" {
            return parse_shell(args);
        }
        return Ok(ParsedAction::Command {
            action,
            arguments: platypush::arguments(args),
            failures_count: true,
        });
    };
    match station {
        "nodes" => ArgReader::new(&action, args).map(|_none| ParsedAction::Nodes),
        "stop" => ArgReader::new(&action, args).map(|_none| ParsedAction::Stop),
        "release" => ArgReader::new(&action, args).map(|_none| ParsedAction::Release),
        "history" => parse_history(ArgReader::new(&action, args)?).map(ParsedAction::History),
        _ => Err(unknown_action(&action)),
    }
}

/// The parameters of an action of the station, in the order of positions; `None` for actions of nodes.
fn parameter_names(action: &str) -> Option<&'static [&'static str]> {
    match action {
        "station.nodes" | "station.stop" | "station.release" => Some(&[]),
        "station.history" => Some(&["number", "action", "state", "since", "limit"]),
        "shell.exec" => Some(&["cmd", "background", "ignore_errors"]),
        SEND_TO_PEERS => Some(&["text", "peer", "data"]),
        _ => None,
    }
}

/// Whether an action takes no arguments.
pub(super) fn takes_no_arguments(action: &str) -> bool {
    parameter_names(action).is_some_and(<[_]>::is_empty)
}

/// Checks that an action takes arguments of these names and has those that it needs; the error says what is wrong.
pub(super) fn check_arguments(action: &str, given: &[&str]) -> Result<(), String> {
    let Some(names) = parameter_names(action) else {
        let is_known = !action.starts_with("station.");
        return is_known.then_some(()).ok_or_else(|| unknown_action(action));
    };
    if let Some(other) = given.iter().find(|name| !names.contains(name)) {
        return Err(format!("{action} takes {}, and no {other}", join_names(names)));
    }
    let has = |name| given.contains(&name);
    match action {
        "shell.exec" if !has("cmd") => Err(MISSING_CMD.to_owned()),
        SEND_TO_PEERS if has("text") == has("data") => Err(SEND_USAGE.to_owned()),
        _ => Ok(()),
    }
}

fn unknown_action(action: &str) -> String {
    format!(
        "the station has no {action:?}; it has station.nodes, station.history, station.stop and station.release"
    )
}

fn join_names(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    }
}

fn parse_shell(args: Value) -> Result<ParsedAction, String> {
    let mut fields = ArgReader::new("shell.exec", args)?;
    if fields.flag("background")? {
        return Err("shell.exec: background is not done here: a command ends with its program".to_owned());
    }
    let failures_count = !fields.flag("ignore_errors")?;
    let cmd = fields.text("cmd")?.ok_or(MISSING_CMD)?;
    Ok(ParsedAction::Command {
        action: "execute".to_owned(),
        arguments: platypush::arguments(json!({ "program": SHELL_PROGRAM, "args": ["-c", cmd] })),
        failures_count,
    })
}

fn parse_send(args: Value) -> Result<ParsedAction, String> {
    let mut fields = ArgReader::new(SEND_TO_PEERS, args)?;
    let message = match (fields.text("text")?, fields.text("data")?) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(data)) => BASE64
            .decode(data.as_bytes())
            .map_err(|error| format!("{SEND_TO_PEERS}: data is not base64: {error}"))?,
        (Some(_), Some(_)) | (None, None) => {
            return Err(SEND_USAGE.to_owned());
        }
    };
    let peer = fields.text("peer")?;
    Ok(ParsedAction::SendToPeers { peer, message })
}

fn parse_history(mut fields: ArgReader<'_>) -> Result<HistoryQuery, String> {
    let state = fields.text("state")?.map(|text| {
        HistoryState::parse(&text)
            .ok_or_else(|| format!("station.history: {text:?} is no state of a delivery"))
    });
    let since = fields.text("since")?.map(|text| duration::parse(&text));
    let limit = fields.count("limit")?;
    let limit = limit.map_or(Some(HISTORY_LIMIT), |limit| u32::try_from(limit).ok());
    let limit = limit.filter(|limit| (1..=HISTORY_LIMIT_MAX).contains(limit));
    Ok(HistoryQuery {
        number: fields.count("number")?,
        nodes: None,
        action: fields.text("action")?,
        state: state.transpose()?,
        within_ms: since
            .transpose()
            .map_err(|error| error.to_string())?
            .map(duration::to_ms),
        limit: limit.ok_or_else(|| format!("station.history: limit has to be 1 to {HISTORY_LIMIT_MAX}"))?,
    })
}

/// The arguments of an action of the station, by name or by position.
struct ArgReader<'a> {
    action: &'a str,
    fields: Map<String, Value>,
}

impl<'a> ArgReader<'a> {
    fn new(action: &'a str, args: Value) -> Result<Self, String> {
        let names = parameter_names(action).unwrap_or_default();
        let Arguments { args, mut kwargs } = platypush::arguments(args);
        if args.len() > names.len() || kwargs.keys().any(|key| !names.contains(&key.as_str())) {
            return Err(format!("{action} takes {}", join_names(names)));
        }
        kwargs.extend(names.iter().map(|name| (*name).to_owned()).zip(args));
        kwargs.retain(|_, value| !value.is_null());
        Ok(Self {
            action,
            fields: kwargs,
        })
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.fields.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{}: {name} has to be a text", self.action)),
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool, String> {
        let value = self.fields.remove(name).unwrap_or(Value::Bool(false));
        value
            .as_bool()
            .ok_or_else(|| format!("{}: {name} has to be true or false", self.action))
    }

    fn count(&mut self, name: &str) -> Result<Option<u64>, String> {
        let value = self.fields.remove(name);
        let fault = || format!("{}: {name} has to be a whole number", self.action);
        value.map(|value| value.as_u64().ok_or_else(fault)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(action: &str, args: Value) -> Result<ParsedAction, String> {
        parse(action.to_owned(), args)
    }

    #[test]
    fn shell_exec_becomes_an_execute_command() {
        let wanted = |failures_count| ParsedAction::Command {
            action: "execute".to_owned(),
            arguments: platypush::arguments(json!({"program": "/bin/sh", "args": ["-c", "ls /"]})),
            failures_count,
        };
        for args in [
            json!({"cmd": "ls /"}),
            json!(["ls /"]),
            json!("ls /"),
            json!({"cmd": "ls /", "background": false, "ignore_errors": null}),
        ] {
            assert_eq!(parsed("shell.exec", args), Ok(wanted(true)));
        }
        let lenient = json!({"cmd": "ls /", "ignore_errors": true});
        assert_eq!(parsed("shell.exec", lenient), Ok(wanted(false)));
        for (args, says) in [
            (json!({}), "takes cmd"),
            (json!({"cmd": 1}), "cmd has to be a text"),
            (
                json!({"cmd": "x", "background": true}),
                "background is not done here",
            ),
            (
                json!({"cmd": "x", "sudo": true}),
                "shell.exec takes cmd, background",
            ),
        ] {
            let error = parsed("shell.exec", args).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn impossible_arguments_are_found_at_configuration_time() {
        for (action, given, wanted) in [
            ("station.stop", &[][..], Ok(())),
            (
                "station.stop",
                &["data"],
                Err("station.stop takes nothing, and no data"),
            ),
            ("station.history", &["limit"], Ok(())),
            ("station.history", &["data"], Err("and no data")),
            ("station.shutdown", &[], Err("the station has no")),
            ("shell.exec", &["cmd"], Ok(())),
            ("shell.exec", &["ignore_errors"], Err("takes cmd")),
            (SEND_TO_PEERS, &["data"], Ok(())),
            (SEND_TO_PEERS, &["peer"], Err("takes text, or data")),
            (SEND_TO_PEERS, &["text", "data"], Err("takes text, or data")),
            ("led", &["anything"], Ok(())),
        ] {
            match (check_arguments(action, given), wanted) {
                (Ok(()), Ok(())) => {}
                (Err(fault), Err(says)) => assert!(fault.contains(says), "{fault}"),
                (checked, _) => panic!("{action} {given:?}: {checked:?}"),
            }
        }
        assert!(
            takes_no_arguments("station.release")
                && !takes_no_arguments("led")
                && !takes_no_arguments(SEND_TO_PEERS)
        );
    }

    #[test]
    fn station_actions_are_parsed() {
        assert_eq!(parsed("station.nodes", Value::Null), Ok(ParsedAction::Nodes));
        assert_eq!(parsed("station.stop", json!({})), Ok(ParsedAction::Stop));
        assert_eq!(parsed("station.release", json!([])), Ok(ParsedAction::Release));
        let asked = json!({"number": 3, "state": "failed", "since": "2h", "limit": 5, "action": "led"});
        let wanted = HistoryQuery {
            number: Some(3),
            nodes: None,
            action: Some("led".to_owned()),
            state: HistoryState::parse("failed"),
            within_ms: Some(7_200_000),
            limit: 5,
        };
        assert_eq!(
            parsed("station.history", asked),
            Ok(ParsedAction::History(wanted))
        );
        let told = |peer: Option<&str>| ParsedAction::SendToPeers {
            peer: peer.map(str::to_owned),
            message: b"hi".to_vec(),
        };
        assert_eq!(parsed("socktools.send", json!("hi")), Ok(told(None)));
        let one = json!({"data": "aGk=", "peer": "10.0.0.9"});
        assert_eq!(parsed("socktools.send", one), Ok(told(Some("10.0.0.9"))));
        for (action, args) in [
            ("socktools.send", json!({"text": "hi", "data": "aGk="})),
            ("socktools.send", json!({"data": "hi!"})),
            ("socktools.send", json!({})),
            ("station.nodes", json!([1])),
            ("station.shutdown", json!({})),
            ("station.history", json!({"limit": 0})),
            ("station.history", json!({"limit": 100_000})),
            ("station.history", json!({"state": "lost"})),
            ("station.history", json!({"since": "soon"})),
        ] {
            parsed(action, args).expect_err(action);
        }
        let Ok(ParsedAction::Command {
            action, arguments, ..
        }) = parsed("led", json!("red"))
        else {
            panic!("a node's action")
        };
        assert_eq!((action.as_str(), arguments.args), ("led", vec![json!("red")]));
    }
}
