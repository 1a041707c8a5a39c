use super::*;

fn read(text: &str) -> Result<Config, String> {
    let mut config = Config::for_host("laptop.local");
    config
        .read_file(Path::new("config.toml"), text)
        .map_err(|error| error.to_string())?;
    Ok(config)
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = read("").expect("defaults");
    assert_eq!(config.name.as_str(), "laptop");
    assert_eq!(config.listen.to_string(), "0.0.0.0:7421");
    assert!(config.pings && config.mdns);
}

#[test]
fn the_example_in_the_documentation_is_read_whole() {
    let source = include_str!("../config.rs");
    let example: Vec<&str> = source
        .lines()
        .skip_while(|line| *line != "//! ```toml")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| line.trim_start_matches("//!"))
        .collect();
    let config = read(&example.join("\n")).expect("the example");
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
fn faults_name_the_line_and_the_way_out() {
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
            "[door.knut]",
            "config.toml:1: unknown key \"door\"; did you mean \"doors\"?",
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
            "\n[doors.knut]\nlisten = \"x\"",
            "config.toml:3: \"x\" is not ADDR:PORT",
        ),
        ("name = ", "config.toml:1: "),
        ("name = \"a\"\nname = \"b\"", "config.toml:2: "),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.starts_with(fault), "{text:?}: {error}");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let mut config = read("ping_port = 1\nname = \"file\"").expect("reads");
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
fn a_file_is_optional_unless_it_is_named() {
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
fn a_variable_that_nothing_is_called_after_is_a_slip() {
    let check = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned());
        check_variables(names).map_err(|error| error.to_string())
    };
    let known = [
        "GROUND_STATION_NAME",
        "GROUND_STATION_LOG",
        "GROUND_STATION_STATE_DIR",
        "GROUND_STATION_HISTORY_KEEP_DAYS",
        "GROUND_STATION_DOORS_KNUT_ALLOW",
        "GROUND_STATION_DOORS_SOCKTOOLS_RAW_ACTION",
        "HOME",
    ];
    assert_eq!(check(&known), Ok(()));
    for (variable, says) in [
        (
            "GROUND_STATION_DOORS_KNUT_ALOW",
            "did you mean GROUND_STATION_DOORS_KNUT_ALLOW?",
        ),
        (
            "GROUND_STATION_DOORS_KNOT_ALLOW",
            "did you mean GROUND_STATION_DOORS_KNUT_ALLOW?",
        ),
        ("GROUND_STATION_LISTE", "did you mean GROUND_STATION_LISTEN?"),
        (
            "GROUND_STATION_DOORS_KNUT_COLOUR",
            "each key of config.toml has its own",
        ),
    ] {
        let error = check(&["PATH", variable]).expect_err(variable);
        let begins = format!("environment variable {variable}: nothing is called so");
        assert!(error.starts_with(&begins) && error.contains(says), "{error}");
    }
}

#[test]
fn a_guess_that_is_far_off_is_not_made() {
    for (key, says) in [
        ("raw_acton", "did you mean \"raw_action\"?"),
        (
            "raw",
            "did you mean \"raw_action\", \"raw_argument\" or \"raw_encoding\"?",
        ),
        ("action", "did you mean \"raw_action\"?"),
        ("fast", "known are listen, allow"),
        ("temperature", "is a key of [doors.knut], not of this door"),
    ] {
        let error = read(&format!("[doors.socktools]\n{key} = \"x\"")).expect_err(key);
        assert!(error.contains(says), "{error}");
    }
    let elsewhere = read("[doors.platypush_tcp]\nraw_action = \"x\"").expect_err("socktools' own");
    assert!(elsewhere.contains("is a key of [doors.socktools]"), "{elsewhere}");
}

#[test]
fn what_containers_tell_of_services_is_no_slip() {
    for (name, value) in [
        ("GROUND_STATION_SERVICE_HOST", "10.0.0.1"),
        ("GROUND_STATION_SERVICE_PORT", "7421"),
        ("GROUND_STATION_SERVICE_PORT_LINKS", "7421"),
        ("GROUND_STATION_PORT", "tcp://10.0.0.1:7421"),
        ("GROUND_STATION_PORT_7421_TCP_ADDR", "10.0.0.1"),
    ] {
        assert!(is_of_containers(name, value), "{name}");
    }
    for (name, value) in [
        ("GROUND_STATION_PORT", "7421"),
        ("GROUND_STATION_PING_PROT", "7422"),
        ("GROUND_STATION_SERVICE", "x"),
    ] {
        assert!(!is_of_containers(name, value), "{name}");
    }
    for (key, variable) in KEYS {
        assert!(!is_of_containers(variable, "tcp://x"), "{key}");
    }
}
