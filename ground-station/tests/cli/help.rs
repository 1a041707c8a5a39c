//! What help and errors of usage say.

use insta::assert_snapshot;

use crate::alone;

#[test]
fn the_first_page_is_pleasant() {
    let ran = alone(&["--help"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_snapshot!(ran.out);
}

#[test]
fn each_verb_has_a_page() {
    let mut pages = String::new();
    for verb in [
        "demo",
        "serve",
        "nodes",
        "ping",
        "call",
        "run",
        "send",
        "fetch",
        "notify",
        "history",
        "cancel",
        "stop",
        "release",
        "door",
        "completions",
        "man",
        "fleet",
    ] {
        let ran = alone(&[verb, "--help"]);
        assert_eq!(ran.status, 0, "{verb}");
        let (before, rest) = ran.out.split_once("Common options:").expect(verb);
        let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
        pages.push_str(&format!("=== {verb}\n{before}{after}"));
    }
    let invite = alone(&["fleet", "invite", "--help"]).out;
    pages.push_str(&format!("=== fleet invite\n{invite}"));
    assert_snapshot!(pages);
}

#[test]
fn usage_errors_quote_the_text_and_say_the_rule() {
    let mut errors = String::new();
    for arguments in [
        &["ping", "drone_1"][..],
        &["ping", "drone-[1"],
        &["ping", "--ttl", "soon"],
        &["ping", "--ttl", "1000d"],
        &["call", "all", "led", "--batch", "-1"],
        &["call", "all", "led", "--batch", "-1%"],
        &["call", "all", "led", "red"],
        &["call", "all"],
        &["run", "all", "uptime"],
        &["send", "all:shows/x"],
        &["send", "/nonexistent", "all:shows/x"],
        &["send", "Cargo.toml", "all"],
        &["send", "Cargo.toml", "all:/etc/passwd"],
        &["send", "--per-node", "/nonexistent", "all:shows/x"],
        &["fetch", "all:../x", "."],
        &["serve", "--ping-port", "0"],
        &["nodes", "--config", "/nonexistent/config.toml"],
        &["fleet", "invite", "--uses", "0"],
        &["history", "twelve"],
        &["history", "--state", "fine"],
        &["history", "--since", "yesterday"],
        &["history", "--node", "tag:row=3"],
        &["history", "--retry"],
        &["history", "--audit", "--retry"],
        &["history", "--audit", "--retry", "12"],
        &["cancel"],
        &["cancel", "last"],
        &["history", "--audit", "--node", "drone-07"],
        &["dance"],
    ] {
        let ran = alone(arguments);
        assert_eq!(
            (ran.status, ran.out.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            ran.err
        );
        let first = ran.err.split("\n\n").next().unwrap_or_default();
        errors.push_str(&format!("{arguments:?}\n  {}\n", first.replace('\n', "\n  ")));
    }
    assert_snapshot!(errors);
}

#[test]
fn completions_and_manual_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            alone(&["completions", shell]).out.contains("ground-station"),
            "{shell}"
        );
    }
    assert!(alone(&["man"]).out.contains(".SH"));
    let dir = tempfile::tempdir().expect("a directory");
    let pages = dir.path().join("man1");
    let ran = alone(&["man", "--dir", pages.to_str().expect("text")]);
    assert_eq!((ran.status, ran.out.as_str()), (0, ""));
    for page in [
        "ground-station.1",
        "ground-station-send.1",
        "ground-station-fleet-invite.1",
    ] {
        assert!(pages.join(page).exists(), "{page}");
    }
}
