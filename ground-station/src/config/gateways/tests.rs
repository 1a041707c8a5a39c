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
fn gateway_is_closed_without_its_table() {
    let none = read("").expect("nothing said").gateways;
    assert_eq!(none, crate::config::gateways::GatewaysConfig::default());
    let knut = read("[gateways.knut]")
        .expect("only opened")
        .gateways
        .knut
        .expect("open");
    assert!(knut.common.listen.ip().is_loopback() && knut.common.allow.is_empty());
    assert_eq!(knut.common.role, Role::Operator);
}

#[test]
fn common_gateway_keys_are_read() {
    let text = r#"
        [gateways.knut]
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
    let common = read(text).expect("reads").gateways.knut.expect("open").common;
    assert_eq!(common.listen, "0.0.0.0:9000".parse().expect("an address"));
    assert!(common.allow.iter().any(|glob| glob.matches("show_start")));
    assert!(!common.allow.iter().any(|glob| glob.matches("reboot")));
    assert_eq!((common.role, common.target.as_str()), (Role::Observer, "drone-*"));
    let token = common.token.expect("a token");
    assert!(token.matches("0123456789abcdef") && !token.matches("0123456789abcdeF") && !token.matches(""));
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
fn knut_keys_are_read() {
    let text =
        "[gateways.knut]\ntemperature = \"plugins.lamp.heat.value\"\nhistory = 10\nhistory_every = \"2s\"";
    let knut = read(text).expect("reads").gateways.knut.expect("open");
    assert_eq!(knut.temperature, ["plugins", "lamp", "heat", "value"]);
    assert_eq!((knut.history, knut.history_every), (10, Duration::from_secs(2)));
    let knut = read("[gateways.knut]")
        .expect("reads")
        .gateways
        .knut
        .expect("open");
    assert_eq!(knut.temperature, ["cpu_temperature"]);
    for (key, value, wanted) in [
        ("temperature", "\"a..b\"", "is no reading"),
        ("history", "0", "history has to be 1 to 100000"),
        ("history_every", "\"0s\"", "no time at all"),
    ] {
        let error = read(&format!("[gateways.knut]\n{key} = {value}")).expect_err(key);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn gateway_config_errors_name_the_line() {
    for (text, wanted) in [
        ("gateways = 1", "config.toml:1: gateways are tables"),
        (
            "[gateways.knot]",
            "config.toml:1: [gateways]: unknown key \"knot\"; did you mean \"knut\"?",
        ),
        (
            "[gateways.knut]\nalow = []",
            "config.toml:2: [gateways.knut]: unknown key \"alow\"; did you mean \"allow\"?",
        ),
        (
            "[gateways.platypush_http.hook.lights]\naction = \"led\"",
            "config.toml:1: [gateways.platypush_http]: unknown key \"hook\"; did you mean \"hooks\"?",
        ),
        (
            "[gateways.clever_show]\nroots = \"/srv\"",
            "config.toml:2: roots is a table: write [gateways.clever_show.roots]",
        ),
        (
            "[gateways.knut]\nallow = \"led\"",
            "config.toml:2: gateways.knut.allow has to be a list",
        ),
        (
            "[gateways.knut]\nrole = \"node\"",
            "config.toml:2: \"node\" is not observer",
        ),
        ("[gateways.knut]\nrate = 0", "config.toml:2: rate has to be 1 to"),
        (
            "[gateways.knut]\ntoken = \"x\"",
            "config.toml:2: a token has at least 16",
        ),
        (
            "[gateways.knut]\nallow = [\"[\"]",
            "config.toml:2: \"[\": `[` needs its `]`",
        ),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.starts_with(wanted), "{error}");
    }
}

#[test]
fn environment_variable_enables_a_gateway() {
    let mut config = Config::for_host("pi");
    let get = |name: &str| match name {
        "GROUND_STATION_GATEWAYS_KNUT_ALLOW" => Some("led, show_*".to_owned()),
        "GROUND_STATION_GATEWAYS_KNUT_RATE" => Some("9".to_owned()),
        _ => None,
    };
    config.read_environment(get).expect("reads");
    let common = config.gateways.knut.clone().expect("open").common;
    assert_eq!((common.allow.len(), common.limits.rate), (2, 9));
    assert_eq!(config.gateways.socktools, None);
    let wrong = |name: &str| (name == "GROUND_STATION_GATEWAYS_KNUT_IDLE").then(|| "soon".to_owned());
    let error = config.read_environment(wrong).expect_err("no time");
    assert!(matches!(error, ConfigError::Environment { .. }), "{error}");
}

#[test]
fn clever_show_keys_are_read() {
    let open = read("[gateways.clever_show]")
        .expect("only opened")
        .gateways
        .clever_show
        .expect("open");
    assert!(open.announce && open.resend_requests && !open.resume_queue);
    assert_eq!((open.announce_port, open.common.listen.port()), (8181, 25_000));
    assert_eq!(open.stop_action.as_deref(), Some("emergency_land"));
    let text = r#"
        [gateways.clever_show]
        announce = false
        announce_port = 9
        resume_queue = true
        resend_requests = false
        requests = ["heat"]
        flight = ["dance_*"]
        stop_action = ""
        file_bytes = 10

        [gateways.clever_show.roots]
        shows = "/home/pi/shows"
    "#;
    let open = read(text).expect("reads").gateways.clever_show.expect("open");
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
            "config.toml:2: gateways.clever_show.announce has to be true or false",
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
            "config.toml:2: target does nothing at this gateway",
        ),
        ("ttl = \"2s\"", "config.toml:2: ttl does nothing at this gateway"),
        (
            "timeout = \"2s\"",
            "config.toml:2: timeout does nothing at this gateway",
        ),
        (
            "[gateways.clever_show.roots]\nshows = 1",
            "config.toml:3: roots.shows has to be a path",
        ),
        (
            "[gateways.clever_show.roots]\n\"a/b\" = \"x\"",
            "config.toml:3: \"a/b\" is no name of a root",
        ),
    ] {
        let error = read(&format!("[gateways.clever_show]\n{text}")).expect_err(text);
        assert!(error.starts_with(wanted), "{error}");
    }
}
