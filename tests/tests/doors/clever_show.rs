//! clever-show's drones at a real station's door.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use swarm_tests::fleet::{Field, Invite, Node, PATIENCE, Place, Ran, Station, text};
use swarm_tests::process::{Process, Signal, Stream, wait_until};

/// A station with this door.
struct Show {
    drones: Vec<Process>,
    nodes: Vec<Node>,
    station: Station,
    field: Field,
    udp_port: u16,
}

impl Show {
    fn new(door: &str) -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let udp_port = udp.local_addr().expect("bound").port();
        drop(udp);
        let field = Field::new();
        let mut station = field.station("st", Place::here());
        station.configure(&format!(
            "[doors.clever_show]\nlisten = \"127.0.0.1:0\"\nannounce_port = {udp_port}\n{door}"
        ));
        station.serve();
        Self {
            drones: Vec::new(),
            nodes: Vec::new(),
            station,
            field,
            udp_port,
        }
    }

    /// One node of our own.
    fn add_node(&mut self) {
        let code = self.station.invite(&Invite::nodes(1));
        let mut node = self.field.node("n1", Place::here());
        node.start(&["--join", &code]);
        self.nodes.push(node);
        self.station.wait_state("n1", "online");
    }

    fn port(&self) -> u16 {
        let opened = "door open door=\"clever_show\" listen=127.0.0.1:";
        let mut port = None;
        wait_until(PATIENCE, "the log names the port", || {
            let log = self.station.log();
            let found = log.iter().find_map(|line| Some(line.split_once(opened)?.1));
            port = found.and_then(|port| port.trim().parse().ok());
            port.is_some()
        });
        port.expect("found")
    }

    fn dir(&self, drone: usize) -> PathBuf {
        self.field.path().join(format!("drone-{drone}"))
    }

    /// Starts a drone; its number.
    fn start(&mut self, words: &[&str]) -> usize {
        let number = self.drones.len();
        let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "peers", "clever_drone.py"]
            .iter()
            .collect();
        let mut command = Command::new("python3");
        command.env("CLEVER_DRONE_PAUSE", "0.2");
        command.arg("-u").arg(script).arg("--dir").arg(self.dir(number));
        command
            .arg("--udp-port")
            .arg(self.udp_port.to_string())
            .args(words);
        let name = format!("drone-{number}");
        self.drones
            .push(Process::spawn(command, &name, self.field.path()));
        number
    }

    /// The same, sent to the door's address, and waited for.
    fn join(&mut self, id: &str, words: &[&str]) -> usize {
        let server = format!("127.0.0.1:{}", self.port());
        let number = self.start(&[&["--id", id, "--server", &server], words].concat());
        self.station.wait_state(id, "online");
        number
    }

    /// Waits for something that happens at a drone.
    fn wait(&mut self, drone: usize, what: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        self.drones[drone].wait_json(PATIENCE, what, wanted)
    }

    fn wait_action(&mut self, drone: usize, action: &str) -> Value {
        self.wait(drone, action, |told| {
            told["event"] == "action" && told["action"] == action
        })
    }

    /// Everything that has happened at a drone.
    fn told(&self, drone: usize) -> Vec<Value> {
        let lines = self.drones[drone].lines(Stream::Out);
        let lines = lines.iter().map(|line| serde_json::from_str(line));
        lines.collect::<Result<_, _>>().expect("JSON lines")
    }

    fn was_told(&self, drone: usize, action: &str) -> usize {
        let told = self.told(drone);
        told.iter().filter(|told| told["action"] == action).count()
    }

    /// The only delivery of a verb.
    fn one(&self, words: &[&str], status: i32) -> Value {
        let mut all = self.station.run(words).expect(status).json();
        assert_eq!(all.len(), 1, "{words:?}: {all:?}");
        all.remove(0)
    }

    fn value(&self, words: &[&str]) -> Value {
        let mut delivery = self.one(words, 0);
        assert_eq!(delivery["state"], "done", "{delivery}");
        delivery["value"].take()
    }
}

fn by_name<'a>(nodes: &'a [Value], name: &str) -> &'a Value {
    let mut named = nodes.iter().filter(|node| node["node"] == name);
    named.next().unwrap_or(&Value::Null)
}

const SENT: &str = "sent, unconfirmed";

#[test]
fn a_drone_hears_where_the_station_is_and_does_what_nodes_do() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\nrole = \"admin\"\n");
    show.add_node();
    let drone = show.start(&["--id", "clever-1", "--telemetry", "0.2"]);
    let announced = show.wait(drone, "an announcement", |told| told["event"] == "announced");
    assert_eq!(announced["host"], "127.0.0.1");
    assert_eq!(text(&announced, "port"), show.port().to_string());
    let id = text(&announced, "id");
    assert!(
        id.len() == 4 && id.bytes().all(|b| b.is_ascii_digit()),
        "{announced}"
    );
    assert!(
        text(&announced, "start_time").parse::<f64>().is_ok(),
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
    // NaN and Infinity come through as nothing, and harm nobody.
    assert_eq!(view["telemetry"]["start_position"], json!([null, 0.0, null]));
    assert_eq!(
        show.station.node("n1").get("telemetry"),
        None,
        "JSON of own nodes stays as it is"
    );
    let table = show.station.say(&["nodes"]).expect(0).out.join("\n");
    assert!(
        table.contains("FCU_STATUS") && table.contains("STANDBY"),
        "{table}"
    );

    // One answer of both kinds.
    let pinged = show.station.run(&["ping", "all"]).expect(0).json();
    for name in ["n1", "clever-1"] {
        let delivery = by_name(&pinged, name);
        assert_eq!(
            (&delivery["state"], &delivery["value"]),
            (&json!("done"), &json!("pong"))
        );
    }
    let short = text(&view, "id")[..8].to_owned();
    for selector in [
        "clever-1",
        "cle*",
        "tag:system=clever-show",
        "all,!n1",
        &format!("id:{short}"),
    ] {
        assert_eq!(show.value(&["ping", selector]), "pong", "{selector}");
    }
    let both = show.station.run(&["ping", "clever-1,n1"]).expect(0);
    assert!(
        both.json().len() == 2 && !both.err.contains("no node matches"),
        "{}",
        both.err
    );
    let strange = show.station.run(&["ping", "clever-1,n7"]).expect(0);
    assert!(strange.err.contains("no node matches \"n7\""), "{}", strange.err);
    show.station.run(&["ping", "clever-7"]).expect(3);
    // Who is taken away may be a drone; a slip of that keeps all from acting.
    let without = show.station.run(&["ping", "all,!clever-1"]).expect(0).json();
    assert!(
        without.iter().all(|line| line["node"] != "clever-1"),
        "{without:?}"
    );
    let slip = show.station.run(&["ping", "all,!clever-7"]).expect(2);
    assert!(slip.json().is_empty());
    slip.says("takes nobody away");
    let only = show.station.run(&["ping", "clever-1,!clever-1"]).expect(3);
    assert!(only.json().is_empty());

    // Questions.
    assert_eq!(show.value(&["call", "clever-1", "id"]), "clever-1");
    assert_eq!(show.value(&["call", "clever-1", "batt_voltage"]), json!(12.1));
    assert_eq!(show.value(&["call", "clever-1", "selfcheck"]), "OK");
    assert!(show.value(&["call", "clever-1", "time"]).is_f64());
    let read = show.value(&["call", "clever-1", "config", "send_configspec=true"]);
    assert_eq!(
        read,
        json!({ "config": { "SERVER": { "port": 25000 } }, "spec": true })
    );

    // Actions.
    assert_eq!(
        show.value(&["call", "clever-1", "led_fill", "red=255", "blue=0"]),
        SENT
    );
    let told = show.wait_action(drone, "led_fill");
    assert_eq!(
        (&told["args"], &told["kwargs"]),
        (&json!([]), &json!({ "red": 255, "blue": 0 }))
    );
    assert_eq!(
        show.value(&["run", "clever-1", "--", "echo", "it's", "a b", "c"]),
        SENT
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
    assert_eq!(show.value(&change), SENT);
    let told = show.wait_action(drone, "config");
    assert_eq!(
        told["kwargs"],
        json!({ "config": { "A": { "b": 1 } }, "mode": "rewrite" })
    );
    assert_eq!(
        show.value(&["call", "clever-1", "config"])["config"],
        json!({ "A": { "b": 1 } })
    );

    // Files; `clover` is where the drone says.
    let content = swarm_tests::fleet::noise(3_000_000);
    let file = show.field.file("take1.bin", &content);
    let file = file.to_str().expect("UTF-8");
    assert_eq!(show.value(&["send", file, "clever-1:clover/"]), SENT);
    show.wait(drone, "a file", |told| told["event"] == "file");
    let there = show.dir(drone).join("clover/take1.bin");
    assert_eq!(std::fs::read(there).expect("written"), content);
    let empty = show.field.file("empty", b"");
    assert_eq!(
        show.value(&["send", empty.to_str().expect("UTF-8"), "clever-1:clover/none"]),
        SENT
    );
    show.wait(drone, "an empty file", |told| {
        told["event"] == "file" && told["size"] == 0
    });
    let got = show.field.path().join("got");
    let fetched = show.value(&["fetch", "clever-1:clover/take1.bin", got.to_str().expect("UTF-8")]);
    assert_eq!(fetched["size"], 3_000_000);
    assert_eq!(
        std::fs::read(got.join("clever-1-take1.bin")).expect("fetched"),
        content
    );
    // The real drone says nothing to a question that fails.
    let words = [
        "fetch",
        "clever-1:clover/nothing",
        got.to_str().expect("UTF-8"),
        "--timeout",
        "1s",
    ];
    assert_eq!(show.one(&words, 4)["state"], "no-answer");

    assert!(show.told(drone).iter().all(|told| told["event"] != "null"));
    let history = show.station.run(&["history"]).expect(0).json();
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
        log.out.join("\n").contains("clever_show from 127.0.0.1"),
        "{:?}",
        log.out
    );
}

#[test]
fn what_is_queued_and_asked_outlives_a_connection_as_configured() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\nresume_queue = true\nresend_requests = true\n");
    let drone = show.join("clever-1", &["--deaf-once", "anim_id"]);
    // Asked, not answered, and asked again with the same number.
    let mut verb = show
        .station
        .start(&["call", "clever-1", "anim_id", "--timeout", "20s"]);
    let asked = show.wait(drone, "anim_id", |told| told["name"] == "anim_id");
    show.drones[drone].signal(Signal::USR1);
    show.station.wait_state("clever-1", "offline");

    let late = show.one(&["call", "clever-1", "led_test", "--timeout", "300ms"], 4);
    assert_eq!(late["state"], "no-answer", "{late}");
    let flight = show.one(&["call", "clever-1", "takeoff", "--timeout", "300ms"], 4);
    assert!(text(&flight, "error").contains("never queued"), "{flight}");
    let stale = show.one(
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
        .wait_json(PATIENCE, "the answer", |end| end["value"] == "anim-7");
    show.wait_action(drone, "led_test");
    assert_eq!(
        (show.was_told(drone, "takeoff"), show.was_told(drone, "led_stale")),
        (0, 0)
    );
    // Asked of each connection, and once in all.
    let told = show.told(drone);
    let asked = |name: &str| told.iter().filter(|told| told["name"] == name).count();
    assert_eq!((asked("clover_dir"), asked("id") >= 2), (1, true));
    // Nobody waited for it any more, and the history tells how it ended.
    wait_until(PATIENCE, "the history knows", || {
        let history = show.station.run(&["history"]).expect(0).json();
        let led = history.iter().find(|command| command["action"] == "led_test");
        led.is_some_and(|led| led["states"]["done"] == 1)
    });
}

#[test]
fn without_both_nothing_outlives_a_connection() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\nresume_queue = false\nresend_requests = false\n");
    let drone = show.join("clever-1", &["--deaf", "anim_id"]);
    let verb = show
        .station
        .start(&["call", "clever-1", "anim_id", "--timeout", "20s"]);
    show.wait(drone, "anim_id", |told| told["name"] == "anim_id");
    show.drones[drone].signal(Signal::USR1);
    let ran: Ran = verb.finish(PATIENCE);
    let lost = &ran.expect(4).json()[0];
    assert!(text(lost, "error").contains("connection was lost"), "{lost}");
    show.station.wait_state("clever-1", "offline");
    let away = show.one(&["call", "clever-1", "led_test"], 4);
    assert!(text(&away, "error").contains("resume_queue"), "{away}");
    show.drones[drone].signal(Signal::USR2);
    show.station.wait_state("clever-1", "online");
    assert_eq!(show.value(&["call", "clever-1", "led_after"]), SENT);
    show.wait_action(drone, "led_after");
    assert_eq!(show.was_told(drone, "led_test"), 0);
}

#[test]
fn drones_of_one_address_are_as_many_nodes_and_so_are_two_of_one_id() {
    swarm_tests::needs_python!();
    let mut show = Show::new("");
    let first = show.join("clever-1", &[]);
    show.join("clever-2", &[]);
    show.station.wait_online(2);
    // A card that was copied: both live.
    let server = format!("127.0.0.1:{}", show.port());
    let copy = show.start(&["--id", "clever-1", "--server", &server]);
    show.station.wait_online(3);
    show.station.wait_nodes("both are warned of", |nodes| {
        let twins = nodes.iter().filter(|node| node["node"] == "clever-1");
        twins
            .filter(|node| node["warnings"].to_string().contains("call themselves"))
            .count()
            == 2
    });
    let pinged = show.station.run(&["ping", "clever-1"]).expect(0).json();
    assert_eq!(pinged.len(), 2);
    assert_ne!(pinged[0]["id"], pinged[1]["id"]);
    // The first goes for good; the copy stays what it is.
    show.drones[first].signal(Signal::KILL);
    show.station.wait_nodes("one of them is offline", |nodes| {
        nodes.iter().filter(|node| node["state"] == "offline").count() == 1
    });
    assert!(show.drones[copy].ended().is_none());
}

#[test]
fn a_newer_connection_takes_the_place_of_a_dead_one() {
    swarm_tests::needs_python!();
    let mut show = Show::new("");
    let frozen = show.join("clever-1", &["--frozen"]);
    let before = show.station.node("clever-1");
    let newer = show.join("clever-1", &[]);
    show.wait(newer, "a second question", |told| told["name"] == "clover_dir");
    let nodes = show.station.nodes();
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    assert_eq!(nodes[0]["id"], before["id"]);
    assert_ne!(nodes[0]["address"], before["address"]);
    assert_eq!(show.value(&["ping", "clever-1"]), "pong");
    assert!(show.drones[frozen].ended().is_none());
}

/// What a connection to the door is told before it is closed.
fn closed(mut stream: TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    match stream.read_to_end(&mut read) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    read
}

#[test]
fn whoever_speaks_badly_is_closed_and_nobody_else() {
    swarm_tests::needs_python!();
    let mut show = Show::new("message_bytes = 4096\nconnections_per_address = 8\n");
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
        let told = String::from_utf8_lossy(&closed(stream)).into_owned();
        assert!(told.contains("requested_value"), "it was asked who it is: {told}");
    }
    // One that has said who it is, and then speaks badly.
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
    assert_eq!(show.value(&["ping", "clever-odd"]), "pong");
    drop(quiet);
    let log = show.station.log().join("\n");
    assert!(
        log.contains("a connection at clever-show's door was closed"),
        "{log}"
    );
    assert!(log.contains("header has no \"content-encoding\""), "{log}");
    assert!(log.contains("longer than the"), "{log}");
    assert_eq!(
        show.told(odd)
            .iter()
            .filter(|told| told["event"] == "lost")
            .count(),
        0
    );
}

#[test]
fn a_door_reads_until_it_is_allowed_more() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"led_*\"]\n");
    let drone = show.join("clever-1", &[]);
    assert_eq!(show.value(&["call", "clever-1", "config"])["spec"], false);
    assert_eq!(show.value(&["call", "clever-1", "led_test"]), SENT);
    let file = show.field.file("f", b"x");
    let file = file.to_str().expect("UTF-8");
    for words in [
        &["call", "clever-1", "takeoff"][..],
        &["call", "clever-1", "id", "new_id=x"],
        &["call", "clever-1", "config", "config={}", "mode=modify"],
        &["run", "clever-1", "--", "true"],
        &["send", file, "clever-1:clover/"],
    ] {
        let refused = show.one(words, 1);
        assert_eq!(refused["state"], "refused", "{words:?}: {refused}");
        assert!(
            text(&refused, "error").contains("[doors.clever_show]"),
            "{refused}"
        );
    }
    show.wait_action(drone, "led_test");
    let told = show.told(drone);
    assert_eq!(
        told.iter().filter(|told| told["event"] == "action").count(),
        1,
        "{told:?}"
    );
}

#[test]
fn an_emergency_stop_goes_before_all_and_stays_until_it_is_released() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\nresume_queue = true\n");
    show.add_node();
    let here = show.join("clever-1", &[]);
    let away = show.join("clever-2", &[]);
    show.drones[away].signal(Signal::USR1);
    show.station.wait_state("clever-2", "offline");
    show.one(&["call", "clever-2", "led_test", "--timeout", "200ms"], 4);

    let mut verb = show.station.start(&["stop", "all", "--timeout", "20s"]);
    show.wait_action(here, "emergency_land");
    let end = verb
        .process()
        .wait_json(PATIENCE, "its end", |end| end["node"] == "clever-1");
    assert_eq!(
        (&end["state"], text(&end, "error")),
        (&json!("unknown"), "sent; this drone cannot confirm a stop")
    );
    // Told again and again while the other is waited for.
    show.wait_action(here, "emergency_land");
    show.drones[away].signal(Signal::USR2);
    show.wait_action(away, "emergency_land");
    let ran = verb.finish(PATIENCE).json();
    assert_eq!(by_name(&ran, "n1")["state"], "done", "{ran:?}");
    assert_eq!(by_name(&ran, "clever-2")["state"], "unknown", "{ran:?}");
    let warned = show.station.node("clever-2")["warnings"].to_string();
    assert!(warned.contains("STOPPED"), "{warned}");

    let refused = show.one(&["call", "clever-1", "led_test"], 1);
    assert!(text(&refused, "error").contains("emergency stop"), "{refused}");
    assert_eq!(
        show.value(&["call", "clever-1", "batt_voltage"]),
        json!(12.1),
        "what reads goes on"
    );
    // It comes back while it is stopped: it is told again.
    show.drones[here].signal(Signal::USR1);
    show.station.wait_state("clever-1", "offline");
    let before = show.was_told(here, "emergency_land");
    show.drones[here].signal(Signal::USR2);
    wait_until(PATIENCE, "it is told again", || {
        show.was_told(here, "emergency_land") > before
    });

    show.station.run(&["release", "all"]).expect(0);
    assert_eq!(show.value(&["call", "clever-1", "led_after"]), SENT);
    assert_eq!(show.value(&["call", "clever-2", "led_after"]), SENT);
    show.wait_action(away, "led_after");
    assert_eq!(show.was_told(away, "led_test"), 0, "what was queued is dropped");
}

#[test]
fn a_rolling_run_goes_over_nodes_and_drones_and_stops_at_the_first_fault() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"*\"]\n");
    for id in ["clever-1", "clever-2", "clever-3"] {
        show.join(id, &[]);
    }
    let words = ["call", "all", "led_test", "--batch", "1"];
    assert_eq!(show.station.run(&words).expect(0).json().len(), 3);
    show.drones[1].signal(Signal::USR1);
    show.station.wait_state("clever-2", "offline");
    let ran = show.station.run(&words);
    let states: Vec<String> = ["clever-1", "clever-2", "clever-3"]
        .iter()
        .map(|name| text(by_name(&ran.json(), name), "state").to_owned())
        .collect();
    assert_eq!(states, ["done", "no-answer", "refused"]);
}

#[test]
fn a_station_that_moved_is_found_again() {
    swarm_tests::needs_python!();
    let mut show = Show::new("");
    let drone = show.join("clever-1", &[]);
    let before = show.port();
    show.station.end(Signal::TERM);
    show.wait(drone, "its connection ends", |told| told["event"] == "lost");
    // Its port is another now: three attempts, and then the announcement.
    show.station.serve();
    let announced = show.wait(drone, "an announcement", |told| told["event"] == "announced");
    assert_ne!(text(&announced, "port"), before.to_string());
    show.station.wait_state("clever-1", "online");
}

#[test]
fn a_follower_hears_of_drones_as_of_nodes() {
    swarm_tests::needs_python!();
    let mut show = Show::new("allow = [\"led_*\"]\n");
    let mut stream = UnixStream::connect(show.station.state_file("control.sock")).expect("serve runs");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    writeln!(stream, "{}", json!({ "request": "follow", "telemetry": true })).expect("asked");
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
    assert_eq!(show.value(&["call", "all", "led_test"]), SENT);
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
