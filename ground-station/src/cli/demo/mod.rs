//! `demo`: runs a fleet on this machine through set-up, commands, a file, a lost node and an emergency stop, with real
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
use tokio_util::sync::CancellationToken;

use super::screen::{CliError, Screen};
use crate::config::Config;
use crate::control::server::ControlServer;
use crate::duration::to_ms;
use crate::engine::{Engine, Mode, Settings};
use crate::store::lock::StateLock;
use crate::view::deliveries::DeliveryReport;
use crate::view::nodes::NodeTable;
use crate::view::{Paint, format_ms};
use devices::Devices;
use swarm_shared::api::{
    ActRequest, Event, FileToSend, FilesToSend, FleetRequest, NodeState, NodesRequest, Request,
};
use swarm_shared::client::{EventStream, Fleet};

/// The longest that any step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Size of the demo's file, in bytes.
const FILE_BYTES: usize = 8 * 1024 * 1024;
/// Time to live of the command for the lost node.
const LOST_NODE_TTL: Duration = Duration::from_secs(30);
/// The demo's file on the nodes: ROOT/PATH.
const FILE_DEST: &str = "shows/take1.bin";

/// Try it on this machine: a station and a few nodes, without set-up
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Number of nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=100))]
    nodes: u16,
    /// Keep it running until Ctrl-C
    #[arg(long)]
    stay: bool,
}

pub(super) async fn run(args: Args, screen: &mut Screen) -> Result<u8, CliError> {
    let dir = DemoDir::create()?;
    let started = clock::now();
    let begun = async {
        let mut demo = Demo::start(&dir, args.nodes, screen).await?;
        let played = demo.run_steps().await;
        Ok::<_, CliError>((demo, played))
    };
    let (mut demo, played) = tokio::select! {
        begun = begun => begun?,
        // Devices are killed, and the directory is removed, when all this is dropped.
        interrupted = wait_for_interrupt() => return interrupted.map(|()| super::screen::EXIT_INTERRUPTED),
    };
    if played.is_ok() {
        demo.print(&format!("\nall of it in {}", format_ms(elapsed_ms(started))))?;
        if args.stay {
            demo.keep_running().await?;
        }
    }
    demo.shut_down().await;
    played.map(|()| 0)
}

/// Waits for Ctrl-C or `SIGTERM`, so that no processes and no directory are left behind.
async fn wait_for_interrupt() -> Result<(), CliError> {
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

/// A directory that is removed when this is dropped.
#[derive(Debug)]
struct DemoDir(PathBuf);

impl DemoDir {
    fn create() -> Result<Self, CliError> {
        let cannot = |why: &dyn std::fmt::Display| {
            CliError::failed(format!(
                "demo: no directory to work in: {why}; set TMPDIR to one that can be written"
            ))
        };
        let name = random::bytes::<6>().map_err(|error| cannot(&error))?;
        let path = std::env::temp_dir().join(format!("swarm-demo-{}", hex::encode(&name)));
        // It holds keys and an invitation code.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| cannot(&error))?;
        Ok(Self(path))
    }
}

impl Drop for DemoDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the demo's directory stays");
        }
    }
}

/// A running demo.
struct Demo<'a> {
    dir: &'a Path,
    screen: &'a mut Screen,
    engine: Engine,
    fleet: Fleet,
    devices: Devices,
    control_server: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
    /// Events of nodes.
    node_events: EventStream,
    nodes: NodeTable,
    _lock: StateLock,
}

impl<'a> Demo<'a> {
    /// Starts a station and the nodes, which join by a code in their configuration.
    async fn start(demo_dir: &'a DemoDir, count: u16, screen: &'a mut Screen) -> Result<Self, CliError> {
        let dir = demo_dir.0.as_path();
        let begun = clock::now();
        let state_dir = dir.join("station");
        let lock = StateLock::try_acquire(&state_dir, "ground-station demo")?;
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
            mode: Mode::Daemon,
            bridges_devices: false,
        })
        .await?;
        let fleet = engine.fleet();
        let shutdown = CancellationToken::new();
        let serving = Some((
            shutdown.clone(),
            tokio::spawn(server.serve(fleet.clone(), shutdown)),
        ));
        let code = invite(&fleet, count).await?;
        let devices = Devices::start(dir, count, ping_port, &code)
            .await
            .map_err(|error| CliError::failed(format!("demo: {error}")))?;
        let watch = fleet
            .perform(NodesRequest::Watch {
                selector: Selector::all(),
            })
            .await;
        let nodes = NodeTable::default();
        let mut demo = Self {
            dir,
            screen,
            engine,
            fleet,
            devices,
            control_server: serving,
            node_events: watch,
            nodes,
            _lock: lock,
        };
        let listens = demo.engine.listen_addr();
        demo.print_step(
            &format!("started a station on {listens} and {count} nodes, each a process of its own"),
            begun,
        )?;
        Ok(demo)
    }

    /// Ends the station and the nodes.
    async fn shut_down(mut self) {
        self.devices.shut_down().await;
        if let Some((shutdown, serving)) = self.control_server.take() {
            shutdown.cancel();
            if let Err(error) = serving.await {
                tracing::warn!(%error, "control socket");
            }
        }
        self.engine.shut_down().await;
    }

    async fn run_steps(&mut self) -> Result<(), CliError> {
        self.find_nodes().await?;
        self.ping_all().await?;
        self.call_action().await?;
        self.send_file().await?;
        self.restart_node().await?;
        self.stop_all().await?;
        self.release_all().await
    }

    async fn find_nodes(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let wanted = self.devices.names();
        self.wait_until("find the nodes", |views| {
            wanted
                .iter()
                .all(|name| views.state(name) == Some(NodeState::Online))
        })
        .await?;
        self.print_step(&format!("found and linked all {}", wanted.len()), begun)?;
        let request = NodesRequest::List {
            selector: Selector::all(),
            timeout_ms: to_ms(STEP_TIMEOUT),
        };
        let mut events = self.fleet.perform(request).await;
        let mut table = NodeTable::default();
        while let Some(event) = events.recv().await {
            if let Event::Node(view) = event {
                table.update(&view, self.screen.style);
            }
        }
        let lines = table.table(|_id| 0, self.screen.style);
        self.print(&indent(&lines.join("\n")))
    }

    async fn ping_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let request = command_request(Selector::all(), "ping", json!({}), STEP_TIMEOUT);
        let report = self.run_request("ping all", request).await?;
        self.print_step("pinged all", begun)?;
        self.print(&indent(&report.groups(self.screen.style)))
    }

    async fn call_action(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let request = led_request(parse_selector("tag:row=1")?, "#00ff88", STEP_TIMEOUT);
        let report = self.run_request("run an action", request).await?;
        self.print_step(
            "ran an action that its nodes define, `led color=#00ff88`, on tag:row=1",
            begun,
        )?;
        self.print(&indent(&report.groups(self.screen.style)))
    }

    async fn send_file(&mut self) -> Result<(), CliError> {
        let failed = |why: String| CliError::failed(format!("demo: send a file: {why}"));
        let source = self.dir.join("take1.bin");
        let (path, begun) = (source.clone(), clock::now());
        let sha256 = tokio::task::spawn_blocking(move || devices::make_file(&path, FILE_BYTES))
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        let request = ActRequest::SendFiles {
            selector: Selector::all(),
            files: FilesToSend::Same {
                files: vec![FileToSend {
                    source,
                    dest: FILE_DEST.to_owned(),
                }],
            },
            ttl_ms: to_ms(STEP_TIMEOUT),
            timeout_ms: to_ms(STEP_TIMEOUT),
        };
        self.run_request("send a file", request).await?;
        for name in self.devices.names() {
            let copy = self.devices.files_root(&name).join("take1.bin");
            let found = tokio::task::spawn_blocking(move || devices::sha256_of(&copy));
            let found = found.await.map_err(|error| failed(error.to_string()))?;
            if found.map_err(|error| failed(error.to_string()))? != sha256 {
                return Err(failed(format!("the copy on {name} is another file")));
            }
        }
        self.print_step(
            "sent a file of 8 MiB to all, and compared every copy's SHA-256 with the original's",
            begun,
        )?;
        self.print(&format!("  {}", hex::encode(&sha256)))
    }

    async fn restart_node(&mut self) -> Result<(), CliError> {
        let names = self.devices.names();
        let Some(lost) = names.last().cloned() else {
            return Ok(());
        };
        let begun = clock::now();
        self.devices
            .kill(&lost)
            .map_err(|error| CliError::failed(format!("demo: kill {lost}: {error}")))?;
        self.wait_until(&format!("see {lost} offline"), |views| {
            views.state(&lost) == Some(NodeState::Offline)
        })
        .await?;
        self.print_step(&format!("killed {lost} (SIGKILL) and saw it offline"), begun)?;

        let waiting = self.queue_command(&lost).await?;
        let begun = clock::now();
        let restarted = self.devices.restart(&lost).await;
        restarted.map_err(|error| CliError::failed(format!("demo: restart {lost}: {error}")))?;
        self.wait_until(&format!("see {lost} again"), |views| {
            views.state(&lost) == Some(NodeState::Online)
        })
        .await?;
        self.print_step(&format!("started {lost} again, and saw it linked"), begun)?;
        let report = collect(waiting).await;
        self.require_success("deliver the queued command", &report)?;
        self.print_step(
            "delivered the command that had waited for it, `led color=#ff0000`",
            begun,
        )?;
        self.print(&indent(&report.groups(self.screen.style)))
    }

    async fn stop_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let request = ActRequest::Stop {
            selector: Selector::all(),
            timeout_ms: Some(to_ms(STEP_TIMEOUT)),
        };
        let mut events = self.fleet.perform(request).await;
        let (mut report, mut answers, mut last) = (DeliveryReport::default(), Vec::new(), 0.0_f64);
        while let Some(event) = events.recv().await {
            report.on_event(&event);
            if let Event::Acknowledged { node, ms } = &event {
                last = last.max(*ms);
                answers.push(format!("{} {}", node.node, format_ms(*ms)));
            }
        }
        self.require_success("stop all", &report)?;
        let all = report.counts().1;
        // The request itself takes longer, since five rounds of datagrams go out in any case.
        let last = format_ms(last);
        let what = format!("EMERGENCY STOP of all {all}, acknowledged within {last}; each put its LED out");
        self.print_step(&what, begun)?;
        self.print(&format!("  {}", answers.join(", ")))?;

        let begun = clock::now();
        let request = led_request(Selector::all(), "#00ff88", STEP_TIMEOUT);
        let report = collect(self.fleet.perform(request).await).await;
        if !report.all_ended_as(Outcome::Refused) {
            return Err(self.step_error("act while stopped", &report));
        }
        self.print_step("asked all for `led color=#00ff88`: refused while stopped", begun)
    }

    async fn release_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let request = ActRequest::Release {
            selector: Selector::all(),
            timeout_ms: to_ms(STEP_TIMEOUT),
        };
        self.run_request("release all", request).await?;
        let request = led_request(Selector::all(), "#00ff88", STEP_TIMEOUT);
        let report = self.run_request("act after the release", request).await?;
        self.print_step("released all, and asked again", begun)?;
        self.print(&indent(&report.groups(self.screen.style)))
    }

    /// Sends a command to an absent node, for which it is queued.
    async fn queue_command(&mut self, name: &str) -> Result<EventStream, CliError> {
        let request = led_request(parse_selector(name)?, "#ff0000", LOST_NODE_TTL);
        Ok(self.fleet.perform(request).await)
    }

    /// Carries out a request; any outcome but `done` fails the step.
    async fn run_request(
        &mut self,
        step: &str,
        request: impl Into<Request>,
    ) -> Result<DeliveryReport, CliError> {
        let report = collect(self.fleet.perform(request).await).await;
        self.require_success(step, &report)?;
        Ok(report)
    }

    fn require_success(&self, step: &str, report: &DeliveryReport) -> Result<(), CliError> {
        if report.exit_status() == 0 && report.counts().1 > 0 {
            return Ok(());
        }
        Err(self.step_error(step, report))
    }

    fn step_error(&self, step: &str, report: &DeliveryReport) -> CliError {
        let groups = report.groups(self.screen.style);
        CliError::failed(format!("demo: {step}:\n{groups}\n{}", self.devices.log_tails()))
    }

    /// Follows the events of nodes until a condition holds.
    async fn wait_until(&mut self, step: &str, wanted: impl Fn(&NodeTable) -> bool) -> Result<(), CliError> {
        let deadline = clock::now() + STEP_TIMEOUT;
        while !wanted(&self.nodes) {
            match clock::timeout_at(deadline, self.node_events.recv()).await {
                Ok(Some(Event::Node(view))) => drop(self.nodes.update(&view, self.screen.style)),
                Ok(Some(_)) => {}
                Ok(None) => return Err(CliError::failed(format!("demo: {step}: the station stopped"))),
                Err(_elapsed) => {
                    let waited = STEP_TIMEOUT.as_secs();
                    return Err(CliError::failed(format!(
                        "demo: {step}: not within {waited} s\n{}",
                        self.devices.log_tails()
                    )));
                }
            }
        }
        Ok(())
    }

    fn print_step(&mut self, what: &str, begun: Instant) -> Result<(), CliError> {
        let ms = elapsed_ms(begun);
        if self.screen.json {
            return self
                .screen
                .print_result(&json!({ "step": what, "ms": ms }).to_string());
        }
        let mark = self.screen.style.paint("✓", Paint::Good);
        let time = self.screen.style.paint(&format_ms(ms), Paint::Dim);
        self.screen.print_result(&format!("{mark} {what}  {time}"))
    }

    fn print(&mut self, text: &str) -> Result<(), CliError> {
        if self.screen.json || self.screen.quiet {
            return Ok(());
        }
        self.screen.print_result(text)
    }

    /// Keeps the fleet running until Ctrl-C.
    async fn keep_running(&mut self) -> Result<(), CliError> {
        let program = std::env::current_exe().unwrap_or_else(|_unknown| "ground-station".into());
        let state_dir = self.dir.join("station");
        let verb = format!("{} --state-dir {}", program.display(), state_dir.display());
        self.print(&format!(
            "\nit stays up; try, in another terminal:\n  {verb} nodes --watch\n  {verb} call 'drone-*' led color=#0088ff\n  {verb} stop\n\
             Ctrl-C ends it"
        ))?;
        wait_for_interrupt().await
    }
}

async fn invite(fleet: &Fleet, uses: u16) -> Result<String, CliError> {
    let request = FleetRequest::Invite {
        role: Role::Node,
        uses: u32::from(uses),
        valid_for_ms: 600_000,
    };
    let failed = |why: String| CliError::failed(format!("demo: make a code: {why}"));
    let (mut events, mut code) = (fleet.perform(request).await, None);
    while let Some(event) = events.next().await.map_err(|error| failed(error.to_string()))? {
        if let Event::Invitation(invitation) = event {
            code = Some(invitation.code);
        }
    }
    code.ok_or_else(|| failed("the station made none".to_owned()))
}

async fn collect(mut events: EventStream) -> DeliveryReport {
    let mut report = DeliveryReport::default();
    while let Some(event) = events.recv().await {
        report.on_event(&event);
    }
    report
}

/// The action that the demo's devices define.
fn led_request(selector: Selector, color: &str, time_limit: Duration) -> ActRequest {
    command_request(selector, "led", json!({ "color": color }), time_limit)
}

fn command_request(
    selector: Selector,
    action: &str,
    kwargs: serde_json::Value,
    time_limit: Duration,
) -> ActRequest {
    ActRequest::Command {
        selector,
        action: action.to_owned(),
        arguments: Arguments {
            args: Vec::new(),
            kwargs: kwargs.as_object().cloned().unwrap_or_default(),
        },
        lane: Lane::Control,
        ttl_ms: to_ms(time_limit),
        ttl_given: false,
        timeout_ms: to_ms(time_limit),
        batch: None,
    }
}

fn parse_selector(text: &str) -> Result<Selector, CliError> {
    Selector::parse(text).map_err(|error| CliError::usage(error.to_string()))
}

fn indent(text: &str) -> String {
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
    fn demo_directory_is_private_and_removed() {
        let place = DemoDir::create().expect("made");
        let mode = std::fs::metadata(&place.0).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let path = place.0.clone();
        drop(place);
        assert!(!path.exists());
    }
}
