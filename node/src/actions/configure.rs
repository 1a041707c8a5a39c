//! The action `config`: reads and changes the configuration file remotely.
//!
//! Without `mode` it returns the file, whole or one `section`, as text. `mode=modify` changes the given keys, in
//! `values` or as arguments of their own (`telemetry.interval=10s`), below `section` if that is given; `mode=rewrite`
//! replaces the file by `text`. `[private]` is neither returned nor changed, and an invalid configuration is not
//! written. A change takes effect at the next start of the daemon.

use serde_json::{Map, Value, json};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::trust::Role;

use super::params::Params;
use super::{Command, Inner};
use crate::config::{self, EditError};

/// Arguments that are not configuration keys.
const CONTROL_ARGUMENTS: [&str; 3] = ["mode", "section", "values"];

impl Inner {
    pub(super) async fn configure(&self, command: &Command) -> Result<Reply, String> {
        let arguments = &command.arguments;
        if !arguments.args.is_empty() {
            return Err("give the arguments of config by name: mode, section, values, text".to_owned());
        }
        let Some(mode) = arguments.kwargs.get("mode").filter(|mode| !mode.is_null()) else {
            return self.read_config(arguments).await;
        };
        if command.role != Role::Admin {
            return Err(format!(
                "changing the configuration needs the role admin, because it decides what may run; yours is {}",
                command.role
            ));
        }
        match mode.as_str() {
            Some("modify") => {
                let changes = parse_changes(arguments)?;
                self.change_config(move |old| config::modify(old, &changes, config::variables()))
                    .await
            }
            Some("rewrite") => {
                let text = Params::parse(arguments, &["mode", "text"])?
                    .required_text("text")?
                    .into_owned();
                self.change_config(move |old| config::rewrite(old, &text, config::variables()))
                    .await
            }
            _ => Err(format!(
                "mode {mode} is not known: use modify or rewrite, or leave it out to read"
            )),
        }
    }

    async fn read_config(&self, arguments: &Arguments) -> Result<Reply, String> {
        let section = Params::parse(arguments, &["mode", "section"])?
            .optional_text("section")?
            .map(std::borrow::Cow::into_owned);
        let path = self.setup.config_path.clone();
        let shown = run_blocking(move || -> Result<_, String> {
            let text = read_or_empty(&path).map_err(|error| error.to_string())?;
            config::without_secrets(&text).map_err(|error| error.to_string())
        })
        .await;
        let shown = match shown {
            Ok(shown) => Value::Object(shown),
            Err(error) => return Ok(Reply::failed(error)),
        };
        let Some(section) = section else {
            return Ok(Reply::done(shown));
        };
        let found = section.split('.').try_fold(&shown, |at, key| at.get(key));
        match found {
            Some(value) => Ok(Reply::done(value.clone())),
            None => Err(format!("the configuration file says nothing about {section:?}")),
        }
    }

    async fn change_config(
        &self,
        change: impl FnOnce(&str) -> Result<String, EditError> + Send + 'static,
    ) -> Result<Reply, String> {
        let _one_at_a_time = self.config_lock.lock().await;
        let path = self.setup.config_path.clone();
        let changed = run_blocking(move || {
            let old = read_or_empty(&path)?;
            let new = change(&old)?;
            if new != old {
                config::write_file(&path, &new)?;
            }
            Ok(new != old)
        })
        .await;
        match changed {
            Ok(changed) => {
                let path = self.setup.config_path.display().to_string();
                tracing::info!(path, changed, "Configuration file changed by a command");
                let effect = if changed {
                    "when the daemon restarts"
                } else {
                    "nothing has changed"
                };
                Ok(Reply::done(
                    json!({ "path": path, "changed": changed, "takes_effect": effect }),
                ))
            }
            Err(error @ EditError::Io { .. }) => Ok(Reply::failed(error.to_string())),
            Err(error @ (EditError::Refused(_) | EditError::Config(_))) => Err(error.to_string()),
        }
    }
}

/// Reads the file; a missing file is empty.
fn read_or_empty(path: &std::path::Path) -> Result<String, EditError> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| EditError::Io {
            path: path.display().to_string(),
            source,
        }),
    }
}

fn parse_changes(arguments: &Arguments) -> Result<Map<String, Value>, String> {
    let mut changes = Map::new();
    match arguments.kwargs.get("values") {
        None | Some(Value::Null) => {}
        Some(Value::Object(values)) => changes.clone_from(values),
        Some(_) => return Err("argument values must be an object of keys and values".to_owned()),
    }
    let own = arguments
        .kwargs
        .iter()
        .filter(|(key, _)| !CONTROL_ARGUMENTS.contains(&key.as_str()));
    changes.extend(own.map(|(key, value)| (key.clone(), value.clone())));
    match arguments.kwargs.get("section") {
        None | Some(Value::Null) => Ok(changes),
        Some(Value::String(section)) => Ok(changes
            .into_iter()
            .map(|(key, value)| (format!("{section}.{key}"), value))
            .collect()),
        Some(_) => Err("argument section must be a text".to_owned()),
    }
}

async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
