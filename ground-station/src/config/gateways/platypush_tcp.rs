//! `[gateways.platypush_tcp]`: Platypush's messages over TCP.
//!
//! ```toml
//! [gateways.platypush_tcp]
//! bind_address = "0.0.0.0"   # Platypush's own keys; with `port`, the same as `listen`
//! port = 1234
//! listen_queue = 1024        # connections that wait to be accepted
//! idle = "1s"                # how long another request is waited for after a response
//! ```
//!
//! `idle` is short here because a client such as `nc` ends when the connection does.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::Deserializer;
use swarm_shared::config::{KeyError, Keys, value};

use super::{CommonOptions, key_error};

/// How long another request is waited for after a response, unless configured.
const IDLE: Duration = Duration::from_secs(1);

gateway_config! {
    /// The keys of `[gateways.platypush_tcp]`.
    PlatypushTcpConfig "platypush_tcp", common CommonOptions { idle: IDLE, ..CommonOptions::at(1234) };
    /// The address of `listen`.
    #[serde(deserialize_with = "ip")]
    bind_address: Option<IpAddr> = None,
    /// The port of `listen`.
    #[serde(deserialize_with = "super::port")]
    port: Option<u16> = None,
    /// Connections that the kernel holds until they are accepted.
    #[serde(deserialize_with = "value::ranged::<_, _, 1, 65535>")]
    listen_queue: u32 = 1_024,
}

impl PlatypushTcpConfig {
    /// Carries Platypush's own keys over to the common ones.
    pub(super) fn check(&mut self, keys: &Keys<'_>) -> Result<(), KeyError> {
        let is_set = |key: &str| keys.has(&["gateways", Self::NAME, key]);
        let separate = ["bind_address", "port"].into_iter().find(|key| is_set(key));
        if let Some(key) = separate.filter(|_| is_set("listen")) {
            let message = "`listen` has both address and port: remove it, or `bind_address` and `port`";
            return Err(key_error(Self::NAME, &[key], message));
        }
        let listen = &mut self.common.listen;
        if let Some(ip) = self.bind_address {
            listen.set_ip(ip);
        }
        if let Some(port) = self.port {
            listen.set_port(port);
        }
        self.common.backlog = self.listen_queue;
        Ok(())
    }
}

fn ip<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    value::text(from, |text| match text {
        "localhost" => Ok(Some(Ipv4Addr::LOCALHOST.into())),
        text => {
            let rule = "is not an address such as 127.0.0.1 or 0.0.0.0";
            text.parse()
                .map(Some)
                .map_err(|_syntax| format!("{text:?} {rule}"))
        }
    })
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
        assert_eq!(gateway.common.backlog, 5);
        let gateway = read("bind_address = \"::\"").expect("reads");
        assert_eq!(gateway.common.listen, "[::]:1234".parse().expect("an address"));
        assert_eq!(gateway.common.idle, IDLE);
    }

    #[test]
    fn listen_excludes_bind_address_and_port() {
        for (text, key) in [
            (
                "listen = \"127.0.0.1:1\"\nport = 2",
                "c:3: gateways.platypush_tcp.port",
            ),
            (
                "port = 2\nlisten = \"127.0.0.1:1\"",
                "c:2: gateways.platypush_tcp.port",
            ),
            (
                "bind_address = \"0.0.0.0\"\nlisten = \"127.0.0.1:1\"",
                "c:2: gateways.platypush_tcp.bind_address",
            ),
        ] {
            let error = read(text).expect_err(text);
            let says = "`listen` has both address and port";
            assert!(error.starts_with(key) && error.contains(says), "{error}");
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
