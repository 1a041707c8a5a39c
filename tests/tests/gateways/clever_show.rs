//! Drones of clever-show at the gateway of a real station.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use swarm_tests::fleet::{TEST_TIMEOUT, VerbOutput, str_field};
use swarm_tests::process::{Signal, wait_until};

mod harness;
mod names;
mod stops;

use harness::{DroneHarness, by_name};

const SENT_UNCONFIRMED: &str = "sent, unconfirmed";

#[test]
fn announced_drone_joins_and_answers_commands() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\nrole = \"admin\"\n");
    show.add_node();
    let drone = show.start(&["--id", "clever-1", "--telemetry", "0.2"]);
    let announced = show.wait(drone, "an announcement", |told| told["event"] == "announced");
    assert_eq!(announced["host"], "127.0.0.1");
    assert_eq!(str_field(&announced, "port"), show.port().to_string());
    let id = str_field(&announced, "id");
    assert!(
        id.len() == 4 && id.bytes().all(|b| b.is_ascii_digit()),
        "{announced}"
    );
    assert!(
        str_field(&announced, "start_time").parse::<f64>().is_ok(),
        "{announced}"
    );
    let first = show.wait(drone, "a question", |told| told["event"] == "request");
    assert_eq!(first["name"], "id");
    let second = show.wait(drone, "a question", |told| told["event"] == "request");
    assert_eq!(second["name"], "clover_dir");

    show.station.wait_nodes("two nodes, one with telemetry", |nodes| {
        nodes.len() == 2 && by_name(nodes, "clever-1")["telemetry"]["battery"] == json!([12.2, 0.98])
    });
    let view = show.station.node("clever-1");
    assert_eq!(
        (&view["state"], &view["kind"]),
        (&json!("online"), &json!("node"))
    );
    assert_eq!(view["tags"], json!({ "system": "clever-show" }));
    // NaN and Infinity are read as null.
    assert_eq!(view["telemetry"]["start_position"], json!([null, 0.0, null]));
    assert_eq!(
        show.station.node("n1").get("telemetry"),
        None,
        "JSON of own nodes stays as it is"
    );
    let table = show
        .station
        .run_plain(&["nodes"])
        .expect_status(0)
        .stdout
        .join("\n");
    assert!(
        table.contains("FCU_STATUS") && table.contains("STANDBY"),
        "{table}"
    );

    // One answer from both kinds.
    let pinged = show.station.run(&["ping", "all"]).expect_status(0).json();
    for name in ["n1", "clever-1"] {
        let delivery = by_name(&pinged, name);
        assert_eq!(
            (&delivery["state"], &delivery["value"]),
            (&json!("done"), &json!("pong"))
        );
    }
    let short = str_field(&view, "id")[..8].to_owned();
    for selector in [
        "clever-1",
        "cle*",
        "tag:system=clever-show",
        "all,!n1",
        &format!("id:{short}"),
    ] {
        assert_eq!(show.run_for_value(&["ping", selector]), "pong", "{selector}");
    }
    let both = show.station.run(&["ping", "clever-1,n1"]).expect_status(0);
    assert!(
        both.json().len() == 2 && !both.stderr.contains("no node matches"),
        "{}",
        both.stderr
    );
    let strange = show.station.run(&["ping", "clever-1,n7"]).expect_status(0);
    assert!(
        strange.stderr.contains("no node matches \"n7\""),
        "{}",
        strange.stderr
    );
    let slip = show.station.run(&["ping", "clever-7"]).expect_status(3);
    slip.expect_stderr("known drones of other programs are clever-1");
    // A drone may be excluded by name; an unknown name there is a mistake, and nothing acts.
    let without = show
        .station
        .run(&["ping", "all,!clever-1"])
        .expect_status(0)
        .json();
    assert!(
        without.iter().all(|line| line["node"] != "clever-1"),
        "{without:?}"
    );
    let slip = show.station.run(&["ping", "all,!clever-7"]).expect_status(2);
    assert!(slip.json().is_empty());
    slip.expect_stderr("matches no node");
    let only = show.station.run(&["ping", "clever-1,!clever-1"]).expect_status(3);
    assert!(only.json().is_empty());

    // Requests.
    assert_eq!(show.run_for_value(&["call", "clever-1", "id"]), "clever-1");
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "batt_voltage"]),
        json!(12.1)
    );
    assert_eq!(show.run_for_value(&["call", "clever-1", "selfcheck"]), "OK");
    assert!(show.run_for_value(&["call", "clever-1", "time"]).is_f64());
    let read = show.run_for_value(&["call", "clever-1", "config", "send_configspec=true"]);
    assert_eq!(
        read,
        json!({ "config": { "SERVER": { "port": 25000 } }, "spec": true })
    );

    // Actions.
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "led_fill", "red=255", "blue=0"]),
        SENT_UNCONFIRMED
    );
    let told = show.wait_action(drone, "led_fill");
    assert_eq!(
        (&told["args"], &told["kwargs"]),
        (&json!([]), &json!({ "red": 255, "blue": 0 }))
    );
    assert_eq!(
        show.run_for_value(&["run", "clever-1", "--", "echo", "it's", "a b", "c"]),
        SENT_UNCONFIRMED
    );
    let told = show.wait_action(drone, "execute");
    assert_eq!(told["kwargs"], json!({ "command": r"echo 'it'\''s' 'a b' c" }));
    let change = [
        "call",
        "clever-1",
        "config",
        "config={\"A\":{\"b\":1}}",
        "mode=rewrite",
    ];
    assert_eq!(show.run_for_value(&change), SENT_UNCONFIRMED);
    let told = show.wait_action(drone, "config");
    assert_eq!(
        told["kwargs"],
        json!({ "config": { "A": { "b": 1 } }, "mode": "rewrite" })
    );
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "config"])["config"],
        json!({ "A": { "b": 1 } })
    );

    // Files; the drone says where `clover` is.
    let content = swarm_tests::fleet::pseudo_random_bytes(3_000_000);
    let file = show.test_dir.file("take1.bin", &content);
    let file = file.to_str().expect("UTF-8");
    assert_eq!(
        show.run_for_value(&["send", file, "clever-1:clover/"]),
        SENT_UNCONFIRMED
    );
    show.wait(drone, "a file", |told| told["event"] == "file");
    let there = show.drone_dir(drone).join("clover/take1.bin");
    assert_eq!(std::fs::read(there).expect("written"), content);
    let empty = show.test_dir.file("empty", b"");
    assert_eq!(
        show.run_for_value(&["send", empty.to_str().expect("UTF-8"), "clever-1:clover/none"]),
        SENT_UNCONFIRMED
    );
    show.wait(drone, "an empty file", |told| {
        told["event"] == "file" && told["size"] == 0
    });
    let got = show.test_dir.path().join("got");
    let fetched = show.run_for_value(&["fetch", "clever-1:clover/take1.bin", got.to_str().expect("UTF-8")]);
    assert_eq!(fetched["size"], 3_000_000);
    assert_eq!(
        std::fs::read(got.join("clever-1-take1.bin")).expect("fetched"),
        content
    );
    // The real drone does not answer a request that fails.
    let words = [
        "fetch",
        "clever-1:clover/nothing",
        got.to_str().expect("UTF-8"),
        "--timeout",
        "1s",
    ];
    assert_eq!(show.run_one(&words, 4)["state"], "no-answer");

    assert!(show.events(drone).iter().all(|told| told["event"] != "null"));
    let history = show.station.run(&["history"]).expect_status(0).json();
    assert!(
        history.iter().any(|command| command["action"] == "led_fill"),
        "{history:?}"
    );
    assert!(
        history.iter().all(|command| command["action"] != "batt_voltage"),
        "what reads is not kept"
    );
    let log = show.station.run(&["history", "--audit"]);
    assert!(
        log.stdout.join("\n").contains("clever_show from 127.0.0.1"),
        "{:?}",
        log.stdout
    );
}

#[test]
fn configured_queue_survives_reconnect() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\nresume_queue = true\nresend_requests = true\n");
    let drone = show.join("clever-1", &["--deaf-once", "anim_id"]);
    // Sent, not answered, and sent again with the same number.
    let mut verb = show
        .station
        .start(&["call", "clever-1", "anim_id", "--timeout", "20s"]);
    let asked = show.wait(drone, "anim_id", |told| told["name"] == "anim_id");
    show.drones[drone].signal(Signal::USR1);
    show.station.wait_state("clever-1", "offline");

    let late = show.run_one(&["call", "clever-1", "led_test", "--timeout", "300ms"], 4);
    assert_eq!(late["state"], "no-answer", "{late}");
    let flight = show.run_one(&["call", "clever-1", "takeoff", "--timeout", "300ms"], 4);
    assert!(str_field(&flight, "error").contains("never queued"), "{flight}");
    let stale = show.run_one(
        &[
            "call",
            "clever-1",
            "led_stale",
            "--ttl",
            "100ms",
            "--timeout",
            "5s",
        ],
        1,
    );
    assert_eq!(stale["state"], "expired", "{stale}");

    show.drones[drone].signal(Signal::USR2);
    let again = show.wait(drone, "anim_id again", |told| told["name"] == "anim_id");
    assert_eq!(again["id"], asked["id"]);
    verb.process()
        .wait_json(TEST_TIMEOUT, "the answer", |end| end["value"] == "anim-7");
    show.wait_action(drone, "led_test");
    assert_eq!(
        (
            show.action_count(drone, "takeoff"),
            show.action_count(drone, "led_stale")
        ),
        (0, 0)
    );
    // Sent once on each connection, and only to this drone.
    let told = show.events(drone);
    let asked = |name: &str| told.iter().filter(|told| told["name"] == name).count();
    assert_eq!((asked("clover_dir"), asked("id") >= 2), (1, true));
    // No verb waited for it any more, and the history has its outcome.
    wait_until(TEST_TIMEOUT, "the history knows", || {
        let history = show.station.run(&["history"]).expect_status(0).json();
        let led = history.iter().find(|command| command["action"] == "led_test");
        led.is_some_and(|led| led["states"]["done"] == 1)
    });
}

#[test]
fn queue_is_dropped_on_disconnect_by_default() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\nresume_queue = false\nresend_requests = false\n");
    let drone = show.join("clever-1", &["--deaf", "anim_id"]);
    let verb = show
        .station
        .start(&["call", "clever-1", "anim_id", "--timeout", "20s"]);
    show.wait(drone, "anim_id", |told| told["name"] == "anim_id");
    show.drones[drone].signal(Signal::USR1);
    let ran: VerbOutput = verb.finish(TEST_TIMEOUT);
    let lost = &ran.expect_status(4).json()[0];
    assert!(str_field(lost, "error").contains("connection was lost"), "{lost}");
    show.station.wait_state("clever-1", "offline");
    let away = show.run_one(&["call", "clever-1", "led_test"], 4);
    assert!(str_field(&away, "error").contains("resume_queue"), "{away}");
    show.drones[drone].signal(Signal::USR2);
    show.station.wait_state("clever-1", "online");
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "led_after"]),
        SENT_UNCONFIRMED
    );
    show.wait_action(drone, "led_after");
    assert_eq!(show.action_count(drone, "led_test"), 0);
}

/// What a connection to the gateway receives before it is closed.
fn read_until_closed(mut stream: TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("set");
    match stream.read_to_end(&mut read) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    read
}

#[test]
fn malformed_drone_is_closed_others_are_served() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("message_bytes = 4096\nconnections_per_address = 8\n");
    let odd = show.join("clever-odd", &["--encoding", "utf-16", "--telemetry", "0.2"]);
    show.station.wait_nodes("telemetry in UTF-16", |nodes| {
        by_name(nodes, "clever-odd")["telemetry"]["fcu_status"] == "STANDBY"
    });
    let header = |header: &str| {
        let length = u16::try_from(header.len()).expect("short").to_be_bytes();
        [&length, header.as_bytes()].concat()
    };
    let missing =
        r#"{"byteorder":"little","content-type":"json","content-length":2,"message-type":"message"}"#;
    let long = r#"{"byteorder":"little","content-type":"json","content-encoding":"utf-8","content-length":99999999,"message-type":"message"}"#;
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 100],
        header(missing),
        header(long),
        header("[]"),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", show.port())).expect("connects");
        stream.write_all(&bytes).expect("written");
        let told = String::from_utf8_lossy(&read_until_closed(stream)).into_owned();
        assert!(told.contains("requested_value"), "it was asked who it is: {told}");
    }
    // A drone that has identified itself and then sends a malformed frame.
    let server = format!("127.0.0.1:{}", show.port());
    let bad = show.start(&[
        "--id",
        "clever-bad",
        "--server",
        &server,
        "--garbage",
        r"\x00\x05hello",
    ]);
    show.wait(bad, "it is closed", |told| told["event"] == "lost");
    let quiet: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect(("127.0.0.1", show.port())).expect("connects"))
        .collect();
    assert_eq!(show.run_for_value(&["ping", "clever-odd"]), "pong");
    drop(quiet);
    let log = show.station.log().join("\n");
    assert!(log.contains("Drone connection closed"), "{log}");
    assert!(log.contains("header has no \"content-encoding\""), "{log}");
    assert!(log.contains("longer than the"), "{log}");
    assert_eq!(
        show.events(odd)
            .iter()
            .filter(|told| told["event"] == "lost")
            .count(),
        0
    );
}

#[test]
fn gateway_only_reads_until_granted_more() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"led_*\"]\n");
    let drone = show.join("clever-1", &[]);
    assert_eq!(show.run_for_value(&["call", "clever-1", "config"])["spec"], false);
    assert_eq!(
        show.run_for_value(&["call", "clever-1", "led_test"]),
        SENT_UNCONFIRMED
    );
    let file = show.test_dir.file("f", b"x");
    let file = file.to_str().expect("UTF-8");
    for words in [
        &["call", "clever-1", "takeoff"][..],
        &["call", "clever-1", "id", "new_id=x"],
        &["call", "clever-1", "config", "config={}", "mode=modify"],
        &["run", "clever-1", "--", "true"],
        &["send", file, "clever-1:clover/"],
    ] {
        let refused = show.run_one(words, 1);
        assert_eq!(refused["state"], "refused", "{words:?}: {refused}");
        assert!(
            str_field(&refused, "error").contains("[gateways.clever_show]"),
            "{refused}"
        );
    }
    show.wait_action(drone, "led_test");
    let told = show.events(drone);
    assert_eq!(
        told.iter().filter(|told| told["event"] == "action").count(),
        1,
        "{told:?}"
    );
}

#[test]
fn rolling_run_covers_drones_and_stops_at_first_failure() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\n");
    for id in ["clever-1", "clever-2", "clever-3"] {
        show.join(id, &[]);
    }
    let words = ["call", "all", "led_test", "--batch", "1"];
    assert_eq!(show.station.run(&words).expect_status(0).json().len(), 3);
    show.drones[1].signal(Signal::USR1);
    show.station.wait_state("clever-2", "offline");
    let ran = show.station.run(&words);
    let states: Vec<String> = ["clever-1", "clever-2", "clever-3"]
        .iter()
        .map(|name| str_field(by_name(&ran.json(), name), "state").to_owned())
        .collect();
    assert_eq!(states, ["done", "no-answer", "refused"]);
}

#[test]
fn drone_finds_station_at_its_new_address() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("");
    let drone = show.join("clever-1", &[]);
    let before = show.port();
    show.station.signal_and_wait(Signal::TERM);
    show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    // It has another port now: three attempts, and then the announcement.
    show.station.serve();
    let announced = show.wait(drone, "an announcement", |told| told["event"] == "announced");
    assert_ne!(str_field(&announced, "port"), before.to_string());
    show.station.wait_state("clever-1", "online");
}

#[test]
fn subscriber_receives_drone_events_like_node_events() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"led_*\"]\n");
    let mut stream = UnixStream::connect(show.station.state_file("control.sock")).expect("serve runs");
    stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("set");
    writeln!(
        stream,
        "{}",
        json!({ "nodes": { "follow": { "telemetry": true } } })
    )
    .expect("asked");
    let mut lines = BufReader::new(stream);
    let mut wait = |what: &str, wanted: &dyn Fn(&Value) -> bool| loop {
        let mut line = String::new();
        let read = lines.read_line(&mut line);
        assert!(matches!(read, Ok(bytes) if bytes > 0), "{what}: {read:?}");
        let event: Value = serde_json::from_str(&line).expect("JSON");
        if wanted(&event) {
            return event;
        }
    };
    show.join("clever-1", &["--telemetry", "0.1"]);
    wait("it is online", &|event| {
        event["event"] == "node" && event["node"] == "clever-1" && event["state"] == "online"
    });
    wait("readings", &|event| {
        event["event"] == "telemetry" && event["values"]["fcu_status"] == "STANDBY"
    });
    let newer = wait("newer readings", &|event| event["event"] == "telemetry");
    assert_eq!(newer["values"].get("fcu_status"), None, "only what has changed");
    assert_eq!(show.run_for_value(&["call", "all", "led_test"]), SENT_UNCONFIRMED);
    let told =
        |word: &'static str| move |event: &Value| event["event"] == "told" && event["word"]["event"] == word;
    let targets = wait("targets", &told("targets"));
    assert_eq!(
        (&targets["what"], &targets["word"]["targets"][0]["node"]),
        (&json!("led_test"), &json!("clever-1"))
    );
    let ended = wait("the end", &told("delivery"));
    assert_eq!(
        (&ended["word"]["state"], &ended["number"]),
        (&json!("done"), &json!(1)),
        "{ended}"
    );
    wait("all has been said", &told("end"));
}

#[test]
fn history_retry_repeats_undone_drone_deliveries() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("allow = [\"*\"]\n");
    show.add_node();
    let drone = show.join("clever-1", &[]);
    show.drones[drone].signal(Signal::USR1);
    show.station.wait_state("clever-1", "offline");
    show.run_one(&["call", "clever-1", "led_fill", "red=7"], 4);
    let file = show.test_dir.file("f", b"content");
    let to = "clever-1:clover/f";
    show.run_one(&["send", file.to_str().expect("UTF-8"), to], 4);
    show.drones[drone].signal(Signal::USR2);
    show.station.wait_state("clever-1", "online");

    let again = show.run_one(&["history", "--retry", "1"], 0);
    assert_eq!(
        (&again["node"], &again["value"]),
        (&json!("clever-1"), &json!(SENT_UNCONFIRMED))
    );
    assert_eq!(show.wait_action(drone, "led_fill")["kwargs"], json!({ "red": 7 }));
    assert_eq!(show.run_for_value(&["history", "--retry", "2"]), SENT_UNCONFIRMED);
    show.wait(drone, "the file", |told| told["event"] == "file");
    show.station
        .run(&["history", "--retry", "1"])
        .expect_status(3)
        .expect_stderr("it is done everywhere");
    let history = show.station.run(&["history"]).expect_status(0).json();
    assert!(
        history.iter().any(|command| command["retry_of"] == 1),
        "{history:?}"
    );
    // Retry of a stop, and of a drone that this station does not know any more.
    show.station.run(&["stop", "clever-1", "--timeout", "2s"]);
    let stop = show
        .station
        .run(&["history", "--limit", "1"])
        .expect_status(0)
        .json();
    let number = stop[0]["command"].to_string();
    show.station
        .run(&["history", "--retry", &number])
        .expect_status(2)
        .expect_stderr("type `ground-station stop` again");
    show.station.run(&["release", "clever-1"]).expect_status(0);
    show.drones[drone].signal(Signal::USR1);
    show.station.wait_state("clever-1", "offline");
    show.run_one(&["call", "clever-1", "led_fill", "red=8"], 4);
    let last = show
        .station
        .run(&["history", "--limit", "1"])
        .expect_status(0)
        .json();
    show.station.signal_and_wait(Signal::TERM);
    show.station.serve();
    show.station
        .run(&["history", "--retry", &last[0]["command"].to_string()])
        .expect_status(3)
        .expect_stderr("known once they have connected");
}

#[test]
fn unanswered_request_is_not_reported_as_queued() {
    swarm_tests::needs_python!();
    let mut show = DroneHarness::new("");
    show.join("clever-1", &["--deaf", "anim_id"]);
    let unanswered = show.run_one(&["call", "clever-1", "anim_id", "--timeout", "400ms"], 4);
    assert!(
        str_field(&unanswered, "error").starts_with("no answer: the drone may not know the request"),
        "{unanswered}"
    );
}
