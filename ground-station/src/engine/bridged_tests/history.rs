//! The history of commands to bridged devices, and retries from it.

use super::*;
use swarm_shared::api::HistoryRequest;

/// Takes the next command, and says how it ended.
async fn ended(commands: &mut mpsc::Receiver<DeviceCommand>, reply: Reply) -> DeviceCommand {
    let command = tokio::time::timeout(Duration::from_secs(20), commands.recv()).await;
    let mut command = command.expect("in time").expect("sent");
    let told = std::mem::replace(&mut command.reply, oneshot::channel().0);
    let _gone = told.send(DeviceReply::Reply(reply));
    command
}

/// What is told, to its end: numbers in the history, notes, and how each delivery ended.
async fn all_told(mut told: EventStream) -> (Vec<u64>, Vec<String>, Vec<(String, Outcome, String)>) {
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
    let past = store_history::run_query(&dir, move |connection| {
        store_history::deliveries(connection, number, &HistoryQuery::default())
    });
    past.await.expect("reads").expect("a file")
}

/// Asks once and has all fail, and returns the number of that in the history.
async fn failed(fleet: &Fleet, devices: [&mut DeviceGuard; 2]) -> u64 {
    let told = fleet.perform(all_led(None)).await;
    for device in devices {
        ended(&mut device.commands, Reply::failed("no")).await;
    }
    let (numbers, _, ends) = all_told(told).await;
    assert_eq!(ends.len(), 2);
    assert_eq!(numbers.len(), 1, "it has a number, which is told");
    numbers[0]
}

#[tokio::test]
async fn device_command_reports_its_history_number() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let store = engine.store();
    let number = failed(&fleet, [&mut first, &mut second]).await;
    assert_eq!(past(&store, number).await.len(), 2);
    engine.shut_down().await;
}

fn again(number: u64) -> HistoryRequest {
    HistoryRequest::Retry {
        number,
        ttl_ms: None,
        timeout_ms: 10_000,
    }
}

#[tokio::test]
async fn retry_ages_from_its_request_and_a_stop_withdraws_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let number = failed(&fleet, [&mut first, &mut second]).await;
    // Both are there before the history is read.
    let told = fleet.perform(again(number)).await;
    let stopping = fleet
        .perform(ActRequest::Stop {
            selector: Selector::parse("d2").expect("a name"),
            timeout_ms: Some(10_000),
        })
        .await;
    let stop = ended(&mut second.stops, Reply::done(Value::Null)).await;
    let repeated = ended(&mut first.commands, Reply::done(Value::Null)).await;
    assert!(
        repeated.issued <= stop.issued,
        "it ages from when it was asked for"
    );
    let (_, _, ends) = all_told(told).await;
    assert_eq!(
        ends.iter().map(|(_, state, _)| *state).collect::<Vec<_>>(),
        [Outcome::Done, Outcome::Refused]
    );
    assert!(ends[1].2.contains("withdrawn by the emergency stop"), "{ends:?}");
    assert!(second.commands.try_recv().is_err(), "nothing is sent");
    drop(stopping);
    engine.shut_down().await;
}

#[tokio::test]
async fn retry_names_devices_that_are_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let number = failed(&fleet, [&mut first, &mut second]).await;
    drop(second);
    let told = fleet.perform(again(number)).await;
    ended(&mut first.commands, Reply::done(Value::Null)).await;
    let (_, notes, ends) = all_told(told).await;
    assert_eq!(ends.len(), 1);
    assert!(
        notes.len() == 1 && notes[0].starts_with("no node matches d2, "),
        "{notes:?}"
    );
    engine.shut_down().await;
}

/// Why the second delivery was not sent, once that is in the history.
pub(in crate::engine) async fn why_not_sent(store: &Store, number: u64) -> String {
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
async fn batches_of_a_gone_caller_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let store = engine.store();
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
        let command = first.commands.recv().await.expect("sent");
        drop(told);
        let why = why_not_sent(&store, number).await;
        assert_eq!(why, "not sent: the client disconnected");
        drop(command);
    }
    assert!(second.commands.try_recv().is_err());
    engine.shut_down().await;
}

#[tokio::test]
async fn batches_of_a_gone_caller_are_not_sent_while_subscribed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let store = engine.store();
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
    ended(&mut first.commands, Reply::done(Value::Null)).await;
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
            "cut off: the client disconnected"
        ))
    );
    let why = why_not_sent(&store, number).await;
    assert_eq!(why, "not sent: the client disconnected");
    assert!(second.commands.try_recv().is_err());
    engine.shut_down().await;
}

#[tokio::test]
async fn command_not_taken_by_a_closing_gateway_was_not_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [first, mut second]) = start_with_devices(dir.path()).await;
    let told = fleet.perform(all_led(None)).await;
    ended(&mut second.commands, Reply::done(Value::Null)).await;
    assert_eq!(first.commands.len(), 1);
    drop(first);
    let (_, _, ends) = all_told(told).await;
    let why = "its gateway is closed: nothing was sent".to_owned();
    assert_eq!(ends[0], ("d1".to_owned(), Outcome::NoAnswer, why));
    engine.shut_down().await;
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
async fn unstorable_device_command_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, _second]) = start_with_devices(dir.path()).await;
    let store = engine.store();
    let _disk = full(&store, "INSERT", "commands");
    let (numbers, _, ends) = all_told(fleet.perform(all_led(None)).await).await;
    assert_eq!((numbers.len(), ends.len()), (0, 2));
    for (_, state, why) in ends {
        assert!(
            state == Outcome::Refused && why.starts_with("nothing was sent"),
            "{why}"
        );
    }
    assert!(first.commands.try_recv().is_err());
    engine.shut_down().await;
}

#[tokio::test]
async fn device_outcome_is_stored_when_the_disk_recovers() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let store = engine.store();
    let mut told = fleet.perform(all_led(None)).await;
    let number = loop {
        if let Event::Issued { number } = told.recv().await.expect("told") {
            break number;
        }
    };
    let disk = full(&store, "UPDATE", "deliveries");
    for device in [&mut first, &mut second] {
        ended(&mut device.commands, Reply::done(Value::Null)).await;
    }
    let (_, _, ends) = all_told(told).await;
    assert_eq!(ends.len(), 2, "the outcomes do not wait for the disk");
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
    engine.shut_down().await;
}

#[tokio::test]
async fn late_stored_device_release_has_its_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let store = engine.store();
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
    for device in [&mut first, &mut second] {
        assert_eq!(done(&mut device.stops).await, DeviceOperation::Stop);
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
    for device in [&mut first, &mut second] {
        assert_eq!(done(&mut device.commands).await, DeviceOperation::Release);
    }
    let (_, _, ends) = all_told(releasing).await;
    assert_eq!(ends.len(), 2, "the outcomes do not wait for the disk");
    disk.execute_batch("ROLLBACK").expect("let go");
    let released = all_ended(2).await;
    let done = |past: &HistoryDelivery| past.state == HistoryState::Ended(Outcome::Done);
    assert!(released.iter().all(done), "{released:?}");
    engine.shut_down().await;
}
