//! Translates the fleet's commands into clever-show's messages, and decides which may pass.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use swarm_shared::proto::delivery::FLIGHT_TTL_MS_MAX;
use swarm_shared::proto::foreign::clever_show::server::{Completion, Deadlines, Drone};
use swarm_shared::proto::foreign::clever_show::{FILE_TRANSFER, FLIGHT_ACTIONS};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Glob;
use swarm_shared::proto::wire::CONTENT_BYTES_MAX;

use crate::config::gateways::CleverShowConfig;
use crate::engine::transport::bridge::{DeviceOperation, DeviceReply};
use crate::gateways::access::{AccessPolicy, RequestError};

/// The requests that clever-show documents: they are answered and change nothing.
pub(super) const READ_REQUESTS: &[&str] = &[
    "id",
    "time",
    "telemetry",
    "selfcheck",
    "config",
    "clover_dir",
    "batt_voltage",
    "position",
    "anim_id",
];
/// Those of [`READ_REQUESTS`] that change something with certain arguments.
pub(super) const REQUESTS_ALSO_ACTIONS: &[&str] = &["id", "config"];
/// The value of an action that was sent: clever-show's protocol does not confirm actions.
const SENT_UNCONFIRMED: &str = "sent, unconfirmed";
/// The value of a release.
pub(super) const RELEASED_TEXT: &str =
    "released at this station: actions pass again; the drone itself knows of no stop";
/// The name of the root whose directory each drone reports.
const CLOVER_ROOT: &str = "clover";

/// The gateway's rules for commands.
#[derive(Clone, Debug)]
pub(super) struct CommandPolicy {
    access: AccessPolicy,
    requests: BTreeSet<String>,
    flight: Vec<Glob>,
    stop_action: Option<String>,
    roots: BTreeMap<String, String>,
    /// Longest message, in bytes.
    pub(super) message_bytes: usize,
    /// Longest file, in bytes.
    pub(super) file_bytes: u64,
}

/// How a completion becomes a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyKind {
    /// Its value is the reply's.
    Value,
    /// Any response means `pong`.
    Ping,
    /// The stop was sent.
    Stop,
}

/// The times of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommandTimes {
    /// When the command was given.
    pub(super) issued: Instant,
    pub(super) until: Deadlines,
    pub(super) now: Instant,
}

impl CommandPolicy {
    pub(super) fn new(config: &CleverShowConfig, access: AccessPolicy) -> Self {
        Self {
            access,
            requests: config.requests.clone(),
            flight: config.flight.clone(),
            stop_action: config.stop_action.clone(),
            roots: config.roots.clone(),
            message_bytes: config.common.message_bytes,
            file_bytes: config.file_bytes,
        }
    }

    /// Queues an operation for a drone. `Err` is the reply to an operation that ends at once.
    pub(super) fn send(
        &self,
        drone: &mut Drone,
        ticket: u64,
        operation: DeviceOperation,
        times: CommandTimes,
    ) -> Result<ReplyKind, Reply> {
        let CommandTimes { until, now, .. } = times;
        match operation {
            DeviceOperation::Command { action, arguments } => {
                self.send_command(drone, ticket, &action, arguments, times)
            }
            DeviceOperation::Push { path, content } => {
                let none = Arguments::default();
                self.access.permit(FILE_TRANSFER, &none).map_err(to_refusal)?;
                let path = self.resolve_path(&path, drone.clover_dir());
                drone.send_file(ticket, &path, content, until.start_by, now);
                Ok(ReplyKind::Value)
            }
            DeviceOperation::Fetch { path } => {
                self.access.permit_query(FILE_TRANSFER).map_err(to_refusal)?;
                let path = self.resolve_path(&path, drone.clover_dir());
                drone.request_file(ticket, &path, until, now);
                Ok(ReplyKind::Value)
            }
            DeviceOperation::Stop => {
                let action = self
                    .stop_action()
                    .inspect_err(|_not_sent| drone.drop_queued_actions())?;
                drone.stop(ticket, action, until.start_by);
                Ok(ReplyKind::Stop)
            }
            DeviceOperation::Release => Err(Reply::done(Value::from(if drone.release() {
                RELEASED_TEXT
            } else {
                "it was not stopped"
            }))),
        }
    }

    /// The action that a stop sends. `Err` is the reply to a stop without one.
    pub(super) fn stop_action(&self) -> Result<&str, Reply> {
        self.access.permit_stop().map_err(to_refusal)?;
        self.stop_action.as_deref().ok_or_else(|| {
            Reply::refused(
                "[gateways.clever_show] has no `stop_action`: it was told nothing; it is sent nothing that acts",
            )
        })
    }

    /// Whether an operation changes something.
    pub(super) fn has_side_effects(&self, operation: &DeviceOperation) -> bool {
        match operation {
            DeviceOperation::Command { action, arguments } => {
                action != "ping" && !self.is_request(action, arguments)
            }
            DeviceOperation::Push { .. } => true,
            DeviceOperation::Fetch { .. } | DeviceOperation::Stop | DeviceOperation::Release => false,
        }
    }

    fn send_command(
        &self,
        drone: &mut Drone,
        ticket: u64,
        action: &str,
        arguments: Arguments,
        times: CommandTimes,
    ) -> Result<ReplyKind, Reply> {
        let CommandTimes { issued, until, now } = times;
        if action == "ping" {
            self.access.permit_query(action).map_err(to_refusal)?;
            drone.send_request(ticket, "id", Arguments::default(), until, now);
            return Ok(ReplyKind::Ping);
        }
        if action == FILE_TRANSFER {
            return Err(Reply::refused("use `send` and `fetch` for files"));
        }
        let length = serde_json::to_string(&arguments).map_or(usize::MAX, |text| text.len());
        if length > CONTENT_BYTES_MAX {
            return Err(Reply::refused("its arguments are too long; send a file"));
        }
        if self.is_request(action, &arguments) {
            self.access.permit_query(action).map_err(to_refusal)?;
            drone.send_request(ticket, action, arguments, until, now);
            return Ok(ReplyKind::Value);
        }
        self.access
            .permit(action, &arguments)
            .map_err(|why| self.refused_action(action, &why))?;
        let arguments = if action == "execute" {
            to_shell_command(arguments)?
        } else {
            arguments
        };
        let mut begin = until.start_by;
        if self.is_flight(action) {
            if !drone.is_connected() {
                let why = "offline: actions of flight are never queued";
                return Err(Reply::ended(Outcome::NoAnswer, why));
            }
            begin = begin.min(issued + Duration::from_millis(FLIGHT_TTL_MS_MAX));
        }
        drone.send_action(ticket, action, arguments, begin, now);
        Ok(ReplyKind::Value)
    }

    /// The reply to an action that may not pass. An unknown name may be a request that `requests` has to name: named in
    /// `allow`, it would be sent as an action.
    fn refused_action(&self, action: &str, why: &RequestError) -> Reply {
        let acts = REQUESTS_ALSO_ACTIONS.contains(&action) || action == "execute" || self.is_flight(action);
        if acts || self.access.allows(action) {
            return Reply::refused(why.to_string());
        }
        Reply::refused(format!(
            "{why} if it is an action; if it only asks, name it in `requests` there instead"
        ))
    }

    /// Whether a command is a request. `id` with a name, and `config` with a mode, change something.
    fn is_request(&self, action: &str, arguments: &Arguments) -> bool {
        let Arguments { args, kwargs } = arguments;
        match action {
            "id" => args.is_empty() && kwargs.is_empty(),
            "config" => args.is_empty() && !kwargs.contains_key("mode") && !kwargs.contains_key("config"),
            _ => READ_REQUESTS.contains(&action) || self.requests.contains(action),
        }
    }

    fn is_flight(&self, action: &str) -> bool {
        FLIGHT_ACTIONS.contains(&action) || self.flight.iter().any(|glob| glob.matches(action))
    }

    /// The path on the drone for ROOT/RELATIVE. A path with an unknown root stays as it is: the drone resolves it in the
    /// working directory of its program.
    fn resolve_path(&self, path: &str, clover_dir: Option<&str>) -> String {
        let (root, rest) = path.split_once('/').unwrap_or((path, ""));
        let known = self.roots.get(root).map(String::as_str);
        let known = known.or_else(|| clover_dir.filter(|_| root == CLOVER_ROOT));
        match known {
            Some(known) if rest.is_empty() => known.to_owned(),
            Some(known) => format!("{}/{rest}", known.trim_end_matches('/')),
            None => path.to_owned(),
        }
    }
}

fn to_refusal(why: RequestError) -> Reply {
    Reply::refused(why.to_string())
}

/// The arguments of `execute` with program and arguments joined to one line: the drones pass it to a shell.
fn to_shell_command(arguments: Arguments) -> Result<Arguments, Reply> {
    let Arguments { args, mut kwargs } = arguments;
    if kwargs.contains_key("command") || !args.is_empty() {
        return Ok(Arguments { args, kwargs });
    }
    let why = || Reply::refused("execute needs a program, or command=LINE");
    let Some(Value::String(program)) = kwargs.remove("program") else {
        return Err(why());
    };
    let mut line = shell_quote(&program);
    match kwargs.remove("args") {
        None | Some(Value::Null) => {}
        Some(Value::Array(words)) => {
            for word in words {
                let Value::String(word) = word else {
                    return Err(why());
                };
                line.push(' ');
                line.push_str(&shell_quote(&word));
            }
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => return Err(why()),
    }
    kwargs.insert("command".to_owned(), line.into());
    Ok(Arguments { args, kwargs })
}

/// Quotes a word for a POSIX shell.
fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The reply for a completion.
pub(super) fn to_reply(end: Completion, kind: ReplyKind) -> DeviceReply {
    let reply = match (end, kind) {
        (Completion::File(content), _) => return DeviceReply::File(content),
        (Completion::Sent, _) => Reply::done(SENT_UNCONFIRMED.into()),
        (Completion::Response(_), ReplyKind::Ping) => Reply::done("pong".into()),
        (Completion::Response(value), ReplyKind::Value | ReplyKind::Stop) => Reply::done(value),
        (Completion::WrongKind(why), _) => Reply::failed(why),
        (Completion::Expired, _) => Reply::ended(
            Outcome::Expired,
            "its time to live ran out before it could be sent",
        ),
        (Completion::NoAnswer(why), _) => Reply::ended(Outcome::NoAnswer, why),
        (Completion::Refused(why), _) => Reply::refused(why),
    };
    DeviceReply::Reply(reply)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(kwargs: Value) -> Arguments {
        let args = Vec::new();
        let kwargs = serde_json::from_value(kwargs).expect("an object");
        Arguments { args, kwargs }
    }

    #[test]
    fn execute_quotes_program_and_arguments_for_the_shell() {
        for (kwargs, line) in [
            (json!({ "program": "ls", "args": ["-l", "/tmp"] }), "ls -l /tmp"),
            (
                json!({ "program": "echo", "args": ["", "a b", "$x", "it's", "`id`", "a;b"] }),
                r"echo '' 'a b' '$x' 'it'\''s' '`id`' 'a;b'",
            ),
            (json!({ "command": "as it is; done" }), "as it is; done"),
        ] {
            let arguments = to_shell_command(arguments(kwargs)).expect("a program");
            assert_eq!(
                arguments.kwargs,
                *json!({ "command": line }).as_object().expect("an object")
            );
        }
        for bad in [
            json!({}),
            json!({ "program": 1 }),
            json!({ "program": "ls", "args": [1] }),
        ] {
            to_shell_command(arguments(bad.clone())).expect_err(&bad.to_string());
        }
    }
}
