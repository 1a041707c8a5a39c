//! `demo`: a fleet on this machine, from nothing to a lost node that comes back and an emergency stop, with real
//! processes.
//!
//! Everything lives in one throw-away directory and on loopback. Each step prints what it did and how long it took;
//! the first that fails ends the demo with its name, and exit status 1.

mod devices;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use swarm_shared::net::{clock, random};
use swarm_shared::proto::hex;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::Role;
use swarm_shared::proto::wire::Lane;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::screen::{CliError, Screen};
use crate::config::Config;
use crate::control::lock::StateLock;
use crate::control::server::ControlServer;
use crate::duration::to_ms;
use crate::fleet::engine::{Engine, Purpose, Settings};
use crate::fleet::{Event, FileToSend, FilesToSend, Fleet, NodeState, Request};
use crate::view::deliveries::Report;
use crate::view::nodes::Nodes;
use crate::view::{Paint, milliseconds};
use devices::Devices;

/// The longest that any step may take.
const STEP_MAX: Duration = Duration::from_secs(10);
/// How much the demo's file holds.
const FILE_BYTES: usize = 8 * 1024 * 1024;
/// How long the command for the lost node waits for it.
const WAIT_FOR_LOST: Duration = Duration::from_secs(30);
/// Where nodes put the demo's file: root and name.
const FILE_DEST: &str = "shows/take1.bin";

/// See it work on this machine: a station and a few nodes, no set-up
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=100))]
    nodes: u16,
    /// Keep it up for playing, until Ctrl-C
    #[arg(long)]
    stay: bool,
}

pub(super) async fn run(args: Args, screen: &mut Screen) -> Result<u8, CliError> {
    let place = Place::make()?;
    let started = clock::now();
    let begun = async {
        let mut demo = Demo::start(&place, args.nodes, screen).await?;
        let played = demo.play().await;
        Ok::<_, CliError>((demo, played))
    };
    let (mut demo, played) = tokio::select! {
        begun = begun => begun?,
        // Devices are killed, and the directory is removed, when all this is dropped.
        interrupted = interrupted() => return interrupted.map(|()| super::screen::EXIT_INTERRUPTED),
    };
    if played.is_ok() {
        demo.say(&format!("\nall of it in {}", milliseconds(elapsed_ms(started))))?;
        if args.stay {
            demo.stay().await?;
        }
    }
    demo.end().await;
    played.map(|()| 0)
}

/// Ctrl-C or `SIGTERM`. Whoever is killed by either leaves processes and a directory behind.
async fn interrupted() -> Result<(), CliError> {
    let cannot = |error| CliError::failed(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(cannot),
        _ = terminate.recv() => Ok(()),
    }
}

fn elapsed_ms(since: Instant) -> f64 {
    clock::since(since).as_secs_f64() * 1_000.0
}

/// A directory that goes when this is dropped.
#[derive(Debug)]
struct Place(PathBuf);

impl Place {
    fn make() -> Result<Self, CliError> {
        let cannot = |why: &dyn std::fmt::Display| {
            CliError::failed(format!(
                "demo: no directory to work in: {why}; set TMPDIR to one that can be written"
            ))
        };
        let name = random::bytes::<6>().map_err(|error| cannot(&error))?;
        let path = std::env::temp_dir().join(format!("swarm-demo-{}", hex::encode(&name)));
        // Others on this machine have no business with the code and the keys in there.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| cannot(&error))?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the demo's directory stays");
        }
    }
}

/// The demo under way.
struct Demo<'a> {
    place: &'a Path,
    screen: &'a mut Screen,
    engine: Engine,
    fleet: Fleet,
    devices: Devices,
    serving: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
    /// What happens to nodes.
    watch: mpsc::Receiver<Event>,
    nodes: Nodes,
    _lock: StateLock,
}

impl<'a> Demo<'a> {
    /// A station, and as many nodes as asked for, joining by a code in their configuration.
    async fn start(place: &'a Place, count: u16, screen: &'a mut Screen) -> Result<Self, CliError> {
        let place = place.0.as_path();
        let begun = clock::now();
        let state_dir = place.join("station");
        let lock = StateLock::try_take(&state_dir, "ground-station demo")?;
        let ping_port =
            devices::free_udp_port().map_err(|error| CliError::failed(format!("demo: {error}")))?;
        let mut config = Config::for_host("demo-station");
        config.listen = ([127, 0, 0, 1], 0).into();
        config.ping_port = ping_port;
        config.mdns = false;
        let server = ControlServer::bind(&lock)?;
        let engine = Engine::start(Settings {
            config,
            state_dir,
            purpose: Purpose::Stay,
        })
        .await?;
        let fleet = engine.fleet();
        let stop = CancellationToken::new();
        let serving = Some((stop.clone(), tokio::spawn(server.serve(fleet.clone(), stop))));
        let code = invite(&fleet, count).await?;
        let devices = Devices::start(place, count, ping_port, &code)
            .await
            .map_err(|error| CliError::failed(format!("demo: {error}")))?;
        let watch = fleet
            .perform(Request::Watch {
                selector: Selector::all(),
            })
            .await;
        let nodes = Nodes::default();
        let mut demo = Self {
            place,
            screen,
            engine,
            fleet,
            devices,
            serving,
            watch,
            nodes,
            _lock: lock,
        };
        let listens = demo.engine.listens();
        demo.step(
            &format!("started a station on {listens} and {count} nodes, each a process of its own"),
            begun,
        )?;
        Ok(demo)
    }

    /// Ends what was started. The directory goes with its owner.
    async fn end(mut self) {
        self.devices.stop().await;
        if let Some((stop, serving)) = self.serving.take() {
            stop.cancel();
            if let Err(error) = serving.await {
                tracing::warn!(%error, "control socket");
            }
        }
        self.engine.stop().await;
    }

    async fn play(&mut self) -> Result<(), CliError> {
        self.find().await?;
        self.ping_all().await?;
        self.light_some().await?;
        self.send_file().await?;
        self.lose_and_regain().await?;
        self.stop_all().await?;
        self.release_all().await
    }

    async fn find(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let wanted = self.devices.names();
        self.until("find the nodes", |views| {
            wanted
                .iter()
                .all(|name| views.state(name) == Some(NodeState::Online))
        })
        .await?;
        self.step(&format!("found and linked all {}", wanted.len()), begun)?;
        let request = Request::Nodes {
            selector: Selector::all(),
            timeout_ms: to_ms(STEP_MAX),
        };
        let mut events = self.fleet.perform(request).await;
        let mut table = Nodes::default();
        while let Some(event) = events.recv().await {
            if let Event::Node(view) = event {
                table.add(&view, self.screen.style);
            }
        }
        let lines = table.table(|_id| 0, self.screen.style);
        self.say(&indented(&lines.join("\n")))
    }

    async fn ping_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let request = command(Selector::all(), "ping", json!({}), STEP_MAX);
        let report = self.deliver("ping all", request).await?;
        self.step("pinged all", begun)?;
        self.say(&indented(&report.groups(self.screen.style)))
    }

    async fn light_some(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let request = led(selector("tag:row=1")?, "#00ff88", STEP_MAX);
        let report = self.deliver("run an action", request).await?;
        self.step(
            "ran an action that its nodes define, `led color=#00ff88`, on tag:row=1",
            begun,
        )?;
        self.say(&indented(&report.groups(self.screen.style)))
    }

    async fn send_file(&mut self) -> Result<(), CliError> {
        let failed = |why: String| CliError::failed(format!("demo: send a file: {why}"));
        let source = self.place.join("take1.bin");
        let (path, begun) = (source.clone(), clock::now());
        let sha256 = tokio::task::spawn_blocking(move || devices::make_file(&path, FILE_BYTES))
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        let request = Request::SendFiles {
            selector: Selector::all(),
            files: FilesToSend::Same {
                files: vec![FileToSend {
                    source,
                    dest: FILE_DEST.to_owned(),
                }],
            },
            ttl_ms: to_ms(STEP_MAX),
            timeout_ms: to_ms(STEP_MAX),
        };
        self.deliver("send a file", request).await?;
        for name in self.devices.names() {
            let copy = self.devices.root(&name).join("take1.bin");
            let found = tokio::task::spawn_blocking(move || devices::sha256_of(&copy));
            let found = found.await.map_err(|error| failed(error.to_string()))?;
            if found.map_err(|error| failed(error.to_string()))? != sha256 {
                return Err(failed(format!("the copy on {name} is another file")));
            }
        }
        self.step(
            "sent a file of 8 MiB to all, and compared every copy's SHA-256 with the original's",
            begun,
        )?;
        self.say(&format!("  {}", hex::encode(&sha256)))
    }

    async fn lose_and_regain(&mut self) -> Result<(), CliError> {
        let names = self.devices.names();
        let Some(lost) = names.last().cloned() else {
            return Ok(());
        };
        let begun = clock::now();
        self.devices
            .kill(&lost)
            .map_err(|error| CliError::failed(format!("demo: kill {lost}: {error}")))?;
        self.until(&format!("see {lost} offline"), |views| {
            views.state(&lost) == Some(NodeState::Offline)
        })
        .await?;
        self.step(&format!("killed {lost} (SIGKILL) and saw it offline"), begun)?;

        let waiting = self.queue(&lost).await?;
        let begun = clock::now();
        let restarted = self.devices.restart(&lost).await;
        restarted.map_err(|error| CliError::failed(format!("demo: restart {lost}: {error}")))?;
        self.until(&format!("see {lost} again"), |views| {
            views.state(&lost) == Some(NodeState::Online)
        })
        .await?;
        self.step(&format!("started {lost} again, and saw it linked"), begun)?;
        let report = collect(waiting).await;
        self.check("deliver the queued command", &report)?;
        self.step(
            "delivered the command that had waited for it, `led color=#ff0000`",
            begun,
        )?;
        self.say(&indented(&report.groups(self.screen.style)))
    }

    async fn stop_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let request = Request::Stop {
            selector: Selector::all(),
            timeout_ms: Some(to_ms(STEP_MAX)),
            beside: false,
        };
        let mut events = self.fleet.perform(request).await;
        let (mut report, mut answers, mut last) = (Report::default(), Vec::new(), 0.0_f64);
        while let Some(event) = events.recv().await {
            report.add(&event);
            if let Event::Acknowledged { node, ms } = &event {
                last = last.max(*ms);
                answers.push(format!("{} {}", node.node, milliseconds(*ms)));
            }
        }
        self.check("stop all", &report)?;
        let all = report.counts().1;
        // It takes longer than this until all is said: five rounds of datagrams go out in any case.
        let last = milliseconds(last);
        let what = format!("EMERGENCY STOP of all {all}, acknowledged within {last}; each put its LED out");
        self.step(&what, begun)?;
        self.say(&format!("  {}", answers.join(", ")))?;

        let begun = clock::now();
        let request = led(Selector::all(), "#00ff88", STEP_MAX);
        let report = collect(self.fleet.perform(request).await).await;
        if !report.all_are(Outcome::Refused) {
            return Err(self.not_as_wanted("act while stopped", &report));
        }
        self.step("asked all for `led color=#00ff88`: refused while stopped", begun)
    }

    async fn release_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let request = Request::Release {
            selector: Selector::all(),
            timeout_ms: to_ms(STEP_MAX),
        };
        self.deliver("release all", request).await?;
        let request = led(Selector::all(), "#00ff88", STEP_MAX);
        let report = self.deliver("act after the release", request).await?;
        self.step("released all, and asked again", begun)?;
        self.say(&indented(&report.groups(self.screen.style)))
    }

    /// Sends a command to a node that is away: it waits there.
    async fn queue(&mut self, name: &str) -> Result<mpsc::Receiver<Event>, CliError> {
        let request = led(selector(name)?, "#ff0000", WAIT_FOR_LOST);
        Ok(self.fleet.perform(request).await)
    }

    /// Carries a request out; anything but `done` everywhere fails the step.
    async fn deliver(&mut self, step: &str, request: Request) -> Result<Report, CliError> {
        let report = collect(self.fleet.perform(request).await).await;
        self.check(step, &report)?;
        Ok(report)
    }

    fn check(&self, step: &str, report: &Report) -> Result<(), CliError> {
        if report.exit_status() == 0 && report.counts().1 > 0 {
            return Ok(());
        }
        Err(self.not_as_wanted(step, report))
    }

    fn not_as_wanted(&self, step: &str, report: &Report) -> CliError {
        let groups = report.groups(self.screen.style);
        CliError::failed(format!("demo: {step}:\n{groups}\n{}", self.devices.logs()))
    }

    /// Follows what happens to nodes until it is as wanted.
    async fn until(&mut self, step: &str, wanted: impl Fn(&Nodes) -> bool) -> Result<(), CliError> {
        let deadline = clock::now() + STEP_MAX;
        while !wanted(&self.nodes) {
            match clock::timeout_at(deadline, self.watch.recv()).await {
                Ok(Some(Event::Node(view))) => drop(self.nodes.add(&view, self.screen.style)),
                Ok(Some(_)) => {}
                Ok(None) => return Err(CliError::failed(format!("demo: {step}: the station stopped"))),
                Err(_elapsed) => {
                    let waited = STEP_MAX.as_secs();
                    return Err(CliError::failed(format!(
                        "demo: {step}: not within {waited} s\n{}",
                        self.devices.logs()
                    )));
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, what: &str, begun: Instant) -> Result<(), CliError> {
        let ms = elapsed_ms(begun);
        if self.screen.json {
            return self.screen.result(&json!({ "step": what, "ms": ms }).to_string());
        }
        let mark = self.screen.style.paint("✓", Paint::Good);
        let time = self.screen.style.paint(&milliseconds(ms), Paint::Dim);
        self.screen.result(&format!("{mark} {what}  {time}"))
    }

    fn say(&mut self, text: &str) -> Result<(), CliError> {
        if self.screen.json || self.screen.quiet {
            return Ok(());
        }
        self.screen.result(text)
    }

    /// Keeps everything up until Ctrl-C.
    async fn stay(&mut self) -> Result<(), CliError> {
        let program = std::env::current_exe().unwrap_or_else(|_unknown| "ground-station".into());
        let state_dir = self.place.join("station");
        let verb = format!("{} --state-dir {}", program.display(), state_dir.display());
        self.say(&format!(
            "\nit stays up; try, in another terminal:\n  {verb} nodes --watch\n  {verb} call 'drone-*' led color=#0088ff\n  {verb} stop\n\
             Ctrl-C ends it"
        ))?;
        interrupted().await
    }
}

async fn invite(fleet: &Fleet, uses: u16) -> Result<String, CliError> {
    let request = Request::Invite {
        role: Role::Node,
        uses: u32::from(uses),
        valid_for_ms: 600_000,
    };
    let mut events = fleet.perform(request).await;
    let mut code = Err(CliError::failed("demo: make a code: the station did not answer"));
    while let Some(event) = events.recv().await {
        match event {
            Event::Invitation(invitation) => code = Ok(invitation.code),
            Event::Failed { message, .. } => {
                code = Err(CliError::failed(format!("demo: make a code: {message}")));
            }
            Event::Targets { .. }
            | Event::Progress { .. }
            | Event::Stage { .. }
            | Event::Acknowledged { .. }
            | Event::Delivery(_)
            | Event::Node(_)
            | Event::Note { .. }
            | Event::Issued { .. }
            | Event::Membership(_)
            | Event::Member(_)
            | Event::Pending(_)
            | Event::Command(_)
            | Event::About(_)
            | Event::Past(_)
            | Event::Audit(_)
            | Event::User(_)
            | Event::Token(_)
            | Event::Told { .. }
            | Event::Telemetry { .. }
            | Event::Peer(_)
            | Event::Missed { .. }
            | Event::End => {}
        }
    }
    code
}

async fn collect(mut events: mpsc::Receiver<Event>) -> Report {
    let mut report = Report::default();
    while let Some(event) = events.recv().await {
        report.add(&event);
    }
    report
}

/// The action that the demo's devices define.
fn led(selector: Selector, color: &str, patience: Duration) -> Request {
    command(selector, "led", json!({ "color": color }), patience)
}

fn command(selector: Selector, action: &str, kwargs: serde_json::Value, patience: Duration) -> Request {
    Request::Command {
        selector,
        action: action.to_owned(),
        arguments: Arguments {
            args: Vec::new(),
            kwargs: kwargs.as_object().cloned().unwrap_or_default(),
        },
        lane: Lane::Control,
        ttl_ms: to_ms(patience),
        ttl_given: false,
        timeout_ms: to_ms(patience),
        batch: None,
    }
}

fn selector(text: &str) -> Result<Selector, CliError> {
    Selector::parse(text).map_err(|error| CliError::usage(error.to_string()))
}

fn indented(text: &str) -> String {
    text.trim_end()
        .lines()
        .map(|line| format!("  {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_looks_into_the_demos_directory() {
        let place = Place::make().expect("made");
        let mode = std::fs::metadata(&place.0).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let path = place.0.clone();
        drop(place);
        assert!(!path.exists());
    }
}
