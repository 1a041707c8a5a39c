//! Telemetry: readings from the kernel, from the configured command, and from plug-ins. Sensors that a device does
//! not have are omitted.

pub mod parse;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use swarm_shared::net::clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::plugins::Plugins;
use crate::process::{self, EndReason, Stderr};

/// The readings of one time, by name.
pub type Sample = Map<String, Value>;

/// File in which the firmware of a Raspberry Pi reports throttling.
const THROTTLED_PATH: &str = "/sys/devices/platform/soc/soc:firmware/get_throttled";

/// The telemetry of this device. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: config::Telemetry,
    disks: Vec<(String, PathBuf)>,
    plugins: Plugins,
    command_output: watch::Sender<CommandOutput>,
    latest: watch::Sender<Sample>,
}

/// The last output of the configured command.
#[derive(Clone, Debug, Default, PartialEq)]
struct CommandOutput {
    fields: Sample,
    error: Option<String>,
}

impl Telemetry {
    /// Telemetry of the device, of these disks, by name, and of these plug-ins.
    pub fn new(config: config::Telemetry, disks: Vec<(String, PathBuf)>, plugins: Plugins) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                disks,
                plugins,
                command_output: watch::Sender::new(CommandOutput::default()),
                latest: watch::Sender::new(Sample::new()),
            }),
        }
    }

    /// The newest sample, at each change; empty before the first.
    pub fn subscribe(&self) -> watch::Receiver<Sample> {
        self.inner.latest.subscribe()
    }

    /// Takes samples at the configured interval until shutdown.
    pub async fn run(&self, shutdown: &CancellationToken) {
        let mut ticks = tokio::time::interval(self.inner.config.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.run_command(shutdown).await;
            let sample = self.sample().await;
            self.inner.latest.send_replace(sample);
        }
    }

    /// A fresh sample. The fields of the configured command are those of its last run.
    pub async fn sample(&self) -> Sample {
        let disks = self.inner.disks.clone();
        let system = tokio::task::spawn_blocking(move || system_readings(&disks)).await;
        let mut sample = system.unwrap_or_default();
        if let Some(readings) = self.inner.plugins.readings(clock::now()) {
            sample.insert("plugins".to_owned(), readings);
        }
        let owner = self.inner.command_output.borrow();
        for (key, value) in &owner.fields {
            sample.entry(key).or_insert_with(|| value.clone());
        }
        if let Some(error) = &owner.error {
            sample.insert("command_error".to_owned(), error.as_str().into());
        }
        sample
    }

    /// Why the last run of the configured command failed.
    pub fn command_error(&self) -> Option<String> {
        self.inner.command_output.borrow().error.clone()
    }

    async fn run_command(&self, shutdown: &CancellationToken) {
        let Some(command) = &self.inner.config.command else {
            return;
        };
        let timeout = self.inner.config.timeout;
        let ran = process::run(command.as_slice(), Stderr::Discarded, timeout, shutdown).await;
        let read = match ran {
            Err(error) => Err(error.to_string()),
            Ok(ran) => match (ran.reason, ran.exit_code) {
                (EndReason::Exited, 0) => parse_command_output(&ran.output),
                (EndReason::Exited, exit) => Err(format!("exit status {exit}")),
                (EndReason::TimedOut, _) => Err(format!("ran longer than {timeout:?} and was killed")),
                (EndReason::Cancelled, _) => return,
            },
        };
        let owner = match read {
            Ok(fields) => CommandOutput { fields, error: None },
            Err(error) => CommandOutput {
                fields: Sample::new(),
                error: Some(format!("the telemetry command: {error}")),
            },
        };
        // Logged at each change, not for each sample.
        let error = owner.error.clone();
        let changed = self.inner.command_output.send_replace(owner).error != error;
        if let (true, Some(error)) = (changed, error) {
            tracing::warn!("{error}");
        }
    }
}

fn parse_command_output(output: &str) -> Result<Sample, String> {
    let utf8 = swarm_shared::proto::wire::ContentEncoding::Utf8;
    match swarm_shared::proto::json::parse(output.as_bytes(), &utf8) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("it must print a JSON object, such as {\"battery\": 87}".to_owned()),
        Err(error) => Err(format!("it must print a JSON object: {error}")),
    }
}

/// The current readings of the kernel.
fn system_readings(disks: &[(String, PathBuf)]) -> Sample {
    let mut sample = Sample::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            sample.insert(key.to_owned(), value);
        }
    };
    put(
        "uptime_s",
        read_file("/proc/uptime", parse::uptime).map(Value::from),
    );
    put(
        "load",
        read_file("/proc/loadavg", parse::load).map(|load| json!(load)),
    );
    put(
        "memory",
        read_file("/proc/meminfo", parse::memory).map(|memory| json!(memory)),
    );
    let disks: Sample = disks
        .iter()
        .filter_map(|(name, path)| Some((name.clone(), json!(disk_usage(path)?))))
        .collect();
    put("disk", (!disks.is_empty()).then_some(Value::Object(disks)));
    put("cpu_temperature", cpu_temperature().map(Value::from));
    put(
        "wifi",
        read_file("/proc/net/wireless", parse::wifi).map(|wifi| json!(wifi)),
    );
    put("throttling", throttling().map(|throttling| json!(throttling)));
    sample
}

fn read_file<T>(path: impl AsRef<Path>, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    parse(&std::fs::read_to_string(path).ok()?)
}

/// Space on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DiskUsage {
    /// Size of the disk.
    pub total: u64,
    /// Space that this program can still use.
    pub free: u64,
}

/// Space on the disk that holds `path`.
pub fn disk_usage(path: &Path) -> Option<DiskUsage> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(DiskUsage {
        total: disk.f_blocks.saturating_mul(disk.f_frsize),
        free: disk.f_bavail.saturating_mul(disk.f_frsize),
    })
}

/// The processor's temperature, or the first available one, in degrees Celsius.
pub fn cpu_temperature() -> Option<f64> {
    let mut zones: Vec<PathBuf> = std::fs::read_dir("/sys/class/thermal")
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    zones.sort();
    let of_cpu = |zone: &PathBuf| {
        read_file(zone.join("type"), |kind| {
            let kind = kind.to_lowercase();
            (kind.contains("cpu") || kind.contains("pkg")).then_some(())
        })
        .is_none()
    };
    zones.sort_by_key(of_cpu);
    zones
        .iter()
        .find_map(|zone| read_file(zone.join("temp"), parse::temperature))
}

/// Whether the firmware throttles the processor.
pub fn throttling() -> Option<parse::Throttling> {
    read_file(THROTTLED_PATH, parse::throttling)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn telemetry(command: Option<&[&str]>) -> Telemetry {
        let command = command.map(|argv| {
            let argv = argv.iter().map(|part| (*part).to_owned()).collect();
            config::Argv::new(argv).expect("a command")
        });
        let config = config::Telemetry {
            interval: Duration::from_millis(20),
            command,
            timeout: Duration::from_millis(500),
        };
        Telemetry::new(
            config,
            vec![
                ("state".to_owned(), "/".into()),
                ("gone".to_owned(), "/no/such".into()),
            ],
            Plugins::new(&config::Config::default()),
        )
    }

    #[tokio::test]
    async fn missing_sensors_are_left_out_of_the_sample() {
        let sample = telemetry(None).sample().await;
        assert!(sample["uptime_s"].as_f64().expect("a number") > 0.0);
        assert!(sample["memory"]["total"].as_u64() > sample["memory"]["available"].as_u64());
        assert!(sample["disk"]["state"]["total"].as_u64().expect("a number") > 0);
        assert!(sample["disk"].get("gone").is_none());
    }

    async fn first_with(command: &[&str], key: &str) -> Sample {
        let telemetry = telemetry(Some(command));
        let shutdown = CancellationToken::new();
        let mut samples = telemetry.subscribe();
        tokio::select! {
            () = telemetry.run(&shutdown) => Sample::new(),
            found = samples.wait_for(|sample| sample.contains_key(key)) => found.expect("open").clone(),
        }
    }

    #[tokio::test]
    async fn command_fields_never_replace_built_in_ones() {
        let script = "echo noise >&2; echo '{\"battery\": 87, \"load\": \"mine\", \"x\": NaN}'";
        let sample = first_with(&["sh", "-c", script], "battery").await;
        assert_eq!(sample["battery"], 87);
        assert!(sample["load"].is_array() && sample["x"].is_null());
    }

    #[tokio::test]
    async fn a_failing_telemetry_command_is_in_the_sample() {
        for (command, expected) in [
            (["sh", "-c", "echo 7"], "JSON object"),
            (["sh", "-c", "exit 4"], "exit status 4"),
            (["sh", "-c", "sleep 9"], "was killed"),
            (["/no/such", "", ""], "cannot start"),
        ] {
            let sample = first_with(&command, "command_error").await;
            let error = sample["command_error"].as_str().expect("a text");
            assert!(error.contains(expected), "{error}");
        }
    }
}
