use std::path::Path;
use std::time::Duration;

use swarm_shared::proto::trust::Role;

use crate::config::{Config, ConfigError};

fn read(text: &str) -> Result<Config, String> {
    let mut config = Config::for_host("pi");
    let read = config.read_file(Path::new("config.toml"), text);
    read.map_err(|error| error.to_string()).map(|()| config)
}

#[test]
fn a_door_is_closed_until_its_table_is_there() {
    let none = read("").expect("nothing said").doors;
    assert_eq!(none, super::Doors::default());
    let knut = read("[doors.knut]")
        .expect("only opened")
        .doors
        .knut
        .expect("open");
    assert!(knut.common.listen.ip().is_loopback() && knut.common.allow.is_empty());
    assert_eq!(knut.common.role, Role::Operator);
}

#[test]
fn every_common_key_is_read() {
    let text = r#"
        [doors.knut]
        listen = "0.0.0.0:9000"
        allow = ["led", "show_*"]
        role = "observer"
        target = "drone-*"
        token = "0123456789abcdef"
        ttl = "3s"
        timeout = "4s"
        connections = 7
        connections_per_address = 3
        message_bytes = 1000
        rate = 5
        idle = "2s"
    "#;
    let common = read(text).expect("reads").doors.knut.expect("open").common;
    assert_eq!(common.listen, "0.0.0.0:9000".parse().expect("an address"));
    assert!(common.allow.iter().any(|glob| glob.matches("show_start")));
    assert!(!common.allow.iter().any(|glob| glob.matches("reboot")));
    assert_eq!((common.role, common.target.as_str()), (Role::Observer, "drone-*"));
    let token = common.token.expect("a token");
    assert!(token.is("0123456789abcdef") && !token.is("0123456789abcdeF") && !token.is(""));
    assert!(!format!("{token:?}").contains("0123"));
    assert_eq!(
        (common.ttl, common.timeout),
        (Duration::from_secs(3), Duration::from_secs(4))
    );
    let limits = common.limits;
    assert_eq!((limits.connections, limits.per_address), (7, 3));
    assert_eq!((limits.message_bytes, limits.rate), (1000, 5));
    assert_eq!(limits.idle, Duration::from_secs(2));
}

#[test]
fn the_door_for_knut_has_keys_of_its_own() {
    let text =
        "[doors.knut]\ntemperature = \"plugins.lamp.heat.value\"\nhistory = 10\nhistory_every = \"2s\"";
    let knut = read(text).expect("reads").doors.knut.expect("open");
    assert_eq!(knut.temperature, ["plugins", "lamp", "heat", "value"]);
    assert_eq!((knut.history, knut.history_every), (10, Duration::from_secs(2)));
    let knut = read("[doors.knut]").expect("reads").doors.knut.expect("open");
    assert_eq!(knut.temperature, ["cpu_temperature"]);
    for (key, value, wanted) in [
        ("temperature", "\"a..b\"", "is no reading"),
        ("history", "0", "history has to be 1 to 100000"),
        ("history_every", "\"0s\"", "no time at all"),
    ] {
        let error = read(&format!("[doors.knut]\n{key} = {value}")).expect_err(key);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, wanted) in [
        ("doors = 1", "config.toml:1: doors are tables"),
        (
            "[doors.knot]",
            "config.toml:1: [doors]: unknown key \"knot\"; did you mean \"knut\"?",
        ),
        (
            "[doors.knut]\nalow = []",
            "config.toml:2: [doors.knut]: unknown key \"alow\"; did you mean \"allow\"?",
        ),
        (
            "[doors.knut]\nallow = \"led\"",
            "config.toml:2: doors.knut.allow has to be a list",
        ),
        (
            "[doors.knut]\nrole = \"node\"",
            "config.toml:2: \"node\" is not observer",
        ),
        ("[doors.knut]\nrate = 0", "config.toml:2: rate has to be 1 to"),
        (
            "[doors.knut]\ntoken = \"x\"",
            "config.toml:2: a token has at least 16",
        ),
        (
            "[doors.knut]\nallow = [\"[\"]",
            "config.toml:2: \"[\": `[` needs its `]`",
        ),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.starts_with(wanted), "{error}");
    }
}

#[test]
fn a_variable_opens_a_door_too() {
    let mut config = Config::for_host("pi");
    let get = |name: &str| match name {
        "GROUND_STATION_DOORS_KNUT_ALLOW" => Some("led, show_*".to_owned()),
        "GROUND_STATION_DOORS_KNUT_RATE" => Some("9".to_owned()),
        _ => None,
    };
    config.read_environment(get).expect("reads");
    let common = config.doors.knut.clone().expect("open").common;
    assert_eq!((common.allow.len(), common.limits.rate), (2, 9));
    assert_eq!(config.doors.socktools, None);
    let wrong = |name: &str| (name == "GROUND_STATION_DOORS_KNUT_IDLE").then(|| "soon".to_owned());
    let error = config.read_environment(wrong).expect_err("no time");
    assert!(matches!(error, ConfigError::Environment { .. }), "{error}");
}
