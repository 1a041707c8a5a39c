use super::*;
use serde_json::json;

fn action(toml: &str) -> Result<Action, String> {
    toml::from_str(toml).map_err(|error: toml::de::Error| error.message().to_owned())
}

fn argv(action: &Action, kwargs: Value) -> Result<Vec<String>, String> {
    let arguments = json!({"args": [], "kwargs": kwargs});
    action.argv(&serde_json::from_value(arguments).expect("arguments"))
}

#[test]
fn argument_values_stay_in_one_argv_element() {
    let led = action(
        r#"command = ["led", "--color={color}", "{{x}} {n}"]
           args.color = { type = "string", pattern = "\\S+", default = "red" }
           args.n = { type = "integer", min = 0, max = 9 }"#,
    )
    .expect("an action");
    let sharp = "$(reboot);'\"`{n}";
    assert_eq!(
        argv(&led, json!({"color": sharp, "n": 3})),
        Ok(vec!["led".into(), format!("--color={sharp}"), "{x} 3".into()])
    );
    assert_eq!(argv(&led, json!({"n": 3})).expect("a default")[1], "--color=red");
}

#[test]
fn an_invalid_argument_is_refused_with_its_rule() {
    let all = action(
        r##"command = ["x", "{s}", "{i}", "{f}", "{b}", "{c}"]
           args.s = { type = "string", pattern = "#[0-9a-f]{6}", default = "#ffffff" }
           args.i = { type = "integer", min = 1, max = 5, default = 1 }
           args.f = { type = "number", min = -1.5, default = 0 }
           args.b = { type = "boolean", default = false }
           args.c = { type = "choice", choices = ["up", "down"], default = "up" }"##,
    )
    .expect("an action");
    for (kwargs, says) in [
        (
            json!({"s": "x#00ff00x"}),
            "argument s must be a string that matches #[0-9a-f]{6}, not \"x#00ff00x\"",
        ),
        (json!({"s": 1.5}), "must be a string"),
        (json!({"s": "a\u{0}"}), "must be a string"),
        (
            json!({"i": 6}),
            "argument i must be an integer from 1 to 5, not 6",
        ),
        (json!({"i": "3"}), "must be an integer"),
        (json!({"i": 2.5}), "must be an integer"),
        (json!({"f": -2}), "a number of at least -1.5"),
        (json!({"f": null}), "a number"),
        (json!({"b": 1}), "true or false"),
        (json!({"c": "left"}), "one of: up, down"),
        (
            json!({"zz": 1}),
            "unknown argument \"zz\"; it takes: b, c, f, i, s",
        ),
    ] {
        let error = argv(&all, kwargs).expect_err(says);
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(
        argv(&all, json!({"i": 2, "f": 1e3, "b": true, "c": "down"})),
        Ok(["x", "#ffffff", "2", "1000.0", "true", "down"]
            .map(str::to_owned)
            .to_vec())
    );
}

#[test]
fn a_number_for_a_text_is_refused_with_advice() {
    let start = action(
        r#"command = ["start", "{time}", "{gear}"]
           args.time = { type = "string", pattern = "[0-9.]+" }
           args.gear = { type = "choice", choices = ["1.5", "up"], default = "up" }"#,
    )
    .expect("an action");
    let refused = |kwargs| argv(&start, kwargs).expect_err("a number");
    assert_eq!(
        refused(json!({"time": 1795.5})),
        "argument time must be a string that matches [0-9.]+, not the number 1795.5: put it in quotation marks to \
         send it as text, as in time='\"1795.5\"'"
    );
    argv(&start, json!({"time": "1795.5"})).expect("what is advised");
    assert_eq!(
        refused(json!({"time": "1", "gear": 1.5})),
        "argument gear must be one of: 1.5, up, not the number 1.5: put it in quotation marks to send it as text, as \
         in gear='\"1.5\"'"
    );
    // What would be refused as a text too is not advised.
    for (kwargs, says) in [
        (json!({"time": -1.5}), "[0-9.]+, not -1.5"),
        (json!({"time": "1", "gear": 2.5}), "1.5, up, not 2.5"),
    ] {
        let error = refused(kwargs);
        assert!(error.ends_with(says), "{error}");
    }
}

#[test]
fn a_single_argument_may_be_positional() {
    let say = action("command = ['say', '{t}']\nargs.t = { type = 'string' }").expect("an action");
    let by = |value: Value| say.argv(&serde_json::from_value(value).expect("arguments"));
    assert_eq!(by(json!({"args": [42]})), Ok(vec!["say".into(), "42".into()]));
    assert_eq!(
        by(json!({})),
        Err("argument t is missing: it must be a string of at most 4096 bytes".into())
    );
    by(json!({"args": [1, 2]})).expect_err("too many");
    by(json!({"args": [1], "kwargs": {"t": "x"}})).expect_err("twice");
}

#[test]
fn invalid_action_definitions_are_refused() {
    for (toml, says) in [
        ("command = []", "command is empty"),
        (
            "command = ['{x}']\nargs.x = { type = 'string' }",
            "the program itself must be fixed",
        ),
        ("command = ['a', '{x}']", "there is no args.x"),
        ("command = ['a', '{x']", "write {name}"),
        ("command = ['a', 'x}']", "write {name}"),
        (
            "command = ['a']\nargs.x = { type = 'string' }",
            "args.x is never used",
        ),
        (
            "command = ['a', '{x}']\nargs.x = { type = 'integer', pattern = 'x' }",
            "pattern is for",
        ),
        (
            "command = ['a', '{x}']\nargs.x = { type = 'string', min = 1 }",
            "min is for",
        ),
        (
            "command = ['a', '{x}']\nargs.x = { type = 'integer', min = 'a' }",
            "min = \"a\"",
        ),
        (
            "command = ['a', '{x}']\nargs.x = { type = 'integer', min = 2, max = 1 }",
            "min is above max",
        ),
        (
            "command = ['a', '{x}']\nargs.x = { type = 'choice' }",
            "needs choices",
        ),
        (
            "command = ['a', '{x}']\nargs.x = { type = 'string', pattern = '(' }",
            "regular expression",
        ),
        (
            "command = ['a', '{x}']\nargs.x = { type = 'integer', default = 'q' }",
            "its default",
        ),
        ("command = ['a']\nclass = 'fast'", "unknown variant"),
    ] {
        let error = action(toml).expect_err(toml);
        assert!(error.contains(says), "{toml}: {error}");
    }
}

proptest::proptest! {
    /// Whatever a value holds, it fills its one element and changes no other.
    #[test]
    fn any_text_fills_one_argv_element(text in "[^\u{0}]{0,200}") {
        let say = action("command = ['say', 'a{t}b', 'c']\nargs.t = { type = 'string' }").expect("an action");
        let made = argv(&say, json!({"t": text})).expect("a command");
        proptest::prop_assert_eq!(made, vec!["say".to_owned(), format!("a{text}b"), "c".to_owned()]);
    }

    #[test]
    fn template_parsing_never_panics(part in "[{}a]{0,8}") {
        if let Ok(pieces) = parse_template(&part) {
            proptest::prop_assert!(pieces.len() <= part.len());
        }
    }
}
