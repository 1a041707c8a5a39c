//! Each process is killed or ended at each stage of a file transfer. In every case: every target ends in exactly one
//! outcome in time, no partial file is visible under its name, nothing is left behind after a restart, and the fleet
//! links again and works.

use std::path::{Path, PathBuf};
use std::time::Duration;

use swarm_shared::net::clock;
use swarm_tests::fleet::{Fleet, TEST_TIMEOUT, Verb, VerbOutput, pseudo_random_bytes, str_field};
use swarm_tests::process::{Signal, wait_until};

/// More than all buffers between two suspended processes hold.
const FILE_BYTES: usize = 48 * 1024 * 1024;
/// The `--timeout` of verbs: the longest pause in a transfer, of which there may be two.
const TIMEOUT: &str = "3s";
const VERB_DURATION_MAX: Duration = Duration::from_secs(12);
const SIGNALS: [Signal; 2] = [Signal::KILL, Signal::TERM];
/// Content of the destination before the transfer.
const OLD_CONTENT: &[u8] = b"the take of yesterday";

struct TransferRig {
    fleet: Fleet,
    source: PathBuf,
    content: Vec<u8>,
}

impl TransferRig {
    fn new() -> Self {
        let fleet = Fleet::linked(1);
        let content = pseudo_random_bytes(FILE_BYTES);
        let source = fleet.test_dir.file("take", &content);
        std::fs::write(fleet.nodes[0].files_root.join("old"), OLD_CONTENT).expect("written");
        std::fs::write(fleet.nodes[0].files_root.join("big"), &content).expect("written");
        Self {
            fleet,
            source,
            content,
        }
    }

    fn send(&self) -> Verb {
        let source = self.source.display().to_string();
        self.fleet
            .station
            .start(&["send", &source, "n1:files/old", "--timeout", TIMEOUT])
    }

    fn fetch_dir(&self) -> PathBuf {
        self.fleet.test_dir.dir("collected")
    }

    fn fetch(&self) -> Verb {
        let dir = self.fetch_dir().display().to_string();
        self.fleet
            .station
            .start(&["fetch", "n1:files/big", &dir, "--timeout", TIMEOUT])
    }

    /// Suspends the node when a part of the file is there.
    fn stop_node_midway(&mut self) {
        let node = &mut self.fleet.nodes[0];
        wait_until(TEST_TIMEOUT, "a part of the file", || !node.files().1.is_empty());
        node.process().signal(Signal::STOP);
        assert_eq!(
            node.files().1.len(),
            1,
            "it was not over before: choose a bigger file"
        );
    }

    fn check_one_outcome(ran: &VerbOutput) -> String {
        assert!(ran.duration < VERB_DURATION_MAX, "{ran:#?}");
        let line = ran.line_of("n1");
        let state = str_field(&line, "state");
        assert!(state == "done" || !str_field(&line, "error").is_empty(), "{line}");
        state.to_owned()
    }

    /// Checks that the file is the old or the new one, complete, and that nothing is left over.
    fn check_node(&self, new: Option<bool>) {
        let there =
            std::fs::read(self.fleet.nodes[0].files_root.join("old")).expect("one of the two is there");
        let is_new = there == self.content;
        assert!(
            is_new || there == OLD_CONTENT,
            "half a file: {} bytes",
            there.len()
        );
        assert!(new.is_none_or(|new| new == is_new), "the new one: {is_new}");
        wait_until(TEST_TIMEOUT, "leftovers are removed", || {
            self.fleet.nodes[0].files().1.is_empty()
        });
        assert_eq!(self.fleet.nodes[0].files().0, ["big", "old"]);
    }

    fn check_fleet_works(&self) {
        self.fleet.station.wait_online(1);
        let small = self
            .fleet
            .test_dir
            .file("small", OLD_CONTENT)
            .display()
            .to_string();
        self.fleet
            .station
            .run(&["send", &small, "n1:files/old"])
            .expect_status(0);
        self.check_node(Some(false));
    }
}

fn leftovers(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).expect("there").flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn send_has_one_outcome_when_the_node_exits() {
    let mut rig = TransferRig::new();
    for signal in SIGNALS {
        // At the start: the node has not read a byte of it.
        rig.fleet.nodes[0].process().signal(Signal::STOP);
        let verb = rig.send();
        rig.fleet.station.wait_state("n1", "silent");
        rig.fleet.nodes[0].process().signal(signal);
        rig.fleet.nodes[0].process().signal(Signal::CONT);
        rig.fleet.nodes[0].signal_and_wait(signal);
        let ran = verb.finish(TEST_TIMEOUT);
        assert_ne!(TransferRig::check_one_outcome(&ran), "done");
        rig.fleet.nodes[0].start(&[]);
        rig.check_node(Some(false));
        rig.check_fleet_works();

        // Midway.
        let verb = rig.send();
        rig.stop_node_midway();
        rig.fleet.nodes[0].process().signal(signal);
        rig.fleet.nodes[0].process().signal(Signal::CONT);
        rig.fleet.nodes[0].signal_and_wait(signal);
        if signal == Signal::TERM {
            assert!(
                rig.fleet.nodes[0].files().1.is_empty(),
                "it clears up behind itself"
            );
        }
        rig.fleet.nodes[0].start(&[]);
        let ran = verb.finish(TEST_TIMEOUT).expect_status(1);
        assert!(
            matches!(
                TransferRig::check_one_outcome(&ran).as_str(),
                "unknown" | "failed"
            ),
            "{ran:#?}"
        );
        rig.check_node(Some(false));
        rig.check_fleet_works();

        // After its end.
        let ran = rig.send().finish(TEST_TIMEOUT).expect_status(0);
        assert_eq!(TransferRig::check_one_outcome(&ran), "done");
        rig.fleet.nodes[0].signal_and_wait(signal);
        rig.fleet.nodes[0].start(&[]);
        rig.check_node(Some(true));
        rig.check_fleet_works();
    }
}

#[test]
fn send_has_one_outcome_when_the_station_exits() {
    let mut rig = TransferRig::new();
    for signal in SIGNALS {
        // At the start: the node has not read anything.
        rig.fleet.nodes[0].process().signal(Signal::STOP);
        let verb = rig.send();
        rig.fleet.station.wait_state("n1", "silent");
        rig.fleet.station.signal_and_wait(signal);
        rig.fleet.nodes[0].process().signal(Signal::CONT);
        let ran = verb.finish(TEST_TIMEOUT);
        assert_ne!(TransferRig::check_one_outcome(&ran), "done");
        rig.fleet.station.serve();
        rig.check_fleet_works();

        // Midway.
        let verb = rig.send();
        rig.stop_node_midway();
        rig.fleet.station.signal_and_wait(signal);
        rig.fleet.nodes[0].process().signal(Signal::CONT);
        let ran = verb.finish(TEST_TIMEOUT);
        assert_ne!(TransferRig::check_one_outcome(&ran), "done");
        rig.fleet.station.serve();
        rig.check_node(Some(false));
        rig.check_fleet_works();

        // After its end.
        rig.send().finish(TEST_TIMEOUT).expect_status(0);
        rig.fleet.station.signal_and_wait(signal);
        rig.fleet.station.serve();
        rig.check_node(Some(true));
        rig.check_fleet_works();
    }
}

#[test]
fn send_has_one_outcome_when_the_verb_exits() {
    let mut rig = TransferRig::new();
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let mut verb = rig.send();
        rig.stop_node_midway();
        verb.signal(signal);
        if signal == Signal::INT {
            verb.finish(TEST_TIMEOUT).expect_status(130);
        } else {
            drop(verb);
        }
        rig.fleet.nodes[0].process().signal(Signal::CONT);
        rig.check_fleet_works();
    }
}

#[test]
fn fetch_has_one_outcome_when_any_side_exits() {
    let mut rig = TransferRig::new();
    let copy = rig.fetch_dir().join("n1-big");
    for signal in SIGNALS {
        // The node, midway.
        let verb = rig.fetch();
        wait_until(TEST_TIMEOUT, "a part of the file", || {
            !leftovers(&rig.fetch_dir()).is_empty()
        });
        rig.fleet.nodes[0].process().signal(Signal::STOP);
        assert!(!copy.exists(), "it was not over before: choose a bigger file");
        rig.fleet.nodes[0].process().signal(signal);
        rig.fleet.nodes[0].process().signal(Signal::CONT);
        rig.fleet.nodes[0].signal_and_wait(signal);
        rig.fleet.nodes[0].start(&[]);
        let ran = verb.finish(TEST_TIMEOUT);
        assert_ne!(TransferRig::check_one_outcome(&ran), "done");
        wait_until(TEST_TIMEOUT, "nothing is left", || {
            leftovers(&rig.fetch_dir()).is_empty()
        });
        rig.check_fleet_works();

        // The station, midway.
        let verb = rig.fetch();
        wait_until(TEST_TIMEOUT, "a part of the file", || {
            !leftovers(&rig.fetch_dir()).is_empty()
        });
        rig.fleet.nodes[0].process().signal(Signal::STOP);
        rig.fleet.station.signal_and_wait(signal);
        rig.fleet.nodes[0].process().signal(Signal::CONT);
        let ran = verb.finish(TEST_TIMEOUT);
        assert_ne!(TransferRig::check_one_outcome(&ran), "done");
        assert!(!copy.exists());
        rig.fleet.station.serve();
        rig.check_fleet_works();

        // The next one removes what a killed station left, and gets its file.
        let ran = rig.fetch().finish(TEST_TIMEOUT).expect_status(0);
        assert_eq!(TransferRig::check_one_outcome(&ran), "done");
        assert!(std::fs::read(&copy).expect("there") == rig.content);
        assert_eq!(leftovers(&rig.fetch_dir()), ["n1-big"]);
        std::fs::remove_file(&copy).expect("there");
    }
}

#[test]
fn file_transfer_does_not_delay_commands() {
    let fleet = Fleet::linked(1);
    let source = fleet.test_dir.path().join("huge");
    let huge = std::fs::File::create(&source).expect("a file");
    huge.set_len(200 * 1024 * 1024).expect("room");
    let words = ["send", &source.display().to_string(), "n1:files/huge"];
    let mut verb = fleet.station.start(&words);
    wait_until(TEST_TIMEOUT, "a part of the file", || {
        !fleet.nodes[0].files().1.is_empty()
    });
    let mut took: Vec<f64> = Vec::new();
    let begun = clock::now();
    while fleet.nodes[0].files().0.is_empty() {
        let line = fleet.station.run(&["ping"]).expect_status(0).line_of("n1");
        took.push(line["ms"].as_f64().expect("a number"));
    }
    took.sort_by(f64::total_cmp);
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    let text = format!(
        "ping beside a file of 200 MiB: median {median:.1} ms, worst {worst:.1} ms, {} pings in {:?}\n",
        took.len(),
        clock::now() - begun
    );
    let _written = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    // Generous: both programs are debug builds on a busy machine.
    assert!(worst < 1_500.0, "{took:?}");
    assert!(
        verb.process().exit_status().is_none() || took.len() > 1,
        "they ran side by side"
    );
    verb.finish(TEST_TIMEOUT).expect_status(0);
}

/// A small file system; unmounted when dropped.
pub(super) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(super) fn mount(dir: PathBuf, kib: u32) -> Option<Self> {
        let size = format!("size={kib}k");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "swarm-tests"]).arg(&dir);
        let mounted = mount.stderr(std::process::Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        let text = "skipped: a full disk: mounting a tmpfs needs root\n";
        let _written = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let mut unmount = std::process::Command::new("umount");
        let _left_behind = unmount.arg("-l").arg(&self.0).status();
    }
}

#[test]
fn full_disk_fails_the_file_not_the_node() {
    let mut fleet = Fleet::linked(2);
    let Some(_disk) = Tmpfs::mount(fleet.nodes[0].files_root.clone(), 1024) else {
        return;
    };
    let source = fleet
        .test_dir
        .file("take", &pseudo_random_bytes(3 * 1024 * 1024))
        .display()
        .to_string();
    let ran = fleet
        .station
        .run(&["send", &source, "all:files/take"])
        .expect_status(1);
    let line = ran.line_of("n1");
    assert_eq!(line["state"], "failed", "{line}");
    let error = str_field(&line, "error").to_lowercase();
    assert!(error.contains("the disk is full"), "{line}");
    assert_eq!(ran.outcome_of("n2"), "done");
    assert_eq!(fleet.nodes[0].files(), (Vec::new(), Vec::new()));
    let small = fleet.test_dir.file("small", OLD_CONTENT).display().to_string();
    fleet
        .station
        .run(&["send", &small, "all:files/small"])
        .expect_status(0);

    // The node's own state directory is full: it reports that, keeps running, and restarts into the same fleet.
    fleet.nodes[0].signal_and_wait(Signal::TERM);
    let state = fleet.nodes[0].state_dir.clone();
    let keep: Vec<(String, Vec<u8>)> = ["identity.key", "fleet.json"]
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                std::fs::read(state.join(name)).expect("there"),
            )
        })
        .collect();
    let Some(_state) = Tmpfs::mount(state.clone(), 64) else {
        return;
    };
    for (name, content) in keep {
        std::fs::write(state.join(&name), content).expect("written");
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(state.join(&name), PermissionsExt::from_mode(0o600)).expect("a mode");
    }
    fleet.nodes[0].start(&[]);
    while std::fs::File::options()
        .create(true)
        .append(true)
        .open(state.join("ballast"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, &[0; 4096]))
        .is_ok()
    {}
    fleet.station.wait_online(2);
    fleet.station.run(&["ping"]).expect_status(0);
    let line = fleet
        .station
        .run(&["call", "n1", "id", "new_id=full"])
        .line_of("n1");
    assert_ne!(line["state"], "no-answer", "{line}");
    fleet.station.run(&["ping"]).expect_status(0);
}
