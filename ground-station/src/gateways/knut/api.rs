//! Our own API in Knut's message format: nodes and actions.
//!
//! ```text
//! {"apiId": 21335, "msgId": 1, "msg": {"selector": "drone-*"}}
//! {"apiId": 21335, "msgId": 257, "msg": {"nodes": [{"node": "drone-01", "state": "online", …}]}}
//! {"apiId": 21335, "msgId": 2, "msg": {"selector": "all", "action": "led", "args": {"color": "#00ff00"}}}
//! {"apiId": 21335, "msgId": 258, "msg": {"deliveries": [{"node": "drone-01", "state": "done", …}]}}
//! {"apiId": 21335, "msgId": 258, "msg": {"error": {"kind": "not-allowed", "message": "…"}}}
//! ```

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use swarm_shared::proto::foreign::knut::Message;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Selector;

use super::super::access::{self, ActionRequest, Client, RequestError};
use super::ServerState;
use super::temperatures::RESPONSE_OFFSET;
use crate::config::gateways::CommonOptions;
use crate::duration;

/// Our `apiId`, "SW": Knut's own count from 1.
pub(super) const FLEET_API: i64 = 0x5357;
/// `msgId` of a request for nodes.
const NODES: i64 = 1;
/// `msgId` of an action.
const CALL: i64 = 2;
/// Longest answer, in bytes.
const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest `ttl` or `timeout` of a message; longer ones are shortened.
const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// Carries out a message's request if it is permitted. Returns the answer, or the message itself if its `msgId` is unknown.
pub(super) async fn handle(state: &ServerState, client: &Client, message: Message) -> Message {
    let Message { id, msg, .. } = message;
    let done = match id {
        NODES => nodes(state, client, &msg).await,
        CALL => call(state, client, msg).await,
        _ => return Message { msg, ..message },
    };
    Message {
        api: FLEET_API,
        id: RESPONSE_OFFSET + id,
        msg: done.unwrap_or_else(|why| error_json(&why)),
    }
}

async fn nodes(state: &ServerState, client: &Client, msg: &Value) -> Result<Value, RequestError> {
    let common = &state.config.common;
    let checked = check_token(common, msg).and_then(|()| check_keys(msg, &["selector"]));
    match checked.and_then(|()| parse_selector(common, msg)) {
        Ok(selector) => to_result("nodes", &state.access.nodes(client, selector).await?),
        Err(why) => {
            state.access.audit_refusal(client, "nodes", "", &why).await;
            Err(why)
        }
    }
}

async fn call(state: &ServerState, client: &Client, msg: Value) -> Result<Value, RequestError> {
    let action = msg
        .get("action")
        .and_then(Value::as_str)
        .unwrap_or("call")
        .to_owned();
    match parse_action_request(&state.config.common, msg) {
        Ok(request) => to_result("deliveries", &state.access.command(client, request).await?),
        Err(why) => {
            state.access.audit_refusal(client, &action, "", &why).await;
            Err(why)
        }
    }
}

fn parse_action_request(common: &CommonOptions, msg: Value) -> Result<ActionRequest, RequestError> {
    check_token(common, &msg)?;
    check_keys(&msg, &["selector", "action", "args", "ttl", "timeout"])?;
    let action = msg.get("action").and_then(Value::as_str).map(str::to_owned);
    Ok(ActionRequest {
        action: action.ok_or_else(|| RequestError::Usage("name the action in `action`".to_owned()))?,
        selector: parse_selector(common, &msg)?,
        ttl: parse_time(&msg, "ttl")?.unwrap_or(common.ttl),
        timeout: parse_time(&msg, "timeout")?.unwrap_or(common.timeout),
        arguments: parse_arguments(msg)?,
    })
}

/// Checks the gateway's token, if it has one. Knut's own messages have no field for it.
fn check_token(common: &CommonOptions, msg: &Value) -> Result<(), RequestError> {
    let shown = msg.get("token").and_then(Value::as_str);
    match &common.token {
        Some(token) if !shown.is_some_and(|shown| token.matches(shown)) => Err(RequestError::NotAllowed(
            "this gateway wants its token: write it into `token`".to_owned(),
        )),
        Some(_) | None => Ok(()),
    }
}

/// Refuses unknown keys: a misspelt `selector` must not select all nodes.
fn check_keys(msg: &Value, keys: &[&str]) -> Result<(), RequestError> {
    let mut given = msg.as_object().into_iter().flat_map(|fields| fields.keys());
    match given.find(|key| *key != "token" && !keys.contains(&key.as_str())) {
        Some(key) => Err(RequestError::Usage(format!(
            "`{key}` means nothing here: write {}",
            keys.join(", ")
        ))),
        None => Ok(()),
    }
}

fn parse_selector(common: &CommonOptions, msg: &Value) -> Result<Selector, RequestError> {
    match msg.get("selector") {
        None | Some(Value::Null) => Ok(common.target.clone()),
        Some(Value::String(text)) => access::parse_selector(text),
        Some(_) => Err(RequestError::Usage("`selector` has to be a text".to_owned())),
    }
}

fn parse_time(msg: &Value, key: &str) -> Result<Option<Duration>, RequestError> {
    let usage = |why: String| RequestError::Usage(format!("`{key}`: {why}"));
    let time = match msg.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => duration::parse(text).map_err(|error| usage(error.to_string()))?,
        Some(_) => return Err(usage("has to be a time, such as \"10s\"".to_owned())),
    };
    Ok(Some(time.min(TIMEOUT_MAX)))
}

fn parse_arguments(mut msg: Value) -> Result<Arguments, RequestError> {
    let (args, kwargs) = match msg.get_mut("args").map(Value::take) {
        None | Some(Value::Null) => (Vec::new(), Map::new()),
        Some(Value::Object(fields)) => (Vec::new(), fields),
        Some(Value::Array(list)) => (list, Map::new()),
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            return Err(RequestError::Usage(
                "`args` has to be an object or a list".to_owned(),
            ));
        }
    };
    Ok(Arguments { args, kwargs })
}

fn to_result(what: &str, all: &impl Serialize) -> Result<Value, RequestError> {
    let all = serde_json::to_value(all).map_err(|error| RequestError::Failed(error.to_string()))?;
    if all.to_string().len() > RESPONSE_BYTES_MAX {
        let why = format!("done, but the answer is longer than {RESPONSE_BYTES_MAX} bytes: see the history");
        return Err(RequestError::Failed(why));
    }
    Ok(json!({ what: all }))
}

fn error_json(why: &RequestError) -> Value {
    let kind = match why {
        RequestError::NotAllowed(_) => "not-allowed",
        RequestError::Usage(_) => "usage",
        RequestError::NoMatch(_) => "nobody-matched",
        RequestError::Failed(_) => "failed",
    };
    json!({ "error": { "kind": kind, "message": why.to_string() } })
}
