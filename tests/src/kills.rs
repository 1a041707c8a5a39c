//! Kills real processes at random instants under load, and checks their journals, stores and side effects.
//!
//! A station serves some nodes on loopback. Verbs run one after another; each has every node append a line `begin TAG
//! MS` to a file and, a moment later, `end TAG`. Meanwhile the station and nodes are killed (SIGKILL) and started
//! again, at instants that a seed chooses. After the last kill, when all is quiet, the following holds for each
//! delivery:
//!
//! * a command that may run once did not start twice;
//! * with `done` it ran to its end, with `expired` and `refused` it never started, with `failed` and `unknown` it may
//!   have;
//! * it did not start after its deadline;
//! * the outcome that a verb printed is the one in the history;
//! * it is not open any more.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::fleet::{Fleet, Station, TEST_TIMEOUT, TestDir, Verb, str_field};
use crate::process::{Signal, sleep_for, wait_until};

/// Longest delay of the first line of an action after the decision to start it, in milliseconds: a shell has to
/// start.
const SHELL_START_MS_MAX: u64 = 1_500;
/// Ranges of the times to live: some shorter than a downtime, some longer.
const TTL_RANGES_MS: [(u64, u64); 2] = [(30, 500), (500, 6_000)];
/// Verbs running at the same time.
const CONCURRENT_VERBS: usize = 3;
/// Longest time between two kills, in milliseconds.
const KILL_INTERVAL_MS_MAX: u64 = 250;
/// Longest downtime of a killed process, in milliseconds.
const DOWNTIME_MS_MAX: u64 = 400;

/// Parameters of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of kills.
    pub kills: u32,
    /// Number of nodes.
    pub nodes: usize,
    /// Seed for the victims and times.
    pub seed: u64,
}

/// Results of a run.
#[derive(Clone, Debug, Default)]
pub struct KillReport {
    /// Kills of a node.
    pub node_kills: u32,
    /// Kills of the station.
    pub station_kills: u32,
    /// Commands that the station accepted.
    pub commands: usize,
    /// Deliveries by outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// Side effects that started.
    pub started: usize,
    /// How often an idempotent action ran again.
    pub reruns: usize,
    /// Violated rules.
    pub violations: Vec<String>,
}

/// The actions: `once` may run once, `again` is declared idempotent.
fn actions(marks: &str) -> String {
    let action = |name: &str, more: &str| {
        format!(
            r#"
[actions.{name}]
command = ["/bin/sh", "-c", "echo \"begin $1 $(date +%s%3N)\" >>{marks}; sleep \"$2\"; echo \"end $1\" >>{marks}", "sh", "{{tag}}", "{{time}}"]
args.tag = {{ type = "string", pattern = "[a-z0-9]+" }}
args.time = {{ type = "number", min = 0, max = 60, default = 0 }}
{more}
"#
        )
    };
    action("once", "") + &action("again", "idempotent = true")
}

/// A small seeded generator with the same numbers on every machine.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// Runs the load and the kills, then the checks.
///
/// # Panics
/// If the fleet does not start, or does not become quiet; the processes' logs are shown then.
pub fn run(plan: Plan) -> KillReport {
    let mut dice = SplitMix64(plan.seed);
    let mut tally = KillReport::default();
    let field = TestDir::new();
    let mut fleet = Fleet::linked_in(field, plan.nodes, |node, field| {
        node.tables = actions(&field.join(format!("{}-marks", node.name)).display().to_string());
    });
    let mut load = LoadGenerator::default();
    while tally.node_kills + tally.station_kills < plan.kills {
        load.start_verbs(&fleet.station, &mut dice);
        sleep_for(Duration::from_millis(dice.next(KILL_INTERVAL_MS_MAX)));
        let victim = dice.next(plan.nodes as u64 + 1);
        let away = Duration::from_millis(dice.next(DOWNTIME_MS_MAX));
        let node = usize::try_from(victim)
            .ok()
            .and_then(|at| fleet.nodes.get_mut(at));
        if let Some(node) = node {
            node.signal_and_wait(Signal::KILL);
            sleep_for(away);
            node.start(&[]);
            tally.node_kills += 1;
        } else {
            fleet.station.signal_and_wait(Signal::KILL);
            sleep_for(away);
            fleet.station.serve();
            tally.station_kills += 1;
        }
        load.collect_output(false);
    }
    load.collect_output(true);
    fleet.station.wait_online(plan.nodes);
    wait_until(TEST_TIMEOUT, "nothing is left open", || {
        fleet
            .station
            .run(&["history", "--state", "open"])
            .stdout
            .is_empty()
    });
    check_deliveries(&fleet, &load.printed, &mut tally);
    tally
}

/// The running verbs, and the outcomes that ended ones printed, by tag and node.
#[derive(Default)]
struct LoadGenerator {
    issued: u64,
    verbs: Vec<(String, Verb)>,
    printed: BTreeMap<(String, String), String>,
}

impl LoadGenerator {
    /// Starts verbs up to the wanted number.
    fn start_verbs(&mut self, station: &Station, dice: &mut SplitMix64) {
        while self.verbs.len() < CONCURRENT_VERBS {
            self.issued += 1;
            let tag = format!("t{}", self.issued);
            let action = if dice.next(4) == 0 { "again" } else { "once" };
            let (tag_word, time) = (format!("tag={tag}"), format!("time=0.{:02}", dice.next(30)));
            let (least, most) = TTL_RANGES_MS[usize::from(dice.next(3) > 0)];
            let ttl = format!("{}ms", least + dice.next(most - least));
            let words = [
                "call",
                "all",
                action,
                &tag_word,
                &time,
                "--ttl",
                &ttl,
                "--timeout",
                "2s",
            ];
            let verb = station.start(&words);
            self.verbs.push((tag, verb));
        }
    }

    /// Reads the output of ended verbs; with `wait`, of all.
    fn collect_output(&mut self, wait: bool) {
        for (tag, mut verb) in std::mem::take(&mut self.verbs) {
            if !wait && verb.process().exit_status().is_none() {
                self.verbs.push((tag, verb));
                continue;
            }
            for line in verb.finish(TEST_TIMEOUT).json() {
                let (node, state) = (str_field(&line, "node"), str_field(&line, "state"));
                self.printed
                    .insert((tag.clone(), node.to_owned()), state.to_owned());
            }
        }
    }
}

/// The side effects at a node for one tag.
#[derive(Debug, Default)]
struct Execution {
    started_ms: Vec<u64>,
    ended: usize,
}

fn read_executions(fleet: &Fleet) -> BTreeMap<(String, String), Execution> {
    let mut did: BTreeMap<(String, String), Execution> = BTreeMap::new();
    for node in &fleet.nodes {
        for line in node.marks() {
            let words: Vec<&str> = line.split(' ').collect();
            let tag = words.get(1).copied().unwrap_or_default();
            let did = did.entry((tag.to_owned(), node.name.clone())).or_default();
            match words.first() {
                Some(&"begin") => {
                    let at = words.get(2).and_then(|ms| ms.parse().ok());
                    did.started_ms.push(at.unwrap_or_default());
                }
                Some(_) | None => did.ended += 1,
            }
        }
    }
    did
}

fn check_deliveries(fleet: &Fleet, printed: &BTreeMap<(String, String), String>, tally: &mut KillReport) {
    let mut did = read_executions(fleet);
    tally.started = did.values().map(|did| did.started_ms.len()).sum();
    for command in fleet
        .station
        .run(&["history", "--limit", "100000"])
        .expect_status(0)
        .json()
    {
        tally.commands += 1;
        let number = command["command"].to_string();
        for delivery in fleet.station.run(&["history", &number]).json() {
            let tag = str_field(&command["arguments"]["kwargs"], "tag");
            let key = (tag.to_owned(), str_field(&delivery, "node").to_owned());
            let did = did.remove(&key).unwrap_or_default();
            let state = str_field(&delivery, "state");
            *tally.outcomes.entry(state.to_owned()).or_default() += 1;
            let again = str_field(&command, "action") == "again";
            tally.reruns += usize::from(again && did.started_ms.len() > 1);
            let judged = violations_of(&command, state, &did, printed.get(&key).map(String::as_str));
            let told = judged.into_iter().map(|fault| {
                format!(
                    "command {number} ({}) at {}: {fault}: {state}, {did:?}",
                    key.0, key.1
                )
            });
            tally.violations.extend(told);
        }
    }
    let strays = did
        .keys()
        .map(|(tag, node)| format!("{tag} ran at {node} and is not in the history"));
    tally.violations.extend(strays);
}

/// The rules that one delivery violates.
fn violations_of(command: &Value, state: &str, did: &Execution, printed: Option<&str>) -> Vec<&'static str> {
    let again = str_field(command, "action") == "again";
    let begun = did.started_ms.len();
    let issued = command["at_ms"].as_u64().unwrap_or_default();
    let life = command["ttl_ms"].as_u64().unwrap_or_default();
    let latest = issued + life + SHELL_START_MS_MAX;
    let checks = [
        (begun > 1 && !again, "ran twice"),
        (state == "done" && did.ended == 0, "done and never ran to its end"),
        (
            matches!(state, "expired" | "refused") && begun > 0,
            "ran, and is said not to have",
        ),
        (state == "open", "is open"),
        (did.started_ms.iter().any(|at| *at > latest), "ran too late"),
        (
            // `no-answer` is printed when a verb stops waiting; it is not an outcome in the history.
            printed.is_some_and(|printed| printed != "no-answer" && printed != state),
            "was told otherwise",
        ),
    ];
    checks
        .into_iter()
        .filter_map(|(broken, what)| broken.then_some(what))
        .collect()
}
