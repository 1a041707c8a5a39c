//! What the history keeps of commands to guests, and what is sent again from it.

use super::*;
use crate::fleet::HistoryRequest;

/// Takes the next order, and says how it ended.
async fn ended(orders: &mut mpsc::Receiver<Order>, reply: Reply) -> Order {
    let order = tokio::time::timeout(Duration::from_secs(20), orders.recv()).await;
    let mut order = order.expect("in time").expect("ordered");
    let told = std::mem::replace(&mut order.reply, oneshot::channel().0);
    let _gone = told.send(Answer::Reply(reply));
    order
}

/// What is told, to its end: numbers in the history, notes, and how each delivery ended.
async fn all_told(
    mut told: mpsc::Receiver<Event>,
) -> (Vec<u64>, Vec<String>, Vec<(String, Outcome, String)>) {
    let (mut numbers, mut notes, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(event) = told.recv().await {
        if let Event::Issued { number } = event {
            numbers.push(number);
        } else if let Event::Note { text } = event {
            notes.push(text);
        } else if let Event::Delivery(delivery) = event {
            let why = delivery.error.unwrap_or_default();
            ends.push((delivery.node.to_string(), delivery.state, why));
        }
    }
    ends.sort();
    (numbers, notes, ends)
}

/// The deliveries of a command as the history has them.
async fn past(store: &Store, number: u64) -> Vec<HistoryDelivery> {
    let dir = store.path().parent().expect("in a directory").to_owned();
    let past = history::run_query(&dir, move |connection| {
        history::deliveries(connection, number, &HistoryQuery::default())
    });
    past.await.expect("reads").expect("a file")
}

/// Asks once and has all fail, and returns the number of that in the history.
async fn failed(fleet: &Fleet, seats: [&mut Seat; 2]) -> u64 {
    let told = fleet.perform(all_led(None)).await;
    for seat in seats {
        ended(&mut seat.orders, Reply::failed("no")).await;
    }
    let (numbers, _, ends) = all_told(told).await;
    assert_eq!(ends.len(), 2);
    assert_eq!(numbers.len(), 1, "it has a number, which is told");
    numbers[0]
}

#[tokio::test]
async fn what_acts_on_guests_has_a_number_that_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let number = failed(&fleet, [&mut first, &mut second]).await;
    assert_eq!(past(&store, number).await.len(), 2);
    desk.close().await;
}

fn again(number: u64) -> HistoryRequest {
    HistoryRequest::Retry {
        number,
        ttl_ms: None,
        timeout_ms: 10_000,
    }
}

#[tokio::test]
async fn what_is_repeated_counts_from_when_it_was_asked_and_a_stop_meanwhile_withdraws_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let number = failed(&fleet, [&mut first, &mut second]).await;
    // Both are there before the history is read.
    let told = fleet.perform(again(number)).await;
    let stopping = fleet
        .perform(ActRequest::Stop {
            selector: Selector::parse("d2").expect("a name"),
            timeout_ms: Some(10_000),
            also_bridged: false,
        })
        .await;
    let stop = ended(&mut second.stops, Reply::done(Value::Null)).await;
    let repeated = ended(&mut first.orders, Reply::done(Value::Null)).await;
    assert!(
        repeated.issued <= stop.issued,
        "it ages from when it was asked for"
    );
    let (_, _, ends) = all_told(told).await;
    assert_eq!(
        ends.iter().map(|(_, state, _)| *state).collect::<Vec<_>>(),
        [Outcome::Done, Outcome::Refused]
    );
    assert!(ends[1].2.contains("withdrawn by an emergency stop"), "{ends:?}");
    assert!(second.orders.try_recv().is_err(), "nothing is sent");
    drop(stopping);
    desk.close().await;
}

#[tokio::test]
async fn whoever_repeats_a_command_is_told_who_is_not_known_now() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let number = failed(&fleet, [&mut first, &mut second]).await;
    drop(second);
    let told = fleet.perform(again(number)).await;
    ended(&mut first.orders, Reply::done(Value::Null)).await;
    let (_, notes, ends) = all_told(told).await;
    assert_eq!(ends.len(), 1);
    assert!(
        notes.len() == 1 && notes[0].starts_with("no node matches d2, "),
        "{notes:?}"
    );
    desk.close().await;
}

/// Why the second delivery was not sent, once that is in the history.
pub(super) async fn why_not_sent(store: &Store, number: u64) -> String {
    let started = clock::now();
    loop {
        let past = past(store, number).await;
        if let Some(why) = past[1].error.clone() {
            return why;
        }
        assert!(clock::since(started) < Duration::from_secs(20), "{past:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn later_batches_of_whoever_went_away_say_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    for keep_going in [false, true] {
        let batch = Batch {
            size: BatchSize::Count(1),
            wait_ms: 0,
            keep_going,
        };
        let mut told = fleet.perform(all_led(Some(batch))).await;
        let number = loop {
            if let Event::Issued { number } = told.recv().await.expect("told") {
                break number;
            }
        };
        let order = first.orders.recv().await.expect("ordered");
        drop(told);
        let why = why_not_sent(&store, number).await;
        assert_eq!(why, "not sent: whoever asked for it went away");
        drop(order);
    }
    assert!(second.orders.try_recv().is_err());
    desk.close().await;
}

#[tokio::test]
async fn later_batches_of_whoever_went_away_in_between_do_not_go_out_though_somebody_follows() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let mut follower = fleet.perform(NodesRequest::Follow { telemetry: false }).await;
    assert!(
        matches!(follower.recv().await, Some(Event::Node(_))),
        "it follows from now on"
    );
    let batch = Batch {
        size: BatchSize::Count(1),
        wait_ms: 2_000,
        keep_going: true,
    };
    let mut told = fleet.perform(all_led(Some(batch))).await;
    let number = loop {
        if let Event::Issued { number } = told.recv().await.expect("told") {
            break number;
        }
    };
    ended(&mut first.orders, Reply::done(Value::Null)).await;
    while !matches!(told.recv().await.expect("told"), Event::Delivery(_)) {}
    drop(told);
    let mut heard = Vec::new();
    while !matches!(heard.last(), Some(Event::End | Event::Failed { .. })) {
        let event = tokio::time::timeout(Duration::from_secs(20), follower.recv()).await;
        if let Event::Observed { event, .. } = event.expect("in time").expect("it goes on") {
            heard.push(*event);
        }
    }
    let ends = heard.iter().filter(|event| matches!(event, Event::Delivery(_)));
    assert_eq!(ends.count(), 1, "{heard:?}");
    assert_eq!(
        heard.last(),
        Some(&Event::failed(
            Failure::ShutDown,
            "cut off: whoever asked went away"
        ))
    );
    let why = why_not_sent(&store, number).await;
    assert_eq!(why, "not sent: whoever asked for it went away");
    assert!(second.orders.try_recv().is_err());
    desk.close().await;
}

#[tokio::test]
async fn what_a_door_has_not_read_when_it_closes_was_not_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [first, mut second], desk) = desk(&store).await;
    let told = fleet.perform(all_led(None)).await;
    ended(&mut second.orders, Reply::done(Value::Null)).await;
    assert_eq!(first.orders.len(), 1);
    drop(first);
    let (_, _, ends) = all_told(told).await;
    let why = "its door is closed: nothing was sent".to_owned();
    assert_eq!(ends[0], ("d1".to_owned(), Outcome::NoAnswer, why));
    desk.close().await;
}

/// A disk that refuses to write so, until the trigger is dropped.
fn full(store: &Store, write: &str, table: &str) -> rusqlite::Connection {
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    let full =
        format!("CREATE TRIGGER disk_full BEFORE {write} ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END");
    disk.execute_batch(&full).expect("made");
    disk
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_and_not_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, _second], desk) = desk(&store).await;
    let _disk = full(&store, "INSERT", "commands");
    let (numbers, _, ends) = all_told(fleet.perform(all_led(None)).await).await;
    assert_eq!((numbers.len(), ends.len()), (0, 2));
    for (_, state, why) in ends {
        assert!(
            state == Outcome::Refused && why.starts_with("nothing was sent"),
            "{why}"
        );
    }
    assert!(first.orders.try_recv().is_err());
    desk.close().await;
}

#[tokio::test]
async fn an_end_that_the_disk_refuses_is_stored_when_it_takes_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let mut told = fleet.perform(all_led(None)).await;
    let number = loop {
        if let Event::Issued { number } = told.recv().await.expect("told") {
            break number;
        }
    };
    let disk = full(&store, "UPDATE", "deliveries");
    for seat in [&mut first, &mut second] {
        ended(&mut seat.orders, Reply::done(Value::Null)).await;
    }
    let (_, _, ends) = all_told(told).await;
    assert_eq!(ends.len(), 2, "nobody waits for a disk");
    let open = |past: &[HistoryDelivery]| {
        past.iter()
            .filter(|past| past.state == HistoryState::Open)
            .count()
    };
    assert_eq!(open(&past(&store, number).await), 2);
    disk.execute_batch("DROP TRIGGER disk_full")
        .expect("there is room");
    let started = clock::now();
    while open(&past(&store, number).await) > 0 {
        assert!(clock::since(started) < Duration::from_secs(20), "still open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    desk.close().await;
}

#[tokio::test]
async fn a_release_that_is_stored_late_has_its_ends_in_the_history() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let is_open = |past: &HistoryDelivery| past.state == HistoryState::Open;
    let all_ended = async |number| {
        let started = clock::now();
        loop {
            let past = past(&store, number).await;
            if past.len() == 2 && !past.iter().any(is_open) {
                return past;
            }
            assert!(clock::since(started) < Duration::from_secs(20), "{past:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let stopping = fleet.perform(all_stop()).await;
    for seat in [&mut first, &mut second] {
        assert_eq!(done(&mut seat.stops).await, Work::Stop);
    }
    all_ended(1).await;
    drop(stopping);
    // A disk that stands still for longer than the release waits for it.
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    disk.execute_batch("BEGIN IMMEDIATE").expect("held");
    let release = ActRequest::Release {
        selector: Selector::all(),
        timeout_ms: 300,
    };
    let releasing = fleet.perform(release).await;
    for seat in [&mut first, &mut second] {
        assert_eq!(done(&mut seat.orders).await, Work::Release);
    }
    let (_, _, ends) = all_told(releasing).await;
    assert_eq!(ends.len(), 2, "nobody waits for the disk");
    disk.execute_batch("ROLLBACK").expect("let go");
    let released = all_ended(2).await;
    let done = |past: &HistoryDelivery| past.state == HistoryState::Ended(Outcome::Done);
    assert!(released.iter().all(done), "{released:?}");
    desk.close().await;
}
