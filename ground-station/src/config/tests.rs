use std::time::Duration;

use swarm_shared::config::{Kind, variable_name};

use super::*;

fn parse_config(text: &str) -> Result<Config, String> {
    let mut config = Config::for_host("laptop.local");
    config
        .read_file(Path::new("config.toml"), text)
        .map_err(|error| error.to_string())?;
    Ok(config)
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = parse_config("").expect("defaults");
    assert_eq!(config.name.as_str(), "laptop");
    assert_eq!(config.listen.to_string(), "0.0.0.0:7421");
    assert!(config.pings && config.mdns);
}

#[test]
fn documented_config_example_is_accepted() {
    let source = include_str!("../config.rs");
    let example: Vec<&str> = source
        .lines()
        .skip_while(|line| *line != "//! ```toml")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| line.trim_start_matches("//!"))
        .collect();
    let config = parse_config(&example.join("\n")).expect("the example");
    let defaults = Config::for_host("field-laptop");
    let nodes = vec!["10.0.0.7:7420".parse().expect("an address")];
    assert_eq!(config, Config { nodes, ..defaults });
    for (path, _) in Kind::of::<Config>().leaves() {
        let key = path.last().expect("a key");
        let variable = variable_name(Config::VARIABLE_PREFIX, &path);
        let is_shown = |line: &&str| line.trim_start().starts_with(key) && line.contains(&variable);
        assert!(path[0] == "gateways" || example.iter().any(is_shown), "{key}");
    }
}

#[test]
fn config_errors_name_the_line_and_a_remedy() {
    for (text, fault) in [
        (
            "\n\nlissten = \"x\"",
            "config.toml:3: unknown key `lissten`; did you mean `listen`?",
        ),
        (
            "[keepalive]\nprobe = 3",
            "config.toml:2: unknown key `keepalive.probe`; did you mean `probes`?",
        ),
        (
            "colour = 1",
            "config.toml:1: unknown key `colour`; known here: name, listen",
        ),
        (
            "[gateway.knut]",
            "config.toml:1: unknown key `gateway`; did you mean `gateways`?",
        ),
        (
            "listen = \"here\"",
            "config.toml:1: listen: \"here\" is not ADDR:PORT",
        ),
        (
            "listen = 7421",
            "config.toml:1: listen: invalid type: integer `7421`, expected a string",
        ),
        (
            "ping_port = 0",
            "config.toml:1: ping_port: 0 is not from 1 to 65535",
        ),
        (
            "ping_port = 70000",
            "config.toml:1: ping_port: 70000 is not from 1 to 65535",
        ),
        ("name = \"a b\"", "config.toml:1: name: \"a b\" is not a name"),
        (
            "mdns = \"no\"",
            "config.toml:1: mdns: invalid type: string \"no\", expected a boolean",
        ),
        (
            "nodes = \"10.0.0.7:1\"",
            "config.toml:1: nodes: invalid type: string",
        ),
        ("nodes = [1]", "config.toml:1: nodes: invalid type: integer"),
        ("keepalive = 3", "config.toml:1: keepalive: invalid type: integer"),
        (
            "[keepalive]\nidle = \"0.5s\"",
            "config.toml:2: keepalive.idle: \"0.5s\" is not 1 to 32767 whole seconds",
        ),
        (
            "[keepalive]\nidle = 5",
            "config.toml:2: keepalive.idle: invalid type: integer `5`, expected a string",
        ),
        (
            "[history]\nkeep_days = 0",
            "config.toml:2: history.keep_days: 0 is not from 1 to 36500",
        ),
        (
            "[history]\nkeep_deliveries = \"all\"",
            "config.toml:2: history.keep_deliveries: invalid type: string",
        ),
        (
            "[history]\nkeep = 5",
            "config.toml:2: unknown key `history.keep`; did you mean",
        ),
        (
            "\n[gateways.knut]\nlisten = \"x\"",
            "config.toml:3: gateways.knut.listen: \"x\" is not ADDR:PORT",
        ),
        ("name = ", "config.toml:1: "),
        ("name = \"a\"\nname = \"b\"", "config.toml:2: "),
    ] {
        let error = parse_config(text).expect_err(text);
        assert!(error.starts_with(fault), "{text:?}: {error}");
    }
}

#[test]
fn explicit_config_file_must_exist() {
    let dir = tempfile::tempdir().expect("a directory");
    Config::load(None, dir.path()).expect("defaults");
    let missing = dir.path().join("x.toml");
    let error = Config::load(Some(&missing), dir.path())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("x.toml: cannot be read: "), "{error}");
    std::fs::write(dir.path().join(CONFIG_FILE), "ping_port = 5").expect("writes");
    assert_eq!(Config::load(None, dir.path()).expect("reads").ping_port, 5);
}

fn with_variables(variables: &[(&str, &str)]) -> Result<Config, String> {
    let owned = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    config::parse("", &Origin::Text(None), owned).map_err(|error| error.to_string())
}

#[test]
fn every_key_has_an_environment_variable() {
    let config = with_variables(&[
        ("GROUND_STATION_PING_PORT", "9000"),
        ("GROUND_STATION_MDNS", "false"),
        ("GROUND_STATION_NODES", "10.0.0.7:7420, [::1]:7420,"),
        ("GROUND_STATION_KEEPALIVE_IDLE", "2s"),
        ("GROUND_STATION_HISTORY_KEEP_DAYS", "7"),
        ("GROUND_STATION_GATEWAYS_KNUT_ALLOW", "led, show_*"),
        (
            "GROUND_STATION_GATEWAYS_CLEVER_SHOW_ROOTS",
            "{ shows = \"/home/pi/shows\" }",
        ),
        ("GROUND_STATION_LOG", "info"),
    ])
    .expect("reads");
    assert_eq!(
        (config.ping_port, config.mdns, config.nodes.len()),
        (9000, false, 2)
    );
    assert_eq!(config.keepalive.idle, Duration::from_secs(2));
    assert_eq!(config.history.days, 7);
    let gateways = config.gateways;
    assert_eq!(gateways.knut.expect("opened").common.allow.len(), 2);
    assert_eq!(
        gateways.clever_show.expect("opened").roots["shows"],
        "/home/pi/shows"
    );
    assert_eq!(gateways.socktools, None);
    let error = with_variables(&[("GROUND_STATION_PINGS", "maybe")]).expect_err("refused");
    assert_eq!(
        error,
        "environment variable GROUND_STATION_PINGS: pings: invalid type: string \"maybe\", expected a boolean"
    );
}

#[test]
fn unknown_environment_variables_are_refused() {
    for (variable, says) in [
        (
            "GATEWAYS_KNUT_ALOW",
            "did you mean GROUND_STATION_GATEWAYS_KNUT_ALLOW?",
        ),
        (
            "GATEWAYS_KNOT_ALLOW",
            "did you mean GROUND_STATION_GATEWAYS_KNUT_ALLOW?",
        ),
        ("LISTE", "did you mean GROUND_STATION_LISTEN?"),
        (
            "GATEWAYS_KNUT_COLOUR",
            "that of a key is GROUND_STATION_ and its path in capitals",
        ),
    ] {
        let variable = format!("GROUND_STATION_{variable}");
        let error = with_variables(&[("PATH", "/bin"), (&variable, "x")]).expect_err(&variable);
        let begins = format!("environment variable {variable}: no key has this variable; ");
        assert!(error.starts_with(&begins) && error.contains(says), "{error}");
    }
}

#[test]
fn stop_uses_the_valid_part_of_a_configuration() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = "nodes = [\"10.0.0.7:7420\"]\npng_port = 5\nping_port = 0\n[gateways.clever_show]\nallow = 7";
    std::fs::write(dir.path().join(CONFIG_FILE), text).expect("writes");
    let (config, fault) = Config::load_best_effort(None, dir.path());
    let fault = fault.expect("several").to_string();
    assert!(fault.contains("config.toml:2: unknown key `png_port`"), "{fault}");
    assert_eq!((config.nodes.len(), config.ping_port), (1, PING_PORT));
    assert!(config.gateways.clever_show.is_some());
}

#[test]
fn distant_suggestions_are_not_offered() {
    for (key, says) in [
        ("raw_acton", "did you mean `raw_action`?"),
        (
            "raw",
            "did you mean `raw_action`, `raw_argument` or `raw_encoding`?",
        ),
        ("action", "did you mean `raw_action`?"),
        ("fast", "known here: listen, allow"),
        ("temperature", "it is a key of [gateways.knut]"),
    ] {
        let error = parse_config(&format!("[gateways.socktools]\n{key} = \"x\"")).expect_err(key);
        assert!(error.contains(says), "{error}");
    }
    let elsewhere = parse_config("[gateways.platypush_tcp]\nraw_action = \"x\"").expect_err("socktools' own");
    assert!(
        elsewhere.contains("it is a key of [gateways.socktools]"),
        "{elsewhere}"
    );
}

#[test]
fn container_service_variables_are_ignored() {
    for (name, value) in [
        ("GROUND_STATION_SERVICE_HOST", "10.0.0.1"),
        ("GROUND_STATION_SERVICE_PORT", "7421"),
        ("GROUND_STATION_SERVICE_PORT_LINKS", "7421"),
        ("GROUND_STATION_PORT", "tcp://10.0.0.1:7421"),
        ("GROUND_STATION_PORT_7421_TCP_ADDR", "10.0.0.1"),
    ] {
        assert!(is_container_service_variable(name, value), "{name}");
    }
    for (name, value) in [
        ("GROUND_STATION_PORT", "7421"),
        ("GROUND_STATION_PING_PROT", "7422"),
        ("GROUND_STATION_SERVICE", "x"),
    ] {
        assert!(!is_container_service_variable(name, value), "{name}");
    }
    for (path, _) in Kind::of::<Config>().leaves() {
        let variable = variable_name(Config::VARIABLE_PREFIX, &path);
        assert!(!is_container_service_variable(&variable, "tcp://x"), "{variable}");
    }
}
