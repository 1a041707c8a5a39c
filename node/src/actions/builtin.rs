//! The smaller built-in actions: `id`, `time`, `log`, `execute`, `service_restart`, `reboot`, `notify`.

use serde_json::{Value, json};
use swarm_shared::config::duration;
use swarm_shared::net::clock;
use swarm_shared::proto::id::NodeName;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::trust::Role;

use super::params::Params;
use super::{Command, Inner};
use crate::config::TEXT_BYTES_MAX;
use crate::logging::LOG_LINES_BURST;
use crate::telemetry::Sample;

/// Lines that `log` returns by default.
const LOG_LINES_DEFAULT: u64 = 50;
/// Longest output of `log`, in bytes; the oldest lines are omitted first.
const LOG_BYTES_MAX: usize = 256 * 1024;
/// Time-out of `systemctl`.
const SYSTEMCTL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(90);
/// Value of `new_id=` that stands for the host's name.
const HOSTNAME: &str = "/hostname";

pub(super) fn ping(arguments: &Arguments) -> Result<Reply, String> {
    Params::parse(arguments, &[])?;
    Ok(Reply::done(json!("pong")))
}

pub(super) fn time(arguments: &Arguments) -> Result<Reply, String> {
    Params::parse(arguments, &[])?;
    Ok(Reply::done(json!({ "unix_ms": clock::unix_time_ms() })))
}

/// The host's name, converted to a node name.
pub(crate) fn host_name() -> NodeName {
    NodeName::from_host(&rustix::system::uname().nodename().to_string_lossy())
}

impl Inner {
    pub(super) async fn identify(&self, arguments: &Arguments) -> Result<Reply, String> {
        let params = Params::parse(arguments, &["new_id"])?;
        let mut note = None;
        if let Some(text) = params.optional_text("new_id")? {
            let name = match text.as_ref() {
                HOSTNAME => host_name(),
                text => NodeName::parse(text).map_err(|error| error.to_string())?,
            };
            let (state, remembered) = (self.setup.state.clone(), name.clone());
            let written = tokio::task::spawn_blocking(move || state.set_name(&remembered)).await;
            note = match written {
                Ok(Ok(())) => self
                    .setup
                    .name_fixed_by
                    .map(|by| format!("until the next start: then {by} sets the name again")),
                Ok(Err(error)) => Some(format!(
                    "until the next start, because it cannot be stored: {error}"
                )),
                Err(error) => Some(format!("until the next start: {error}")),
            };
            let old = self.setup.name.send_replace(name.clone());
            tracing::info!(%old, new = %name, "Node renamed");
        }
        let mut value = json!({
            "name": self.setup.name.borrow().clone(),
            "id": self.setup.id,
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let (Some(note), Value::Object(fields)) = (note, &mut value) {
            fields.insert("note".to_owned(), note.into());
        }
        Ok(Reply::done(value))
    }

    pub(super) async fn telemetry(&self, arguments: &Arguments) -> Result<Reply, String> {
        Params::parse(arguments, &[])?;
        Ok(Reply::done(Value::Object(self.telemetry_sample().await)))
    }

    pub(super) async fn telemetry_sample(&self) -> Sample {
        let mut sample = self.setup.telemetry.sample().await;
        if let Some(stopped) = self.setup.status.view().stopped {
            sample.insert("stopped".to_owned(), stopped.into());
        }
        sample
    }

    pub(super) async fn execute(&self, command: &Command) -> Result<Reply, String> {
        let allowed = self.setup.config.execute;
        if command.role != Role::Admin {
            return Err(format!("execute needs the role admin; yours is {}", command.role));
        }
        if !allowed.allowed {
            return Err(
                "execute is off on this node: its configuration must set [execute] allowed = true".into(),
            );
        }
        let params = Params::parse(&command.arguments, &["program", "args", "timeout"])?;
        let mut argv = vec![params.required_text("program")?.into_owned()];
        argv.extend(params.text_list("args")?);
        if argv[0].is_empty() || argv.iter().any(|part| part.contains('\0')) {
            return Err(
                "program and args must be texts without NUL bytes, and program must not be empty".to_owned(),
            );
        }
        let timeout = match params.optional_text("timeout")? {
            None => allowed.timeout,
            Some(text) => duration::parse_nonzero(&text)
                .map_err(|error| error.to_string())?
                .min(allowed.timeout),
        };
        Ok(self.run_program(command, &argv, timeout).await)
    }

    pub(super) async fn service_restart(&self, command: &Command) -> Result<Reply, String> {
        let params = Params::parse(&command.arguments, &["name"])?;
        let name = params.required_text("name")?;
        let bare = |unit: &str| unit.strip_suffix(".service").unwrap_or(unit).to_owned();
        let allowed = &self.setup.config.services.allow;
        let Some(unit) = allowed.iter().find(|unit| bare(unit.as_str()) == bare(&name)) else {
            let known: Vec<&str> = allowed.iter().map(crate::config::UnitName::as_str).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let shown: String = name.chars().take(80).collect();
            return Err(format!(
                "{shown:?} may not be restarted; the node's configuration allows ([services] allow): {known}"
            ));
        };
        let argv = ["systemctl", "restart", unit.as_str()].map(str::to_owned);
        Ok(self.run_program(command, &argv, SYSTEMCTL_TIMEOUT).await)
    }

    pub(super) async fn reboot(&self, command: &Command) -> Result<Reply, String> {
        Params::parse(&command.arguments, &[])?;
        let reboot = &self.setup.config.reboot;
        if !reboot.allowed {
            return Err(
                "reboot is off on this node: its configuration must set [reboot] allowed = true".into(),
            );
        }
        tracing::warn!(peer = command.id.issuer.short(), "Node reboots");
        Ok(self
            .run_program(command, reboot.command.as_slice(), SYSTEMCTL_TIMEOUT)
            .await)
    }

    pub(super) async fn notify(&self, command: &Command) -> Result<Reply, String> {
        let params = Params::parse(&command.arguments, &["text"])?;
        let text = params.required_text("text")?;
        if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.contains('\0') {
            return Err(format!(
                "the text must not be empty and have at most {TEXT_BYTES_MAX} bytes and no NUL"
            ));
        }
        tracing::info!(peer = command.id.issuer.short(), text = ?text, "Notification for the user");
        let notify = &self.setup.config.notify;
        let Some(program) = &notify.command else {
            return Ok(Reply::done(
                "logged only: this node configures no [notify] command to show it".into(),
            ));
        };
        let mut argv = program.as_slice().to_vec();
        argv.push(text.into_owned());
        Ok(self.run_program(command, &argv, notify.timeout).await)
    }

    pub(super) fn log(&self, arguments: &Arguments) -> Result<Reply, String> {
        let params = Params::parse(arguments, &["lines"])?;
        let lines = params.optional_count("lines")?.unwrap_or(LOG_LINES_DEFAULT);
        let count = usize::try_from(lines).unwrap_or(usize::MAX).min(LOG_LINES_BURST);
        let lines = self.setup.log.last(count);
        let mut bytes = 0;
        let fitting = lines
            .iter()
            .rev()
            .take_while(|line| {
                bytes += line.len() + 1;
                bytes <= LOG_BYTES_MAX
            })
            .count();
        let mut output = lines[lines.len() - fitting..].join("\n");
        output.push('\n');
        Ok(Reply {
            output: Some(output),
            ..Reply::done(Value::Null)
        })
    }
}
