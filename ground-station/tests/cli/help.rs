//! What help and errors of usage say.

use insta::assert_snapshot;

use crate::run_without_station;

#[test]
fn top_level_help_is_unchanged() {
    let ran = run_without_station(&["--help"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_snapshot!(ran.stdout);
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
        "gateway",
        "completions",
        "man",
        "fleet",
    ] {
        let ran = run_without_station(&[verb, "--help"]);
        assert_eq!(ran.status, 0, "{verb}");
        let (before, rest) = ran.stdout.split_once("Common options:").expect(verb);
        let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
        pages.push_str(&format!("=== {verb}\n{before}{after}"));
    }
    let invite = run_without_station(&["fleet", "invite", "--help"]).stdout;
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
        let ran = run_without_station(arguments);
        assert_eq!(
            (ran.status, ran.stdout.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            ran.stderr
        );
        let first = ran.stderr.split("\n\n").next().unwrap_or_default();
        errors.push_str(&format!("{arguments:?}\n  {}\n", first.replace('\n', "\n  ")));
    }
    assert_snapshot!(errors);
}

#[test]
fn completions_and_man_pages_are_generated() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            run_without_station(&["completions", shell])
                .stdout
                .contains("ground-station"),
            "{shell}"
        );
    }
    assert!(run_without_station(&["man"]).stdout.contains(".SH"));
    let dir = tempfile::tempdir().expect("a directory");
    let pages = dir.path().join("man1");
    let ran = run_without_station(&["man", "--dir", pages.to_str().expect("text")]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, ""));
    for page in [
        "ground-station.1",
        "ground-station-send.1",
        "ground-station-fleet-invite.1",
    ] {
        assert!(pages.join(page).exists(), "{page}");
    }
}
