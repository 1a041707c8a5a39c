use std::path::Path;
use std::time::Duration;

use swarm_shared::proto::trust::Role;

use crate::config::Config;

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
    assert_eq!((common.connections, common.connections_per_address), (7, 3));
    assert_eq!((common.message_bytes, common.rate), (1000, 5));
    assert_eq!(common.idle, Duration::from_secs(2));
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
        ("temperature", "\"a..b\"", "is not a reading"),
        ("history", "0", "0 is not from 1 to 100000"),
        ("history_every", "\"0s\"", "is zero"),
    ] {
        let error = read(&format!("[gateways.knut]\n{key} = {value}")).expect_err(key);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn gateway_config_errors_name_the_line() {
    for (text, wanted) in [
        ("gateways = 1", "config.toml:1: gateways: invalid type: integer"),
        (
            "[gateways.knot]",
            "config.toml:1: unknown key `gateways.knot`; did you mean `knut`?",
        ),
        (
            "[gateways.knut]\nalow = []",
            "config.toml:2: unknown key `gateways.knut.alow`; did you mean `allow`?",
        ),
        (
            "[gateways.platypush_http.hook.lights]\naction = \"led\"",
            "config.toml:1: unknown key `gateways.platypush_http.hook`; did you mean `hooks`?",
        ),
        (
            "[gateways.clever_show]\nroots = \"/srv\"",
            "config.toml:2: gateways.clever_show.roots: invalid type: string",
        ),
        (
            "[gateways.knut]\nallow = \"led\"",
            "config.toml:2: gateways.knut.allow: invalid type: string \"led\", expected a sequence",
        ),
        (
            "[gateways.knut]\nrole = \"node\"",
            "config.toml:2: gateways.knut.role: \"node\" is not observer",
        ),
        (
            "[gateways.knut]\nrate = 0",
            "config.toml:2: gateways.knut.rate: 0 is not from 1 to",
        ),
        (
            "[gateways.knut]\ntoken = \"x\"",
            "config.toml:2: gateways.knut.token: a token has at least 16",
        ),
        (
            "[gateways.knut]\nallow = [\"[\"]",
            "config.toml:2: gateways.knut.allow: \"[\": `[` needs its `]`",
        ),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.starts_with(wanted), "{error}");
    }
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
            "config.toml:2: gateways.clever_show.announce: invalid type: integer `1`, expected a boolean",
        ),
        (
            "announce_port = 0",
            "config.toml:2: gateways.clever_show.announce_port: 0 is not from 1 to 65535",
        ),
        (
            "stop_action = \" \"",
            "config.toml:2: gateways.clever_show.stop_action: \" \" is not the name of an action",
        ),
        (
            "stop_action = \"land \"",
            "config.toml:2: gateways.clever_show.stop_action: \"land \" is not the name of an action",
        ),
        (
            "token = \"0123456789abcdef\"",
            "config.toml:2: gateways.clever_show.token: drones show no token; leave it out",
        ),
        (
            "target = \"all\"",
            "config.toml:2: gateways.clever_show.target: has no effect on this gateway",
        ),
        (
            "ttl = \"2s\"",
            "config.toml:2: gateways.clever_show.ttl: has no effect on this gateway",
        ),
        (
            "timeout = \"2s\"",
            "config.toml:2: gateways.clever_show.timeout: has no effect on this gateway",
        ),
        (
            "[gateways.clever_show.roots]\nshows = 1",
            "config.toml:3: gateways.clever_show.roots.shows: invalid type: integer",
        ),
        (
            "[gateways.clever_show.roots]\n\"a/b\" = \"x\"",
            "config.toml:2: gateways.clever_show.roots: \"a/b\" is not the name of a root",
        ),
    ] {
        let error = read(&format!("[gateways.clever_show]\n{text}")).expect_err(text);
        assert!(error.starts_with(wanted), "{error}");
    }
}
