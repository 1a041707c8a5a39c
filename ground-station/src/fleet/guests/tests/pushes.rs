//! Files for guests: one after the other, and no more in memory than there is room for.

use super::*;

fn send(selector: &str, files: &[(&std::path::Path, u64)], ttl_ms: u64) -> ActRequest {
    let files = files.iter().map(|(source, bytes)| {
        let file = std::fs::File::create(source).expect("made");
        file.set_len(*bytes).expect("has room");
        FileToSend {
            source: source.to_path_buf(),
            dest: format!("shows/{}", source.file_name().expect("a name").display()),
        }
    });
    ActRequest::SendFiles {
        selector: Selector::parse(selector).expect("a selector"),
        files: FilesToSend::Same {
            files: files.collect(),
        },
        ttl_ms,
        timeout_ms: 60_000,
    }
}

async fn pushed(seat: &mut Seat) -> (Bytes, oneshot::Sender<Answer>) {
    let order = tokio::time::timeout(Duration::from_secs(20), seat.orders.recv()).await;
    let Order {
        work, reply, begin, ..
    } = order.expect("in time").expect("ordered");
    assert!(begin > clock::now(), "it has its time to live from its turn on");
    let Work::Push { content, .. } = work else {
        panic!("{work:?}")
    };
    (content, reply)
}

fn gone_out(reply: oneshot::Sender<Answer>) {
    let done = Answer::Reply(Reply::done(Value::Null));
    reply.send(done).expect("somebody waits");
}

/// How the next delivery ended, and why.
async fn end(told: &mut mpsc::Receiver<Event>) -> (Outcome, String) {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), told.recv()).await;
        if let Event::Delivery(delivery) = event.expect("in time").expect("told") {
            return (delivery.state, delivery.error.unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn the_files_of_a_guest_go_one_after_the_other_and_each_is_read_when_its_turn_comes() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, _second], desk) = desk(&store).await;
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    let files: [(&std::path::Path, u64); 3] = [(&a, 1), (&b, 2), (&c, 3)];
    let mut told = fleet.perform(send("d1", &files, 1_500)).await;
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content.len(), 1);
    // Longer than the next one has to live.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(first.orders.try_recv().is_err(), "the next one waits");
    gone_out(reply);
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content.len(), 2);
    // Nobody waits for it any more: that changes nothing.
    told.close();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(first.orders.try_recv().is_err(), "the next one waits still");
    gone_out(reply);
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content.len(), 3);
    gone_out(reply);
    desk.close().await;
}

#[tokio::test]
async fn all_who_are_sent_a_file_get_it_as_it_was_when_that_was_asked_for_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let [a, b, new] = ["a", "b", "new"].map(|name| dir.path().join(name));
    let files: [(&std::path::Path, u64); 2] = [(&a, 1), (&b, 2)];
    for change in ["emptied", "another one of the same length"] {
        let mut told = fleet.perform(send("d1,d2", &files, 10_000)).await;
        let (_, reply) = pushed(&mut first).await;
        let (_, other_reply) = pushed(&mut second).await;
        gone_out(reply);
        let (content, reply) = pushed(&mut first).await;
        assert_eq!(content.as_ref(), [0; 2]);
        gone_out(reply);
        for _ in 0..2 {
            assert_eq!(end(&mut told).await.0, Outcome::Done);
        }
        // Nobody has it in memory any more.
        if change == "emptied" {
            std::fs::write(&b, "").expect("written");
        } else {
            std::fs::write(&new, "no").expect("written");
            std::fs::rename(&new, &b).expect("replaced");
        }
        gone_out(other_reply);
        assert_eq!(end(&mut told).await.0, Outcome::Done);
        let (state, why) = end(&mut told).await;
        let changed = format!("{b:?} changed since it was asked for; send it again");
        assert_eq!((state, why), (Outcome::Failed, changed), "{change}");
        assert!(second.orders.try_recv().is_err());
    }
    desk.close().await;
}

#[tokio::test]
async fn files_for_guests_wait_for_room_in_memory_and_not_for_a_guest_that_takes_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let most = u64::from(files::IN_MEMORY_MAX);
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    // It is away: the second has no more time than the first had.
    let _told = fleet.perform(send("d1", &[(&a, 1), (&b, 2)], 1_500)).await;
    let order = first.orders.recv().await.expect("ordered");
    let (begin, expired) = (order.begin, Reply::ended(Outcome::Expired, "away"));
    order.reply.send(Answer::Reply(expired)).expect("somebody waits");
    let order = first.orders.recv().await.expect("ordered");
    assert!(order.begin < begin + Duration::from_secs(1));
    gone_out(order.reply);
    let _told = fleet.perform(send("d1,d2", &[(&a, most)], 1_500)).await;
    let (content, reply) = pushed(&mut first).await;
    let (same, other_reply) = pushed(&mut second).await;
    assert_eq!(content.as_ptr(), same.as_ptr(), "in memory once");
    let _told = fleet.perform(send("d1", &[(&b, 1)], 10_000)).await;
    let asked = clock::now();
    gone_out(reply);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(first.orders.try_recv().is_err(), "the other one needs it still");
    gone_out(other_reply);
    let order = first.orders.recv().await.expect("ordered");
    assert!(
        order.begin > asked + Duration::from_secs(11),
        "what it waited is not taken off its time to live"
    );
    gone_out(order.reply);
    desk.close().await;
}

#[tokio::test]
async fn nobody_waits_for_room_in_memory_without_an_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let most = u64::from(files::IN_MEMORY_MAX);
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let _told = fleet.perform(send("d1", &[(&a, most)], 60_000)).await;
    let (_, reply) = pushed(&mut first).await;
    // As long as it may still start, and then for the next one no longer.
    let started = clock::now();
    let c = dir.path().join("c");
    let mut told = fleet.perform(send("d2", &[(&b, 1), (&c, 1)], 3_000)).await;
    for _ in 0..2 {
        let (state, why) = end(&mut told).await;
        assert!(
            state == Outcome::Refused && why.starts_with("not sent: too many files are on their way"),
            "{state} {why}"
        );
    }
    assert!(clock::since(started) < Duration::from_millis(5_900));
    // Whoever asked has gone.
    let mut told = fleet.perform(send("d1,d2", &[(&b, 1)], 60_000)).await;
    let number = loop {
        if let Event::Issued { number } = told.recv().await.expect("told") {
            break number;
        }
    };
    drop(told);
    let why = past::why_not_sent(&store, number).await;
    assert_eq!(why, "not sent: whoever asked for it went away");
    // A stop overtakes it.
    let mut told = fleet.perform(send("d2", &[(&b, 1)], 60_000)).await;
    while !matches!(told.recv().await.expect("told"), Event::Issued { .. }) {}
    let _stopping = fleet.perform(all_stop()).await;
    let (state, why) = end(&mut told).await;
    assert!(
        state == Outcome::Refused && why.starts_with("withdrawn by an emergency stop"),
        "{state} {why}"
    );
    gone_out(reply);
    assert!(first.orders.try_recv().is_err() && second.orders.try_recv().is_err());
    desk.close().await;
}
