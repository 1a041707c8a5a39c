use super::*;

const SOON: Duration = Duration::from_secs(5);

/// A stop waits for the count, and would not end.
#[tokio::test]
async fn withdrawal_count_is_dropped_when_the_task_has_ended() {
    let (handle, inbox) = DeliveryTask::channel();
    let before = handle.withdraw(Vec::new(), "a stop".to_owned());
    handle.send(DeliveryCommand::ApplyWithdrawals).await;
    // The book's task does that when it ends.
    drop(inbox);
    let after = handle.withdraw(Vec::new(), "another stop".to_owned());
    handle.send(DeliveryCommand::ApplyWithdrawals).await;
    for count in [before, after] {
        let told = clock::timeout_at(clock::now() + SOON, count).await;
        assert!(told.expect("nobody waits").is_err(), "nobody has counted");
    }
}
