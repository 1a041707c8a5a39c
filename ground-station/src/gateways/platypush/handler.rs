//! Carries out request messages of Platypush's form, for every gateway that takes them.
//!
//! | `action` | what is done |
//! |---|---|
//! | any action of a node | runs on `target` (a selector; without one, the gateway's `target`) |
//! | `shell.exec` | `execute` with `/bin/sh -c CMD`, on nodes that allow it |
//! | `station.nodes` | the matching nodes |
//! | `station.history` | commands and their outcomes |
//! | `station.stop`, `station.release` | emergency stop and release; `allow` has to name them |
//! | `socktools.send` | sends `text`, or `data` in base64, to a `peer` of the gateway socktools, or to all; `allow` has to name it |
//!
//! The `output` of one delivery is its value, or its program's output; of several, an object of deliveries by node name.
//! Nodes with the same name are told apart by a prefix of their id. Each delivery that is not done has a line in `errors`.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json};
use swarm_shared::net::{clock, random};
use swarm_shared::proto::foreign::platypush::{self, BadMessage, ID_BYTES, Response};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::gate::{ActionClass, Permission};
use swarm_shared::proto::wire::Kind;

use super::parsed_action::{self, ParsedAction, SEND_TO_PEERS};
use crate::config::gateways::CommonOptions;
use crate::duration;
use crate::gateways::access::{self, AccessPolicy, ActionRequest, Client, RequestError};
use crate::gateways::context::GatewayContext;
use crate::text::pluralize;
use swarm_shared::api::{
    ActRequest, AdminRequest, Delivery, Event, HistoryQuery, HistoryRequest, NodeView, PeerView,
};

/// Longest response, in bytes.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The action of an emergency stop.
const STATION_STOP: &str = "station.stop";

/// Carries out the requests of one gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RequestHandler {
    access: AccessPolicy,
    origin: String,
    common: CommonOptions,
}

/// What a connection does after a message.
#[derive(Debug)]
pub enum MessageEnd {
    /// It sends this response.
    Respond(Response),
    /// It sends this response and closes, so that each guess of a token takes a new connection.
    RespondAndClose(Response),
    /// It sends nothing.
    Drop,
}

/// `output` and `errors` of a response.
type HandlerOutput = (Value, Vec<String>);

impl RequestHandler {
    /// A handler for the gateway with this name in the configuration.
    pub fn new(gateway: &'static str, common: &CommonOptions, context: &GatewayContext) -> Self {
        Self {
            access: AccessPolicy::new(gateway, common, context),
            origin: context.advertisement.name.as_str().to_owned(),
            common: common.clone(),
        }
    }

    /// The gateway's access policy.
    pub fn access(&self) -> &AccessPolicy {
        &self.access
    }

    /// Checks that the gateway permits this action, and that the action takes arguments of these names.
    ///
    /// # Errors
    /// The reason, and what to change.
    pub fn check_permitted(&self, action: &str, given: &[&str]) -> Result<(), RequestError> {
        parsed_action::check_arguments(action, given).map_err(RequestError::Usage)?;
        match action {
            "station.nodes" | "station.history" => Ok(()),
            "station.stop" | "station.release" => {
                self.access.permit_named(action, &Permission::Frame(Kind::Stop))
            }
            "shell.exec" => self.access.permit("execute", &Arguments::default()),
            action => self.access.permit(action, &Arguments::default()),
        }
    }

    /// Checks a request's token, if the gateway has one. A missing or wrong token is audited.
    ///
    /// # Errors
    /// The response to send.
    async fn authenticate(&self, client: &Client, request: &platypush::Request) -> Result<(), Response> {
        let Some(token) = &self.common.token else {
            return Ok(());
        };
        let fault = match &request.token {
            Some(shown) if token.matches(shown) => return Ok(()),
            Some(_) => "the token is wrong",
            None => "this gateway takes a token: write \"token\": \"…\" into the request",
        };
        // At debug level, since clients could fill the log.
        tracing::debug!(
            client = self.access.client_label(client),
            fault,
            "Request refused"
        );
        self.access
            .audit_refusal(client, &request.action, "", &fault)
            .await;
        Err(self.build_response(request.id.clone(), request.origin.clone(), Err(fault.to_owned())))
    }

    /// Handles one message of a connection: authenticates and carries out its request. `disconnected`: the client does not
    /// get the response, so that only an emergency stop is carried out; other requests would be late.
    pub async fn handle_message(
        &self,
        client: &Client,
        parsed: Result<platypush::Request, BadMessage>,
        disconnected: bool,
    ) -> MessageEnd {
        let request = match parsed {
            Ok(request) => request,
            Err(bad) => return MessageEnd::Respond(self.reject(client, bad).await),
        };
        if let Err(refused) = self.authenticate(client, &request).await {
            return MessageEnd::RespondAndClose(refused);
        }
        if disconnected && request.action != STATION_STOP {
            let why = "the client has disconnected";
            self.access.audit_refusal(client, &request.action, "", &why).await;
            return MessageEnd::Drop;
        }
        MessageEnd::Respond(self.handle(client, request).await)
    }

    /// Carries out a request if it is permitted, and audits it.
    pub async fn handle(&self, client: &Client, request: platypush::Request) -> Response {
        let (id, asker) = (request.id.clone(), request.origin.clone());
        let (action, target) = (request.action.clone(), request.target.clone());
        let done = match self.parse(request) {
            Ok((action, selector)) => self.execute(client, action, selector).await,
            Err(why) => {
                let target = target.unwrap_or_default();
                self.access.audit_refusal(client, &action, &target, &why).await;
                Err(why)
            }
        };
        self.build_response(id, asker, done.map_err(|why| why.to_string()))
    }

    /// The response to an invalid message; it is audited.
    pub async fn reject(&self, client: &Client, bad: BadMessage) -> Response {
        let fault = bad.fault.to_string();
        self.access.audit_malformed(client, &fault).await;
        self.build_response(bad.id, bad.origin, Err(fault))
    }

    /// The response to bytes that are not a message; they are audited.
    pub async fn reject_unparsed(&self, client: &Client, fault: &str) -> Response {
        self.access.audit_malformed(client, fault).await;
        let id = platypush::id_from_random(random_id());
        self.build_response(id, None, Err(fault.to_owned()))
    }

    /// Encodes a response; an error in its place if it is longer than `RESPONSE_BYTES_MAX`.
    pub fn encode(&self, response: &Response) -> Vec<u8> {
        let bytes = |response: &Response| response.to_value(clock::unix_time_ms()).to_string().into_bytes();
        let whole = bytes(response);
        if whole.len() <= RESPONSE_BYTES_MAX {
            return whole;
        }
        let fault = format!(
            "it is done, but its outcome has {} bytes, and no more than {RESPONSE_BYTES_MAX} are written: ask fewer nodes",
            whole.len()
        );
        bytes(&self.build_response(response.id.clone(), response.target.clone(), Err(fault)))
    }

    fn build_response(
        &self,
        id: String,
        target: Option<String>,
        done: Result<HandlerOutput, String>,
    ) -> Response {
        let (output, errors) = done.unwrap_or_else(|fault| (Value::Null, vec![fault]));
        Response {
            id,
            target,
            origin: self.origin.clone(),
            output,
            errors,
        }
    }

    /// The action of a request and its nodes.
    fn parse(&self, request: platypush::Request) -> Result<(ParsedAction, Selector), RequestError> {
        let selector = match &request.target {
            None => self.common.target.clone(),
            Some(text) => access::parse_selector(text)?,
        };
        let mut action = parsed_action::parse(request.action, request.args).map_err(RequestError::Usage)?;
        if let ParsedAction::History(query) = &mut action
            && request.target.is_some()
        {
            if selector.has_tags() {
                return Err(RequestError::Usage(
                    "the history does not keep tags: let target be names, globs or id:PREFIX".to_owned(),
                ));
            }
            query.nodes = Some(selector.clone());
        }
        Ok((action, selector))
    }

    async fn execute(
        &self,
        client: &Client,
        action: ParsedAction,
        selector: Selector,
    ) -> Result<HandlerOutput, RequestError> {
        match action {
            ParsedAction::Command {
                action,
                arguments,
                failures_count,
            } => {
                let action_request = ActionRequest {
                    selector,
                    action,
                    arguments,
                    ttl: self.common.ttl,
                    timeout: self.common.timeout,
                };
                let deliveries = self.access.command(client, action_request).await?;
                Ok(summarize(&deliveries, failures_count))
            }
            ParsedAction::Nodes => {
                let nodes = self.access.nodes(client, selector).await?;
                let nodes: Vec<_> = nodes.into_iter().map(NodeView::with_texts).collect();
                Ok((json!(nodes), Vec::new()))
            }
            ParsedAction::History(query) => self.history(client, query).await,
            ParsedAction::SendToPeers { peer, message } => self.send_to_peers(client, peer, &message).await,
            ParsedAction::Stop => {
                let request = ActRequest::Stop {
                    selector,
                    timeout_ms: Some(duration::to_ms(self.common.timeout)),
                };
                self.stop_or_release(client, STATION_STOP, request).await
            }
            ParsedAction::Release => {
                let request = ActRequest::Release {
                    selector,
                    timeout_ms: duration::to_ms(self.common.timeout),
                };
                self.stop_or_release(client, "station.release", request).await
            }
        }
    }

    async fn stop_or_release(
        &self,
        client: &Client,
        what: &str,
        request: ActRequest,
    ) -> Result<HandlerOutput, RequestError> {
        let permitted = self.access.permit_named(what, &Permission::Frame(Kind::Stop));
        let audit_scope = self.access.begin_audit(client, what, request.selector().as_str());
        let audit_scope = audit_scope.aggregate_if(permitted.is_err());
        let deliveries = match permitted {
            Ok(()) => self.access.deliveries(client, request).await,
            Err(refused) => Err(refused),
        };
        let output = deliveries.map(|deliveries| (deliveries.len(), summarize(&deliveries, true)));
        let outcome = match &output {
            Ok((nodes, (_, errors))) => format!("{}, {} not done", pluralize(nodes, "node"), errors.len()),
            Err(why) => format!("not done: {why}"),
        };
        audit_scope.finish(outcome).await;
        output.map(|(_, output)| output)
    }

    async fn send_to_peers(
        &self,
        client: &Client,
        peer: Option<String>,
        message: &[u8],
    ) -> Result<HandlerOutput, RequestError> {
        if let Err(refused) = self
            .access
            .permit_named(SEND_TO_PEERS, &Permission::Command(ActionClass::Modify))
        {
            let to = peer.unwrap_or_else(|| "all peers".to_owned());
            self.access
                .audit_refusal(client, SEND_TO_PEERS, &to, &refused)
                .await;
            return Err(refused);
        }
        let request = AdminRequest::SendToPeers {
            gateway: "socktools".to_owned(),
            peer,
            message: BASE64.encode(message),
        };
        let mut peers = Vec::new();
        // The engine audits it.
        let mut events = self.access.perform(client, request).await;
        while let Some(event) = events.next().await? {
            if let Event::Peer(peer) = event {
                peers.push(peer);
            }
        }
        let fault = |peer: &PeerView| Some(format!("{}: {}", peer.peer, peer.error.as_ref()?));
        let errors = peers.iter().filter_map(fault).collect();
        Ok((json!(peers), errors))
    }

    async fn history(&self, client: &Client, query: HistoryQuery) -> Result<HandlerOutput, RequestError> {
        let one = query.number.is_some();
        let work = async {
            let (mut commands, mut deliveries) = (Vec::new(), Vec::new());
            let request = HistoryRequest::Commands { query };
            let mut events = self.access.perform(client, request).await;
            while let Some(event) = events.next().await? {
                if let Event::Command(command) | Event::CommandDetails(command) = event {
                    commands.push(json!(command));
                } else if let Event::HistoryDelivery(delivery) = event {
                    deliveries.push(json!(delivery));
                }
            }
            Ok((commands, deliveries))
        };
        let count = |(commands, _): &(Vec<Value>, Vec<Value>)| pluralize(commands.len(), "command");
        let (mut commands, deliveries) = self
            .access
            .audited(client, ("history", ""), true, work, count)
            .await?;
        let output = if one {
            json!({ "command": commands.pop(), "deliveries": deliveries })
        } else {
            Value::Array(commands)
        };
        Ok((output, Vec::new()))
    }
}

/// Whether an action takes no arguments at all.
pub fn takes_no_arguments(action: &str) -> bool {
    parsed_action::takes_no_arguments(action)
}

/// Random bytes for an id; the time if there is no randomness, since a response needs an id.
pub fn random_id() -> [u8; ID_BYTES] {
    random::bytes().unwrap_or_else(|_none| {
        let mut id = [0; ID_BYTES];
        id[..8].copy_from_slice(&clock::unix_time_ms().to_be_bytes());
        id
    })
}

/// `output` and `errors` of deliveries; `failures_count` is whether a failed program is an error.
fn summarize(deliveries: &[Delivery], failures_count: bool) -> HandlerOutput {
    let counts = |delivery: &&Delivery| match delivery.state {
        Outcome::Done => false,
        Outcome::Failed => failures_count,
        Outcome::Refused | Outcome::Expired | Outcome::Unknown | Outcome::NoAnswer => true,
    };
    let mut failed: Vec<&Delivery> = deliveries.iter().filter(counts).collect();
    // In the order of `output`, whatever the order of replies.
    failed.sort_by_key(|delivery| (delivery.node.as_str(), delivery.id));
    let named = count_names(deliveries);
    let fault = |delivery: &Delivery| {
        let name = display_name(delivery, &named);
        let Delivery { state, error, .. } = delivery;
        match error {
            Some(error) => format!("{name}: {state}: {error}"),
            None => format!("{name}: {state}"),
        }
    };
    let errors = failed.into_iter().map(fault).collect();
    let output = match deliveries {
        [one] => single_output(one),
        several => {
            let full = |delivery: &Delivery| (display_name(delivery, &named), delivery_json(delivery));
            Value::Object(several.iter().map(full).collect())
        }
    };
    (output, errors)
}

/// The number of deliveries per node name.
fn count_names(deliveries: &[Delivery]) -> BTreeMap<&str, usize> {
    let mut named = BTreeMap::new();
    for delivery in deliveries {
        *named.entry(delivery.node.as_str()).or_default() += 1;
    }
    named
}

/// A node's name, followed by a prefix of its id if other nodes have the same name.
fn display_name(delivery: &Delivery, named: &BTreeMap<&str, usize>) -> String {
    let name = delivery.node.as_str();
    if named.get(name).is_some_and(|nodes| *nodes > 1) {
        format!("{name} {}", delivery.id.short())
    } else {
        name.to_owned()
    }
}

/// The value or the program's output; an object if there are both.
fn single_output(delivery: &Delivery) -> Value {
    match (&delivery.value, &delivery.output) {
        (Some(value), None) => value.clone(),
        (Some(value), Some(output)) => json!({ "value": value, "output": output }),
        (None, output) => json!(output),
    }
}

fn delivery_json(delivery: &Delivery) -> Value {
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
    use swarm_shared::api::NodeRef;

    fn delivery(name: &str, id: u8, reply: Reply) -> Delivery {
        let node = NodeRef {
            node: NodeName::parse(name).expect("a name"),
            id: PeerId([id; 32]),
        };
        Delivery::new(node, reply, 1.5)
    }

    #[test]
    fn one_delivery_is_a_plain_value_and_several_are_keyed_by_name() {
        let printed = |text: &str, state, error: Option<&str>| Reply {
            state,
            value: None,
            output: Some(text.to_owned()),
            exit: Some(0),
            error: error.map(str::to_owned),
        };
        let one = delivery("n1", 1, printed("bin\n", Outcome::Done, None));
        assert_eq!(
            summarize(std::slice::from_ref(&one), true),
            (json!("bin\n"), vec![])
        );
        let pong = delivery("n1", 1, Reply::done(json!("pong")));
        assert_eq!(summarize(&[pong], true), (json!("pong"), vec![]));
        let nothing = delivery("n1", 1, Reply::done(Value::Null));
        assert_eq!(summarize(&[nothing], true), (Value::Null, vec![]));
        let failed = delivery("n1", 2, printed("", Outcome::Failed, Some("exit status 7")));
        let (output, errors) = summarize(&[one, failed.clone()], true);
        assert_eq!(errors, ["n1 0202-0202-0202-0202: failed: exit status 7"]);
        assert_eq!(output["n1 0101-0101-0101-0101"]["output"], "bin\n");
        assert_eq!(output["n1 0202-0202-0202-0202"]["state"], "failed");
        assert_eq!(summarize(&[failed], false), (json!(""), vec![]));
    }

    #[test]
    fn nodes_of_one_name_are_told_apart_by_id_in_any_order() {
        let named = ["n1", "n2", "n1"];
        let mut came: Vec<Delivery> = (1..)
            .zip(named)
            .map(|(id, name)| delivery(name, id, Reply::failed("no")))
            .collect();
        let first = summarize(&came, true);
        let keys: Vec<&String> = first.0.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["n1 0101-0101-0101-0101", "n1 0303-0303-0303-0303", "n2"]);
        let errors = [
            "n1 0101-0101-0101-0101: failed: no",
            "n1 0303-0303-0303-0303: failed: no",
            "n2: failed: no",
        ];
        assert_eq!(first.1, errors);
        came.reverse();
        assert_eq!(summarize(&came, true), first);
    }

    #[test]
    fn errors_are_sorted_by_node_name() {
        let failed = |name, id| delivery(name, id, Reply::failed("no"));
        let came = [failed("n2", 1), failed("n1", 3), failed("n10", 2)];
        let (_, errors) = summarize(&came, true);
        assert_eq!(errors, ["n1: failed: no", "n10: failed: no", "n2: failed: no"]);
    }
}
