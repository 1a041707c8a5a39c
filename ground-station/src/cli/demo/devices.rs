//! The demo's devices: `swarm-node` processes with temporary state. Dropping them kills them.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ring::digest;
use swarm_shared::net::random;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a device may take to shut down before it is killed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// Lines of each log that are shown after a failure.
const LOG_LINES: usize = 12;

/// A `swarm-node` process with its state.
#[derive(Debug)]
struct Device {
    name: String,
    dir: PathBuf,
    process: Option<Child>,
}

/// All devices of a demo.
#[derive(Debug)]
pub(super) struct Devices {
    program: PathBuf,
    devices: Vec<Device>,
}

impl Devices {
    /// Configures and starts `drone-1` to `drone-N`, in two rows.
    pub(super) async fn start(base_dir: &Path, count: u16, ping_port: u16, code: &str) -> io::Result<Self> {
        let program = swarm_node_path()?;
        let digits = count.to_string().len();
        let mut devices = Self {
            program,
            devices: Vec::new(),
        };
        for number in 1..=count {
            let name = format!("drone-{number:0digits$}");
            let dir = base_dir.join(&name);
            std::fs::create_dir_all(dir.join("shows"))?;
            let config = node_config(&name, &dir, number % 2, ping_port, code);
            std::fs::write(dir.join("config.toml"), config)?;
            devices.devices.push(Device {
                name: name.clone(),
                dir,
                process: None,
            });
            devices.restart(&name).await?;
        }
        Ok(devices)
    }

    /// Starts a device's process; kills the old one first.
    pub(super) async fn restart(&mut self, name: &str) -> io::Result<()> {
        let program = self.program.clone();
        let device = self.find(name)?;
        if let Some(mut old) = device.process.take() {
            old.kill().await?;
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(device.dir.join("log"))?;
        let mut command = Command::new(program);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("SWARM_NODE_") {
                command.env_remove(variable);
            }
        }
        command.arg("run").arg("--state-dir").arg(&device.dir);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        device.process = Some(command.spawn()?);
        Ok(())
    }

    /// Kills a device's process as a power cut would.
    pub(super) fn kill(&mut self, name: &str) -> io::Result<()> {
        match &mut self.find(name)?.process {
            Some(process) => process.start_kill(),
            None => Err(io::Error::other("the process is not running")),
        }
    }

    fn find(&mut self, name: &str) -> io::Result<&mut Device> {
        let found = self.devices.iter_mut().find(|device| device.name == name);
        found.ok_or_else(|| io::Error::other(format!("there is no {name}")))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.devices.iter().map(|device| device.name.clone()).collect()
    }

    /// The directory for files that are sent to a device.
    pub(super) fn files_root(&self, name: &str) -> PathBuf {
        let device = self.devices.iter().find(|device| device.name == name);
        device.map_or_else(PathBuf::new, |device| device.dir.join("shows"))
    }

    /// Shuts down all devices, and kills those that take too long.
    pub(super) async fn shut_down(&mut self) {
        for device in &mut self.devices {
            let Some(process) = &device.process else { continue };
            let id = process
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(rustix::process::Pid::from_raw);
            if let Some(id) = id
                && let Err(error) = rustix::process::kill_process(id, rustix::process::Signal::TERM)
            {
                tracing::debug!(device = device.name, %error, "Device not signalled: its process has ended");
            }
        }
        for device in &mut self.devices {
            if let Some(mut process) = device.process.take()
                && timeout(SHUTDOWN_TIMEOUT, process.wait()).await.is_err()
                && let Err(error) = process.kill().await
            {
                tracing::warn!(device = device.name, %error, "Device not killed");
            }
        }
    }

    /// The last lines of every log.
    pub(super) fn log_tails(&self) -> String {
        let mut text = String::new();
        for device in &self.devices {
            let log = std::fs::read_to_string(device.dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{}:", device.name);
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                let _written = writeln!(text, "  {line}");
            }
        }
        text
    }
}

/// The `swarm-node` in this program's directory.
fn swarm_node_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("swarm-node");
    if path.is_file() {
        return Ok(path);
    }
    Err(io::Error::other(format!(
        "there is no {}: build both programs with `cargo build --release`",
        path.display()
    )))
}

fn node_config(name: &str, dir: &Path, row: u16, ping_port: u16, code: &str) -> String {
    // Paths are written as TOML strings, whatever characters they hold.
    let quoted =
        |path: PathBuf| swarm_shared::config::toml::Value::from(path.display().to_string()).to_string();
    let (shows, led) = (quoted(dir.join("shows")), quoted(dir.join("led")));
    format!(
        r##"name = "{name}"
listen = "127.0.0.1:0"
ping_port = {ping_port}
mdns = false
join = "{code}"
tags = {{ row = "{row}" }}

[files]
roots = {{ shows = {shows} }}

[actions.led]
command = ["/bin/sh", "-c", 'echo "$1" >> "$0" && echo "led is $1"', {led}, "{{color}}"]
args.color = {{ type = "string", pattern = "^#[0-9a-f]{{6}}$", default = "#ffffff" }}
timeout = "5s"

[emergency_stop]
command = ["/bin/sh", "-c", 'echo "#000000" >> "$0"', {led}]
timeout = "5s"
"##
    )
}

/// A UDP port that is free now.
pub(super) fn free_udp_port() -> io::Result<u16> {
    Ok(UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Writes a file of random content, and returns its SHA-256.
pub(super) fn make_file(path: &Path, bytes: usize) -> io::Result<[u8; 32]> {
    let mut content = Vec::with_capacity(bytes);
    while content.len() < bytes {
        content.extend_from_slice(&random::bytes::<4096>().map_err(io::Error::other)?);
    }
    content.truncate(bytes);
    std::fs::write(path, &content)?;
    Ok(sha256(&content))
}

/// The SHA-256 of a file.
pub(super) fn sha256_of(path: &Path) -> io::Result<[u8; 32]> {
    Ok(sha256(&std::fs::read(path)?))
}

fn sha256(content: &[u8]) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest::digest(&digest::SHA256, content).as_ref());
    sha256
}
