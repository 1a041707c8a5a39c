//! Transfers through their public interface, as the links use it.

use std::path::PathBuf;

use swarm_shared::net::roots::FILE_CHUNK_BYTES;
use swarm_shared::proto::id::PublicKey;
use swarm_shared::proto::outcome::Outcome;
use tempfile::TempDir;

use super::*;

const SOON: Duration = Duration::from_secs(20);

struct Fixture {
    dir: TempDir,
    transfers: Transfers,
    shutdown: CancellationToken,
    peer: PeerId,
}

fn sink(frames: mpsc::Sender<Frame>) -> ChunkSink {
    ChunkSink {
        frames,
        chunk_bytes: ChunkBytes::new(FILE_CHUNK_BYTES),
    }
}

impl Fixture {
    fn new(idle_max: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let roots = Roots::new(BTreeMap::from([("r".to_owned(), dir.path().to_owned())]));
        let shutdown = CancellationToken::new();
        Self {
            transfers: Transfers::with_idle(roots, shutdown.clone(), idle_max),
            dir,
            shutdown,
            peer: PublicKey([1; 32]).id(),
        }
    }

    fn id(&self, seq: u64) -> CommandId {
        CommandId {
            issuer: self.peer,
            epoch: 5,
            seq,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn push(&self, id: u64, path: &str, size: usize) -> oneshot::Receiver<Reply> {
        let kwargs = json!({"op": "push", "path": path, "size": size, "mode": 0o640});
        self.begin(id, kwargs, mpsc::channel(1).0)
    }

    fn begin(&self, id: u64, kwargs: Value, bulk: mpsc::Sender<Frame>) -> oneshot::Receiver<Reply> {
        let arguments = serde_json::from_value(json!({"kwargs": kwargs})).expect("arguments");
        self.transfers.begin(self.id(id), &arguments, sink(bulk))
    }

    async fn send_content(&self, id: u64, content: &Bytes) {
        let mut offset = 0;
        while offset < content.len() {
            let end = content.len().min(offset + FILE_CHUNK_BYTES);
            let part = content.slice(offset..end);
            self.transfers.on_chunk(self.id(id), offset as u64, part).await;
            offset = end;
        }
        self.transfers.on_end(self.id(id), end_of(content));
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("a directory");
        let mut names: Vec<String> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }
}

fn end_of(content: &[u8]) -> FileEnd {
    FileEnd {
        sha256: sha256(content),
        size: content.len() as u64,
        mode: None,
    }
}

fn sha256(content: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, content);
    digest.as_ref().try_into().expect("32 bytes")
}

fn content(bytes: usize) -> Bytes {
    (0..bytes)
        .map(|i| i.to_le_bytes()[i % 3])
        .collect::<Vec<u8>>()
        .into()
}

async fn ended(outcome: oneshot::Receiver<Reply>) -> (Outcome, String) {
    let reply = tokio::time::timeout(SOON, outcome)
        .await
        .expect("in time")
        .expect("one reply");
    (reply.state, reply.error.unwrap_or_default())
}

#[tokio::test]
async fn interleaved_files_arrive_whole() {
    let place = Fixture::new(SOON);
    let (a, b) = (content(20_000_000), content(700_001));
    let first = place.push(1, "r/a", a.len());
    let second = place.push(2, "r/sub/b", b.len());
    let empty = place.push(3, "r/empty", 0);
    let nothing = Bytes::new();
    tokio::join!(
        place.send_content(1, &a),
        place.send_content(2, &b),
        place.send_content(3, &nothing)
    );
    for outcome in [first, second, empty] {
        assert_eq!(ended(outcome).await, (Outcome::Done, String::new()));
    }
    assert_eq!(std::fs::read(place.path("a")).expect("there"), a);
    assert_eq!(std::fs::read(place.path("sub/b")).expect("there"), b);
    assert_eq!(place.names(), ["a", "empty", "sub"]);
    assert_eq!(place.transfers.count(), 0);
}

#[tokio::test]
async fn a_pulled_file_is_sent_unchanged() {
    let place = Fixture::new(SOON);
    let file = content(1_500_000);
    std::fs::write(place.path("f"), &file).expect("written");
    let (bulk, mut frames) = mpsc::channel(2);
    let outcome = place.begin(9, json!({"op": "pull", "path": "r/f"}), bulk);
    let mut got = Vec::new();
    let end: FileEnd = loop {
        let frame = frames.recv().await.expect("more");
        assert_eq!((frame.header.id, frame.header.lane), (Some(9), Some(Lane::Bulk)));
        if frame.header.kind == Some(Kind::ChunkEnd) {
            break frame.parse_content().expect("an end");
        }
        assert_eq!(frame.header.offset, Some(got.len() as u64));
        got.extend_from_slice(&frame.content);
    };
    assert_eq!(got, file);
    assert_eq!(FileEnd { mode: None, ..end }, end_of(&file));
    assert_eq!(ended(outcome).await.0, Outcome::Done);
}

#[tokio::test]
async fn invalid_transfers_end_at_once() {
    let place = Fixture::new(SOON);
    for (kwargs, state, says) in [
        (json!({}), Outcome::Refused, "not a transfer"),
        (
            json!({"op": "copy", "path": "r/x"}),
            Outcome::Refused,
            "not a transfer",
        ),
        (json!({"op": "push", "path": "r/x"}), Outcome::Refused, "size"),
        (
            json!({"op": "pull", "path": "r/../x"}),
            Outcome::Refused,
            "ROOT/RELATIVE",
        ),
        (
            json!({"op": "pull", "path": "q/x"}),
            Outcome::Refused,
            "there are: r",
        ),
        (
            json!({"op": "pull", "path": "r/none"}),
            Outcome::Failed,
            "no such file",
        ),
        (
            json!({"op": "push", "path": "r/x", "size": 1_u64 << 60}),
            Outcome::Failed,
            "disk is full",
        ),
    ] {
        let (ends, error) = ended(place.begin(1, kwargs.clone(), mpsc::channel(1).0)).await;
        assert_eq!(ends, state, "{kwargs}: {error}");
        assert!(error.contains(says), "{kwargs}: {error}");
    }
    assert!(place.names().is_empty());
}

#[tokio::test]
async fn chunks_after_a_failed_transfer_are_dropped() {
    let place = Fixture::new(SOON);
    let outcome = place.push(1, "r/x", 10);
    place.transfers.on_chunk(place.id(1), 5, content(5)).await;
    assert_eq!(ended(outcome).await.0, Outcome::Failed);
    place.send_content(1, &content(10)).await;
    let outcome = place.push(1, "r/x", 10);
    place.send_content(1, &content(10)).await;
    assert_eq!(ended(outcome).await.0, Outcome::Done, "the number is free again");
    assert_eq!(place.names(), ["x"]);
}

#[tokio::test]
async fn aborted_transfers_leave_no_files() {
    let place = Fixture::new(Duration::from_millis(100));
    let idle = place.push(1, "r/x", 10);
    assert!(ended(idle).await.1.contains("no progress"));

    let place = Fixture::new(SOON);
    let (bulk, _full) = mpsc::channel(1);
    std::fs::write(place.path("f"), content(2_000_000)).expect("written");
    let out = place.begin(2, json!({"op": "pull", "path": "r/f"}), bulk);
    let lost = place.push(3, "r/y", 10);
    place.transfers.on_chunk(place.id(3), 0, content(5)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    place.transfers.on_peer_lost(place.peer);
    assert!(ended(lost).await.1.contains("connection was lost"));
    assert!(ended(out).await.1.contains("connection was lost"));

    let stopped = place.push(4, "r/z", 10);
    place.shutdown.cancel();
    place.transfers.close();
    assert!(ended(stopped).await.1.contains("connection was lost"));
    assert!(ended(place.push(5, "r/z", 10)).await.1.contains("shutting down"));
    assert_eq!(place.names(), ["f"]);
}

#[tokio::test]
async fn transfers_above_the_limit_are_refused() {
    let place = Fixture::new(SOON);
    let running: Vec<_> = (0..TRANSFERS_MAX as u64)
        .map(|id| place.push(id, "r/x", 10))
        .collect();
    let (state, error) = ended(place.push(99, "r/x", 10)).await;
    assert_eq!(state, Outcome::Refused);
    assert!(error.contains("busy"), "{error}");
    assert!(
        ended(place.push(0, "r/x", 10))
            .await
            .1
            .contains("running already")
    );
    place.transfers.on_peer_lost(place.peer);
    for outcome in running {
        ended(outcome).await;
    }
}

#[tokio::test]
async fn a_cancelled_pull_sends_no_more_chunks() {
    let place = Fixture::new(SOON);
    std::fs::write(place.path("big"), vec![0; 4 * FILE_CHUNK_BYTES]).expect("written");
    let (bulk, mut frames) = mpsc::channel(1);
    let outcome = place.begin(1, json!({"op": "pull", "path": "r/big"}), bulk);
    frames.recv().await.expect("its first chunk");
    place.transfers.on_end(place.id(1), end_of(b""));
    let (state, error) = ended(outcome).await;
    assert_eq!(state, Outcome::Failed, "{error}");
    assert_eq!(place.transfers.count(), 0);
}

#[tokio::test]
async fn transfers_of_different_epochs_are_kept_apart() {
    let place = Fixture::new(IDLE_MAX);
    let old = place.push(1, "r/old", 5);
    let newer = CommandId {
        epoch: 6,
        ..place.id(1)
    };
    let kwargs = json!({"op": "push", "path": "r/new", "size": 5, "mode": 0o640});
    let arguments = serde_json::from_value(json!({ "kwargs": kwargs })).expect("arguments");
    let new = place.transfers.begin(newer, &arguments, sink(mpsc::channel(1).0));

    let part = |epoch| Header {
        id: Some(1),
        epoch,
        ..Header::default()
    };
    assert_eq!(
        place.transfers.find(place.peer, &part(Some(5))),
        Some(place.id(1))
    );
    assert_eq!(place.transfers.find(place.peer, &part(Some(7))), None);
    assert_eq!(
        place.transfers.find(place.peer, &part(None)),
        Some(newer),
        "the newest"
    );
    place.transfers.on_chunk(newer, 0, content(5)).await;
    place.transfers.on_end(newer, end_of(&content(5)));
    assert_eq!(new.await.expect("a reply").state, Outcome::Done);
    place.send_content(1, &content(5)).await;
    assert_eq!(old.await.expect("a reply").state, Outcome::Done);
}
