//! Our own interface in Knut's language: who is there, and actions.
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
use swarm_shared::proto::knut::Message;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Selector;

use super::super::access::{self, Errand, Guard, NotDone, Visitor};
use super::temperatures::ANSWER;
use crate::config::gateways::Common;
use crate::duration;

/// Our number: "SW". Knut counts its own from 1.
pub(super) const FLEET: i64 = 0x5357;
/// Who is there.
const NODES: i64 = 1;
/// An action.
const CALL: i64 = 2;
/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest time that a message may set.
const TIME_MAX: Duration = Duration::from_secs(3_600);

/// Does what a message asks for, if it may be done.
pub(super) async fn answer(guard: &Guard, common: &Common, visitor: &Visitor, message: Message) -> Message {
    let id = message.id;
    let done = match id {
        NODES => nodes(guard, common, visitor, &message.msg).await,
        CALL => call(guard, common, visitor, message.msg).await,
        _ => return message,
    };
    let (msg, id) = (done.unwrap_or_else(|why| refusal(&why)), ANSWER + id);
    Message { api: FLEET, id, msg }
}

async fn nodes(guard: &Guard, common: &Common, visitor: &Visitor, msg: &Value) -> Result<Value, NotDone> {
    let read = admit(common, msg).and_then(|()| known(msg, &["selector"]));
    match read.and_then(|()| selector(common, msg)) {
        Ok(selector) => told("nodes", &guard.nodes(visitor, selector).await?),
        Err(why) => Err(refuse(guard, visitor, "nodes", why).await),
    }
}

async fn call(guard: &Guard, common: &Common, visitor: &Visitor, msg: Value) -> Result<Value, NotDone> {
    let action = msg.get("action").and_then(Value::as_str).map(str::to_owned);
    match errand(common, msg) {
        Ok(errand) => told("deliveries", &guard.command(visitor, errand).await?),
        Err(why) => Err(refuse(guard, visitor, action.as_deref().unwrap_or("call"), why).await),
    }
}

/// Notes what is refused before anybody is asked.
async fn refuse(guard: &Guard, visitor: &Visitor, what: &str, why: NotDone) -> NotDone {
    guard.note(visitor, what, "", format!("not done: {why}")).await;
    why
}

fn errand(common: &Common, msg: Value) -> Result<Errand, NotDone> {
    admit(common, &msg)?;
    known(&msg, &["selector", "action", "args", "ttl", "timeout"])?;
    let action = msg.get("action").and_then(Value::as_str).map(str::to_owned);
    Ok(Errand {
        action: action.ok_or_else(|| NotDone::Usage("name the action in `action`".to_owned()))?,
        selector: selector(common, &msg)?,
        ttl: time(&msg, "ttl")?.unwrap_or(common.ttl),
        timeout: time(&msg, "timeout")?.unwrap_or(common.timeout),
        arguments: arguments(msg)?,
    })
}

/// Checks the door's token, if it has one: of all that is said here only our own messages have room for it.
fn admit(common: &Common, msg: &Value) -> Result<(), NotDone> {
    let shown = msg.get("token").and_then(Value::as_str);
    match &common.token {
        Some(token) if !shown.is_some_and(|shown| token.is(shown)) => Err(NotDone::NotAllowed(
            "this door wants its token: write it into `token`".to_owned(),
        )),
        Some(_) | None => Ok(()),
    }
}

/// Refuses what means nothing here: whoever has misspelt `selector` means some nodes, and not all.
fn known(msg: &Value, keys: &[&str]) -> Result<(), NotDone> {
    let mut given = msg.as_object().into_iter().flat_map(|fields| fields.keys());
    match given.find(|key| *key != "token" && !keys.contains(&key.as_str())) {
        Some(key) => Err(NotDone::Usage(format!(
            "`{key}` means nothing here: write {}",
            keys.join(", ")
        ))),
        None => Ok(()),
    }
}

fn selector(common: &Common, msg: &Value) -> Result<Selector, NotDone> {
    match msg.get("selector") {
        None | Some(Value::Null) => Ok(common.target.clone()),
        Some(Value::String(text)) => access::selector(text),
        Some(_) => Err(NotDone::Usage("`selector` has to be a text".to_owned())),
    }
}

fn time(msg: &Value, key: &str) -> Result<Option<Duration>, NotDone> {
    let usage = |why: String| NotDone::Usage(format!("`{key}`: {why}"));
    let time = match msg.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => duration::parse(text).map_err(|error| usage(error.to_string()))?,
        Some(_) => return Err(usage("has to be a time, such as \"10s\"".to_owned())),
    };
    Ok(Some(time.min(TIME_MAX)))
}

fn arguments(mut msg: Value) -> Result<Arguments, NotDone> {
    let (args, kwargs) = match msg.get_mut("args").map(Value::take) {
        None | Some(Value::Null) => (Vec::new(), Map::new()),
        Some(Value::Object(fields)) => (Vec::new(), fields),
        Some(Value::Array(list)) => (list, Map::new()),
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            return Err(NotDone::Usage("`args` has to be an object or a list".to_owned()));
        }
    };
    Ok(Arguments { args, kwargs })
}

fn told(what: &str, all: &impl Serialize) -> Result<Value, NotDone> {
    let all = serde_json::to_value(all).map_err(|error| NotDone::Failed(error.to_string()))?;
    if all.to_string().len() > ANSWER_BYTES_MAX {
        let why = format!("done, but the answer is longer than {ANSWER_BYTES_MAX} bytes: see the history");
        return Err(NotDone::Failed(why));
    }
    Ok(json!({ what: all }))
}

fn refusal(why: &NotDone) -> Value {
    let kind = match why {
        NotDone::NotAllowed(_) => "not-allowed",
        NotDone::Usage(_) => "usage",
        NotDone::NobodyMatched(_) => "nobody-matched",
        NotDone::Failed(_) => "failed",
    };
    json!({ "error": { "kind": kind, "message": why.to_string() } })
}
