//! What a request in Platypush's form means here, whichever door it comes through.
//!
//! | `action` | what is done |
//! |---|---|
//! | any action of a node | `target` does it (a selector; without one, the door's `target`) |
//! | `shell.exec` | `execute` with `/bin/sh -c CMD`, on nodes that allow it |
//! | `station.nodes` | who is there |
//! | `station.history` | what was sent, and how it ended |
//! | `station.stop`, `station.release` | an emergency stop, and its end; `allow` has to name them |
//! | `socktools.send` | `text`, or `data` in base64, to a `peer` of the door socktools, or to all; `allow` has to name it |
//!
//! The `output` of one node's delivery is its value, or what its program printed; of several, an object with what
//! became of each, by name; of those with one name, each has the beginning of its id behind it. Each delivery that is not
//! done has one line in `errors`.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json};
use swarm_shared::net::{clock, random};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::platypush::{self, BadMessage, ID_BYTES, Response};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::gate::{ActionClass, Wish};
use swarm_shared::proto::wire::Kind;

use super::House;
use super::access::{self, Errand, Guard, NotDone, Visitor};
use crate::config::gateways::Common;
use crate::duration;
use crate::fleet::gateway_peers::PeerView;
use crate::fleet::{Delivery, Event, PastQuery, Request};
use crate::view::count;

mod parsed_action;

use parsed_action::{Deed, TELL};

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The emergency stop.
const STOP: &str = "station.stop";

/// Answers requests for one door.
#[derive(Clone, Debug)]
pub struct Desk {
    guard: Guard,
    origin: String,
    common: Common,
}

/// What a request asks for.
struct Asked {
    deed: Deed,
    selector: Selector,
    /// Whether it says of whom.
    named: bool,
}

/// What came of it.
type Came = (Value, Vec<String>);

impl Desk {
    /// Of the door that the configuration calls so.
    pub fn new(door: &'static str, common: &Common, house: &House) -> Self {
        Self {
            guard: Guard::new(door, common, house),
            origin: house.face.name.as_str().to_owned(),
            common: common.clone(),
        }
    }

    /// Who permits it.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Whether requests for this action, with arguments of these names, could be done at all.
    ///
    /// # Errors
    /// Why not, and what to change.
    pub fn permits(&self, action: &str, given: &[&str]) -> Result<(), NotDone> {
        parsed_action::check(action, given).map_err(NotDone::Usage)?;
        match action {
            "station.nodes" | "station.history" => Ok(()),
            "station.stop" | "station.release" => self.guard.permit_named(action, &Wish::Frame(Kind::Stop)),
            "shell.exec" => self.guard.permit("execute", &Arguments::default()),
            action => self.guard.permit(action, &Arguments::default()),
        }
    }

    /// Whether a request shows the door's token, if it has one. If it does not, that is in the audit, and the answer
    /// is here.
    ///
    /// # Errors
    /// What to answer.
    pub async fn admit(&self, visitor: &Visitor, request: &platypush::Request) -> Result<(), Response> {
        let Some(token) = &self.common.token else {
            return Ok(());
        };
        let fault = match &request.token {
            Some(shown) if token.is(shown) => return Ok(()),
            Some(_) => "the token is wrong",
            None => "this door takes a token: write \"token\": \"…\" into the request",
        };
        // In the log it would be as often as anybody likes.
        tracing::debug!(visitor = self.guard.who(visitor), fault, "turned away");
        let outcome = format!("not done: {fault}");
        self.guard.note(visitor, &request.action, "", outcome).await;
        Err(self.respond(request.id.clone(), request.origin.clone(), Err(fault.to_owned())))
    }

    /// Does what is to be done of a request that had arrived when whoever asked went: an emergency stop, and nothing else, as
    /// it would be late.
    pub async fn finish(&self, visitor: &Visitor, request: platypush::Request) {
        if request.action == STOP {
            let _nobody_hears = self.answer(visitor, request).await;
        } else {
            let outcome = "not done: whoever asked has gone".to_owned();
            self.guard.note(visitor, &request.action, "", outcome).await;
        }
    }

    /// Does what a request says, if it may be done, and says what came of it. Either way it is in the audit.
    pub async fn answer(&self, visitor: &Visitor, request: platypush::Request) -> Response {
        let (id, asker) = (request.id.clone(), request.origin.clone());
        let (action, target) = (request.action.clone(), request.target.clone());
        let done = match self.read(request) {
            Ok(asked) => self.carry_out(visitor, asked).await,
            Err(why) => {
                let (target, outcome) = (target.unwrap_or_default(), format!("not done: {why}"));
                self.guard.note(visitor, &action, &target, outcome).await;
                Err(why)
            }
        };
        self.respond(id, asker, done.map_err(|why| why.to_string()))
    }

    /// The answer to what is no request. That it came is in the audit.
    pub async fn turn_down(&self, visitor: &Visitor, bad: BadMessage) -> Response {
        let fault = bad.fault.to_string();
        self.guard.note_wrong(visitor, &fault).await;
        self.respond(bad.id, bad.origin, Err(fault))
    }

    /// The answer to what could not even be cut out of the stream, or read. That it came is in the audit.
    pub async fn turn_down_all(&self, visitor: &Visitor, fault: &str) -> Response {
        self.guard.note_wrong(visitor, fault).await;
        let id = platypush::made_up_id(random_id());
        self.respond(id, None, Err(fault.to_owned()))
    }

    /// A response as it is written.
    pub fn encode(&self, response: &Response) -> Vec<u8> {
        let bytes = |response: &Response| response.to_value(clock::unix_time_ms()).to_string().into_bytes();
        let whole = bytes(response);
        if whole.len() <= ANSWER_BYTES_MAX {
            return whole;
        }
        let fault = format!(
            "it is done, but its outcome has {} bytes, and no more than {ANSWER_BYTES_MAX} are written: ask fewer nodes",
            whole.len()
        );
        bytes(&self.respond(response.id.clone(), response.target.clone(), Err(fault)))
    }

    fn respond(&self, id: String, target: Option<String>, done: Result<Came, String>) -> Response {
        let (output, errors) = done.unwrap_or_else(|fault| (Value::Null, vec![fault]));
        Response {
            id,
            target,
            origin: self.origin.clone(),
            output,
            errors,
        }
    }

    /// What a request asks for, and of whom.
    fn read(&self, request: platypush::Request) -> Result<Asked, NotDone> {
        let named = request.target.is_some();
        let selector = match &request.target {
            None => self.common.target.clone(),
            Some(text) => access::selector(text)?,
        };
        let deed = parsed_action::read(request.action, request.args).map_err(NotDone::Usage)?;
        if matches!(deed, Deed::History(_)) && named && selector.has_tags() {
            return Err(NotDone::Usage(
                "the history does not keep tags: let target be names, globs or id:PREFIX".to_owned(),
            ));
        }
        Ok(Asked {
            deed,
            selector,
            named,
        })
    }

    async fn carry_out(&self, visitor: &Visitor, asked: Asked) -> Result<Came, NotDone> {
        let Asked {
            deed,
            selector,
            named,
        } = asked;
        match deed {
            Deed::Command {
                action,
                arguments,
                failures_count,
            } => {
                let errand = Errand {
                    selector,
                    action,
                    arguments,
                    ttl: self.common.ttl,
                    timeout: self.common.timeout,
                };
                let deliveries = self.guard.command(visitor, errand).await?;
                Ok(outcome(&deliveries, failures_count))
            }
            Deed::Nodes => {
                let nodes = self.guard.nodes(visitor, selector).await?;
                Ok((json!(nodes), Vec::new()))
            }
            Deed::History(mut query) => {
                query.nodes = named.then_some(selector);
                self.history(visitor, query).await
            }
            Deed::Tell { peer, message } => self.tell(visitor, peer, &message).await,
            Deed::Stop => {
                let request = Request::Stop {
                    selector: selector.clone(),
                    timeout_ms: Some(duration::to_ms(self.common.timeout)),
                    beside: false,
                };
                self.station(visitor, STOP, &selector, request).await
            }
            Deed::Release => {
                let request = Request::Release {
                    selector: selector.clone(),
                    timeout_ms: duration::to_ms(self.common.timeout),
                };
                self.station(visitor, "station.release", &selector, request).await
            }
        }
    }

    /// A stop or its release.
    async fn station(
        &self,
        visitor: &Visitor,
        what: &str,
        selector: &Selector,
        request: Request,
    ) -> Result<Came, NotDone> {
        let permitted = self.guard.permit_named(what, &Wish::Frame(Kind::Stop));
        let begun = self.guard.begin(visitor, what, selector.as_str());
        let begun = begun.often_if(permitted.is_err());
        let mut deliveries = Vec::new();
        let done = match permitted {
            Ok(()) => {
                let take = |event| {
                    if let Event::Delivery(delivery) = event {
                        deliveries.push(delivery);
                    }
                };
                self.guard.ask(visitor, request, take).await
            }
            Err(refused) => Err(refused),
        };
        let came = done.map(|()| outcome(&deliveries, true));
        let noted = match &came {
            Ok((_, errors)) => format!("{}, {} not done", count(deliveries.len(), "node"), errors.len()),
            Err(why) => format!("not done: {why}"),
        };
        begun.end(noted).await;
        came
    }

    async fn tell(&self, visitor: &Visitor, peer: Option<String>, message: &[u8]) -> Result<Came, NotDone> {
        if let Err(refused) = self.guard.permit_named(TELL, &Wish::Command(ActionClass::Act)) {
            let to = peer.unwrap_or_else(|| "all peers".to_owned());
            let outcome = format!("not done: {refused}");
            self.guard.note(visitor, TELL, &to, outcome).await;
            return Err(refused);
        }
        let request = Request::Tell {
            door: "socktools".to_owned(),
            peer,
            message: BASE64.encode(message),
        };
        let mut peers = Vec::new();
        let take = |event| {
            if let Event::Peer(peer) = event {
                peers.push(peer);
            }
        };
        // The engine puts it into the audit, whoever asks.
        self.guard.ask(visitor, request, take).await?;
        let fault = |peer: &PeerView| Some(format!("{}: {}", peer.peer, peer.error.as_ref()?));
        let errors = peers.iter().filter_map(fault).collect();
        Ok((json!(peers), errors))
    }

    async fn history(&self, visitor: &Visitor, query: PastQuery) -> Result<Came, NotDone> {
        let one = query.number.is_some();
        let begun = self.guard.begin(visitor, "history", "").often_if(true);
        let (mut commands, mut deliveries) = (Vec::new(), Vec::new());
        let asked = self.guard.ask(visitor, Request::History { query }, |event| {
            if let Event::Command(command) | Event::About(command) = event {
                commands.push(json!(command));
            } else if let Event::Past(delivery) = event {
                deliveries.push(json!(delivery));
            }
        });
        let asked = asked.await;
        let outcome = match &asked {
            Ok(()) => count(commands.len(), "command"),
            Err(why) => format!("not done: {why}"),
        };
        begun.end(outcome).await;
        asked?;
        let output = if one {
            json!({ "command": commands.pop(), "deliveries": deliveries })
        } else {
            Value::Array(commands)
        };
        Ok((output, Vec::new()))
    }
}

/// Whether an action takes no arguments at all.
pub fn takes_nothing(action: &str) -> bool {
    parsed_action::takes_nothing(action)
}

/// For an id; without randomness there still is an answer.
pub fn random_id() -> [u8; ID_BYTES] {
    random::bytes().unwrap_or_else(|_none| {
        let mut id = [0; ID_BYTES];
        id[..8].copy_from_slice(&clock::unix_time_ms().to_be_bytes());
        id
    })
}

/// What deliveries come to in a response.
fn outcome(deliveries: &[Delivery], failures_count: bool) -> Came {
    let counts = |delivery: &&Delivery| match delivery.state {
        Outcome::Done => false,
        Outcome::Failed => failures_count,
        Outcome::Refused | Outcome::Expired | Outcome::Unknown | Outcome::NoAnswer => true,
    };
    let mut failed: Vec<&Delivery> = deliveries.iter().filter(counts).collect();
    // As `output` has them, whoever answered first.
    failed.sort_by_key(|delivery| (delivery.node.as_str(), delivery.id));
    let named = with_names(deliveries);
    let fault = |delivery: &Delivery| {
        let name = called(delivery, &named);
        let Delivery { state, error, .. } = delivery;
        match error {
            Some(error) => format!("{name}: {state}: {error}"),
            None => format!("{name}: {state}"),
        }
    };
    let errors = failed.into_iter().map(fault).collect();
    let output = match deliveries {
        [one] => plain(one),
        several => {
            let full = |delivery: &Delivery| (called(delivery, &named), full(delivery));
            Value::Object(several.iter().map(full).collect())
        }
    };
    (output, errors)
}

/// How many have each name.
fn with_names(deliveries: &[Delivery]) -> BTreeMap<&str, usize> {
    let mut named = BTreeMap::new();
    for delivery in deliveries {
        *named.entry(delivery.node.as_str()).or_default() += 1;
    }
    named
}

/// A node's name. Of several with one name each has the beginning of its id behind it, whoever answered first: nobody
/// is taken for another by coming before it.
fn called(delivery: &Delivery, named: &BTreeMap<&str, usize>) -> String {
    let name = delivery.node.as_str();
    if named.get(name).is_some_and(|nodes| *nodes > 1) {
        format!("{name} {}", delivery.id.short())
    } else {
        name.to_owned()
    }
}

/// The value, or what was printed; both if there are both.
fn plain(delivery: &Delivery) -> Value {
    match (&delivery.value, &delivery.output) {
        (Some(value), None) => value.clone(),
        (Some(value), Some(output)) => json!({ "value": value, "output": output }),
        (None, output) => json!(output),
    }
}

fn full(delivery: &Delivery) -> Value {
    json!({
        "state": delivery.state,
        "value": delivery.value,
        "output": delivery.output,
        "exit": delivery.exit,
        "error": delivery.error,
        "ms": delivery.ms,
    })
}

#[cfg(test)]
mod tests {
    use swarm_shared::proto::id::{NodeName, PeerId};
    use swarm_shared::proto::outcome::Reply;

    use super::*;
    use crate::fleet::NodeRef;

    fn delivery(name: &str, id: u8, reply: Reply) -> Delivery {
        let node = NodeRef {
            node: NodeName::parse(name).expect("a name"),
            id: PeerId([id; 32]),
        };
        Delivery::new(node, reply, 1.5)
    }

    #[test]
    fn one_delivery_is_its_value_and_several_are_named() {
        let printed = |text: &str, state, error: Option<&str>| Reply {
            state,
            value: None,
            output: Some(text.to_owned()),
            exit: Some(0),
            error: error.map(str::to_owned),
        };
        let one = delivery("n1", 1, printed("bin\n", Outcome::Done, None));
        assert_eq!(
            outcome(std::slice::from_ref(&one), true),
            (json!("bin\n"), vec![])
        );
        let pong = delivery("n1", 1, Reply::done(json!("pong")));
        assert_eq!(outcome(&[pong], true), (json!("pong"), vec![]));
        let nothing = delivery("n1", 1, Reply::done(Value::Null));
        assert_eq!(outcome(&[nothing], true), (Value::Null, vec![]));
        let failed = delivery("n1", 2, printed("", Outcome::Failed, Some("exit status 7")));
        let (output, errors) = outcome(&[one, failed.clone()], true);
        assert_eq!(errors, ["n1 0202-0202-0202-0202: failed: exit status 7"]);
        assert_eq!(output["n1 0101-0101-0101-0101"]["output"], "bin\n");
        assert_eq!(output["n1 0202-0202-0202-0202"]["state"], "failed");
        assert_eq!(outcome(&[failed], false), (json!(""), vec![]));
    }

    #[test]
    fn of_two_with_one_name_neither_has_it_to_itself_whoever_answered_first() {
        let named = ["n1", "n2", "n1"];
        let mut came: Vec<Delivery> = (1..)
            .zip(named)
            .map(|(id, name)| delivery(name, id, Reply::failed("no")))
            .collect();
        let first = outcome(&came, true);
        let keys: Vec<&String> = first.0.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["n1 0101-0101-0101-0101", "n1 0303-0303-0303-0303", "n2"]);
        let errors = [
            "n1 0101-0101-0101-0101: failed: no",
            "n1 0303-0303-0303-0303: failed: no",
            "n2: failed: no",
        ];
        assert_eq!(first.1, errors);
        came.reverse();
        assert_eq!(outcome(&came, true), first);
    }

    #[test]
    fn errors_are_in_the_order_of_names_whoever_answered_first() {
        let failed = |name, id| delivery(name, id, Reply::failed("no"));
        let came = [failed("n2", 1), failed("n1", 3), failed("n10", 2)];
        let (_, errors) = outcome(&came, true);
        assert_eq!(errors, ["n1: failed: no", "n10: failed: no", "n2: failed: no"]);
    }
}
