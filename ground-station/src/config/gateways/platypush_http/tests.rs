use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::config::Config;

fn read(text: &str) -> Result<PlatypushHttpConfig, String> {
    let mut config = Config::for_host("pi");
    let read = config.read_file(Path::new("config.toml"), text);
    read.map_err(|error| error.to_string())?;
    config.gateways.platypush_http.ok_or_else(|| "closed".to_owned())
}

const HOOK: &str = r##"
    [gateways.platypush_http.hooks.lights]
    action = "led"
    target = "drone-*"
    methods = ["POST"]
    token = "0123456789abcdef"
    [gateways.platypush_http.hooks.lights.parameters]
    color = { from = "body", key = "colour", pattern = "#[0-9a-f]{6}", default = "#ffffff" }
    level = { type = "integer", min = 0, max = 10 }
    mode = { from = "const", value = "steady" }
    fade = { type = "boolean", default = false }
    speed = { type = "number", default = 1.5, choices = [0.5, 1.5] }
"##;

#[test]
fn platypush_http_keys_are_read() {
    let text = r#"
        [gateways.platypush_http]
        tls = "self-made"
        ssl_cert = "a"
        ssl_key = "b"
        ssl_cafile = "c"
        ssl_capath = "d"
        websocket_port = 8009
        [gateways.platypush_http.resources]
        music = "/srv/music"
    "#;
    let gateway = read(text).expect("reads");
    assert_eq!((gateway.tls, gateway.websocket_port), (Tls::SelfMade, Some(8009)));
    assert_eq!(gateway.ssl_capath, Some("d".into()));
    assert_eq!(gateway.resources["music"], Path::new("/srv/music"));
    let plain = read("[gateways.platypush_http]").expect("reads");
    assert_eq!((plain.tls, plain.websocket_port), (Tls::None, None));
    assert_eq!(plain.common.listen.to_string(), "127.0.0.1:8008");
}

#[test]
fn hook_accepts_values_of_its_types() {
    let gateway = read(HOOK).expect("reads");
    let hook = &gateway.hooks["lights"];
    assert_eq!(
        (hook.action.as_str(), hook.methods.as_slice()),
        ("led", &["POST".to_owned()][..])
    );
    let take = |query: &[(&str, &str)], body: Value| {
        let query = query
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let given = HookInput {
            query: &query,
            body: body.as_object(),
        };
        hook.arguments(given)
            .map(Value::Object)
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        take(
            &[("level", "7"), ("fade", "on"), ("stranger", "x")],
            json!({ "colour": "#00ff00" })
        ),
        Ok(json!({ "color": "#00ff00", "level": 7, "mode": "steady", "fade": true, "speed": 1.5 }))
    );
    for (query, body, wanted) in [
        (&[][..], json!({}), "\"level\": \"level\" is missing in the query"),
        (
            &[("level", "x")],
            json!({}),
            "\"level\": has to be a whole number, at least 0, at most 10",
        ),
        (&[("level", "11")], json!({}), "at most 10"),
        (
            &[("level", "1")],
            json!({ "colour": "#00ff001" }),
            "that matches #[0-9a-f]{6}",
        ),
        (
            &[("level", "1")],
            json!({ "colour": ["#00ff00"] }),
            "has to be a text",
        ),
        (&[("level", "1"), ("speed", "2")], json!({}), "one of 0.5, 1.5"),
    ] {
        let error = take(query, body).expect_err(wanted);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn integer_bounds_are_compared_exactly() {
    let text = r#"
        [gateways.platypush_http.hooks.x]
        action = "led"
        [gateways.platypush_http.hooks.x.parameters]
        speed = { type = "number", choices = [1, 2.5], default = 1 }
        number = { type = "integer", max = 9007199254740992, default = 0 }
    "#;
    let gateway = read(text).expect("reads");
    let take = |key: &str, value: &str| {
        let query = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let given = HookInput {
            query: &query,
            body: None,
        };
        gateway.hooks["x"].arguments(given).map(|all| all[key].clone())
    };
    assert_eq!(take("speed", "1"), Ok(json!(1.0)));
    assert_eq!(take("speed", "2.5"), Ok(json!(2.5)));
    assert_eq!(
        take("number", "9007199254740992"),
        Ok(json!(9_007_199_254_740_992_u64))
    );
    for (key, value) in [
        ("speed", "2"),
        ("speed", "NaN"),
        ("speed", "inf"),
        ("number", "9007199254740993"),
        ("number", "99999999999999999999"),
        ("number", "1.0"),
        ("number", " 1"),
        ("number", ""),
    ] {
        take(key, value).expect_err(value);
    }
}

#[test]
fn hook_errors_name_the_line() {
    let hook = |text: &str| format!("[gateways.platypush_http.hooks.x]\n{text}");
    for (text, wanted) in [
        (
            "",
            "config.toml:1: gateways.platypush_http.hooks.x: missing field `action`",
        ),
        (
            "acton = \"led\"",
            "config.toml:2: unknown key `gateways.platypush_http.hooks.x.acton`; did you mean `action`?",
        ),
        (
            "action = 1",
            "config.toml:2: gateways.platypush_http.hooks.x.action: invalid type",
        ),
        (
            "action = \"a\"\ntoken = \"x\"",
            "config.toml:3: gateways.platypush_http.hooks.x.token: a token has at least 16",
        ),
        (
            "action = \"a\"\nmethods = [\"post\"]",
            "config.toml:3: gateways.platypush_http.hooks.x.methods: \"post\" is not a method in capitals",
        ),
        (
            "action = \"a\"\nparameters.p = { form = \"query\" }",
            "x.parameters.p.form`; did you mean `from`?",
        ),
        (
            "action = \"a\"\nparameters.p = { from = \"const\" }",
            "parameters.p: from = \"const\" needs a `value`",
        ),
        (
            "action = \"a\"\nparameters.p = { value = 1 }",
            "parameters.p: `value` needs from = \"const\"",
        ),
        (
            "action = \"a\"\nparameters.p = { type = \"integer\", default = \"x\" }",
            "parameters.p: `default` is \"x\", but it has to be a whole number",
        ),
        (
            "action = \"a\"\nparameters.p = { type = \"integer\", pattern = \"x\" }",
            "`pattern` is for type string",
        ),
        (
            "action = \"a\"\nparameters.p = { pattern = \"(\" }",
            "is not a regular expression",
        ),
        (
            "action = \"a\"\nparameters.p = { min = 1 }",
            "`min` and `max` are for types integer and number",
        ),
    ] {
        let error = read(&hook(text)).expect_err(text);
        assert!(error.contains(wanted), "{error}");
    }
    for bad in [
        "[gateways.platypush_http.hooks.\"a/b\"]\naction = \"led\"",
        "[gateways.platypush_http.resources]\n\"..\" = \"/\"",
    ] {
        let error = read(bad).expect_err(bad);
        assert!(error.contains("is not the name of a"), "{error}");
    }
    read("[gateways.platypush_http.resources]\na = 1").expect_err("no directory");
}
