use super::*;

const SOON: Duration = Duration::from_secs(5);

/// A stop waits for the count, and would not end.
#[tokio::test]
async fn nobody_waits_for_a_withdrawal_when_the_book_has_ended() {
    let (keeper, words) = Task::channel();
    let before = keeper.withdraw(Vec::new(), "a stop".to_owned());
    keeper.say(Word::Withdrawn).await;
    // The book's task does that when it ends.
    drop(words);
    let after = keeper.withdraw(Vec::new(), "another stop".to_owned());
    keeper.say(Word::Withdrawn).await;
    for count in [before, after] {
        let told = clock::timeout_at(clock::now() + SOON, count).await;
        assert!(told.expect("nobody waits").is_err(), "nobody has counted");
    }
}
