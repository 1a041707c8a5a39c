//! The age of received messages: never later than their arrival, and only a little earlier.

use super::*;

#[tokio::test]
async fn messages_read_late_keep_their_arrival_time() {
    let (listener, addr) = listener().await;
    let (connection, mut incoming) = ConnectionManager::new(Options {
        rate: 10,
        ..Options::default()
    });
    let mut peer = TcpStream::connect(addr).await.expect("connected");
    let (stream, _) = listener.accept().await.expect("accepted");
    let driven = connection.clone();
    tokio::spawn(async move { driven.connect(stream).await });
    let mut land = bytes::BytesMut::new();
    let message = crate::proto::foreign::clever_show::Message::Action {
        action: "land".to_owned(),
        arguments: Arguments::default(),
    };
    message.to_frame().encode(&mut land).expect("fits");
    // Twice the rate limit at once, then one more after all are read.
    let sent = crate::net::clock::now();
    peer.write_all(&land.repeat(20)).await.expect("written");
    let mut arrivals = Vec::new();
    for _ in 0..20 {
        arrivals.push(
            within_timeout("a message", incoming.recv())
                .await
                .expect("open")
                .earliest_arrival,
        );
    }
    let read = crate::net::clock::now();
    assert!(read - sent >= Duration::from_millis(800), "{:?}", read - sent);
    assert!(
        arrivals
            .iter()
            .all(|since| *since < sent + Duration::from_millis(500))
    );
    peer.write_all(&land).await.expect("written");
    let fresh = within_timeout("a message", incoming.recv())
        .await
        .expect("open")
        .earliest_arrival;
    // The poll interval is the allowed error.
    assert!(
        fresh >= read - stream::SOCKET_POLL_INTERVAL,
        "{:?} before",
        read - fresh
    );
}

#[tokio::test]
async fn messages_received_while_suspended_are_dated_before() {
    let (listener, addr) = listener().await;
    let (connection, mut incoming) = ConnectionManager::new(Options::default());
    let mut peer = std::net::TcpStream::connect(addr).expect("connected");
    let (stream, _) = listener.accept().await.expect("accepted");
    tokio::spawn(async move { connection.connect(stream).await });
    let mut land = bytes::BytesMut::new();
    let message = crate::proto::foreign::clever_show::Message::Action {
        action: "land".to_owned(),
        arguments: Arguments::default(),
    };
    message.to_frame().encode(&mut land).expect("fits");
    for quiet in [Duration::ZERO, Duration::from_millis(700)] {
        tokio::time::sleep(quiet).await;
        let before = crate::net::clock::now();
        std::io::Write::write_all(&mut peer, &land).expect("written");
        let sent = crate::net::clock::now();
        // Stops all tasks of this test, which share this thread.
        std::thread::sleep(Duration::from_secs(1));
        let since = within_timeout("a message", incoming.recv())
            .await
            .expect("open")
            .earliest_arrival;
        assert!(since <= sent, "{:?} after", since - sent);
        assert!(
            since + Duration::from_millis(500) >= before,
            "{:?} before",
            before - since
        );
    }
}

#[tokio::test]
async fn message_after_a_skipped_one_has_its_own_age() {
    let (listener, addr) = listener().await;
    let (connection, mut incoming) = ConnectionManager::new(Options {
        content_bytes_max: 1_000,
        ..Options::default()
    });
    let mut peer = TcpStream::connect(addr).await.expect("connected");
    let (stream, _) = listener.accept().await.expect("accepted");
    tokio::spawn(async move { connection.connect(stream).await });
    let parts = 10;
    let file = crate::proto::foreign::clever_show::Message::FilePush {
        path: "shows/take1.csv".to_owned(),
        content: vec![0; parts * 100_000].into(),
    };
    let land = crate::proto::foreign::clever_show::Message::Action {
        action: "land".to_owned(),
        arguments: Arguments::default(),
    };
    let (mut bytes, mut last) = (bytes::BytesMut::new(), bytes::BytesMut::new());
    file.to_frame().encode(&mut bytes).expect("fits");
    land.to_frame().encode(&mut last).expect("fits");
    let begun = crate::net::clock::now();
    // The file arrives slowly; the landing follows it directly.
    let rest = bytes.split_off(parts * 90_000);
    for part in bytes.chunks(100_000) {
        peer.write_all(part).await.expect("written");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = crate::net::clock::now();
    peer.write_all(&[&rest[..], &last[..]].concat())
        .await
        .expect("written");
    let sent = crate::net::clock::now();
    let long = within_timeout("the file", incoming.recv()).await.expect("open");
    assert!(
        matches!(long.event, Event::TooLong { max: 1_000, .. }),
        "{long:?}"
    );
    let land = within_timeout("the landing", incoming.recv())
        .await
        .expect("open");
    assert!(matches!(land.event, Event::Action { .. }), "{land:?}");
    let since = land.earliest_arrival;
    assert!(since <= sent, "{:?} after", since - sent);
    // The allowed error: the poll interval, and as much again for a busy machine.
    let tolerance = 2 * stream::SOCKET_POLL_INTERVAL;
    assert!(
        since + tolerance >= before,
        "{:?} old of {:?}",
        sent - since,
        sent - begun
    );
}
