//! `[gateways.platypush_tcp]`: Platypush's messages over TCP.
//!
//! ```toml
//! [gateways.platypush_tcp]
//! bind_address = "0.0.0.0"   # with `port`, what `listen` says in one word; Platypush's own keys
//! port = 1234
//! listen_queue = 1024        # connections that wait to be let in
//! idle = "1s"                # how long another request is waited for after an answer
//! ```
//!
//! `idle` is short here because a client such as `nc` ends when the connection does.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{CommonOptions, GatewayConfig, RawValue, ValueKind, in_range};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatypushTcpConfig {
    /// What every gateway has.
    pub common: CommonOptions,
    /// How the address was said.
    address_form: Option<AddressForm>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressForm {
    /// By `listen`.
    Combined,
    /// By `bind_address` and `port`.
    Separate,
}

/// Its usual port.
const PORT: u16 = 1234;
/// How long another request is waited for after an answer.
const IDLE: Duration = Duration::from_secs(1);

impl PlatypushTcpConfig {
    fn set_address_form(&mut self, how: AddressForm) -> Result<(), String> {
        match self.address_form.replace(how) {
            Some(before) if before != how => {
                Err("`listen` says what `bind_address` and `port` say: keep one of the two ways".to_owned())
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl GatewayConfig for PlatypushTcpConfig {
    const NAME: &'static str = "platypush_tcp";
    const KEYS: &'static [(&'static str, ValueKind)] = &[
        ("bind_address", ValueKind::Text),
        ("port", ValueKind::Number),
        ("listen_queue", ValueKind::Number),
    ];

    fn with_defaults() -> Self {
        let mut common = CommonOptions::at(PORT);
        common.limits.idle = IDLE;
        Self {
            common,
            address_form: None,
        }
    }

    fn common(&mut self) -> &mut CommonOptions {
        &mut self.common
    }

    fn after_set(&mut self, key: &str) -> Result<(), String> {
        if key == "listen" {
            return self.set_address_form(AddressForm::Combined);
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &RawValue<'_>) -> Result<(), String> {
        match (key, value) {
            ("bind_address", RawValue::Text(text)) => {
                let ip = match *text {
                    "localhost" => IpAddr::from(Ipv4Addr::LOCALHOST),
                    text => text
                        .parse()
                        .map_err(|_bad| format!("{text:?} is not an address such as 127.0.0.1 or 0.0.0.0"))?,
                };
                self.common.listen.set_ip(ip);
                self.set_address_form(AddressForm::Separate)
            }
            ("port", RawValue::Number(number)) => {
                self.common.listen.set_port(in_range(key, *number, 1, 65_535)?);
                self.set_address_form(AddressForm::Separate)
            }
            ("listen_queue", RawValue::Number(number)) => {
                self.common.limits.backlog = in_range(key, *number, 1, 65_535)?;
                Ok(())
            }
            _ => Err(format!("{key} has no meaning here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn read(text: &str) -> Result<PlatypushTcpConfig, String> {
        let mut config = Config::for_host("pi");
        let text = format!("[gateways.platypush_tcp]\n{text}");
        let read = config.read_file(Path::new("c"), &text);
        read.map_err(|error| error.to_string())?;
        config.gateways.platypush_tcp.ok_or_else(|| "closed".to_owned())
    }

    #[test]
    fn platypush_tcp_keys_are_read() {
        let gateway = read("port = 4321\nbind_address = \"0.0.0.0\"\nlisten_queue = 5").expect("reads");
        assert_eq!(gateway.common.listen, "0.0.0.0:4321".parse().expect("an address"));
        assert_eq!(gateway.common.limits.backlog, 5);
        let gateway = read("bind_address = \"::\"").expect("reads");
        assert_eq!(gateway.common.listen, "[::]:1234".parse().expect("an address"));
        assert_eq!(gateway.common.limits.idle, IDLE);
    }

    #[test]
    fn listen_excludes_bind_address_and_port() {
        for text in [
            "listen = \"127.0.0.1:1\"\nport = 2",
            "port = 2\nlisten = \"127.0.0.1:1\"",
            "bind_address = \"0.0.0.0\"\nlisten = \"127.0.0.1:1\"",
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with("c:3: `listen` says what"), "{error}");
        }
        for text in [
            "port = 0",
            "port = 70000",
            "listen_queue = 0",
            "bind_address = \"here\"",
        ] {
            read(text).expect_err(text);
        }
    }
}
