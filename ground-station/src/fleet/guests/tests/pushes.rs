//! Files for guests: one after the other, and no more in memory than there is room for.

use super::*;

fn send(selector: &str, files: &[(&std::path::Path, u64)]) -> Request {
    let files = files.iter().map(|(source, bytes)| {
        let file = std::fs::File::create(source).expect("made");
        file.set_len(*bytes).expect("has room");
        FileToSend {
            source: source.to_path_buf(),
            dest: format!("shows/{}", source.file_name().expect("a name").display()),
        }
    });
    Request::SendFiles {
        selector: Selector::parse(selector).expect("a selector"),
        files: FilesToSend::Same {
            files: files.collect(),
        },
        ttl_ms: 1_500,
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

#[tokio::test]
async fn the_files_of_a_guest_go_one_after_the_other_and_each_is_read_when_its_turn_comes() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, _second], desk) = desk(&store).await;
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    let mut told = fleet.perform(send("d1", &[(&a, 1), (&b, 2), (&c, 3)])).await;
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content.len(), 1);
    // Longer than the next one has to live.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(first.orders.try_recv().is_err(), "the next one waits");
    std::fs::write(&b, "new").expect("written");
    gone_out(reply);
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content, "new");
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
async fn files_for_guests_wait_for_room_in_memory_and_not_for_a_guest_that_takes_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let most = u64::from(files::IN_MEMORY_MAX);
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    // It is away: the second has no more time than the first had.
    let _told = fleet.perform(send("d1", &[(&a, 1), (&b, 2)])).await;
    let order = first.orders.recv().await.expect("ordered");
    let (begin, expired) = (order.begin, Reply::ended(Outcome::Expired, "away"));
    order.reply.send(Answer::Reply(expired)).expect("somebody waits");
    let order = first.orders.recv().await.expect("ordered");
    assert!(order.begin < begin + Duration::from_secs(1));
    gone_out(order.reply);
    let _told = fleet.perform(send("d1,d2", &[(&a, most)])).await;
    let (content, reply) = pushed(&mut first).await;
    let (same, other_reply) = pushed(&mut second).await;
    assert_eq!(content.as_ptr(), same.as_ptr(), "in memory once");
    let _told = fleet.perform(send("d1", &[(&b, 1)])).await;
    gone_out(reply);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(first.orders.try_recv().is_err(), "the other one needs it still");
    gone_out(other_reply);
    let (content, reply) = pushed(&mut first).await;
    assert_eq!(content.len(), 1);
    gone_out(reply);
    desk.close().await;
}
