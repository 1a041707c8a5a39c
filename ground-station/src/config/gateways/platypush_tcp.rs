//! `[doors.platypush_tcp]`: Platypush's messages over TCP.
//!
//! ```toml
//! [doors.platypush_tcp]
//! bind_address = "0.0.0.0"   # with `port`, what `listen` says in one word; Platypush's own keys
//! port = 1234
//! listen_queue = 1024        # connections that wait to be let in
//! idle = "1s"                # how long another request is waited for after an answer
//! ```
//!
//! `idle` is short here because a client such as `nc` ends when the connection does.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{Common, Door, Kind, Raw, within};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatypushTcp {
    /// What every door has.
    pub common: Common,
    /// How the address was said.
    said: Option<Said>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// By `listen`.
    Whole,
    /// By `bind_address` and `port`.
    Apart,
}

/// Its usual port.
const PORT: u16 = 1234;
/// How long another request is waited for after an answer.
const IDLE: Duration = Duration::from_secs(1);

impl PlatypushTcp {
    fn say(&mut self, how: Said) -> Result<(), String> {
        match self.said.replace(how) {
            Some(before) if before != how => {
                Err("`listen` says what `bind_address` and `port` say: keep one of the two ways".to_owned())
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Door for PlatypushTcp {
    const NAME: &'static str = "platypush_tcp";
    const KEYS: &'static [(&'static str, Kind)] = &[
        ("bind_address", Kind::Text),
        ("port", Kind::Number),
        ("listen_queue", Kind::Number),
    ];

    fn open() -> Self {
        let mut common = Common::at(PORT);
        common.limits.idle = IDLE;
        Self { common, said: None }
    }

    fn common(&mut self) -> &mut Common {
        &mut self.common
    }

    fn has_taken(&mut self, key: &str) -> Result<(), String> {
        if key == "listen" {
            return self.say(Said::Whole);
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &Raw<'_>) -> Result<(), String> {
        match (key, value) {
            ("bind_address", Raw::Text(text)) => {
                let ip = match *text {
                    "localhost" => IpAddr::from(Ipv4Addr::LOCALHOST),
                    text => text
                        .parse()
                        .map_err(|_bad| format!("{text:?} is not an address such as 127.0.0.1 or 0.0.0.0"))?,
                };
                self.common.listen.set_ip(ip);
                self.say(Said::Apart)
            }
            ("port", Raw::Number(number)) => {
                self.common.listen.set_port(within(key, *number, 1, 65_535)?);
                self.say(Said::Apart)
            }
            ("listen_queue", Raw::Number(number)) => {
                self.common.limits.waiting = within(key, *number, 1, 65_535)?;
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

    fn read(text: &str) -> Result<PlatypushTcp, String> {
        let mut config = Config::for_host("pi");
        let text = format!("[doors.platypush_tcp]\n{text}");
        let read = config.read_file(Path::new("c"), &text);
        read.map_err(|error| error.to_string())?;
        config.doors.platypush_tcp.ok_or_else(|| "closed".to_owned())
    }

    #[test]
    fn platypush_own_keys_are_read() {
        let door = read("port = 4321\nbind_address = \"0.0.0.0\"\nlisten_queue = 5").expect("reads");
        assert_eq!(door.common.listen, "0.0.0.0:4321".parse().expect("an address"));
        assert_eq!(door.common.limits.waiting, 5);
        let door = read("bind_address = \"::\"").expect("reads");
        assert_eq!(door.common.listen, "[::]:1234".parse().expect("an address"));
        assert_eq!(door.common.limits.idle, IDLE);
    }

    #[test]
    fn two_ways_to_say_the_address_are_one_too_many() {
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
