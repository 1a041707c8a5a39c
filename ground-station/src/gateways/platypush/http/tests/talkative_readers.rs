//! Event readers that send messages.

use std::time::Duration;

use swarm_shared::net::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::event_readers::{
    EventReader, LINES, TEST_TIMEOUT, UPGRADE_REQUEST, connect, fleet_with_follower, view,
};
use super::*;
use swarm_shared::api::NodeState;

/// A masked ping frame.
fn ping(payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    // A mask of zeros changes nothing.
    [&[0x89, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

#[tokio::test]
async fn websocket_input_is_throttled_while_events_flow() {
    let (happens, happening) = tokio::sync::watch::channel(false);
    let fleet = fleet_with_follower(move |events: mpsc::Sender<Event>| {
        let mut happening = happening.clone();
        async move {
            happening.changed().await.ok();
            events.send(Event::Node(view(NodeState::Online))).await.ok();
            events.closed().await;
        }
    });
    let rig = Harness::with_fleet(fleet, &format!("{LINES}\nrate = 10")).await;
    let mut reader = EventReader::open(rig.listen()).await;
    let flood: Vec<u8> = (0..30).flat_map(|number| ping(&[number])).collect();
    let started = clock::now();
    reader.0.write_all(&flood).await.expect("written");
    let (mut answered, mut told_after) = (Vec::new(), None);
    while answered.len() < 30 {
        match reader.frame().await.expect("a frame") {
            (10, payload) => answered.extend(payload),
            (1, _) => told_after = Some(answered.len()),
            other => panic!("{other:?}"),
        }
        if answered.len() == 12 {
            happens.send_replace(true);
        }
    }
    assert_eq!(answered, (0..30).collect::<Vec<u8>>(), "each once, in order");
    assert!(told_after.is_some_and(|after| after < 20), "{told_after:?}");
    // A burst of one second less the upgrade request; then ten a second.
    let took = clock::since(started);
    assert!(took > Duration::from_millis(1_900), "{took:?}");
}

#[tokio::test]
async fn unread_pongs_are_bounded() {
    let fleet = fleet_with_follower(async |events| events.closed().await);
    let rig = Harness::with_fleet(fleet, &format!("{LINES}\nidle = \"3s\"")).await;
    // The stream holds few bytes.
    let (mut near, far) = tokio::io::duplex(1024);
    let client_info = ClientInfo::for_test(([127, 0, 0, 1], 1).into());
    let serving = serve::serve_http(far, client_info, rig.router.clone(), Duration::from_secs(10));
    let serving = tokio::spawn(serving);
    near.write_all(UPGRADE_REQUEST.as_bytes()).await.expect("written");
    let mut head = [0; 13];
    near.read_exact(&mut head).await.expect("a head");
    assert_eq!(&head, b"HTTP/1.1 101 ");
    let mut written = 0;
    let flood = async {
        while near.write_all(&ping(&[7; 125])).await.is_ok() {
            written += 131;
            assert!(written < 16 * 1024, "pongs are not read, and pings are read on");
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, flood)
        .await
        .expect("it is closed");
    serving.await.expect("it ends");
}

#[tokio::test]
async fn event_reader_is_closed_when_its_password_changes() {
    let fleet = fleet_with_follower(async |events| {
        events.send(Event::Node(view(NodeState::Online))).await.ok();
        events.closed().await;
    });
    let rig = Harness::with_fleet(fleet, "idle = \"600ms\"").await;
    let hash = async |password: &str| {
        let kept = users::PasswordChecker::default()
            .hash(Password::new(password))
            .await;
        kept.expect("hashed")
    };
    let set = async |kept: String| {
        rig.app
            .store
            .put_user("ann".to_owned(), kept, 1)
            .await
            .expect("kept")
    };
    let other = hash("another one").await;
    set(hash(PASSWORD).await).await;
    let basic = BASE64.encode(format!("ann:{PASSWORD}").as_bytes());
    let shown = UPGRADE_REQUEST.replace(
        &format!("X-Token: {TOKEN}"),
        &format!("Authorization: Basic {basic}"),
    );
    let mut reader = EventReader::finish_handshake(connect(rig.listen(), &shown).await).await;
    assert_eq!(reader.event().await["args"]["node"], "n1");
    let guess = || rig.send(execute(&[("x-token", "guess")], &json!({"action": "ping"})));
    for _ in 0..10 {
        assert_eq!(guess().await.status(), 401);
    }
    assert_eq!(guess().await.status(), 429);
    // It answers each of five pings a second, and its credentials are checked each time.
    for _ in 0..8 {
        let head = [
            reader.0.read_u8().await.expect("more"),
            reader.0.read_u8().await.expect("more"),
        ];
        assert_eq!(head, [0x89, 0]);
        reader
            .0
            .write_all(&[0x8a, 0x80, 0, 0, 0, 0])
            .await
            .expect("written");
    }
    set(other).await;
    let (opcode, payload) = reader.frame().await.expect("a frame");
    let why = String::from_utf8_lossy(&payload[2..]).into_owned();
    assert_eq!((opcode, why.as_str()), (8, "its credentials are no longer valid"));
    let audit = rig.shut_down().await;
    let noted = audit
        .iter()
        .any(|entry| entry.action == "events" && entry.outcome.contains(&why));
    assert!(noted, "{audit:#?}");
}
