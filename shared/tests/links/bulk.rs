//! Bulk connections.

use std::time::Duration;

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::net::peer::{PeerEvent, PeerLink, RequestResult};
use swarm_shared::proto::message::Channel;
use swarm_shared::proto::wire::{Frame, Kind, Lane};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::common::{Program, Requester, Setup, TEST_TIMEOUT, fleet, linked, outgoing};
use crate::proxy::Proxy;

const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS: usize = 256;

/// A chunk whose every word depends on its number.
fn content(number: usize) -> Bytes {
    let word = u64::try_from(number).expect("small").to_be_bytes();
    Bytes::from(word.repeat(CHUNK_BYTES / word.len()))
}

async fn send_chunks(link: PeerLink) {
    for number in 0..CHUNKS {
        let mut frame = Frame::binary(Kind::Chunk, content(number));
        frame.header.offset = Some(u64::try_from(number * CHUNK_BYTES).expect("small"));
        let sent = timeout(TEST_TIMEOUT, link.send(outgoing(&frame, Lane::Bulk))).await;
        sent.expect("room in time").expect("running");
    }
}

/// Reads and checks all chunks, and calls `tell` for each; returns how often the connection opened.
async fn read_chunks(mut events: mpsc::Receiver<PeerEvent>, tell: impl Fn(usize)) -> usize {
    let (mut next, mut ups) = (0, 0);
    while next < CHUNKS {
        let event = timeout(TEST_TIMEOUT, events.recv())
            .await
            .expect("in time")
            .expect("running");
        match event {
            PeerEvent::Connected { resumed, .. } => {
                assert_eq!(resumed, ups > 0);
                ups += 1;
            }
            PeerEvent::Frame { frame, channel, .. } => {
                assert_eq!(channel, Channel::Bulk);
                assert_eq!(
                    frame.header.offset,
                    Some(u64::try_from(next * CHUNK_BYTES).expect("small"))
                );
                assert_eq!(frame.content, content(next), "chunk {next} has changed");
                tell(next);
                next += 1;
            }
            PeerEvent::Disconnected { .. } | PeerEvent::Silent(_) | PeerEvent::Responsive(_) => {}
            PeerEvent::BulkOpened { .. } => panic!("a session in a session"),
        }
    }
    ups
}

/// Sends 64 MiB from one to the other while the station pings the node.
async fn transfer(from: &Program, mut to: Program) {
    let link = from.endpoint.open_bulk_session(to.id()).await.expect("running");
    let sender = tokio::spawn(send_chunks(link));
    let (_back, events) = to.wait_for_bulk().await;
    let reader = tokio::spawn(read_chunks(events, |_| ()));
    assert_eq!(reader.await.expect("all came"), 1);
    sender.await.expect("all sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_flow_from_the_side_that_dialled() {
    let mut root = fleet();
    let (station, node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    transfer(&station, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_flow_from_the_side_that_was_dialled() {
    let mut root = fleet();
    let (node, station) = linked(Setup::node(&mut root), Setup::station(&mut root)).await;
    transfer(&station, node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_does_not_delay_a_command() {
    let mut root = fleet();
    let (station, mut node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    let bulk = station
        .endpoint
        .open_bulk_session(node.id())
        .await
        .expect("running");
    let (_back, events) = node.wait_for_bulk().await;
    let id = node.id();
    let sender = tokio::spawn(send_chunks(bulk));
    let reader = tokio::spawn(read_chunks(events, |_| ()));
    let answering = tokio::spawn(node.reply_to_all());
    let mut asking = Requester::new();
    let link = station.link(id).await;
    let mut times = Vec::new();
    while !reader.is_finished() {
        let number = u64::try_from(times.len()).expect("few");
        let asked = clock::now();
        asking.request(&link, "ping", number).expect("room");
        assert!(matches!(
            asking.next_delivery().await.result,
            RequestResult::Reply(_)
        ));
        times.push(clock::since(asked));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort_unstable();
    let median = times[times.len() / 2];
    // Queued behind a file of 64 MiB it would take most of the file's time.
    assert!(
        median < Duration::from_millis(150),
        "a ping took {median:?} beside a file"
    );
    sender.await.expect("all sent");
    reader.await.expect("all came");
    answering.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_resumes_after_its_connection_was_cut() {
    let mut root = fleet();
    let mut station = Setup::station(&mut root).start();
    let mut node = Setup::node(&mut root).start();
    let proxy = Proxy::to(node.endpoint.listen_addr()).await;
    station.dial(proxy.addr()).await;
    station.wait_for_up().await;
    let link = station
        .endpoint
        .open_bulk_session(node.id())
        .await
        .expect("running");
    let sender = tokio::spawn(send_chunks(link));
    // An application that does not read the events of a session blocks it, and this holds for the sender too.
    let (_link, mut at_station) = station.wait_for_bulk().await;
    tokio::spawn(async move { while at_station.recv().await.is_some() {} });
    let (_back, events) = node.wait_for_bulk().await;
    let cut = move |chunk| {
        if chunk % 64 == 32 {
            proxy.cut();
        }
    };
    let ups = tokio::spawn(read_chunks(events, cut)).await.expect("all came");
    assert!(ups > 1, "it was never cut");
    sender.await.expect("all sent");
}

/// Requesting a session that exists leaves its connection alone.
#[tokio::test]
async fn bulk_connection_is_opened_once() {
    let mut root = fleet();
    let (mut station, mut node) = linked(Setup::station(&mut root), Setup::node(&mut root)).await;
    station
        .endpoint
        .open_bulk_session(node.id())
        .await
        .expect("running");
    let (_link, mut at_station) = station.wait_for_bulk().await;
    let (_back, mut at_node) = node.wait_for_bulk().await;
    for events in [&mut at_station, &mut at_node] {
        let event = timeout(TEST_TIMEOUT, events.recv()).await.expect("in time");
        assert!(matches!(event, Some(PeerEvent::Connected { .. })), "{event:?}");
    }
    for _ in 0..5 {
        station
            .endpoint
            .open_bulk_session(node.id())
            .await
            .expect("running");
        node.endpoint
            .open_bulk_session(station.id())
            .await
            .expect("running");
    }
    let event = timeout(Duration::from_secs(1), at_station.recv()).await;
    assert!(event.is_err(), "the connection was disturbed: {event:?}");
}
