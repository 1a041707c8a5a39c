//! A station process and node processes. Requests go over the station's control socket.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use swarm_shared::api::{Event, FleetRequest, NodeState, NodeView, NodesRequest};
use swarm_shared::client::control::CONTROL_SOCKET;
use swarm_shared::client::{EventStream, Fleet};
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::Role;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::fanout::count_done;
use crate::binaries;
use crate::process::Process;

/// How long one step may take; then the measurement fails.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(2);
const CODE_VALID: Duration = Duration::from_secs(900);

/// A running `ground-station serve` with its fleet.
#[derive(Debug)]
pub struct RealStation {
    /// Its listen address.
    pub addr: SocketAddr,
    /// Sends it requests.
    pub fleet: Fleet,
    /// State directories and logs of everything.
    pub dir: TempDir,
    process: Option<Process>,
    starts: usize,
}

impl RealStation {
    /// Starts the station and creates its fleet.
    ///
    /// # Errors
    /// If the station does not answer in time.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with("").await
    }

    /// As [`Self::start`], with this configuration.
    ///
    /// # Errors
    /// If the station does not answer in time.
    pub async fn start_with(config: &str) -> anyhow::Result<Self> {
        // Free now; nothing else on this machine takes ports at random while it is measured.
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let dir = TempDir::with_prefix("measure-")?;
        std::fs::create_dir(dir.path().join("station"))?;
        std::fs::write(dir.path().join("station").join("config.toml"), config)?;
        let mut station = Self {
            addr,
            fleet: Fleet::remote(dir.path().join("station").join(CONTROL_SOCKET)),
            dir,
            process: None,
            starts: 0,
        };
        station.spawn();
        let made = async {
            while count_done(&station.fleet, FleetRequest::Init).await.is_err() {
                sleep(RETRY).await;
            }
        };
        timeout(TEST_TIMEOUT, made)
            .await
            .context("the station does not answer")?;
        Ok(station)
    }

    /// Starts its process; also after [`Self::kill`].
    pub fn spawn(&mut self) {
        self.starts += 1;
        let mut command = Command::new(&binaries().station);
        command
            .arg("serve")
            .arg("--state-dir")
            .arg(self.dir.path().join("station"))
            .args(["--listen", &self.addr.to_string(), "--no-pings", "--no-mdns"]);
        let name = format!("station-{}", self.starts);
        self.process = Some(Process::spawn(command, &name, self.dir.path()));
    }

    /// Kills its process.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its state directory.
    pub fn state_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("station")
    }

    /// Starts a real node that joins this fleet, and waits until it is online.
    ///
    /// # Errors
    /// If the node is not online in time.
    pub async fn node(&self, name: &str, config: &str) -> anyhow::Result<Process> {
        let process = spawn_node(&self.fleet, self.dir.path(), name, config).await?;
        let mut watched = self.watch().await;
        wait_state(&mut watched, NodeState::Online).await?;
        Ok(process)
    }

    /// The present views of all nodes, then each change. Ends at once if the station does not run.
    pub async fn watch(&self) -> EventStream {
        let selector = Selector::all();
        self.fleet.perform(NodesRequest::Watch { selector }).await
    }
}

/// Starts a real node that joins this fleet, with its state in `dir/NAME`.
///
/// # Errors
/// If the station issues no invitation code.
pub async fn spawn_node(fleet: &Fleet, dir: &Path, name: &str, config: &str) -> anyhow::Result<Process> {
    let code = invite(fleet).await?;
    let state_dir = dir.join(name);
    std::fs::create_dir_all(&state_dir)?;
    let file = state_dir.join("node.toml");
    std::fs::write(&file, format!("name = \"{name}\"\n{config}"))?;
    Ok(Process::spawn(node_command(&state_dir, &file, &code), name, dir))
}

async fn invite(fleet: &Fleet) -> anyhow::Result<String> {
    let request = FleetRequest::Invite {
        role: Role::Node,
        uses: 1,
        valid_for_ms: u64::try_from(CODE_VALID.as_millis())?,
    };
    let mut events = fleet.perform(request).await;
    while let Some(event) = events.next().await? {
        if let Event::Invitation(view) = event {
            return Ok(view.code);
        }
    }
    anyhow::bail!("the station issued no invitation code")
}

/// The command that starts a node. The node ignores the code once it is a member.
pub fn node_command(dir: &Path, config: &Path, code: &str) -> Command {
    let mut command = Command::new(&binaries().node);
    command
        .arg("run")
        .arg("--config")
        .arg(config)
        .arg("--state-dir")
        .arg(dir)
        .args(["--listen", "127.0.0.1:0", "--no-pings", "--no-mdns"])
        .env("SWARM_NODE_JOIN", code);
    command
}

/// Waits until a node is in this state.
///
/// # Errors
/// If the time-out passes, or the station ends.
pub async fn wait_state(events: &mut EventStream, state: NodeState) -> anyhow::Result<NodeView> {
    let waited = async {
        while let Some(event) = events.recv().await {
            if let Event::Node(view) = event
                && view.state == state
            {
                return Some(view);
            }
        }
        None
    };
    let found = timeout(TEST_TIMEOUT, waited).await;
    found
        .with_context(|| format!("no node is {}", state.as_str()))?
        .context("the station ended")
}
