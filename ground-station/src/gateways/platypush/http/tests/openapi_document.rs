//! `openapi.json` describes every route and no other, and its examples match its schemas.

use std::collections::BTreeSet;

use serde_json::Value;
use swarm_shared::proto::foreign::platypush;

use super::*;

fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("JSON")
}

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

#[test]
fn openapi_lists_exactly_the_routes() {
    let routes = routes().into_iter().flat_map(|(path, methods, _)| {
        let methods = if methods == ["ANY"] { &METHODS } else { methods };
        let path = path.replace("{*", "{");
        methods.iter().map(move |method| format!("{method} {path}"))
    });
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let described = paths.iter().flat_map(|(path, operations)| {
        let operations = operations.as_object().expect("operations").keys();
        let methods = operations
            .filter(|key| *key != "parameters")
            .map(|key| key.to_uppercase());
        methods.map(move |method| format!("{method} {path}"))
    });
    assert_eq!(routes.collect::<BTreeSet<_>>(), described.collect());
}

#[tokio::test]
async fn routes_accept_the_methods_they_list() {
    let rig = Harness::new("").await;
    for (path, methods, _) in routes() {
        let path = path.replace("{name}", "x").replace("{*path}", "y");
        for method in METHODS {
            let response = rig.send(request(method, &path, &[], "")).await;
            let listed = methods == ["ANY"] || methods.contains(&method);
            let taken = response.status() != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(listed, taken, "{method} {path}: {}", response.status());
        }
    }
}

#[test]
fn openapi_references_resolve() {
    fn walk(all: &Value, at: &Value, seen: &mut usize) {
        if let Some(to) = at.get("$ref").and_then(Value::as_str) {
            let pointer = to.strip_prefix('#').expect("within the document");
            assert!(all.pointer(pointer).is_some(), "{to}");
            *seen += 1;
        }
        let parts: Vec<&Value> = match at {
            Value::Object(fields) => fields.values().collect(),
            Value::Array(list) => list.iter().collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
        };
        for part in parts {
            walk(all, part, seen);
        }
    }
    let (document, mut seen) = (document(), 0);
    walk(&document, &document, &mut seen);
    assert!(seen > 20 && document["openapi"] == "3.1.0");
    let schemes = document["components"]["securitySchemes"]
        .as_object()
        .expect("schemes");
    for wanted in document["security"].as_array().expect("a list") {
        for name in wanted.as_object().expect("an object").keys() {
            assert!(schemes.contains_key(name), "{name}");
        }
    }
}

#[test]
fn openapi_examples_match_their_schemas() {
    let document = document();
    let schema = |name: &str| document["components"]["schemas"][name].clone();
    let fits = |example: &Value, name: &str| {
        let schema = schema(name);
        for required in schema["required"].as_array().expect("a list") {
            let key = required.as_str().expect("a name");
            assert!(
                example.get(key).is_some(),
                "{name}: {key} is missing in {example}"
            );
        }
        for key in example.as_object().expect("an object").keys() {
            assert!(
                schema["properties"].get(key).is_some(),
                "{name}: {key} is not described"
            );
        }
    };
    let at = |path: &str, rest: &str| {
        document["paths"][path]
            .pointer(rest)
            .unwrap_or(&Value::Null)
            .clone()
    };
    let body = "/post/requestBody/content/application~1json";
    let answer = "/responses/200/content/application~1json/example";
    fits(&at("/auth", &format!("{body}/example")), "Credentials");
    fits(&at("/auth", &format!("/post{answer}")), "Token");
    for (name, example) in at("/execute", &format!("{body}/examples"))
        .as_object()
        .expect("examples")
    {
        let value = &example["value"];
        fits(value, "Request");
        platypush::Request::parse(value.to_string().as_bytes(), [0; 16]).expect(name);
    }
    let response = at("/execute", &format!("/post{answer}"));
    fits(&response, "Response");
    platypush::Response::from_value(&response).expect("a response");
    let bad = at(
        "/execute",
        "/post/responses/400/content/application~1json/example",
    );
    fits(&bad, "Response");
    platypush::Response::from_value(&bad).expect("a response");
    let event = "/get/responses/101/content/application~1json/example";
    fits(&at("/ws/events", event), "Event");
    let component = |name: &str| {
        let content = &document["components"]["responses"][name]["content"];
        content["application/json"]["example"].clone()
    };
    fits(&component("Refused"), "Refusal");
    fits(&component("Hooked"), "Hooked");
}

/// Whether the document describes this status for such a request.
pub(super) fn documents_status(method: &str, path: &str, status: u16) -> bool {
    let mut parts: Vec<&str> = path.split('/').collect();
    match parts.as_mut_slice() {
        ["", "hook" | "dashboard", name] => *name = "{name}",
        ["", "resources", name, path, ..] => (*name, *path) = ("{name}", "{path}"),
        _ => {}
    }
    parts.truncate(4);
    let operation = &document()["paths"][parts.join("/")][method.to_lowercase()];
    operation["responses"].get(status.to_string()).is_some()
}

#[tokio::test]
async fn openapi_is_served_without_authentication() {
    let rig = Harness::new("").await;
    let (status, served) = rig.send_json(request("GET", "/openapi.json", &[], "")).await;
    assert_eq!((status, &served), (200, &document()));
    // Relative to any host and port.
    assert_eq!(served["servers"], json!([{ "url": "/" }]));
}
