//! `demo`: runs a fleet on this machine through set-up, commands, a file, a lost node and an emergency stop, with real
//! processes.
//!
//! Everything lives in one throw-away directory and on loopback. Each step prints what it did and how long it took;
//! the first that fails ends the demo with its name, and exit status 1.

mod devices;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use swarm_shared::api::{Delivery, Event, FleetRequest, NodeState};
use swarm_shared::client::{EventStream, RequestError, Station};
use swarm_shared::net::{clock, random};
use swarm_shared::proto::hex;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::trust::Role;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::screen::{CliError, EXIT_INTERRUPTED, Screen};
use crate::config::Config;
use crate::control::server::ControlServer;
use crate::duration::to_ms;
use crate::engine::{Engine, Mode, Settings};
use crate::store::lock::StateLock;
use crate::view::deliveries::DeliveryReport;
use crate::view::nodes::NodeTable;
use crate::view::{Paint, format_ms};
use devices::Devices;

/// The longest that any step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Validity of the invitation that the nodes join with.
const CODE_VALID_FOR: Duration = Duration::from_secs(600);
/// Size of the demo's file, in bytes.
const FILE_BYTES: usize = 8 * 1024 * 1024;
/// Time to live of the command for the node that is away.
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
        // Dropping the demo kills the devices and removes the directory.
        interrupted = wait_for_interrupt() => return interrupted.map(|()| EXIT_INTERRUPTED),
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
    station: Station,
    devices: Devices,
    control_server: (CancellationToken, JoinHandle<()>),
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
        let ping_port = devices::free_udp_port().map_err(|error| step_error("find a free port", error))?;
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
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(engine.fleet(), shutdown.clone()));
        let station = Station::from(engine.fleet())
            .with_ttl(STEP_TIMEOUT)
            .with_timeout(STEP_TIMEOUT);
        let code = invite(&station, count)
            .await
            .map_err(|error| step_error("make a code", error))?;
        let devices = Devices::start(dir, count, ping_port, &code)
            .await
            .map_err(|error| step_error("start the nodes", error))?;
        let node_events = station
            .watch("all")
            .await
            .map_err(|error| step_error("watch", error))?;
        let mut demo = Self {
            dir,
            screen,
            engine,
            station,
            devices,
            control_server: (shutdown, serving),
            node_events,
            nodes: NodeTable::default(),
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
        let (shutdown, serving) = self.control_server;
        shutdown.cancel();
        if let Err(error) = serving.await {
            tracing::warn!(%error, "Control socket failed");
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
        let nodes = self.station.nodes("all").await;
        let mut table = NodeTable::default();
        for view in nodes.map_err(|error| step_error("list the nodes", error))? {
            table.update(&view, self.screen.style);
        }
        let lines = table.table(|_id| 0, self.screen.style);
        self.print(&indent(&lines.join("\n")))
    }

    async fn ping_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let pinged = self.station.call("all", "ping", Arguments::default()).await;
        let report = self.require_success("ping all", pinged)?;
        self.print_step("pinged all", begun)?;
        self.print_groups(&report)
    }

    async fn call_action(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let lit = self.station.call("tag:row=1", "led", color("#00ff88")).await;
        let report = self.require_success("run an action", lit)?;
        self.print_step(
            "ran an action that its nodes define, `led color=#00ff88`, on tag:row=1",
            begun,
        )?;
        self.print_groups(&report)
    }

    async fn send_file(&mut self) -> Result<(), CliError> {
        const STEP: &str = "send a file";
        let source = self.dir.join("take1.bin");
        let (path, begun) = (source.clone(), clock::now());
        let sha256 = in_background(STEP, move || devices::make_file(&path, FILE_BYTES)).await?;
        let sent = match self.station.send_file(source, "all", FILE_DEST).await {
            Ok(events) => events.deliveries().await,
            Err(error) => Err(error),
        };
        self.require_success(STEP, sent)?;
        for name in self.devices.names() {
            let copy = self.devices.files_root(&name).join("take1.bin");
            if in_background(STEP, move || devices::sha256_of(&copy)).await? != sha256 {
                return Err(step_error(STEP, format!("the copy on {name} is another file")));
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
        let Some(lost) = names.last() else {
            return Ok(());
        };
        let begun = clock::now();
        self.devices
            .kill(lost)
            .map_err(|error| step_error(&format!("kill {lost}"), error))?;
        self.wait_until(&format!("see {lost} offline"), |views| {
            views.state(lost) == Some(NodeState::Offline)
        })
        .await?;
        self.print_step(&format!("killed {lost} (SIGKILL) and saw it offline"), begun)?;

        let begun = clock::now();
        let station = self.station.clone().with_ttl(LOST_NODE_TTL);
        // Polled first, so that the command is queued before the node is back.
        let queued = station.call(lost, "led", color("#ff0000"));
        let (delivered, restarted) = tokio::join!(queued, self.start_again(lost, begun));
        restarted?;
        let report = self.require_success("deliver the queued command", delivered)?;
        self.print_step(
            "delivered the command that had waited for it, `led color=#ff0000`",
            begun,
        )?;
        self.print_groups(&report)
    }

    async fn start_again(&mut self, name: &str, begun: Instant) -> Result<(), CliError> {
        let restarted = self.devices.restart(name).await;
        restarted.map_err(|error| step_error(&format!("restart {name}"), error))?;
        self.wait_until(&format!("see {name} again"), |views| {
            views.state(name) == Some(NodeState::Online)
        })
        .await?;
        self.print_step(&format!("started {name} again, and saw it linked"), begun)
    }

    async fn stop_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let stopped = self.station.stop("all").await;
        let times = acknowledgements(stopped.as_deref().unwrap_or_default());
        let report = self.require_success("stop all", stopped)?;
        let all = report.counts().1;
        // The request itself takes longer, since five rounds of datagrams go out in any case.
        let last = format_ms(times.iter().map(|(_, ms)| *ms).fold(0.0, f64::max));
        let what = format!("EMERGENCY STOP of all {all}, acknowledged within {last}; each put its LED out");
        self.print_step(&what, begun)?;
        let times = times
            .iter()
            .map(|(node, ms)| format!("{node} {}", format_ms(*ms)));
        self.print(&format!("  {}", times.collect::<Vec<_>>().join(", ")))?;

        let begun = clock::now();
        let refused = self.station.call("all", "led", color("#00ff88")).await;
        let report = self.report("act while stopped", refused)?;
        if !report.all_ended_as(Outcome::Refused) {
            return Err(self.outcome_error("act while stopped", &report));
        }
        self.print_step("asked all for `led color=#00ff88`: refused while stopped", begun)
    }

    async fn release_all(&mut self) -> Result<(), CliError> {
        let begun = clock::now();
        let released = self.station.release("all").await;
        self.require_success("release all", released)?;
        let lit = self.station.call("all", "led", color("#00ff88")).await;
        let report = self.require_success("act after the release", lit)?;
        self.print_step("released all, and asked again", begun)?;
        self.print_groups(&report)
    }

    /// The report of a step; any outcome but `done` fails the step.
    fn require_success(
        &self,
        step: &str,
        ended: Result<Vec<Delivery>, RequestError>,
    ) -> Result<DeliveryReport, CliError> {
        let report = self.report(step, ended)?;
        if report.all_ended_as(Outcome::Done) {
            return Ok(report);
        }
        Err(self.outcome_error(step, &report))
    }

    fn report(
        &self,
        step: &str,
        ended: Result<Vec<Delivery>, RequestError>,
    ) -> Result<DeliveryReport, CliError> {
        let deliveries = ended.map_err(|error| self.error_with_logs(step, &error.to_string()))?;
        let mut report = DeliveryReport::default();
        for delivery in deliveries {
            report.on_event(&Event::Delivery(delivery));
        }
        Ok(report)
    }

    fn outcome_error(&self, step: &str, report: &DeliveryReport) -> CliError {
        self.error_with_logs(step, &format!("\n{}", report.groups(self.screen.style)))
    }

    fn error_with_logs(&self, step: &str, why: &str) -> CliError {
        step_error(step, format!("{why}\n{}", self.devices.log_tails()))
    }

    /// Follows the events of nodes until a condition holds.
    async fn wait_until(&mut self, step: &str, wanted: impl Fn(&NodeTable) -> bool) -> Result<(), CliError> {
        let deadline = clock::now() + STEP_TIMEOUT;
        while !wanted(&self.nodes) {
            let Ok(event) = clock::timeout_at(deadline, self.node_events.next()).await else {
                return Err(self.error_with_logs(step, &format!("not within {} s", STEP_TIMEOUT.as_secs())));
            };
            match event.map_err(|error| step_error(step, error))? {
                Some(Event::Node(view)) => drop(self.nodes.update(&view, self.screen.style)),
                Some(_) => {}
                None => return Err(step_error(step, "the station stopped")),
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

    fn print_groups(&mut self, report: &DeliveryReport) -> Result<(), CliError> {
        let groups = report.groups(self.screen.style);
        self.print(&indent(&groups))
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

/// The code of an invitation for so many nodes.
async fn invite(station: &Station, uses: u16) -> Result<String, RequestError> {
    let request = FleetRequest::Invite {
        role: Role::Node,
        uses: u32::from(uses),
        valid_for_ms: to_ms(CODE_VALID_FOR),
    };
    let mut events = station.start(request).await;
    while let Some(event) = events.next().await? {
        if let Event::Invitation(invitation) = event {
            return Ok(invitation.code);
        }
    }
    Err(RequestError::CutOff)
}

/// The time from a stop until each node acknowledged it, in milliseconds.
fn acknowledgements(deliveries: &[Delivery]) -> Vec<(NodeName, f64)> {
    let time = |delivery: &Delivery| delivery.value.as_ref()?.get("acknowledged_ms")?.as_f64();
    let times = deliveries.iter();
    times
        .filter_map(|delivery| Some((delivery.node.clone(), time(delivery)?)))
        .collect()
}

/// The arguments of `led`, which the demo's devices define.
fn color(color: &str) -> Arguments {
    Arguments {
        args: Vec::new(),
        kwargs: Map::from_iter([("color".to_owned(), Value::from(color))]),
    }
}

/// Runs file operations on a thread of their own.
async fn in_background<T: Send + 'static>(
    step: &str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, CliError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| step_error(step, error)),
        Err(error) => Err(step_error(step, error)),
    }
}

fn step_error(step: &str, why: impl std::fmt::Display) -> CliError {
    CliError::failed(format!("demo: {step}: {why}"))
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
