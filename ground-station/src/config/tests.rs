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
    for (key, variable) in KEYS {
        let key = key.rsplit('.').next().expect("a key");
        assert!(
            example
                .iter()
                .any(|line| line.trim_start().starts_with(key) && line.contains(variable)),
            "{key}"
        );
    }
}

#[test]
fn config_errors_name_the_line_and_a_remedy() {
    for (text, fault) in [
        (
            "\n\nlissten = \"x\"",
            "config.toml:3: unknown key \"lissten\"; did you mean \"listen\"?",
        ),
        (
            "[keepalive]\nprobe = 3",
            "config.toml:2: unknown key \"keepalive.probe\"; did you mean \"keepalive.probes\"?",
        ),
        (
            "colour = 1",
            "config.toml:1: unknown key \"colour\"; known are name, listen",
        ),
        (
            "[gateway.knut]",
            "config.toml:1: unknown key \"gateway\"; did you mean \"gateways\"?",
        ),
        ("listen = \"here\"", "config.toml:1: \"here\" is not ADDR:PORT"),
        (
            "listen = 7421",
            "config.toml:1: listen has to be a text in quotes",
        ),
        ("ping_port = 0", "config.toml:1: ping_port has to be 1 to 65535"),
        (
            "ping_port = 70000",
            "config.toml:1: ping_port has to be 1 to 65535",
        ),
        ("name = \"a b\"", "config.toml:1: \"a b\" is not a name"),
        ("mdns = \"no\"", "config.toml:1: mdns has to be true or false"),
        ("nodes = \"10.0.0.7:1\"", "config.toml:1: nodes has to be a list"),
        ("nodes = [1]", "config.toml:1: nodes holds a value of a kind"),
        ("keepalive = 3", "config.toml:1: keepalive is a table"),
        (
            "[keepalive]\nidle = \"0.5s\"",
            "config.toml:2: \"0.5s\" is not 1 to 32767 whole seconds",
        ),
        (
            "[keepalive]\nidle = 5",
            "config.toml:2: keepalive.idle has to be a length of time",
        ),
        (
            "[history]\nkeep_days = 0",
            "config.toml:2: history.keep_days has to be 1 to 36500",
        ),
        (
            "[history]\nkeep_deliveries = \"all\"",
            "config.toml:2: history.keep_deliveries has to be a whole number",
        ),
        (
            "[history]\nkeep = 5",
            "config.toml:2: unknown key \"history.keep\"",
        ),
        (
            "\n[gateways.knut]\nlisten = \"x\"",
            "config.toml:3: \"x\" is not ADDR:PORT",
        ),
        ("name = ", "config.toml:1: "),
        ("name = \"a\"\nname = \"b\"", "config.toml:2: "),
    ] {
        let error = parse_config(text).expect_err(text);
        assert!(error.starts_with(fault), "{text:?}: {error}");
    }
}

#[test]
fn environment_overrides_the_config_file() {
    let mut config = parse_config("ping_port = 1\nname = \"file\"").expect("reads");
    let environment = |variable: &str| {
        let value = match variable {
            "GROUND_STATION_PING_PORT" => "9000",
            "GROUND_STATION_MDNS" => "false",
            "GROUND_STATION_NODES" => "10.0.0.7:7420, [::1]:7420,",
            "GROUND_STATION_KEEPALIVE_IDLE" => "2s",
            _ => return None,
        };
        Some(value.to_owned())
    };
    config.read_environment(environment).expect("reads");
    assert_eq!(
        (config.ping_port, config.mdns, config.nodes.len()),
        (9000, false, 2)
    );
    assert_eq!(config.keepalive.idle, Duration::from_secs(2));
    assert_eq!(config.name.as_str(), "file");
    let bad = |variable: &str| (variable == "GROUND_STATION_PINGS").then(|| "maybe".to_owned());
    let error = config.read_environment(bad).expect_err("refused").to_string();
    assert_eq!(
        error,
        "environment variable GROUND_STATION_PINGS: pings has to be true or false"
    );
}

#[test]
fn explicit_config_file_must_exist() {
    let dir = tempfile::tempdir().expect("a directory");
    Config::load(None, dir.path()).expect("defaults");
    let missing = dir.path().join("x.toml");
    let error = Config::load(Some(&missing), dir.path())
        .expect_err("refused")
        .to_string();
    assert!(error.starts_with("cannot read"), "{error}");
    std::fs::write(dir.path().join(CONFIG_FILE), "ping_port = 5").expect("writes");
    assert_eq!(Config::load(None, dir.path()).expect("reads").ping_port, 5);
}

#[test]
fn unknown_environment_variables_are_refused() {
    let check = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned());
        check_unknown_variables(names).map_err(|error| error.to_string())
    };
    let known = [
        "GROUND_STATION_NAME",
        "GROUND_STATION_LOG",
        "GROUND_STATION_STATE_DIR",
        "GROUND_STATION_HISTORY_KEEP_DAYS",
        "GROUND_STATION_GATEWAYS_KNUT_ALLOW",
        "GROUND_STATION_GATEWAYS_SOCKTOOLS_RAW_ACTION",
        "HOME",
    ];
    assert_eq!(check(&known), Ok(()));
    for (variable, says) in [
        (
            "GROUND_STATION_GATEWAYS_KNUT_ALOW",
            "did you mean GROUND_STATION_GATEWAYS_KNUT_ALLOW?",
        ),
        (
            "GROUND_STATION_GATEWAYS_KNOT_ALLOW",
            "did you mean GROUND_STATION_GATEWAYS_KNUT_ALLOW?",
        ),
        ("GROUND_STATION_LISTE", "did you mean GROUND_STATION_LISTEN?"),
        (
            "GROUND_STATION_GATEWAYS_KNUT_COLOUR",
            "each key of config.toml has its own",
        ),
    ] {
        let error = check(&["PATH", variable]).expect_err(variable);
        let begins = format!("environment variable {variable}: nothing is called so");
        assert!(error.starts_with(&begins) && error.contains(says), "{error}");
    }
}

#[test]
fn distant_suggestions_are_not_offered() {
    for (key, says) in [
        ("raw_acton", "did you mean \"raw_action\"?"),
        (
            "raw",
            "did you mean \"raw_action\", \"raw_argument\" or \"raw_encoding\"?",
        ),
        ("action", "did you mean \"raw_action\"?"),
        ("fast", "known are listen, allow"),
        ("temperature", "is a key of [gateways.knut], not of this gateway"),
    ] {
        let error = parse_config(&format!("[gateways.socktools]\n{key} = \"x\"")).expect_err(key);
        assert!(error.contains(says), "{error}");
    }
    let elsewhere = parse_config("[gateways.platypush_tcp]\nraw_action = \"x\"").expect_err("socktools' own");
    assert!(
        elsewhere.contains("is a key of [gateways.socktools]"),
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
    for (key, variable) in KEYS {
        assert!(!is_container_service_variable(variable, "tcp://x"), "{key}");
    }
}
