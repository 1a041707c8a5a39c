//! What the configuration says of doors, each key well by itself, that does not go together.

use std::net::{IpAddr, SocketAddr};

use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::trust::gate::{self, Wish};

use super::DoorError;
use super::clever_show::is_request;
use crate::config::gateways::{Common, Doors};

/// As the configuration calls it.
const HTTP: &str = "platypush_http";
const CLEVER_SHOW: &str = "clever_show";
const SOCKTOOLS: &str = "socktools";
/// What a request in Platypush's form asks of the station itself, and whoever may come may ask.
const READS: [&str; 2] = ["station.nodes", "station.history"];

/// Finds what keeps the doors from opening, and warns of what only keeps them from being of use.
pub(super) fn check(doors: &Doors) -> Result<(), DoorError> {
    let requests = doors.clever_show.as_ref().map(|door| &door.requests);
    for (door, common) in doors.each() {
        let asks = |name: &str| door == CLEVER_SHOW && requests.is_some_and(|all| is_request(name, all));
        check_role(door, common, asks).map_err(|reason| DoorError::Configuration { door, reason })?;
    }
    if let Some(socktools) = &doors.socktools
        && let (None, Some(key)) = (&socktools.raw.action, socktools.raw.key)
    {
        return Err(DoorError::Configuration {
            door: SOCKTOOLS,
            reason: format!(
                "`{key}` does nothing without `raw_action`: name the action, or take `{key}` out"
            ),
        });
    }
    check_places(&places(doors))?;
    let resources = doors.platypush_http.iter().flat_map(|http| &http.resources);
    for (name, dir) in resources.filter(|(_, dir)| !dir.is_dir()) {
        tracing::warn!(
            door = HTTP,
            "resources.{name}: there is no directory {dir:?}: /resources/{name}/ is empty until there is"
        );
    }
    Ok(())
}

/// What `allow` names is to be done, so the role has to reach that far. What only asks passes by itself, named or not.
fn check_role(door: &str, common: &Common, asks: impl Fn(&str) -> bool) -> Result<(), String> {
    let named = common.allow.iter().filter_map(|glob| glob.literal());
    for name in named.filter(|name| !READS.contains(&name.as_str()) && !asks(name)) {
        let class = gate::classify(&name, &Arguments::default());
        if let Some(lack) = gate::lack(common.role, &Wish::Command(class)) {
            return Err(format!(
                "`allow` names {name:?}, but {lack}; set `role` in [doors.{door}], or take {name:?} out of `allow`"
            ));
        }
        if name == "shell.exec" {
            return Err(
                "`allow` names \"shell.exec\", which is \"execute\" here: name that, and set role = \"admin\"".to_owned(),
            );
        }
    }
    Ok(())
}

/// Every place where something is to listen.
pub(super) fn places(doors: &Doors) -> Vec<(&'static str, SocketAddr)> {
    let mut places: Vec<_> = doors.each().map(|(door, common)| (door, common.listen)).collect();
    if let Some(http) = &doors.platypush_http
        && let Some(port) = http.websocket_port
    {
        places.push((HTTP, SocketAddr::new(http.common.listen.ip(), port)));
    }
    places
}

fn check_places(places: &[(&'static str, SocketAddr)]) -> Result<(), DoorError> {
    let meet = |a: SocketAddr, b: SocketAddr| {
        let (one, other) = (a.ip().to_canonical(), b.ip().to_canonical());
        // All addresses of IPv6 are those of IPv4, too; not the other way round.
        let holds = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
        let same = one == other || holds(one, other) || holds(other, one);
        // Port 0 is any that is free.
        same && a.port() == b.port() && a.port() != 0
    };
    for (place, (first, addr)) in places.iter().enumerate() {
        let later = places.iter().skip(place + 1);
        if let Some((second, _)) = later.clone().find(|(_, other)| meet(*addr, *other)) {
            let port = addr.port();
            return Err(if first == second {
                DoorError::Itself { door: first, port }
            } else {
                DoorError::Twice { first, second, port }
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn checked(text: &str) -> Result<(), String> {
        let mut config = Config::for_host("st");
        config.read_file(Path::new("config.toml"), text).expect("reads");
        check(&config.doors).map_err(|error| error.to_string())
    }

    #[test]
    fn two_doors_at_one_place_are_both_named() {
        let both = |one: &str, other: &str| {
            checked(&format!(
                "[doors.knut]\nlisten = \"{one}\"\n[doors.socktools]\nlisten = \"{other}\""
            ))
        };
        let says = "[doors.socktools] and [doors.knut] are both to listen on port 9000: give one of them another in `listen`";
        for (one, other) in [
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            ("0.0.0.0:9000", "127.0.0.1:9000"),
            ("[::]:9000", "10.0.0.1:9000"),
        ] {
            assert_eq!(both(one, other), Err(says.to_owned()));
        }
        assert_eq!(both("10.0.0.1:9000", "127.0.0.1:9000"), Ok(()));
        assert_eq!(both("127.0.0.1:0", "127.0.0.1:0"), Ok(()));
        assert_eq!(
            checked("[doors.platypush_http]\nwebsocket_port = 8008"),
            Err(
                "[doors.platypush_http]: `listen` and `websocket_port` both name port 8008: give one of them another"
                    .to_owned()
            )
        );
        assert_eq!(both("0.0.0.0:9000", "[::1]:9000"), Ok(()), "no address is both");
        let own = "[doors.platypush_http]\nwebsocket_port = 8080\n[doors.knut]";
        let error = checked(own).expect_err("8080 is Knut's");
        assert!(
            error.contains("[doors.knut]") && error.contains("[doors.platypush_http]"),
            "{error}"
        );
        assert_eq!(
            checked(
                "[doors.knut]\n[doors.socktools]\n[doors.clever_show]\n[doors.platypush_http]\n[doors.platypush_tcp]"
            ),
            Ok(())
        );
    }

    #[test]
    fn how_messages_that_are_no_requests_are_given_on_takes_an_action() {
        let door = |keys: &str| checked(&format!("[doors.socktools]\n{keys}"));
        for (key, value) in [("raw_encoding", "base64"), ("raw_argument", "text")] {
            let alone = format!("{key} = \"{value}\"\n");
            assert_eq!(
                door(&alone),
                Err(format!(
                    "[doors.socktools]: `{key}` does nothing without `raw_action`: name the action, or take `{key}` out"
                ))
            );
            assert_eq!(
                door(&format!("{alone}raw_action = \"led\"\nallow = [\"led\"]")),
                Ok(())
            );
        }
        assert_eq!(door(""), Ok(()));
    }

    #[test]
    fn what_is_allowed_by_name_has_to_be_within_the_role() {
        let allow = |names: &str, role: &str| {
            checked(&format!(
                "[doors.platypush_tcp]\nallow = [{names}]\nrole = \"{role}\""
            ))
        };
        for (names, role) in [
            ("\"execute\"", "admin"),
            ("\"led\"", "operator"),
            ("\"*\"", "operator"),
            ("\"ping\"", "observer"),
            ("\"station.nodes\", \"station.history\"", "observer"),
        ] {
            assert_eq!(allow(names, role), Ok(()), "{names}");
        }
        let asks = "role = \"observer\"\nallow = [\"position\", \"leds\"]\nrequests = [\"leds\"]";
        assert_eq!(checked(&format!("[doors.clever_show]\n{asks}")), Ok(()));
        let acts = "role = \"observer\"\nallow = [\"position\", \"land\"]";
        checked(&format!("[doors.clever_show]\n{acts}")).expect_err("land");
        for (names, role, says) in [
            (
                "\"led\", \"execute\"",
                "operator",
                "it takes role admin; set `role`",
            ),
            (
                "\"led\"",
                "observer",
                "it takes role operator or admin; set `role`",
            ),
            ("\"shell.exec\"", "operator", "which is \"execute\" here"),
        ] {
            let error = allow(names, role).expect_err(names);
            assert!(
                error.starts_with("[doors.platypush_tcp]: `allow` names") && error.contains(says),
                "{error}"
            );
        }
    }
}
