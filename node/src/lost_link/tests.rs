//! Time is moved by hand, except where a program runs.

use super::*;

const AFTER: Duration = Duration::from_secs(10);

#[test]
fn lost_link_command_runs_once_per_loss() {
    let start = clock::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut lost = LostLinkDetector::new(AFTER, None, start);
    assert!(
        lost.handle_timeout(at(1_000), false) == TimeoutAction::Nothing,
        "never linked, never lost"
    );
    lost.on_heard(at(1_000));
    lost.on_heard(at(1_005));
    lost.on_heard(at(1_004));
    assert_eq!(lost.poll_timeout(), Some(at(1_015)));
    assert!(lost.handle_timeout(at(1_014), false) == TimeoutAction::Nothing);
    assert!(lost.handle_timeout(at(1_015), false) == TimeoutAction::Run);
    for s in 1_015..1_100 {
        assert!(
            lost.handle_timeout(at(s), false) == TimeoutAction::Nothing,
            "once"
        );
    }
    lost.on_heard(at(1_005));
    assert!(lost.is_lost(), "old news does not end a loss");
    lost.on_heard(at(1_200));
    assert!(!lost.is_lost() && lost.handle_timeout(at(1_209), false) == TimeoutAction::Nothing);
    assert!(
        lost.handle_timeout(at(1_210), false) == TimeoutAction::Run,
        "and again after a second loss"
    );
}

#[test]
fn a_jump_in_time_counts_as_silence() {
    let start = clock::now();
    let mut lost = LostLinkDetector::new(AFTER, None, start);
    lost.on_heard(start);
    assert!(lost.handle_timeout(start + Duration::from_secs(3_600), false) == TimeoutAction::Run);
    assert!(lost.handle_timeout(start + Duration::from_secs(7_200), false) == TimeoutAction::Nothing);
}

#[test]
fn an_emergency_stop_defers_the_lost_link_command() {
    let start = clock::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut lost = LostLinkDetector::new(AFTER, None, start);
    lost.on_heard(start);
    assert_eq!(lost.handle_timeout(at(10), true), TimeoutAction::Deferred);
    assert_eq!(
        lost.handle_timeout(at(60), true),
        TimeoutAction::Nothing,
        "stopped"
    );
    assert_eq!(
        lost.handle_timeout(at(61), false),
        TimeoutAction::RunDeferred,
        "released"
    );
    assert_eq!(lost.handle_timeout(at(62), false), TimeoutAction::Nothing, "once");
    assert_eq!(lost.handle_timeout(at(63), true), TimeoutAction::Nothing);
    assert_eq!(
        lost.handle_timeout(at(64), false),
        TimeoutAction::Nothing,
        "once for each loss"
    );
    lost.on_heard(at(100));
    assert_eq!(lost.handle_timeout(at(110), true), TimeoutAction::Deferred);
    lost.on_heard(at(120));
    assert_eq!(
        lost.handle_timeout(at(121), false),
        TimeoutAction::Nothing,
        "the loss is over"
    );
}

#[tokio::test]
async fn a_stop_kills_the_command_unless_while_stopped_is_set() {
    let mut config = config::Config::parse(
        "[lost_link]\nafter = \"1s\"\ncommand = [\"/bin/sleep\", \"0.3\"]",
        &config::Origin::Text(None),
    )
    .expect("a configuration")
    .lost_link
    .expect("is there");
    assert!(!config.while_stopped, "unless its owner says so");
    let (_held, mut held) = watch::channel(StopState::Held);
    let (_task, mut in_force) = watch::channel(StopState::Stopped);
    let shutdown = CancellationToken::new();
    run_command(&config, &mut in_force, &shutdown)
        .await
        .expect_err("killed");
    assert_eq!(run_command(&config, &mut held, &shutdown).await, Ok(()));
    config.while_stopped = true;
    assert_eq!(run_command(&config, &mut in_force, &shutdown).await, Ok(()));
}

/// The process ends, and another one starts on the same boot.
fn restarted(lost: &LostLinkDetector, at: Instant) -> LostLinkDetector {
    LostLinkDetector::new(AFTER, lost.persisted_state(), at)
}

#[test]
fn lost_link_stays_armed_across_a_restart() {
    let start = clock::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let unarmed = LostLinkDetector::new(AFTER, None, start);
    let mut lost = restarted(&unarmed, at(1));
    assert_eq!(
        lost.handle_timeout(at(1_000), false),
        TimeoutAction::Nothing,
        "never linked"
    );
    lost.on_heard(at(1_000));
    let mut lost = restarted(&lost, at(2_000));
    assert_eq!(lost.handle_timeout(at(2_009), false), TimeoutAction::Nothing);
    assert_eq!(lost.handle_timeout(at(2_010), false), TimeoutAction::Run);
    // Killed while the command runs: the command may not have had an effect yet.
    let mut lost = restarted(&lost, at(3_000));
    assert_eq!(lost.handle_timeout(at(3_010), false), TimeoutAction::Run);
    lost.on_command_ended();
    let mut lost = restarted(&lost, at(4_000));
    assert!(lost.is_lost());
    assert_eq!(
        lost.handle_timeout(at(5_000), false),
        TimeoutAction::Nothing,
        "once for each loss"
    );
    lost.on_heard(at(5_000));
    let mut lost = restarted(&lost, at(6_000));
    assert_eq!(
        lost.handle_timeout(at(6_010), false),
        TimeoutAction::Run,
        "a second loss"
    );
}

#[test]
fn a_deferred_lost_link_command_survives_a_restart() {
    let start = clock::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut lost = LostLinkDetector::new(AFTER, Some(LossState::Linked), start);
    assert_eq!(lost.handle_timeout(at(10), true), TimeoutAction::Deferred);
    let mut lost = restarted(&lost, at(20));
    assert_eq!(lost.handle_timeout(at(30), true), TimeoutAction::Deferred);
    assert_eq!(lost.handle_timeout(at(31), false), TimeoutAction::RunDeferred);
    lost.on_heard(at(32));
    lost.on_command_ended();
    assert_eq!(
        lost.persisted_state(),
        Some(LossState::Linked),
        "its end is not that of the next loss"
    );
}

#[tokio::test]
async fn persisted_loss_state_is_valid_for_one_boot() {
    let dir = tempfile::tempdir().expect("a directory");
    let memory = FleetStore::new(dir.path());
    let file = dir.path().join("lost-link.json");
    assert_eq!(memory.load_loss_state("a"), None);
    for past in [LossState::Linked, LossState::CommandEnded] {
        let (facts, to_keep) = watch::channel(None);
        let writer = tokio::spawn(save_changes(memory.clone(), "a".to_owned(), to_keep));
        facts.send_replace(Some(past));
        drop(facts);
        writer.await.expect("ends");
        assert_eq!(memory.load_loss_state("a"), Some(past));
        assert_eq!(memory.load_loss_state("b"), None, "another boot");
    }
    std::fs::write(&file, "{").expect("written");
    assert_eq!(memory.load_loss_state("a"), None);
    // A machine without a boot id may have been rebooted at any time.
    std::fs::write(&file, r#"{"boot":"","state":"linked"}"#).expect("written");
    assert_eq!(memory.load_loss_state(""), None);
}

/// The state is stored at a change, not at each check.
#[tokio::test]
async fn unchanged_loss_state_is_not_rewritten() {
    let start = clock::now();
    let mut lost = LostLinkDetector::new(AFTER, None, start);
    let (facts, mut seen) = watch::channel(None);
    publish_state(&facts, &lost);
    assert!(!seen.has_changed().expect("open"));
    for s in 0..5 {
        lost.on_heard(start + Duration::from_secs(s));
        publish_state(&facts, &lost);
        assert_eq!(seen.has_changed().expect("open"), s == 0);
        seen.mark_unchanged();
    }
}
