//! Files for bridged devices: one after the other, within the memory budget.

use bytes::Bytes;

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

async fn pushed(device: &mut DeviceGuard) -> (Bytes, oneshot::Sender<DeviceReply>) {
    let command = tokio::time::timeout(Duration::from_secs(20), device.commands.recv()).await;
    let DeviceCommand {
        operation,
        reply,
        start_by,
        ..
    } = command.expect("in time").expect("sent");
    assert!(
        start_by > clock::now(),
        "it has its time to live from its turn on"
    );
    let DeviceOperation::Push { content, .. } = operation else {
        panic!("{operation:?}")
    };
    (content, reply)
}

fn gone_out(reply: oneshot::Sender<DeviceReply>) {
    let done = DeviceReply::Reply(Reply::done(Value::Null));
    reply.send(done).expect("the transfer waits");
}

/// How the next delivery ended, and why.
async fn end(told: &mut EventStream) -> (Outcome, String) {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), told.recv()).await;
        if let Event::Delivery(delivery) = event.expect("in time").expect("told") {
            return (delivery.state, delivery.error.unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn device_files_are_read_and_sent_one_by_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, _second]) = start_with_devices(dir.path()).await;
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    let files: [(&std::path::Path, u64); 3] = [(&a, 1), (&b, 2), (&c, 3)];
    let told = fleet.perform(send("d1", &files, 1_500)).await;
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content.len(), 1);
    // Longer than the next one has to live.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(first.commands.try_recv().is_err(), "the next one waits");
    gone_out(reply);
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content.len(), 2);
    // The caller has gone; the transfer goes on.
    drop(told);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(first.commands.try_recv().is_err(), "the next one waits still");
    gone_out(reply);
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content.len(), 3);
    gone_out(reply);
    engine.shut_down().await;
}

#[tokio::test]
async fn devices_get_a_file_as_requested_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
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
        // The memory of the file is free again.
        if change == "emptied" {
            std::fs::write(&b, "").expect("written");
        } else {
            std::fs::write(&new, "no").expect("written");
            std::fs::rename(&new, &b).expect("replaced");
        }
        gone_out(other_reply);
        assert_eq!(end(&mut told).await.0, Outcome::Done);
        let (state, why) = end(&mut told).await;
        let changed = format!("{b:?} changed since the request; send it again");
        assert_eq!((state, why), (Outcome::Failed, changed), "{change}");
        assert!(second.commands.try_recv().is_err());
    }
    engine.shut_down().await;
}

#[tokio::test]
async fn device_files_wait_for_memory_and_not_for_absent_devices() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let most = u64::from(IN_MEMORY_MAX);
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    // It is away: the second has no more time than the first had.
    let _told = fleet.perform(send("d1", &[(&a, 1), (&b, 2)], 1_500)).await;
    let command = first.commands.recv().await.expect("sent");
    let (start_by, expired) = (command.start_by, Reply::ended(Outcome::Expired, "away"));
    command
        .reply
        .send(DeviceReply::Reply(expired))
        .expect("the transfer waits");
    let command = first.commands.recv().await.expect("sent");
    assert!(command.start_by < start_by + Duration::from_secs(1));
    gone_out(command.reply);
    let _told = fleet.perform(send("d1,d2", &[(&a, most)], 1_500)).await;
    let (content, reply) = pushed(&mut first).await;
    let (same, other_reply) = pushed(&mut second).await;
    assert_eq!(content.as_ptr(), same.as_ptr(), "in memory once");
    let _told = fleet.perform(send("d1", &[(&b, 1)], 10_000)).await;
    let asked = clock::now();
    gone_out(reply);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(first.commands.try_recv().is_err(), "the other one needs it still");
    gone_out(other_reply);
    let command = first.commands.recv().await.expect("sent");
    assert!(
        command.start_by > asked + Duration::from_secs(11),
        "what it waited is not taken off its time to live"
    );
    gone_out(command.reply);
    engine.shut_down().await;
}

#[tokio::test]
async fn waits_for_memory_have_an_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let (engine, fleet, [mut first, mut second]) = start_with_devices(dir.path()).await;
    let store = engine.store();
    let most = u64::from(IN_MEMORY_MAX);
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
    // The caller has gone.
    let mut told = fleet.perform(send("d1,d2", &[(&b, 1)], 60_000)).await;
    let number = loop {
        if let Event::Issued { number } = told.recv().await.expect("told") {
            break number;
        }
    };
    drop(told);
    let why = history::why_not_sent(&store, number).await;
    assert_eq!(why, "not sent: the client disconnected");
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
    assert!(first.commands.try_recv().is_err() && second.commands.try_recv().is_err());
    engine.shut_down().await;
}
