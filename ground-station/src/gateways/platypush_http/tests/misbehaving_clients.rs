//! Real sockets: visitors who behave badly.

use std::time::Duration;

use swarm_shared::net::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::event_readers::{ASK, LINES, PATIENCE, connect, to_the_end};
use super::*;

#[tokio::test]
async fn whoever_behaves_badly_is_closed_and_others_are_served() {
    let rig = Rig::new(&format!(
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
        "GET / HTTP/1.1\r\nHost: door\r\n".to_owned(),
        "POST /execute HTTP/1.1\r\nHost: door\r\nContent-Length: 10\r\n\r\nx".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: door\r\n{many}\r\n"),
        format!(
            "GET / HTTP/1.1\r\nHost: door\r\nX-Long: {}\r\n\r\n",
            "x".repeat(100_000)
        ),
        format!("GET /{} HTTP/1.1\r\nHost: door\r\n\r\n", "x".repeat(100_000)),
        "\u{0}\u{1}\u{2} garbage\r\n\r\n".to_owned(),
        "POST /execute HTTP/1.1\r\nHost: door\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
        "POST /execute HTTP/1.1\r\nHost: door\r\nContent-Length: 99999999999999999999\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(listens).await.expect("connects");
        // It may be closed before it has said all.
        let _written = stream.write_all(text.as_bytes()).await;
        bad.push((text, stream));
    }
    let answer = to_the_end(connect(listens, ASK).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"type\":\"response\""), "{answer}");
    for (text, stream) in bad {
        let answer = to_the_end(stream).await;
        let shown: String = text.chars().take(40).collect();
        let refused = ["HTTP/1.1 4", ""]
            .iter()
            .any(|wanted| answer.starts_with(wanted) && !answer.starts_with("HTTP/1.1 2"));
        assert!(refused, "{shown:?}: {answer}");
    }
    assert!(clock::since(started) < PATIENCE);
    // All places are free again.
    for _ in 0..20 {
        let answer = to_the_end(connect(listens, ASK).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}

#[tokio::test]
async fn a_trickle_does_not_buy_time() {
    let rig = Rig::new(&format!("{LINES}\nidle = \"500ms\"")).await;
    let mut stream = connect(rig.listen(), "GET / HTTP/1.1\r\n").await;
    let started = clock::now();
    let trickle = async {
        while stream.write_all(b"X-Slow: 1\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trickle).await.expect("closed");
    assert!(clock::since(started) < Duration::from_secs(10));
}

#[tokio::test]
async fn neither_silence_between_requests_nor_a_body_that_nobody_wants_buys_time() {
    let rig = Rig::new(&format!("{LINES}\nidle = \"500ms\"")).await;
    let listens = rig.listen();
    let keep = ASK.replace("Connection: close\r\n", "");
    let answer = to_the_end(connect(listens, &keep).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    for head in [
        "POST /nowhere HTTP/1.1\r\nHost: door\r\nContent-Length: 1000000\r\n\r\n",
        "GET /openapi.json HTTP/1.1\r\nHost: door\r\nContent-Length: 1000000\r\n\r\n",
        "POST /hook/none HTTP/1.1\r\nHost: door\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let started = clock::now();
        let (mut from, mut to) = connect(listens, head).await.into_split();
        let trickle = async {
            // A chunk of one byte, or six bytes of a body.
            while to.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let hear = async {
            let mut answer = Vec::new();
            // A reset is an end too.
            let _end = from.read_to_end(&mut answer).await;
            answer
        };
        let both = async { tokio::join!(trickle, hear).1 };
        let answer = tokio::time::timeout(PATIENCE, both).await.expect("closed");
        assert!(answer.starts_with(b"HTTP/1.1 "), "{head}");
        assert!(clock::since(started) < Duration::from_secs(10), "{head}");
    }
}

#[tokio::test]
async fn whoever_does_not_read_a_file_loses_its_place() {
    for tls in ["none", "self-made"] {
        let more = format!("{LINES}\ntls = {tls:?}\nidle = \"2s\"\nconnections_per_address = 1");
        let rig = Rig::new(&more).await;
        // More than the kernel holds between two programs.
        let large = std::fs::File::create(rig.dir.path().join("files/large")).expect("made");
        large.set_len(256 * 1024 * 1024).expect("made longer");
        let listens = rig.listen();
        let head = format!("GET /resources/files/large HTTP/1.1\r\nHost: door\r\nX-Token: {TOKEN}\r\n\r\n");
        let mut sleeper = rig.say(listens, &head).await.expect("let in");
        let mut begun = [0; 15];
        sleeper.read_exact(&mut begun).await.expect("it begins");
        assert_eq!(&begun, b"HTTP/1.1 200 OK");
        assert_eq!(rig.heard(listens, ASK).await, "", "no place");
        let served = async {
            while !rig.heard(listens, ASK).await.starts_with("HTTP/1.1 200") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, served)
            .await
            .expect("a place is free again");
    }
}
