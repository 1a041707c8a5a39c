//! Checks of a configuration whose keys are valid one by one: gateways that are not built in, options that contradict one
//! another, and options without an effect.

use std::net::{IpAddr, SocketAddr};

use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::trust::gate::{self, Permission};

use super::context::GatewayError;
use crate::config::gateways::{
    CleverShowConfig, CommonOptions, GatewaysConfig, KnutConfig, PlatypushHttpConfig, PlatypushTcpConfig,
    SocktoolsConfig,
};

/// The names of all gateways in the configuration, and whether this program was built with them.
const GATEWAYS: [(&str, bool); 5] = [
    (CleverShowConfig::NAME, cfg!(feature = "gateway-clever-show")),
    (PlatypushTcpConfig::NAME, cfg!(feature = "gateway-platypush-tcp")),
    (
        PlatypushHttpConfig::NAME,
        cfg!(feature = "gateway-platypush-http"),
    ),
    (SocktoolsConfig::NAME, cfg!(feature = "gateway-socktools")),
    (KnutConfig::NAME, cfg!(feature = "gateway-knut")),
];
/// Actions of Platypush's form that read from the station, which every client may.
const STATION_QUERIES: [&str; 2] = ["station.nodes", "station.history"];

/// Finds errors that keep the gateways from opening. Logs a warning for options without an effect.
pub(super) fn check(gateways: &GatewaysConfig) -> Result<(), GatewayError> {
    for (gateway, common) in gateways.enabled() {
        if GATEWAYS.contains(&(gateway, false)) {
            return Err(GatewayError::NotBuilt { gateway });
        }
        check_role(gateway, common, |name| is_query(gateways, gateway, name))
            .map_err(|reason| GatewayError::Configuration { gateway, reason })?;
    }
    check_port_conflicts(&listen_addresses(gateways))?;
    let resources = gateways.platypush_http.iter().flat_map(|http| &http.resources);
    for (name, dir) in resources.filter(|(_, dir)| !dir.is_dir()) {
        tracing::warn!(
            gateway = PlatypushHttpConfig::NAME,
            "resources.{name}: there is no directory {dir:?}: /resources/{name}/ is empty until there is"
        );
    }
    Ok(())
}

/// Checks that the gateway's role permits every action in `allow`. Queries need no role, in `allow` or not.
fn check_role(gateway: &str, common: &CommonOptions, is_query: impl Fn(&str) -> bool) -> Result<(), String> {
    let named = common.allow.iter().filter_map(|glob| glob.literal());
    for name in named.filter(|name| !is_query(name)) {
        let class = gate::classify(&name, &Arguments::default());
        if let Some(lack) = gate::missing_role(common.role, &Permission::Command(class)) {
            return Err(format!(
                "`allow` names {name:?}, but {lack}; set `role` in [gateways.{gateway}], or take {name:?} out of `allow`"
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

#[cfg_attr(
    not(feature = "gateway-clever-show"),
    expect(unused_variables, reason = "queries of one gateway only are configured")
)]
fn is_query(gateways: &GatewaysConfig, gateway: &str, name: &str) -> bool {
    #[cfg(feature = "gateway-clever-show")]
    if let Some(config) = &gateways.clever_show
        && gateway == CleverShowConfig::NAME
        && super::clever_show::is_request(name, &config.requests)
    {
        return true;
    }
    STATION_QUERIES.contains(&name)
}

/// Every address on which a gateway is to listen.
pub(super) fn listen_addresses(gateways: &GatewaysConfig) -> Vec<(&'static str, SocketAddr)> {
    let mut addresses: Vec<_> = gateways
        .enabled()
        .map(|(gateway, common)| (gateway, common.listen))
        .collect();
    if let Some(http) = &gateways.platypush_http
        && let Some(port) = http.websocket_port
    {
        addresses.push((
            PlatypushHttpConfig::NAME,
            SocketAddr::new(http.common.listen.ip(), port),
        ));
    }
    addresses
}

fn check_port_conflicts(addresses: &[(&'static str, SocketAddr)]) -> Result<(), GatewayError> {
    let overlap = |a: SocketAddr, b: SocketAddr| {
        let (one, other) = (a.ip().to_canonical(), b.ip().to_canonical());
        // A socket on all IPv6 addresses accepts IPv4 too; not the reverse.
        let holds = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
        let same = one == other || holds(one, other) || holds(other, one);
        // The kernel chooses a free port for port 0.
        same && a.port() == b.port() && a.port() != 0
    };
    for (index, (first, addr)) in addresses.iter().enumerate() {
        let later = addresses.iter().skip(index + 1);
        if let Some((second, _)) = later.clone().find(|(_, other)| overlap(*addr, *other)) {
            let port = addr.port();
            return Err(if first == second {
                GatewayError::SamePort { gateway: first, port }
            } else {
                GatewayError::PortConflict { first, second, port }
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
        check(&config.gateways).map_err(|error| error.to_string())
    }

    #[test]
    fn port_conflict_error_names_both_gateways() {
        let both = |one: &str, other: &str| {
            checked(&format!(
                "[gateways.knut]\nlisten = \"{one}\"\n[gateways.socktools]\nlisten = \"{other}\""
            ))
        };
        let says = "[gateways.socktools] and [gateways.knut] are both to listen on port 9000: give one of them another in `listen`";
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
            checked("[gateways.platypush_http]\nwebsocket_port = 8008"),
            Err(
                "[gateways.platypush_http]: `listen` and `websocket_port` both name port 8008: give one of them another"
                    .to_owned()
            )
        );
        assert_eq!(both("0.0.0.0:9000", "[::1]:9000"), Ok(()), "no address is both");
        let own = "[gateways.platypush_http]\nwebsocket_port = 8080\n[gateways.knut]";
        let error = checked(own).expect_err("8080 is Knut's");
        assert!(
            error.contains("[gateways.knut]") && error.contains("[gateways.platypush_http]"),
            "{error}"
        );
        assert_eq!(
            checked(
                "[gateways.knut]\n[gateways.socktools]\n[gateways.clever_show]\n[gateways.platypush_http]\n[gateways.platypush_tcp]"
            ),
            Ok(())
        );
    }

    #[test]
    fn allowed_actions_must_be_within_the_gateway_role() {
        let allow = |names: &str, role: &str| {
            checked(&format!(
                "[gateways.platypush_tcp]\nallow = [{names}]\nrole = \"{role}\""
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
        assert_eq!(checked(&format!("[gateways.clever_show]\n{asks}")), Ok(()));
        let acts = "role = \"observer\"\nallow = [\"position\", \"land\"]";
        checked(&format!("[gateways.clever_show]\n{acts}")).expect_err("land");
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
                error.starts_with("[gateways.platypush_tcp]: `allow` names") && error.contains(says),
                "{error}"
            );
        }
    }
}
