//! What the fleet's orders are in clever-show's words, and whether they may pass.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use swarm_shared::proto::clever_show::server::{Drone, End, Until};
use swarm_shared::proto::clever_show::{FILE_TRANSFER, FLIGHT};
use swarm_shared::proto::delivery::FLIGHT_LIFE_MS_MAX;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Glob;
use swarm_shared::proto::wire::CONTENT_BYTES_MAX;

use crate::config::gateways::CleverShow;
use crate::fleet::guests::{Answer, Work};
use crate::gateways::access::{Guard, NotDone};

/// The questions that clever-show documents.
pub(super) const REQUESTS: &[&str] = &[
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
/// Those of them that are actions too.
pub(super) const ALSO_ACTS: &[&str] = &["id", "config"];
/// What is known of something that was sent to somebody who never answers.
const SENT: &str = "sent, unconfirmed";
/// What a release does here.
pub(super) const RELEASED: &str =
    "released at this station: actions pass again; the drone itself knows of no stop";
/// The root that each drone tells of itself.
const CLOVER: &str = "clover";

/// The door's rules.
#[derive(Clone, Debug)]
pub(super) struct Rulebook {
    guard: Guard,
    requests: BTreeSet<String>,
    flight: Vec<Glob>,
    stop_action: Option<String>,
    roots: BTreeMap<String, String>,
    /// Longest message, in bytes.
    pub(super) message_bytes: usize,
    /// Longest file, in bytes.
    pub(super) file_bytes: u64,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sense {
    /// What it says.
    Plain,
    /// That somebody is there.
    Ping,
    /// That it was told to stop.
    Stop,
}

/// Until when, and at what time this is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// When it was asked for.
    pub(super) issued: Instant,
    pub(super) until: Until,
    pub(super) now: Instant,
}

impl Rulebook {
    pub(super) fn new(config: &CleverShow, guard: Guard) -> Self {
        Self {
            guard,
            requests: config.requests.clone(),
            flight: config.flight.clone(),
            stop_action: config.stop_action.clone(),
            roots: config.roots.clone(),
            message_bytes: config.common.limits.message_bytes,
            file_bytes: config.file_bytes,
        }
    }

    /// Gives an order to a drone; or it ends so at once.
    pub(super) fn give(
        &self,
        drone: &mut Drone,
        ticket: u64,
        work: Work,
        times: Times,
    ) -> Result<Sense, Reply> {
        let Times { until, now, .. } = times;
        match work {
            Work::Command { action, arguments } => self.command(drone, ticket, &action, arguments, times),
            Work::Push { path, content } => {
                let none = Arguments::default();
                self.guard.permit(FILE_TRANSFER, &none).map_err(refused)?;
                let path = self.path(&path, drone.clover_dir());
                drone.push(ticket, &path, content, until.begin, now);
                Ok(Sense::Plain)
            }
            Work::Fetch { path } => {
                self.guard.permit_question(FILE_TRANSFER).map_err(refused)?;
                let path = self.path(&path, drone.clover_dir());
                drone.ask_file(ticket, &path, until, now);
                Ok(Sense::Plain)
            }
            Work::Stop => {
                let action = self.stop_action().inspect_err(|_untold| drone.drop_acts())?;
                drone.stop(ticket, action, until.begin);
                Ok(Sense::Stop)
            }
            Work::Release => Err(Reply::done(Value::from(if drone.release() {
                RELEASED
            } else {
                "it was not stopped"
            }))),
        }
    }

    /// What a stop tells drones.
    pub(super) fn stop_action(&self) -> Result<&str, Reply> {
        self.guard.permit_stop().map_err(refused)?;
        self.stop_action.as_deref().ok_or_else(|| {
            Reply::refused(
                "[doors.clever_show] has no `stop_action`: it was told nothing; it is sent nothing that acts",
            )
        })
    }

    /// Whether it is no mere question.
    pub(super) fn acts(&self, work: &Work) -> bool {
        match work {
            Work::Command { action, arguments } => action != "ping" && !self.is_request(action, arguments),
            Work::Push { .. } => true,
            Work::Fetch { .. } | Work::Stop | Work::Release => false,
        }
    }

    fn command(
        &self,
        drone: &mut Drone,
        ticket: u64,
        action: &str,
        arguments: Arguments,
        times: Times,
    ) -> Result<Sense, Reply> {
        let Times { issued, until, now } = times;
        if action == "ping" {
            self.guard.permit_question(action).map_err(refused)?;
            drone.ask(ticket, "id", Arguments::default(), until, now);
            return Ok(Sense::Ping);
        }
        if action == FILE_TRANSFER {
            return Err(Reply::refused("use `send` and `fetch` for files"));
        }
        let length = serde_json::to_string(&arguments).map_or(usize::MAX, |text| text.len());
        if length > CONTENT_BYTES_MAX {
            return Err(Reply::refused("its arguments are too long; send a file"));
        }
        if self.is_request(action, &arguments) {
            self.guard.permit_question(action).map_err(refused)?;
            drone.ask(ticket, action, arguments, until, now);
            return Ok(Sense::Plain);
        }
        self.guard
            .permit(action, &arguments)
            .map_err(|why| self.refused_action(action, &why))?;
        let arguments = if action == "execute" {
            execute(arguments)?
        } else {
            arguments
        };
        let mut begin = until.begin;
        if self.is_flight(action) {
            if !drone.is_here() {
                let why = "offline: actions of flight are never queued";
                return Err(Reply::ended(Outcome::NoAnswer, why));
            }
            begin = begin.min(issued + Duration::from_millis(FLIGHT_LIFE_MS_MAX));
        }
        drone.tell(ticket, action, arguments, begin, now);
        Ok(Sense::Plain)
    }

    /// A question that is not known for one, and named in `allow`, would be sent as an action.
    fn refused_action(&self, action: &str, why: &NotDone) -> Reply {
        let acts = ALSO_ACTS.contains(&action) || action == "execute" || self.is_flight(action);
        if acts || self.guard.allows(action) {
            return Reply::refused(why.to_string());
        }
        Reply::refused(format!(
            "{why} if it is an action; if it only asks, name it in `requests` there instead"
        ))
    }

    /// Whether it is a question. `id` with a name, and `config` with a mode, change something.
    fn is_request(&self, action: &str, arguments: &Arguments) -> bool {
        let Arguments { args, kwargs } = arguments;
        match action {
            "id" => args.is_empty() && kwargs.is_empty(),
            "config" => args.is_empty() && !kwargs.contains_key("mode") && !kwargs.contains_key("config"),
            _ => REQUESTS.contains(&action) || self.requests.contains(action),
        }
    }

    fn is_flight(&self, action: &str) -> bool {
        FLIGHT.contains(&action) || self.flight.iter().any(|glob| glob.matches(action))
    }

    /// ROOT/RELATIVE as a path of the drone. A root that is not configured stays as it is, and the path is below
    /// wherever the drone's program runs.
    fn path(&self, path: &str, clover_dir: Option<&str>) -> String {
        let (root, rest) = path.split_once('/').unwrap_or((path, ""));
        let known = self.roots.get(root).map(String::as_str);
        let known = known.or_else(|| clover_dir.filter(|_| root == CLOVER));
        match known {
            Some(known) if rest.is_empty() => known.to_owned(),
            Some(known) => format!("{}/{rest}", known.trim_end_matches('/')),
            None => path.to_owned(),
        }
    }
}

fn refused(why: NotDone) -> Reply {
    Reply::refused(why.to_string())
}

/// A program and its arguments as the one line that clever-show's drones give to a shell.
fn execute(arguments: Arguments) -> Result<Arguments, Reply> {
    let Arguments { args, mut kwargs } = arguments;
    if kwargs.contains_key("command") || !args.is_empty() {
        return Ok(Arguments { args, kwargs });
    }
    let why = || Reply::refused("execute needs a program, or command=LINE");
    let Some(Value::String(program)) = kwargs.remove("program") else {
        return Err(why());
    };
    let mut line = quoted(&program);
    match kwargs.remove("args") {
        None | Some(Value::Null) => {}
        Some(Value::Array(words)) => {
            for word in words {
                let Value::String(word) = word else {
                    return Err(why());
                };
                line.push(' ');
                line.push_str(&quoted(&word));
            }
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => return Err(why()),
    }
    kwargs.insert("command".to_owned(), line.into());
    Ok(Arguments { args, kwargs })
}

/// A word that a POSIX shell takes as it is.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What the end of something at a drone is to the fleet.
pub(super) fn answer(end: End, sense: Sense) -> Answer {
    let reply = match (end, sense) {
        (End::File(content), _) => return Answer::File(content),
        (End::Sent, _) => Reply::done(SENT.into()),
        (End::Answer(_), Sense::Ping) => Reply::done("pong".into()),
        (End::Answer(value), Sense::Plain | Sense::Stop) => Reply::done(value),
        (End::Unfit(why), _) => Reply::failed(why),
        (End::Expired, _) => Reply::ended(
            Outcome::Expired,
            "its time to live ran out before it could be sent",
        ),
        (End::NoAnswer(why), _) => Reply::ended(Outcome::NoAnswer, why),
        (End::Refused(why), _) => Reply::refused(why),
    };
    Answer::Reply(reply)
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
    fn a_program_and_its_words_are_one_line_that_a_shell_takes_apart_again() {
        for (kwargs, line) in [
            (json!({ "program": "ls", "args": ["-l", "/tmp"] }), "ls -l /tmp"),
            (
                json!({ "program": "echo", "args": ["", "a b", "$x", "it's", "`id`", "a;b"] }),
                r"echo '' 'a b' '$x' 'it'\''s' '`id`' 'a;b'",
            ),
            (json!({ "command": "as it is; done" }), "as it is; done"),
        ] {
            let arguments = execute(arguments(kwargs)).expect("a program");
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
            execute(arguments(bad.clone())).expect_err(&bad.to_string());
        }
    }
}
