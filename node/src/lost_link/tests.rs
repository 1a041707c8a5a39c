//! Time is moved by hand.

use super::*;

const AFTER: Duration = Duration::from_secs(10);

#[test]
fn it_runs_once_for_each_loss() {
    let start = clock::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut lost = LostLink::new(AFTER, None, start);
    assert!(
        lost.handle_timeout(at(1_000), false) == Due::Nothing,
        "never linked, never lost"
    );
    lost.heard(at(1_000));
    lost.heard(at(1_005));
    lost.heard(at(1_004));
    assert_eq!(lost.poll_timeout(), Some(at(1_015)));
    assert!(lost.handle_timeout(at(1_014), false) == Due::Nothing);
    assert!(lost.handle_timeout(at(1_015), false) == Due::Run);
    for s in 1_015..1_100 {
        assert!(lost.handle_timeout(at(s), false) == Due::Nothing, "once");
    }
    lost.heard(at(1_005));
    assert!(lost.is_lost(), "old news does not end a loss");
    lost.heard(at(1_200));
    assert!(!lost.is_lost() && lost.handle_timeout(at(1_209), false) == Due::Nothing);
    assert!(
        lost.handle_timeout(at(1_210), false) == Due::Run,
        "and again after a second loss"
    );
}

#[test]
fn time_that_passed_in_one_leap_counts() {
    let start = clock::now();
    let mut lost = LostLink::new(AFTER, None, start);
    lost.heard(start);
    assert!(lost.handle_timeout(start + Duration::from_secs(3_600), false) == Due::Run);
    assert!(lost.handle_timeout(start + Duration::from_secs(7_200), false) == Due::Nothing);
}

#[test]
fn a_stop_holds_the_command_back_until_its_release_if_the_loss_still_lasts() {
    let start = clock::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut lost = LostLink::new(AFTER, None, start);
    lost.heard(start);
    assert_eq!(lost.handle_timeout(at(10), true), Due::Held);
    assert_eq!(lost.handle_timeout(at(60), true), Due::Nothing, "stopped");
    assert_eq!(lost.handle_timeout(at(61), false), Due::RunNow, "released");
    assert_eq!(lost.handle_timeout(at(62), false), Due::Nothing, "once");
    assert_eq!(lost.handle_timeout(at(63), true), Due::Nothing);
    assert_eq!(
        lost.handle_timeout(at(64), false),
        Due::Nothing,
        "once for each loss"
    );
    lost.heard(at(100));
    assert_eq!(lost.handle_timeout(at(110), true), Due::Held);
    lost.heard(at(120));
    assert_eq!(
        lost.handle_timeout(at(121), false),
        Due::Nothing,
        "the loss is over"
    );
}

#[tokio::test]
async fn a_stop_kills_the_command_unless_it_may_run_while_stopped() {
    let mut config = config::Config::parse(
        "[lost_link]\nafter = \"1s\"\ncommand = [\"/bin/sleep\", \"0.3\"]",
        &config::Origin::Text(None),
    )
    .expect("a configuration")
    .lost_link
    .expect("is there");
    assert!(!config.while_stopped, "unless its owner says so");
    let order = Latch {
        issuer: swarm_shared::proto::id::PublicKey([1; 32]).id(),
        number: 1,
    };
    let (_task, mut in_force) = watch::channel(Some(order));
    let stop = CancellationToken::new();
    run_command(&config, &mut in_force, &stop)
        .await
        .expect_err("killed");
    config.while_stopped = true;
    assert_eq!(run_command(&config, &mut in_force, &stop).await, Ok(()));
}

/// The process ends, and another one starts on the same boot.
fn restarted(lost: &LostLink, at: Instant) -> LostLink {
    LostLink::new(AFTER, lost.past(), at)
}

#[test]
fn it_is_armed_from_the_start_if_a_station_was_linked_before_a_restart() {
    let start = clock::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let unarmed = LostLink::new(AFTER, None, start);
    let mut lost = restarted(&unarmed, at(1));
    assert_eq!(
        lost.handle_timeout(at(1_000), false),
        Due::Nothing,
        "never linked"
    );
    lost.heard(at(1_000));
    let mut lost = restarted(&lost, at(2_000));
    assert_eq!(lost.handle_timeout(at(2_009), false), Due::Nothing);
    assert_eq!(lost.handle_timeout(at(2_010), false), Due::Run);
    // Killed while the command runs: it may have done nothing yet.
    let mut lost = restarted(&lost, at(3_000));
    assert_eq!(lost.handle_timeout(at(3_010), false), Due::Run);
    lost.command_ended();
    let mut lost = restarted(&lost, at(4_000));
    assert!(lost.is_lost());
    assert_eq!(
        lost.handle_timeout(at(5_000), false),
        Due::Nothing,
        "once for each loss"
    );
    lost.heard(at(5_000));
    let mut lost = restarted(&lost, at(6_000));
    assert_eq!(lost.handle_timeout(at(6_010), false), Due::Run, "a second loss");
}

#[test]
fn what_a_stop_held_back_is_not_forgotten_by_a_restart() {
    let start = clock::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut lost = LostLink::new(AFTER, Some(Past::Linked), start);
    assert_eq!(lost.handle_timeout(at(10), true), Due::Held);
    let mut lost = restarted(&lost, at(20));
    assert_eq!(lost.handle_timeout(at(30), true), Due::Held);
    assert_eq!(lost.handle_timeout(at(31), false), Due::RunNow);
    lost.heard(at(32));
    lost.command_ended();
    assert_eq!(
        lost.past(),
        Some(Past::Linked),
        "its end is not that of the next loss"
    );
}

#[tokio::test]
async fn what_is_remembered_holds_for_one_boot() {
    let dir = tempfile::tempdir().expect("a directory");
    let memory = Memory::new(dir.path());
    let file = dir.path().join("lost-link.json");
    assert_eq!(memory.past("a"), None);
    for past in [Past::Linked, Past::Over] {
        let (facts, to_keep) = watch::channel(None);
        let writer = tokio::spawn(keep(memory.clone(), "a".to_owned(), to_keep));
        facts.send_replace(Some(past));
        drop(facts);
        writer.await.expect("ends");
        assert_eq!(memory.past("a"), Some(past));
        assert_eq!(memory.past("b"), None, "another boot");
    }
    std::fs::write(&file, "{").expect("written");
    assert_eq!(memory.past("a"), None);
    // A machine that does not say which boot it is could have been rebooted any time.
    std::fs::write(&file, r#"{"boot":"","state":"linked"}"#).expect("written");
    assert_eq!(memory.past(""), None);
}

/// A change is written once, not at each look.
#[tokio::test]
async fn what_stays_as_it_is_is_not_written_again() {
    let start = clock::now();
    let mut lost = LostLink::new(AFTER, None, start);
    let (facts, mut seen) = watch::channel(None);
    remember(&facts, &lost);
    assert!(!seen.has_changed().expect("open"));
    for s in 0..5 {
        lost.heard(start + Duration::from_secs(s));
        remember(&facts, &lost);
        assert_eq!(seen.has_changed().expect("open"), s == 0);
        seen.mark_unchanged();
    }
}
