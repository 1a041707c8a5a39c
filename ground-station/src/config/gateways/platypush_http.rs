//! `[gateways.platypush_http]`: Platypush's messages, hooks and events over HTTP.
//!
//! ```toml
//! [gateways.platypush_http]
//! websocket_port = 8009          # events for older clients; closed unless configured
//! tls = "self-made"              # "none" unless configured; or a certificate of your own:
//! ssl_cert = "/etc/ssl/gateway.crt"
//! ssl_key = "/etc/ssl/gateway.key"
//! ssl_cafile = "/etc/ssl/ca.crt" # admit only clients with a certificate of this authority
//! ssl_capath = "/etc/ssl/cas"    # the same, a directory of such files
//!
//! [gateways.platypush_http.resources]
//! music = "/srv/music"           # /resources/music/…
//! ```
//!
//! Hooks are in the module of [`Hook`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use swarm_shared::config::KeyError;

use super::{CommonOptions, key_error};

mod hook;
#[cfg(test)]
mod tests;

pub use hook::{BadValue, Hook, HookInput, Parameter};

/// Longest name of a hook or a resource, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Whether a gateway speaks TLS, where no certificate is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// It does not.
    None,
    /// With a certificate that the station made for itself.
    SelfMade,
}

gateway_config! {
    /// The keys of `[gateways.platypush_http]`.
    PlatypushHttpConfig "platypush_http", common CommonOptions::at(8008);
    /// Whether the gateway speaks TLS.
    tls: Tls = Tls::None,
    /// A file of certificates in PEM.
    ssl_cert: Option<PathBuf> = None,
    /// A file with the key of the first certificate, in PEM.
    ssl_key: Option<PathBuf> = None,
    /// A file of authorities in PEM; every client has to show a certificate of one of them.
    ssl_cafile: Option<PathBuf> = None,
    /// A directory of such files.
    ssl_capath: Option<PathBuf> = None,
    /// The port at which older clients read events.
    #[serde(deserialize_with = "super::port")]
    websocket_port: Option<u16> = None,
    /// Directories, by their name in URLs.
    resources: BTreeMap<String, PathBuf> = BTreeMap::new(),
    /// Commands that a URL sends, by their name in URLs.
    hooks: BTreeMap<String, Hook> = BTreeMap::new(),
}

impl PlatypushHttpConfig {
    /// Checks names, and the parameters of hooks.
    pub(super) fn check(&self) -> Result<(), KeyError> {
        for (name, dir) in &self.resources {
            let key = ["resources", name.as_str()];
            check_name("resource", name).map_err(|message| key_error(Self::NAME, &key, message))?;
            if dir.as_os_str().is_empty() {
                return Err(key_error(
                    Self::NAME,
                    &key,
                    format!("is not a directory: {name} = \"/srv/{name}\""),
                ));
            }
        }
        for (name, hook) in &self.hooks {
            check_name("hook", name).map_err(|message| key_error(Self::NAME, &["hooks", name], message))?;
            for (parameter, definition) in &hook.parameters {
                let key = ["hooks", name, "parameters", parameter];
                definition
                    .check_definition()
                    .map_err(|message| key_error(Self::NAME, &key, message))?;
            }
        }
        Ok(())
    }
}

/// Checks a name that stands in a URL without escapes.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let valid =
        (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with('.');
    valid.then_some(()).ok_or_else(|| {
        format!("{name:?} is not the name of a {what}: use 1 to {NAME_BYTES_MAX} letters, digits and . _ -, not beginning with .")
    })
}
