//! The configuration as its owner meets it.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use swarm_shared::config::variable_name;

use super::*;

const EXAMPLE: &str = include_str!("../../swarm-node.example.toml");

/// The example with every setting in use.
fn full_example() -> String {
    EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, &Origin::File(Path::new("node.toml").to_owned(), None))
}

fn load_variables(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(
        None,
        variables
            .iter()
            .map(|(name, text)| ((*name).into(), (*text).into())),
    )
}

fn modified(text: &str, changes: &serde_json::Map<String, Value>) -> Result<String, EditError> {
    super::modify(text, changes, std::iter::empty())
}

fn rewritten(text: &str, new: &str) -> Result<String, EditError> {
    super::rewrite(text, new, std::iter::empty())
}

fn object(value: Value) -> serde_json::Map<String, Value> {
    serde_json::from_value(value).expect("an object")
}

#[test]
fn the_example_is_valid_as_shipped_and_uncommented() {
    let bare = parse(EXAMPLE).expect("as shipped");
    assert!(bare.actions.is_empty() && !bare.execute.allowed && !bare.adoptable && !bare.reboot.allowed);
    let full = parse(&full_example()).expect("everything in use");
    assert_eq!(full.actions.len(), 1);
    assert_eq!(full.tag_map().get("row").map(String::as_str), Some("3"));
}

#[test]
fn the_example_shows_the_defaults() {
    let (bare, full) = (Config::default(), parse(&full_example()).expect("an example"));
    assert_eq!(bare.listen, full.listen);
    assert_eq!(
        (bare.ping_port, bare.pings, bare.mdns),
        (full.ping_port, full.pings, full.mdns)
    );
    assert_eq!(
        (bare.keepalive, bare.heartbeat, bare.execute),
        (full.keepalive, full.heartbeat, full.execute)
    );
    assert_eq!(bare.plugins, full.plugins);
    assert!(bare.gateways.clever_show.is_none(), "off unless configured");
    let [least, shown] = ["[gateways.clever_show]\nserver = \"auto\"", &full_example()].map(|text| {
        let door = parse(text).expect("a door").gateways.clever_show;
        door.expect("configured")
    });
    assert!(least.allow.is_empty(), "read-only unless configured");
    let defaults = |door: CleverShow| {
        let CleverShow {
            announce_port,
            role,
            telemetry,
            telemetry_every,
            rate,
            file_bytes,
            ..
        } = door;
        (announce_port, role, telemetry, telemetry_every, rate, file_bytes)
    };
    assert_eq!(defaults(least), defaults(shown));
    assert_eq!(bare.reboot.command, full.reboot.command);
    assert_eq!(bare.notify.timeout, full.notify.timeout);
    assert_eq!(bare.telemetry.interval, full.telemetry.interval);
    assert_eq!(bare.telemetry.timeout, full.telemetry.timeout);
}

#[test]
fn the_example_mentions_every_key() {
    fn missing(keys: &[(&str, Kind)], table: &toml::Table, path: &str, found: &mut Vec<String>) {
        for (key, kind) in keys {
            match table.get(*key) {
                None => found.push(format!("{path}{key}")),
                Some(value) => below(kind, value, &format!("{path}{key}."), found),
            }
        }
    }
    fn below(kind: &Kind, value: &toml::Value, path: &str, found: &mut Vec<String>) {
        let Some(table) = value.as_table() else { return };
        match kind {
            Kind::Table(keys) => missing(keys, table, path, found),
            Kind::Map(each) => {
                // Together, the owner's entries show each key.
                let all = table.values().filter_map(toml::Value::as_table).cloned();
                let together: toml::Table = all.flatten().collect();
                below(each, &together.into(), path, found);
            }
            Kind::Text | Kind::List | Kind::Value | Kind::Any => {}
        }
    }
    let table = toml::Value::Table(full_example().parse().expect("an example"));
    let mut found = Vec::new();
    below(&Kind::of::<Config>(), &table, "", &mut found);
    assert!(found.is_empty(), "not in the example: {found:?}");
}

#[test]
fn configuration_errors_name_the_line() {
    for (text, says) in [
        (
            "\nlisen = \"x\"",
            "node.toml:2: unknown key `lisen`; did you mean `listen`?",
        ),
        (
            "[telemetry]\nintervall = \"1s\"",
            ":2: unknown key `telemetry.intervall`; did you mean `interval`?",
        ),
        (
            "[actions.led]\ncomand = []",
            "unknown key `actions.led.comand`; did you mean `command`?",
        ),
        ("[files.root]\na = 1", "did you mean `roots`?"),
        ("xyzzy = 1", "unknown key `xyzzy`; known here: name, listen"),
        ("name = \"a b\"", ":1: name: \"a b\" is not a name"),
        ("\n\nlisten = \"7420\"", ":3: listen: \"7420\" is not ADDR:PORT"),
        ("stations = [\"host\"]", "stations: \"host\" is not ADDR:PORT"),
        ("ping_port = 70000", ":1: ping_port: invalid value"),
        ("pings = \"yes\"", ":1: pings: invalid type"),
        ("[gateways.clever_shou]", "did you mean `clever_show`?"),
        ("[gateways.clever_show]\nserver = \"host\"", "or \"auto\""),
        ("[gateways.clever_show]\nallow = []", "missing field `server`"),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nrole = \"node\"",
            "\"node\" is not observer, operator or admin",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nrole = \"boss\"",
            ":3: gateways.clever_show.role: \"boss\" is not observer, operator or admin",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nallow = [\"led\", \"execute\"]",
            ":3: gateways.clever_show.allow: `allow` names \"execute\", but running a program may not be asked for by role operator",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nrole = \"admin\"\nallow = [\"execute\"]\n[execute]\ntimeout = \"9s\"",
            ":4: gateways.clever_show.allow: `allow` names \"execute\", but it is off on this node: set [execute] allowed = true",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nrole = \"observer\"\nallow = [\"led\"]",
            ":4: gateways.clever_show.allow: `allow` names \"led\", but ",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nallow = [\"config\"]",
            ":3: gateways.clever_show.allow: `allow` names \"config\", but the configuration may not be changed by role \
             operator: it takes role admin; set `role`",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nrole = \"observer\"\nallow = [\"time\", \"id\"]",
            ":4: gateways.clever_show.allow: `allow` names \"id\", but a command that changes something",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nallow = [\"filetransfer\"]",
            ":3: gateways.clever_show.allow: `allow` names \"filetransfer\", but there is no root: add [files.roots]",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nallow = [\"reboot_all\"]",
            ":3: gateways.clever_show.allow: `allow` names \"reboot_all\", but that is \"reboot\" here",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nannounce_port = 0",
            ":3: gateways.clever_show.announce_port: no station announces itself on port 0",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nrate = 0",
            ":3: gateways.clever_show.rate: 0 is not from 1 to 1000000",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nclover_dir = \"shows/a\"",
            ":3: gateways.clever_show.clover_dir: `clover_dir` begins with the name of a root, and there is none",
        ),
        (
            "[files.roots]\nmedia = \"/m\"\n[gateways.clever_show]\nserver = \"auto\"\nclover_dir = \"/media\"",
            ":5: gateways.clever_show.clover_dir: \"/media\" is in no root: `clover_dir` begins with the name of a root of \
             [files.roots], such as media",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nallow = [\"\"]",
            ":3: gateways.clever_show.allow: \"\" names no action",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nallow = [\"[\"]",
            ":3: ",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\ntelemetry_every = \"1ms\"",
            "telemetry_every: the least is 100ms",
        ),
        (
            "[gateways.clever_show]\nserver = \"auto\"\nfile_bytes = 0",
            "0 is not from 1 to 268435456",
        ),
        (
            "[telemetry]\ninterval = \"5\"",
            ":2: telemetry.interval: \"5\" is not a duration",
        ),
        ("[files]\nroots = { a = \"rel\" }", "is not an absolute path"),
        ("[files]\nroots = { \"a/b\" = \"/x\" }", "is not a name here"),
        (
            "[actions.ping]\ncommand = [\"x\"]",
            ":1: actions.ping: \"ping\" is the name of a built-in action",
        ),
        ("[actions.x]\n", "missing field `command`"),
        ("[actions.x]\ncommand = [\"x\", \"{y}\"]", "there is no args.y"),
        ("[services]\nallow = [\"--now\"]", "is not the name of a unit"),
        ("tags = { a = \"1,2\" }", "is not a tag's value"),
        ("[lost_link]\ncommand = [\"x\"]", "missing field `after`"),
        ("name = ", ":1: "),
        ("name = \"a\"\nname = \"b\"", ":2: duplicate key"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(says), "{text:?} gives: {error}");
    }
}

#[test]
fn every_key_has_a_variable() {
    let table: toml::Table = full_example().parse().expect("an example");
    for (path, kind) in Kind::of::<Config>().leaves() {
        let variable = variable_name(Config::VARIABLE_PREFIX, &path);
        let value = path
            .iter()
            .try_fold(toml::Value::Table(table.clone()), |at, key| at.get(*key).cloned())
            .expect("the example has every key");
        let text = match (kind, &value) {
            (Kind::Text, toml::Value::String(text)) => text.clone(),
            (_, value) => value.to_string(),
        };
        match Config::load(None, std::iter::once((variable.clone(), text))) {
            Ok(_) => {}
            // Two tables need a second key.
            Err(error) => assert!(error.message.contains("missing field"), "{error}"),
        }
    }
    let both = load_variables(&[
        ("SWARM_NODE_LOST_LINK_COMMAND", "[\"hold\"]"),
        ("SWARM_NODE_LOST_LINK_AFTER", "3s"),
    ])
    .expect("half a table each");
    assert!(both.lost_link.is_some());
}

#[test]
fn variables_override_the_file_and_errors_name_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("c.toml");
    std::fs::write(
        &file,
        "name = \"a\"\nping_port = 1\n[files]\nroots = { a = \"/a\" }",
    )
    .expect("written");
    let variables = [
        ("SWARM_NODE_NAME", "b"),
        ("SWARM_NODE_FILES_ROOTS", "{ b = \"/b\" }"),
        ("SWARM_NODE_STATE_DIR", "/x"),
        ("OTHER", "x"),
    ];
    let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let config = Config::load(Some(&file), variables.into_iter()).expect("a configuration");
    assert_eq!(config.name.as_ref().expect("a name").as_str(), "b");
    assert_eq!(config.ping_port, 1);
    assert_eq!(config.root_map().into_keys().collect::<Vec<_>>(), ["a", "b"]);

    for (variable, text, says) in [
        (
            "SWARM_NODE_LISTEN",
            "x",
            "SWARM_NODE_LISTEN: listen: \"x\" is not ADDR:PORT",
        ),
        (
            "SWARM_NODE_PING_PORT",
            "x",
            "SWARM_NODE_PING_PORT: ping_port: invalid type: string \"x\"",
        ),
        ("SWARM_NODE_PINGS", "1", "SWARM_NODE_PINGS: pings: invalid type"),
        ("SWARM_NODE_LISEN", "x", "did you mean SWARM_NODE_LISTEN?"),
        (
            "SWARM_NODE_ACTIONS",
            "{ x = { comand = [] } }",
            "did you mean `command`?",
        ),
        ("SWARM_NODE_XYZZY", "x", "no key has this variable"),
    ] {
        let error = load_variables(&[(variable, text)])
            .expect_err(variable)
            .to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_missing_config_file_is_named() {
    let error = Config::load(Some(Path::new("/no/such.toml")), std::iter::empty()).expect_err("no file");
    assert!(
        error.to_string().starts_with("/no/such.toml: cannot be read"),
        "{error}"
    );
}

const FILE: &str = r#"# mine
name = "a"   # why

[private]   # hands off
key = "s3cret"

[private.deep]
x = 1979-05-27

[telemetry]
interval = "5s" # often
"#;

#[test]
fn displayed_configuration_has_no_secrets() {
    let shown = without_secrets(&format!("join = \"CODE\"\n{FILE}")).expect("a configuration");
    assert_eq!(
        Value::Object(shown),
        json!({"name": "a", "telemetry": {"interval": "5s"}})
    );
}

#[test]
fn a_change_keeps_every_other_byte() {
    let changes = json!({"telemetry.interval": "10s", "name": "b"});
    let text = modified(FILE, &object(changes)).expect("changed");
    assert_eq!(text, FILE.replace("\"5s\"", "\"10s\"").replace("\"a\"", "\"b\""));

    let changes = json!({
        "ping_port": "7000", "stations": ["10.0.0.2:7421"], "mdns": "false", "telemetry": {"command": ["x"]},
        "files.roots.shows": "/shows", "tags": {"row": 3}, "name": null,
        "actions": {"led": {"command": ["led", "{n}"], "args": {"n": {"type": "integer", "max": 3}}}},
    });
    let text = modified(FILE, &object(changes)).expect("changed");
    let config = parse(&text).expect("a configuration");
    assert_eq!(
        (config.ping_port, config.mdns, config.name.is_none()),
        (7000, false, true)
    );
    assert_eq!(config.tag_map().get("row").map(String::as_str), Some("3"));
    assert_eq!(config.actions.len(), 1);
    assert!(text.contains("[private]   # hands off\nkey = \"s3cret\"") && text.contains("# often"));
}

#[test]
fn an_invalid_change_is_refused() {
    for (changes, says) in [
        (json!({}), "no key"),
        (json!({"private.key": "x"}), "on the device only"),
        (json!({"private": {"key": "x"}}), "on the device only"),
        (json!({"private": null}), "on the device only"),
        (json!({"lisen": "x"}), "did you mean `listen`?"),
        (
            json!({"telemetry": {"intervall": "1s"}}),
            "did you mean `interval`?",
        ),
        (json!({"telemetry.interval": "5"}), "is not a duration"),
        (json!({"ping_port": "x"}), "invalid type"),
        (json!({"name.x": 1}), "name is not a table"),
        (json!({"actions.ping.command": ["x"]}), "built-in"),
        (json!({"stations": [null]}), "no form in TOML"),
    ] {
        let error = modified(FILE, &object(changes.clone()))
            .expect_err("refused")
            .to_string();
        assert!(error.contains(says), "{changes}: {error}");
    }
}

#[test]
fn a_rewrite_keeps_the_private_table() {
    let new = "# new\nmdns = false\n[heartbeat]\ninterval = \"2s\"\n[keepalive]\nprobes = 3\n";
    let text = rewritten(FILE, new).expect("rewritten");
    assert!(text.starts_with(new), "{text}");
    let (old, new) = (parse(FILE).expect("old"), parse(&text).expect("new"));
    assert_eq!(old.private, new.private);
    assert!(text.contains("key = \"s3cret\""), "{text}");
    rewritten(FILE, "[private]\nkey = 1").expect_err("not from afar");
    rewritten(FILE, "nam = 1").expect_err("unknown key");
    rewritten(FILE, &"#".repeat(CONFIG_BYTES_MAX + 1)).expect_err("too long");
}

#[test]
fn writing_keeps_the_mode_and_leaves_no_temp_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    std::fs::write(&file, FILE).expect("written");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o604)).expect("a mode");
    write_file(&file, "mdns = false\n").expect("replaced");
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "mdns = false\n");
    let mode = std::fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o604);
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
    let error = write_file(Path::new("/no/dir/config.toml"), "")
        .expect_err("no directory")
        .to_string();
    assert!(
        error.contains("/no/dir/config.toml: cannot be written"),
        "{error}"
    );
}

proptest! {
    /// No text makes reading or changing a configuration panic, and no change touches what is private.
    #[test]
    fn no_change_touches_the_private_table(
        key in "(name|private|tags|telemetry|files|actions)(\\.[a-z]{0,4}){0,3}",
        value in prop_oneof![
            Just(Value::Null), any::<i64>().prop_map(Value::from), "\\PC{0,12}".prop_map(Value::from),
            "[a-z]{0,3}".prop_map(|key| json!({key: {"command": ["x"]}})),
        ],
    ) {
        if let Ok(text) = modified(FILE, &object(json!({key: value}))) {
            let private = |text: &str| parse(text).expect("checked").private;
            prop_assert_eq!(private(FILE), private(&text));
        }
    }

    #[test]
    fn config_parsing_never_panics(text in "([a-z]{1,9}|[\\[\\]{}=\".,#\n 0-9]){0,40}") {
        let _answered = parse(&text);
    }
}

#[test]
fn cross_checks_see_file_and_variables_together() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("node.toml");
    let load = |text: &str, variables: &[(&str, &str)]| {
        std::fs::write(&file, text).expect("written");
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(&file), variables.collect::<Vec<_>>().into_iter())
    };
    let door = "[gateways.clever_show]\nserver = \"auto\"\n";
    let execute = format!("{door}allow = [\"execute\", \"ping\"]");
    let admin = ("SWARM_NODE_GATEWAYS_CLEVER_SHOW_ROLE", "admin");
    load(&execute, &[admin, ("SWARM_NODE_EXECUTE_ALLOWED", "true")]).expect("an admin");
    load(&execute, &[admin]).expect_err("off");
    let error = load(&execute, &[]).expect_err("an operator").to_string();
    assert!(
        error.contains("node.toml:3: gateways.clever_show.allow: `allow` names"),
        "{error}"
    );
    let dir = format!("{door}clover_dir = \"shows\"");
    load(&dir, &[("SWARM_NODE_FILES_ROOTS", "{ shows = \"/s\" }")]).expect("a root");
    load(&dir, &[]).expect_err("no root");
}

#[test]
fn remote_edits_are_checked_with_variables_applied() {
    let door = "[gateways.clever_show]\nserver = \"auto\"\nallow = [\"execute\"]\nclover_dir = \"shows\"\n";
    let of = |variables: &[(&str, &str)]| {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        variables.iter().map(owned).collect::<Vec<_>>().into_iter()
    };
    let variables = [
        ("SWARM_NODE_GATEWAYS_CLEVER_SHOW_ROLE", "admin"),
        ("SWARM_NODE_EXECUTE_ALLOWED", "true"),
        ("SWARM_NODE_FILES_ROOTS", "{ shows = \"/s\" }"),
    ];
    assert_eq!(
        without_secrets(door).expect("shown")["gateways"]["clever_show"]["allow"][0],
        "execute"
    );
    let change = object(json!({"gateways.clever_show.rate": 20}));
    let text = super::modify(door, &change, of(&variables)).expect("changed");
    assert_eq!(text, format!("{door}rate = 20\n"));
    super::rewrite("", door, of(&variables)).expect("rewritten");
    // Nothing is written that the daemon would not start with.
    for too_few in [&variables[..2], &variables[1..]] {
        let error = super::modify(door, &change, of(too_few)).expect_err("it would not start");
        assert!(
            error.to_string().ends_with("; the file was not changed"),
            "{error}"
        );
        super::rewrite("", door, of(too_few)).expect_err("it would not start");
    }
    // What is wrong already may be put right.
    let right =
        json!({"gateways.clever_show": {"role": "admin", "clover_dir": null}, "execute.allowed": true});
    let right = object(right);
    modified(door, &right).expect("right");
}

#[test]
fn consistent_gateway_settings_are_accepted() {
    let door = "[gateways.clever_show]\nserver = ";
    for text in [
        format!(
            "{door}\"auto\"\nallow = [\"config\", \"execute\", \"id\"]\nrole = \"admin\"\n[execute]\nallowed = true"
        ),
        format!("{door}\"auto\"\nallow = [\"id\", \"reboot\", \"*\"]"),
        format!("{door}\"auto\"\nallow = [\"telemetry\"]\nrole = \"observer\""),
        format!("{door}\"auto\"\nallow = [\"reboot_all\"]\n[actions.reboot_all]\ncommand = [\"x\"]"),
        format!("{door}\"auto\"\nallow = [\"filetransfer\"]\n[files.roots]\na = \"/a\""),
        // No announcement is listened for.
        format!("{door}\"10.0.0.1:25000\"\nannounce_port = 0"),
    ] {
        parse(&text).expect(&text);
    }
}
