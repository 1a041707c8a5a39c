//! The action `selfcheck`: whether this device is fit for work. `done` if every check is good, otherwise `failed`;
//! both hold the list of checks.

use std::path::Path;

use serde::Serialize;
use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::proto::message::{Arguments, LOST_LINK_CHECK};
use swarm_shared::proto::outcome::Reply;

use super::params::Params;
use super::{Inner, Setup};
use crate::config::{self, Config, Origin};
use crate::status::LinkLoss;
use crate::telemetry;

/// Least free space on a disk, in bytes.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// 2025-01-01 in milliseconds since 1970: a clock before that was never set.
const CLOCK_MIN_MS: u64 = 1_735_689_600_000;
/// In degrees Celsius: a Raspberry Pi throttles at 80.
const TEMPERATURE_MAX: f64 = 80.0;

/// Check of the file that holds the emergency stop.
const STOP_RECORD: &str = "stop record";
/// Check of the file that holds the commands.
const JOURNAL: &str = "journal";

#[derive(Debug, Serialize)]
struct Check {
    check: String,
    ok: bool,
    detail: String,
}

impl Inner {
    pub(super) async fn selfcheck(&self, arguments: &Arguments) -> Result<Reply, String> {
        Params::parse(arguments, &[])?;
        let command_error = self.setup.telemetry.command_error();
        let state = self.setup.state.clone();
        let (path, roots) = (self.setup.config_path.clone(), self.setup.roots.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let mut checks = vec![
                check_result("state", state.probe().map(|()| "writable".to_owned())),
                check_disk_space("disk state", state.path()),
                check_clock(),
                check_config(&path),
            ];
            for (name, dir) in roots.iter() {
                let opened = std::fs::read_dir(dir).map(|_entries| dir.display().to_string());
                checks.push(check_result(&format!("root {name}"), opened));
                checks.push(check_disk_space(&format!("disk {name}"), dir));
            }
            checks.extend(telemetry::cpu_temperature().map(|degrees| Check {
                check: "temperature".to_owned(),
                ok: degrees < TEMPERATURE_MAX,
                detail: format!("{degrees:.1} °C"),
            }));
            checks.extend(telemetry::throttling().map(|now| {
                Check {
                    check: "throttling".to_owned(),
                    ok: !now.throttled && !now.under_voltage,
                    detail: match (now.under_voltage, now.throttled) {
                        (true, _) => "the supply's voltage is too low",
                        (false, true) => "the processor is slowed down",
                        (false, false) => "none",
                    }
                    .to_owned(),
                }
            }));
            checks
        });
        let mut checks = checked.await.map_err(|error| error.to_string())?;
        if self.setup.has_telemetry_command() {
            checks.push(Check {
                check: "telemetry".to_owned(),
                ok: command_error.is_none(),
                detail: command_error.unwrap_or_else(|| "the command works".to_owned()),
            });
        }
        let facts = self.setup.status.view();
        checks.push(check_emergency_stop(facts.stopped, facts.held));
        checks.push(check_record(
            STOP_RECORD,
            "two sound copies",
            facts.stop_record_problem,
        ));
        checks.push(check_record(
            JOURNAL,
            "was sound at the start",
            facts.journal_damage,
        ));
        checks.extend(facts.last_loss.map(check_lost_link));
        let bad: Vec<String> = checks
            .iter()
            .filter(|check| !check.ok)
            .map(|check| format!("{}: {}", check.check, check.detail))
            .collect();
        let reply = if bad.is_empty() {
            Reply::done(json!(checks))
        } else {
            Reply {
                value: Some(json!(checks)),
                ..Reply::failed(bad.join("; "))
            }
        };
        Ok(reply)
    }
}

impl Setup {
    fn has_telemetry_command(&self) -> bool {
        self.config.telemetry.command.is_some()
    }
}

fn check_result<E: std::fmt::Display>(check: &str, result: Result<String, E>) -> Check {
    Check {
        check: check.to_owned(),
        ok: result.is_ok(),
        detail: result.unwrap_or_else(|error| error.to_string()),
    }
}

fn check_disk_space(check: &str, path: &Path) -> Check {
    let disk = telemetry::disk_usage(path);
    Check {
        check: check.to_owned(),
        ok: disk.is_some_and(|disk| disk.free >= FREE_BYTES_MIN),
        detail: match disk {
            Some(disk) => format!("{} of {} MiB free", disk.free >> 20, disk.total >> 20),
            None => "cannot be read".to_owned(),
        },
    }
}

fn check_clock() -> Check {
    let now = clock::unix_time_ms();
    let ok = now >= CLOCK_MIN_MS;
    Check {
        check: "clock".to_owned(),
        ok,
        detail: if ok {
            "is set"
        } else {
            "was never set: links work, times in logs do not"
        }
        .to_owned(),
    }
}

/// A file of the state directory, and what is wrong with it.
fn check_record(check: &str, sound: &str, problem: Option<String>) -> Check {
    Check {
        check: check.to_owned(),
        ok: problem.is_none(),
        detail: problem.unwrap_or_else(|| sound.to_owned()),
    }
}

fn check_emergency_stop(stopped: Option<String>, held: bool) -> Check {
    let state = if held { "" } else { "STOPPED " };
    Check {
        check: "emergency stop".to_owned(),
        ok: stopped.is_none(),
        detail: stopped.map_or_else(
            || "none".to_owned(),
            |by| format!("{state}{by}; `ground-station release` ends it"),
        ),
    }
}

/// The command that asks needs a link, so that this is about a past loss.
fn check_lost_link(loss: LinkLoss) -> Check {
    let LinkLoss { number, command } = loss;
    let result = match &command {
        None => "runs",
        Some(Ok(())) => "succeeded",
        Some(Err(why)) => &format!("FAILED: {why}"),
    };
    Check {
        check: LOST_LINK_CHECK.to_owned(),
        ok: !matches!(command, Some(Err(_))),
        detail: format!(
            "no station was heard, for the {number}. time since the node started; its command {result}"
        ),
    }
}

fn check_config(path: &Path) -> Check {
    let origin = Origin::File(path.to_owned(), None);
    let checked = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("no file".to_owned()),
        Err(error) => Err(error.to_string()),
        Ok(text) => Config::parse_with_variables(&text, &origin, config::variables())
            .map(|_| "the file is valid".to_owned())
            .map_err(|error| error.to_string()),
    };
    check_result("config", checked)
}
