//! Clients that break the protocol or the limits, over real sockets.

use std::time::Duration;

use swarm_shared::net::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::event_readers::{EXECUTE_REQUEST, LINES, TEST_TIMEOUT, connect, read_to_end};
use super::*;

#[tokio::test]
async fn misbehaving_http_clients_are_closed_without_harm_to_others() {
    let rig = Harness::new(&format!(
        "{LINES}\nidle = \"500ms\"\nconnections_per_address = 20"
    ))
    .await;
    let listens = rig.listen();
    let started = clock::now();
    let many = "X-Flood: 1\r\n".repeat(100);
    let mut bad = Vec::new();
    for text in [
        String::new(),
        "GET / HT".to_owned(),
        "GET / HTTP/1.1\r\nHost: gateway\r\n".to_owned(),
        "POST /execute HTTP/1.1\r\nHost: gateway\r\nContent-Length: 10\r\n\r\nx".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: gateway\r\n{many}\r\n"),
        format!(
            "GET / HTTP/1.1\r\nHost: gateway\r\nX-Long: {}\r\n\r\n",
            "x".repeat(100_000)
        ),
        format!("GET /{} HTTP/1.1\r\nHost: gateway\r\n\r\n", "x".repeat(100_000)),
        "\u{0}\u{1}\u{2} garbage\r\n\r\n".to_owned(),
        "POST /execute HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
        "POST /execute HTTP/1.1\r\nHost: gateway\r\nContent-Length: 99999999999999999999\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(listens).await.expect("connects");
        // The gateway may close the connection before all is sent.
        let _written = stream.write_all(text.as_bytes()).await;
        bad.push((text, stream));
    }
    let answer = read_to_end(connect(listens, EXECUTE_REQUEST).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"type\":\"response\""), "{answer}");
    for (text, stream) in bad {
        let answer = read_to_end(stream).await;
        let shown: String = text.chars().take(40).collect();
        let refused = ["HTTP/1.1 4", ""]
            .iter()
            .any(|wanted| answer.starts_with(wanted) && !answer.starts_with("HTTP/1.1 2"));
        assert!(refused, "{shown:?}: {answer}");
    }
    assert!(clock::since(started) < TEST_TIMEOUT);
    // All connections are released.
    for _ in 0..20 {
        let answer = read_to_end(connect(listens, EXECUTE_REQUEST).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}

#[tokio::test]
async fn slow_request_head_times_out() {
    let rig = Harness::new(&format!("{LINES}\nidle = \"500ms\"")).await;
    let mut stream = connect(rig.listen(), "GET / HTTP/1.1\r\n").await;
    let started = clock::now();
    let trickle = async {
        while stream.write_all(b"X-Slow: 1\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, trickle).await.expect("closed");
    assert!(clock::since(started) < Duration::from_secs(10));
}

#[tokio::test]
async fn idle_connection_and_unread_body_time_out() {
    let rig = Harness::new(&format!("{LINES}\nidle = \"500ms\"")).await;
    let listens = rig.listen();
    let keep = EXECUTE_REQUEST.replace("Connection: close\r\n", "");
    let answer = read_to_end(connect(listens, &keep).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    for head in [
        "POST /nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000000\r\n\r\n",
        "GET /openapi.json HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000000\r\n\r\n",
        "POST /hook/none HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let started = clock::now();
        let (mut from, mut to) = connect(listens, head).await.into_split();
        let trickle = async {
            // One chunk of one byte, or six bytes of the body.
            while to.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let hear = async {
            let mut answer = Vec::new();
            // A reset ends the connection too.
            let _end = from.read_to_end(&mut answer).await;
            answer
        };
        let both = async { tokio::join!(trickle, hear).1 };
        let answer = tokio::time::timeout(TEST_TIMEOUT, both).await.expect("closed");
        assert!(answer.starts_with(b"HTTP/1.1 "), "{head}");
        assert!(clock::since(started) < Duration::from_secs(10), "{head}");
    }
}

#[tokio::test]
async fn client_that_does_not_read_a_resource_is_closed() {
    for tls in ["none", "self-made"] {
        let more = format!("{LINES}\ntls = {tls:?}\nidle = \"2s\"\nconnections_per_address = 1");
        let rig = Harness::new(&more).await;
        // More than the kernel's socket buffers hold.
        let large = std::fs::File::create(rig.dir.path().join("files/large")).expect("made");
        large.set_len(256 * 1024 * 1024).expect("made longer");
        let listens = rig.listen();
        let head =
            format!("GET /resources/files/large HTTP/1.1\r\nHost: gateway\r\nX-Token: {TOKEN}\r\n\r\n");
        let mut sleeper = rig.connect_and_send(listens, &head).await.expect("let in");
        let mut begun = [0; 15];
        sleeper.read_exact(&mut begun).await.expect("it begins");
        assert_eq!(&begun, b"HTTP/1.1 200 OK");
        assert_eq!(rig.exchange(listens, EXECUTE_REQUEST).await, "", "no place");
        let served = async {
            while !rig
                .exchange(listens, EXECUTE_REQUEST)
                .await
                .starts_with("HTTP/1.1 200")
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, served)
            .await
            .expect("a place is free again");
    }
}
