//! The warning that an emergency stop has no effect on this node.

use tracing_subscriber::layer::SubscriberExt;

use crate::config::{Config, Origin};
use crate::logging::LogRing;

/// The warnings at the start that concern emergency stops.
fn stop_warnings(more: &str, has_stop: bool) -> Vec<String> {
    let text = format!("[gateways.clever_show]\nserver = \"auto\"\n{more}");
    let config = Config::parse(&text, &Origin::Text(None)).expect("a configuration");
    let config = config.gateways.clever_show.expect("a gateway");
    let ring = LogRing::new();
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(ring.clone())
        .with_ansi(false);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        super::super::log_warnings(&config, has_stop);
    });
    let mut warnings = ring.warnings(10);
    warnings.retain(|line| line.contains("Emergency stop"));
    warnings
}

#[test]
fn a_gateway_that_ignores_stops_warns_with_advice() {
    let [allow, command] = [
        "name it in `allow` of [gateways.clever_show]",
        "give it a command in [actions.emergency_land]",
    ];
    let named = "allow = [\"led\", \"emergency_*\"]";
    for (more, has_stop, advice) in [
        ("", false, [true, true]),
        ("", true, [true, false]),
        ("allow = [\"led\", \"land\"]", false, [true, true]),
        ("allow = [\"led\", \"land\"]", true, [true, false]),
        (named, false, [false, true]),
        ("allow = [\"*\"]", false, [false, true]),
    ] {
        let warnings = stop_warnings(more, has_stop);
        let [line] = warnings.as_slice() else {
            panic!("{more}: {warnings:?}")
        };
        assert_eq!([allow, command].map(|text| line.contains(text)), advice, "{line}");
    }
    let observer = stop_warnings("allow = [\"*\"]\nrole = \"observer\"", true);
    assert!(
        observer.len() == 1 && observer[0].contains("see `role`"),
        "{observer:?}"
    );
    assert_eq!(stop_warnings(named, true), [""; 0]);
    assert_eq!(stop_warnings("allow = [\"*\"]", true), [""; 0]);
}
