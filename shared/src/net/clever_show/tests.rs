//! Both sides of the library, connected over loopback.

mod message_age;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::net::roots::Roots;
use crate::proto::message::Arguments;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

fn kwargs(value: serde_json::Value) -> Arguments {
    serde_json::from_value(json!({ "kwargs": value })).expect("arguments")
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    (listener, addr)
}

/// Serves one connection after another with these callbacks.
fn serve(listener: TcpListener, callbacks: Callbacks) -> ConnectionManager {
    let (connection, incoming) = ConnectionManager::new(Options::default());
    let serving = connection.clone();
    tokio::spawn(async move { callbacks.serve(&serving, incoming).await });
    let driven = connection.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            set_keepalive(&stream, AFTER_IDLE_SEC, INTERVAL_SEC, MAX_FAILS).expect("set");
            driven.connect(stream).await;
        }
    });
    connection
}

async fn within_timeout<T>(what: &str, waited: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, waited)
        .await
        .unwrap_or_else(|_elapsed| panic!("not in time: {what}"))
}

#[tokio::test]
async fn requests_actions_and_files_work_both_ways() {
    let dir = tempfile::tempdir().expect("a directory");
    let roots = Roots::new(BTreeMap::from([("shows".to_owned(), dir.path().join("shows"))]));
    roots.create_missing();
    let (listener, addr) = listener().await;
    let (sender, mut received) = mpsc::channel(8);
    let mut callbacks = Callbacks::new();
    callbacks
        .request_callback("id", |_, _| async { Ok::<_, String>(json!("copter-1")) })
        .request_callback("broken", |_, _| async { Err::<serde_json::Value, _>("no") })
        .message_callback("led", move |_, arguments: Arguments| {
            let sender = sender.clone();
            async move {
                sender.send(arguments).await.expect("the receiver is open");
            }
        })
        .files(roots);
    let _drone = serve(listener, callbacks);

    let (server, _incoming) = ConnectionManager::new(Options::default());
    let driven = server.clone();
    let stream = TcpStream::connect(addr).await.expect("connected");
    tokio::spawn(async move { driven.connect(stream).await });
    let none = Arguments::default;
    assert_eq!(
        server.get_response("id", none(), TEST_TIMEOUT).await,
        Ok(json!("copter-1"))
    );
    server
        .send_message("led", kwargs(json!({"red": 255})))
        .expect("room");
    assert_eq!(
        within_timeout("led", received.recv()).await,
        Some(kwargs(json!({"red": 255})))
    );
    // As in the real program, failing and unknown requests get no response.
    let short = Duration::from_millis(100);
    for value in ["broken", "unknown"] {
        let answer = server.get_response(value, none(), short).await;
        assert_eq!(answer, Err(RequestError::TimedOut), "{value}");
    }

    let source = dir.path().join("take1.csv");
    let content = "0,0,1\n".repeat(50_000);
    std::fs::write(&source, &content).expect("written");
    server
        .send_file(&source, "shows/a/take1.csv")
        .await
        .expect("sent");
    let copy = dir.path().join("copy");
    // A push has no response; messages after it find the file stored.
    let fetched = server
        .get_file("shows/a/take1.csv", Some(&copy), TEST_TIMEOUT)
        .await;
    assert_eq!(fetched.expect("there"), content);
    assert_eq!(std::fs::read_to_string(&copy).expect("written"), content);
    let outside = server.get_file("shows/../take1.csv", None, short).await;
    assert!(matches!(
        outside,
        Err(FileTransferError::Request(RequestError::TimedOut))
    ));
    let too_long = ConnectionManager::new(Options {
        content_bytes_max: 10,
        ..Options::default()
    });
    let refused = too_long.0.send_file(&source, "shows/x").await;
    assert!(matches!(refused, Err(FileTransferError::TooLong { max: 10, .. })));
}

#[tokio::test]
async fn concurrent_fetches_of_one_file_are_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let content = vec![7; 200_000];
    std::fs::write(dir.path().join("log"), &content).expect("written");
    let roots = Roots::new(BTreeMap::from([("logs".to_owned(), dir.path().to_owned())]));
    let (listener, addr) = listener().await;
    let mut callbacks = Callbacks::new();
    callbacks.files(roots);
    let _drone = serve(listener, callbacks);
    let (server, _incoming) = ConnectionManager::new(Options::default());
    let driven = server.clone();
    let stream = TcpStream::connect(addr).await.expect("connected");
    tokio::spawn(async move { driven.connect(stream).await });
    let copy = dir.path().join("copy");
    let mut fetching = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (server, copy) = (server.clone(), copy.clone());
        fetching.spawn(async move { server.get_file("logs/log", Some(&copy), TEST_TIMEOUT).await });
    }
    while let Some(fetched) = fetching.join_next().await {
        fetched.expect("ran").expect("fetched");
        assert_eq!(std::fs::read(&copy).expect("there"), content);
    }
    let left = std::fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(left, 2, "no temporary file is left");
}

#[tokio::test]
async fn pushed_file_is_stored_before_the_next_message() {
    let dir = tempfile::tempdir().expect("a directory");
    let roots = Roots::new(BTreeMap::from([("shows".to_owned(), dir.path().to_owned())]));
    let (listener, addr) = listener().await;
    let (sender, mut received) = mpsc::channel(8);
    let show = dir.path().join("take1.csv");
    let mut callbacks = Callbacks::new();
    callbacks
        .message_callback("start", move |_, _| {
            let found = std::fs::read(&show);
            let sender = sender.clone();
            async move {
                sender
                    .send(found.expect("there"))
                    .await
                    .expect("the receiver is open");
            }
        })
        .files(roots);
    let _drone = serve(listener, callbacks);
    let (server, _incoming) = ConnectionManager::new(Options::default());
    let driven = server.clone();
    let stream = TcpStream::connect(addr).await.expect("connected");
    tokio::spawn(async move { driven.connect(stream).await });
    within_timeout("the connection", async {
        while server.addr().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for round in 0..5 {
        // Each file is shorter than the one before.
        for number in 0..10_usize {
            let take = vec![round * 10 + u8::try_from(number).expect("small"); (10 - number) * 100_000];
            server.send_bytes(take.into(), "shows/take1.csv").expect("room");
        }
        server.send_message("start", Arguments::default()).expect("room");
        let found = within_timeout("the start", received.recv()).await;
        assert_eq!(found, Some(vec![round * 10 + 9; 100_000]));
    }
}

#[tokio::test]
async fn running_callbacks_have_a_memory_limit() {
    const BYTES: usize = 1_000_000;
    let (listener, addr) = listener().await;
    let (sender, mut received) = mpsc::channel(64);
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let release_callbacks = release.clone();
    let mut callbacks = Callbacks::new();
    callbacks.message_callback("hold", move |_, arguments: Arguments| {
        let (sender, release) = (sender.clone(), release_callbacks.clone());
        async move {
            sender.send(()).await.expect("the receiver is open");
            release.acquire().await.expect("open").forget();
            drop(arguments);
        }
    });
    let _drone = serve(listener, callbacks);
    let (server, _incoming) = ConnectionManager::new(Options {
        reconnect: ReconnectPolicy {
            resume_queue: true,
            resend_requests: false,
        },
        ..Options::default()
    });
    let many = 2 * CALLBACKS_BYTES_MAX as usize / BYTES;
    for _ in 0..many {
        let text = kwargs(json!({ "text": "x".repeat(BYTES) }));
        server.send_message("hold", text).expect("room");
    }
    let stream = TcpStream::connect(addr).await.expect("connected");
    tokio::spawn(async move { server.connect(stream).await });
    let at_once = CALLBACKS_BYTES_MAX as usize / BYTES;
    for _ in 0..at_once {
        within_timeout("a callback", received.recv())
            .await
            .expect("one more");
    }
    let more = tokio::time::timeout(Duration::from_millis(300), received.recv()).await;
    more.expect_err("the memory limit holds");
    release.add_permits(many);
    for _ in at_once..many {
        within_timeout("a callback", received.recv())
            .await
            .expect("one more");
    }
}

#[tokio::test]
async fn requests_and_queue_survive_a_reconnect() {
    let (listener, addr) = listener().await;
    let options = Options {
        reconnect: ReconnectPolicy {
            resume_queue: true,
            resend_requests: true,
        },
        ..Options::default()
    };
    let (drone, _incoming) = ConnectionManager::new(options);
    // Before the first connection.
    drone.send_message("hello", Arguments::default()).expect("room");
    let asking = drone.clone();
    let asked = tokio::spawn(async move {
        asking
            .get_response("id", Arguments::default(), TEST_TIMEOUT)
            .await
    });
    let driven = drone.clone();
    tokio::spawn(async move {
        loop {
            let stream = TcpStream::connect(addr).await.expect("connected");
            driven.connect(stream).await;
        }
    });
    // The first peer reads the request and closes the connection.
    let (mut first, _) = listener.accept().await.expect("accepted");
    let mut bytes = vec![0; 4096];
    let mut read = 0;
    while !String::from_utf8_lossy(&bytes[..read]).contains("requested_value") {
        read += within_timeout("the request", first.read(&mut bytes[read..]))
            .await
            .expect("read");
    }
    assert!(String::from_utf8_lossy(&bytes[..read]).contains("hello"));
    drop(first);
    let mut callbacks = Callbacks::new();
    callbacks.request_callback("id", |_, _| async { Ok::<_, String>(json!("server")) });
    let _server = serve(listener, callbacks);
    assert_eq!(asked.await.expect("ran"), Ok(json!("server")));
}

#[tokio::test]
async fn disconnect_ends_requests_that_are_not_resent() {
    let (listener, addr) = listener().await;
    let (drone, _incoming) = ConnectionManager::new(Options::default());
    let driven = drone.clone();
    let stream = TcpStream::connect(addr).await.expect("connected");
    let ended = tokio::spawn(async move { driven.connect(stream).await });
    let (mut peer, _) = listener.accept().await.expect("accepted");
    let asking = drone.clone();
    let asked = tokio::spawn(async move {
        asking
            .get_response("id", Arguments::default(), TEST_TIMEOUT)
            .await
    });
    let mut some = [0; 10];
    within_timeout("the request", peer.read_exact(&mut some))
        .await
        .expect("read");
    drop(peer);
    assert_eq!(asked.await.expect("ran"), Err(RequestError::ConnectionLost));
    let ended = ended.await.expect("ran");
    assert!(
        matches!(ended, CloseReason::ClosedByPeer | CloseReason::Io(_)),
        "{ended}"
    );
    assert_eq!(drone.addr(), None);
}

#[tokio::test]
async fn newest_connection_replaces_all_others() {
    let (listener, addr) = listener().await;
    let (connection, _incoming) = ConnectionManager::new(Options::default());
    let mut peers = Vec::new();
    let mut driven = Vec::new();
    for _ in 0..3 {
        peers.push(TcpStream::connect(addr).await.expect("connected"));
        let (stream, _) = listener.accept().await.expect("accepted");
        let connection = connection.clone();
        let mut one = Box::pin(async move { connection.connect(stream).await });
        // Polled once; the connection before it has not ended yet.
        let begun = tokio::time::timeout(Duration::ZERO, &mut one).await;
        begun.expect_err("still open");
        driven.push(one);
    }
    let newest = tokio::spawn(driven.pop().expect("three"));
    for older in driven {
        let ended = within_timeout("the end", older).await;
        assert!(matches!(ended, CloseReason::ClosedLocally), "{ended}");
    }
    within_timeout("the newest", async {
        while connection.addr() != peers[2].local_addr().ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A connection that waits for the one before it is closed too.
    let (stream, _) = {
        peers.push(TcpStream::connect(addr).await.expect("connected"));
        listener.accept().await.expect("accepted")
    };
    let mut waiting = Box::pin(connection.connect(stream));
    tokio::time::timeout(Duration::ZERO, &mut waiting)
        .await
        .expect_err("the other connection is driven");
    connection.close();
    assert!(matches!(
        within_timeout("the end", waiting).await,
        CloseReason::ClosedLocally
    ));
    let ended = within_timeout("the end", newest).await.expect("ran");
    assert!(matches!(ended, CloseReason::ClosedLocally), "{ended}");
    assert_eq!(connection.addr(), None);
}

#[tokio::test]
async fn invalid_input_costs_only_the_connection() {
    let options = Options {
        content_bytes_max: 1_000,
        message_timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let long = br#"{"byteorder":"little","content-type":"binary","content-encoding":"utf-8","content-length":9999999999,"message-type":"message","action":"filetransfer","filepath":"a/b"}"#;
    let mut announced = u16::try_from(long.len()).expect("short").to_be_bytes().to_vec();
    announced.extend_from_slice(long);
    let (connection, mut incoming) = ConnectionManager::new(options);
    for (bytes, expected) in [
        (&b"\xff\xff"[..], "not a message"),
        (b"\x00\x02[]", "not a message"),
        (&announced, "content of 9999999999 bytes is longer"),
        (b"\x00\x50{\"byteorder\"", "stalled"),
    ] {
        let (listener, addr) = listener().await;
        let mut peer = TcpStream::connect(addr).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        peer.write_all(bytes).await.expect("written");
        let ended = within_timeout("the end", connection.connect(stream)).await;
        assert!(ended.to_string().contains(expected), "{ended}");
    }
    // Valid frames that are not usable messages do not end the connection.
    let (listener, addr) = listener().await;
    let mut peer = TcpStream::connect(addr).await.expect("connected");
    let (stream, _) = listener.accept().await.expect("accepted");
    let long = br#"{"byteorder":"?","content-type":"binary","content-encoding":"utf-8","content-length":2000000,"message-type":"message","action":"filetransfer","filepath":"a/b"}"#;
    let mut bytes = u16::try_from(long.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend_from_slice(long);
    bytes.extend(std::iter::repeat_n(b'{', 2_000_000));
    let valid = br#"{"byteorder":"?","content-type":"json","content-encoding":"utf-8","content-length":5,"message-type":"message","action":"land"}"#;
    bytes.extend_from_slice(&u16::try_from(valid.len()).expect("short").to_be_bytes());
    bytes.extend_from_slice(valid);
    bytes.extend_from_slice(b"NaNNa");
    let driven = connection.clone();
    let ended = tokio::spawn(async move { driven.connect(stream).await });
    within_timeout("everything to be read", peer.write_all(&bytes))
        .await
        .expect("written");
    let event = within_timeout("the message", incoming.recv())
        .await
        .map(|received| received.event);
    let too_long = Event::TooLong {
        bytes: 2_000_000,
        max: 1_000,
    };
    assert_eq!(event, Some(too_long));
    let event = within_timeout("the message", incoming.recv())
        .await
        .map(|received| received.event);
    assert!(matches!(event, Some(Event::InvalidMessage(_))), "{event:?}");
    connection.close();
    assert!(matches!(ended.await.expect("ran"), CloseReason::ClosedLocally));
}

#[tokio::test]
async fn client_connects_to_an_announced_server() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = socket.local_addr().expect("bound").port();
    drop(socket);
    let (listener, addr) = listener().await;
    let mut client = Client::for_announcements(None, port);
    let found = tokio::spawn(async move { client.next_connection().await.1 });
    let announcement = crate::proto::foreign::clever_show::Announcement {
        host: "127.0.0.1".to_owned(),
        port: addr.port(),
        id: "0042".to_owned(),
        start_time: "1".to_owned(),
    };
    let sender = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
    let announced = announcement.to_datagram().expect("short");
    let announcing = tokio::spawn(async move {
        loop {
            for datagram in [&b"nonsense"[..], &[0; 2000], &announced] {
                // Fails while the client does not listen yet.
                sender.send_to(datagram, ("127.0.0.1", port)).await.ok();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    within_timeout("the connection", listener.accept())
        .await
        .expect("accepted");
    assert_eq!(within_timeout("the server", found).await.expect("ran"), addr);
    announcing.abort();
}

#[test]
fn get_ip_address_returns_an_address() {
    let address = get_ip_address();
    assert!(
        address == "localhost" || address.parse::<IpAddr>().is_ok(),
        "{address}"
    );
}

#[tokio::test]
async fn notification_is_kept_for_the_next_waiter() {
    let notifier = Arc::new(NotifierSock::default());
    notifier.notify();
    within_timeout("the earlier notification", notifier.notified()).await;
    let waiting = notifier.clone();
    let woken = tokio::spawn(async move { waiting.notified().await });
    // From a thread outside the runtime.
    std::thread::spawn(move || notifier.notify()).join().expect("ran");
    within_timeout("the next notification", woken).await.expect("ran");
}

#[tokio::test]
async fn at_most_one_large_message_is_buffered() {
    let (listener, addr) = listener().await;
    let (connection, mut incoming) = ConnectionManager::new(Options::default());
    let (peer, _nothing) = ConnectionManager::new(Options {
        reconnect: ReconnectPolicy {
            resume_queue: true,
            resend_requests: true,
        },
        ..Options::default()
    });
    let count = 8;
    for number in 0..count {
        peer.send_message("led", Arguments::default()).expect("room");
        peer.send_bytes(vec![0; 100_000].into(), &format!("shows/{number}"))
            .expect("room");
    }
    let stream = TcpStream::connect(addr).await.expect("connected");
    tokio::spawn(async move { peer.connect(stream).await });
    let (stream, _) = listener.accept().await.expect("accepted");
    tokio::spawn(async move { connection.connect(stream).await });
    for number in 0..count {
        // Time in which all messages could arrive.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(incoming.len() <= 2, "{} events are queued", incoming.len());
        let small = within_timeout("a message", incoming.recv())
            .await
            .expect("open")
            .event;
        assert!(matches!(small, Event::Action { .. }), "{small:?}");
        let large = within_timeout("a file", incoming.recv())
            .await
            .expect("open")
            .event;
        let path = format!("shows/{number}");
        assert!(matches!(large, Event::File { filepath, .. } if filepath == path));
    }
}

#[tokio::test]
async fn response_is_not_sent_on_the_next_connection() {
    let (listener, addr) = listener().await;
    let (begun, mut starts) = mpsc::channel(8);
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let release_callbacks = release.clone();
    let mut callbacks = Callbacks::new();
    callbacks.request_callback("position", move |_, _| {
        let (begun, release) = (begun.clone(), release_callbacks.clone());
        async move {
            begun.send(()).await.expect("the receiver is open");
            release.acquire().await.expect("open").forget();
            Ok::<_, String>(json!([1, 2]))
        }
    });
    let _drone = serve(listener, callbacks);
    let mut ask = async || {
        let (server, incoming) = ConnectionManager::new(Options::default());
        let stream = TcpStream::connect(addr).await.expect("connected");
        let driven = server.clone();
        tokio::spawn(async move { driven.connect(stream).await });
        let asking = server.clone();
        let asked = tokio::spawn(async move {
            asking
                .get_response("position", Arguments::default(), TEST_TIMEOUT)
                .await
        });
        within_timeout("the request", starts.recv()).await.expect("open");
        (server, asked, incoming)
    };
    let (first, asked, _) = ask().await;
    first.close();
    assert_eq!(asked.await.expect("ran"), Err(RequestError::ConnectionLost));
    let (second, asked, mut incoming) = ask().await;
    // One for each of the two requests, and one for the request below.
    release.add_permits(3);
    assert_eq!(asked.await.expect("ran"), Ok(json!([1, 2])));
    let after = second
        .get_response("position", Arguments::default(), TEST_TIMEOUT)
        .await;
    assert_eq!(after, Ok(json!([1, 2])));
    let stray = incoming.try_recv();
    assert!(stray.is_err(), "{stray:?}");
}
