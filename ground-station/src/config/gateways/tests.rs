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
    assert_eq!(none, crate::config::gateways::Doors::default());
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
            "[doors.platypush_http.hook.lights]\naction = \"led\"",
            "config.toml:1: [doors.platypush_http]: unknown key \"hook\"; did you mean \"hooks\"?",
        ),
        (
            "[doors.clever_show]\nroots = \"/srv\"",
            "config.toml:2: roots is a table: write [doors.clever_show.roots]",
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

#[test]
fn the_door_for_clever_show_has_keys_of_its_own() {
    let open = read("[doors.clever_show]")
        .expect("only opened")
        .doors
        .clever_show
        .expect("open");
    assert!(open.announce && open.resend_requests && !open.resume_queue);
    assert_eq!((open.announce_port, open.common.listen.port()), (8181, 25_000));
    assert_eq!(open.stop_action.as_deref(), Some("emergency_land"));
    let text = r#"
        [doors.clever_show]
        announce = false
        announce_port = 9
        resume_queue = true
        resend_requests = false
        requests = ["heat"]
        flight = ["dance_*"]
        stop_action = ""
        file_bytes = 10

        [doors.clever_show.roots]
        shows = "/home/pi/shows"
    "#;
    let open = read(text).expect("reads").doors.clever_show.expect("open");
    assert!(!open.announce && !open.resend_requests && open.resume_queue);
    assert!(open.requests.contains("heat") && open.flight.iter().any(|glob| glob.matches("dance_1")));
    assert_eq!(
        (open.announce_port, open.stop_action, open.file_bytes),
        (9, None, 10)
    );
    assert_eq!(open.roots["shows"], "/home/pi/shows");
    for (text, wanted) in [
        (
            "announce = 1",
            "config.toml:2: doors.clever_show.announce has to be true or false",
        ),
        (
            "announce_port = 0",
            "config.toml:2: announce_port has to be 1 to 65535",
        ),
        (
            "stop_action = \" \"",
            "config.toml:2: stop_action \" \" is no action's name",
        ),
        (
            "stop_action = \"land \"",
            "config.toml:2: stop_action \"land \" is no action's name",
        ),
        (
            "token = \"0123456789abcdef\"",
            "config.toml:2: token: drones show none; leave it out",
        ),
        (
            "target = \"all\"",
            "config.toml:2: target does nothing at this door",
        ),
        ("ttl = \"2s\"", "config.toml:2: ttl does nothing at this door"),
        (
            "timeout = \"2s\"",
            "config.toml:2: timeout does nothing at this door",
        ),
        (
            "[doors.clever_show.roots]\nshows = 1",
            "config.toml:3: roots.shows has to be a path",
        ),
        (
            "[doors.clever_show.roots]\n\"a/b\" = \"x\"",
            "config.toml:3: \"a/b\" is no name of a root",
        ),
    ] {
        let error = read(&format!("[doors.clever_show]\n{text}")).expect_err(text);
        assert!(error.starts_with(wanted), "{error}");
    }
}
