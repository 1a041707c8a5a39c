//! `[gateways.platypush_http]`: Platypush's messages, hooks and events over HTTP.
//!
//! ```toml
//! [gateways.platypush_http]
//! websocket_port = 8009          # events for older clients; off unless said
//! tls = "self-made"              # "none" unless said; or a certificate of your own:
//! ssl_cert = "/etc/ssl/gateway.crt"
//! ssl_key = "/etc/ssl/gateway.key"
//! ssl_cafile = "/etc/ssl/ca.crt" # then only clients with a certificate of this authority come in
//! ssl_capath = "/etc/ssl/cas"    # the same, a directory of such files
//!
//! [gateways.platypush_http.resources]
//! music = "/srv/music"           # /resources/music/…
//! ```
//!
//! Hooks are in [`Hook`]'s module.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::de::DeTable;

use super::{CommonOptions, GatewayConfig, RawValue, ValueKind, in_range};

mod hook;
#[cfg(test)]
mod tests;

pub use hook::{BadValue, Hook, HookInput, Parameter, Source};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatypushHttpConfig {
    /// What every gateway has.
    pub common: CommonOptions,
    /// Whether it speaks TLS.
    pub tls: Tls,
    /// A file of certificates in PEM.
    pub ssl_cert: Option<PathBuf>,
    /// A file with the key of the first of them, in PEM.
    pub ssl_key: Option<PathBuf>,
    /// A file of authorities, one of which every client has to show a certificate of.
    pub ssl_cafile: Option<PathBuf>,
    /// A directory of such files.
    pub ssl_capath: Option<PathBuf>,
    /// Where older clients take their events.
    pub websocket_port: Option<u16>,
    /// Directories by the name that they have in a URL.
    pub resources: BTreeMap<String, PathBuf>,
    /// What can be set off by a URL.
    pub hooks: BTreeMap<String, Hook>,
}

/// Whether a gateway speaks TLS, where no certificate is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// It does not.
    None,
    /// With a certificate that the station made for itself.
    SelfMade,
}

/// Its usual port.
const PORT: u16 = 8008;
/// Longest name of a hook or a resource, in bytes.
const NAME_BYTES_MAX: usize = 64;

impl GatewayConfig for PlatypushHttpConfig {
    const NAME: &'static str = "platypush_http";
    const KEYS: &'static [(&'static str, ValueKind)] = &[
        ("tls", ValueKind::Text),
        ("ssl_cert", ValueKind::Text),
        ("ssl_key", ValueKind::Text),
        ("ssl_cafile", ValueKind::Text),
        ("ssl_capath", ValueKind::Text),
        ("websocket_port", ValueKind::Number),
    ];
    const TABLES: &'static [&'static str] = &["resources", "hooks"];

    fn with_defaults() -> Self {
        Self {
            common: CommonOptions::at(PORT),
            tls: Tls::None,
            ssl_cert: None,
            ssl_key: None,
            ssl_cafile: None,
            ssl_capath: None,
            websocket_port: None,
            resources: BTreeMap::new(),
            hooks: BTreeMap::new(),
        }
    }

    fn common(&mut self) -> &mut CommonOptions {
        &mut self.common
    }

    fn set(&mut self, key: &str, value: &RawValue<'_>) -> Result<(), String> {
        match (key, value) {
            ("tls", RawValue::Text("none")) => self.tls = Tls::None,
            ("tls", RawValue::Text("self-made")) => self.tls = Tls::SelfMade,
            ("tls", RawValue::Text(text)) => {
                return Err(format!("tls is \"none\" or \"self-made\", not {text:?}"));
            }
            ("ssl_cert", RawValue::Text(text)) => self.ssl_cert = Some(text.into()),
            ("ssl_key", RawValue::Text(text)) => self.ssl_key = Some(text.into()),
            ("ssl_cafile", RawValue::Text(text)) => self.ssl_cafile = Some(text.into()),
            ("ssl_capath", RawValue::Text(text)) => self.ssl_capath = Some(text.into()),
            ("websocket_port", RawValue::Number(port)) => {
                self.websocket_port = Some(in_range(key, *port, 1, 65_535)?);
            }
            _ => return Err(format!("{key} has no meaning here")),
        }
        Ok(())
    }

    fn set_table(&mut self, key: &str, table: &DeTable<'_>) -> Option<Result<(), (usize, String)>> {
        match key {
            "resources" => Some(self.set_resources(table)),
            "hooks" => Some(self.set_hooks(table)),
            _ => None,
        }
    }
}

impl PlatypushHttpConfig {
    fn set_resources(&mut self, table: &DeTable<'_>) -> Result<(), (usize, String)> {
        for (name, value) in table {
            check_name("resource", name.get_ref()).map_err(|fault| (name.span().start, fault))?;
            let dir = value.get_ref().as_str();
            let dir = dir.filter(|dir| !dir.is_empty()).ok_or_else(|| {
                let name = name.get_ref();
                let fault = format!("resources.{name} has to be a directory: {name} = \"/srv/{name}\"");
                (value.span().start, fault)
            })?;
            self.resources.insert(name.get_ref().to_string(), dir.into());
        }
        Ok(())
    }

    fn set_hooks(&mut self, table: &DeTable<'_>) -> Result<(), (usize, String)> {
        for (name, value) in table {
            let at = name.span().start;
            check_name("hook", name.get_ref()).map_err(|fault| (at, fault))?;
            let table = value.get_ref().as_table().ok_or_else(|| {
                let name = name.get_ref();
                (
                    at,
                    format!("a hook is a table: write [gateways.platypush_http.hooks.{name}]"),
                )
            })?;
            let hook = Hook::parse(name.get_ref(), at, table)?;
            self.hooks.insert(name.get_ref().to_string(), hook);
        }
        Ok(())
    }
}

/// A name that stands in a URL as it is.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.');
    good.then_some(()).ok_or_else(|| {
        format!("{name:?} is no name of a {what}: 1 to {NAME_BYTES_MAX} letters, digits and . _ -")
    })
}
