//! Files that the server pushes: stored one after the other, in the order of their arrival, and numbered.
//!
//! Commands that arrive while a file is not stored yet start after it ([`FileQueue::last_unfinished`]), landing actions
//! excepted. Which file a flight needs is not known. So a flight action is refused if any file that was pushed before it
//! could not be stored, unless that file was pushed again in between and stored then. A flight action that arrives after
//! the failure was logged is accepted: it uses the files that are there. A message that was too long to be received
//! counts as a file that could not be stored.
//!
//! Bounds: [`FILES_WAITING_MAX`] files wait, and as many bytes as the owner allows for one file, or one file more. At a
//! bound the gateway receives nothing until a file has been stored.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use swarm_shared::net::clock;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Most files that wait.
pub(super) const FILES_WAITING_MAX: usize = 64;
/// Most failed files that are remembered; the oldest is forgotten first.
const FILES_FAILED_MAX: usize = 64;

/// A file that was pushed.
#[derive(Debug)]
pub(super) struct PushedFile {
    /// For the log: what arrived.
    pub(super) what: &'static str,
    /// The path that the server gave.
    pub(super) path: String,
    /// Its bytes, or why there are none.
    pub(super) content: Result<Bytes, String>,
}

/// A file has been stored, or could not be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FileEnd {
    pub(super) file: u64,
    /// The last failure of this file or one before it, unless it was stored since: when, and why.
    pub(super) failed: Option<(Instant, String)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct FileQueue {
    waiting: VecDeque<PushedFile>,
    /// Bytes that may wait.
    bytes_max: usize,
    running: JoinSet<Result<(), String>>,
    running_path: String,
    last_queued: u64,
    /// Number of the last file that has ended.
    last_ended: watch::Sender<u64>,
    failed: VecDeque<FailedFile>,
}

#[derive(Debug)]
struct FailedFile {
    path: String,
    reason: String,
    at: Instant,
}

impl FileQueue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes_max,
            running: JoinSet::new(),
            running_path: String::new(),
            last_queued: 0,
            last_ended: watch::Sender::new(0),
            failed: VecDeque::new(),
        }
    }

    /// Whether the gateway may receive more.
    pub(super) fn has_capacity(&self) -> bool {
        let bytes = |file: &PushedFile| file.content.as_ref().map_or(0, Bytes::len);
        let waiting: usize = self.waiting.iter().map(bytes).sum();
        self.waiting.len() < FILES_WAITING_MAX && waiting < self.bytes_max
    }

    pub(super) fn push(&mut self, file: PushedFile) {
        self.last_queued += 1;
        self.waiting.push_back(file);
    }

    /// Number of the last pushed file, if it has not ended yet.
    pub(super) fn last_unfinished(&self) -> Option<u64> {
        (*self.last_ended.borrow() < self.last_queued).then_some(self.last_queued)
    }

    /// Number of the last file that has ended; it changes with each end.
    pub(super) fn last_ended(&self) -> watch::Receiver<u64> {
        self.last_ended.subscribe()
    }

    /// Why a flight action that arrived then is refused, if a file before it could not be stored.
    pub(super) fn failure_after(&self, arrived_at: Instant) -> Option<String> {
        let last = self.failed.back().filter(|failed| arrived_at <= failed.at);
        last.map(FailedFile::to_string)
    }

    /// Takes the next file if none is being stored; the caller then [stores](Self::store) it.
    pub(super) fn next(&mut self) -> Option<PushedFile> {
        if !self.running.is_empty() {
            return None;
        }
        let file = self.waiting.pop_front()?;
        self.running_path.clone_from(&file.path);
        self.failed.retain(|failed| failed.path != file.path);
        Some(file)
    }

    pub(super) fn store(&mut self, storing: impl Future<Output = Result<(), String>> + Send + 'static) {
        self.running.spawn(storing);
    }

    /// Waits until the file that is being stored has ended; for ever if there is none.
    pub(super) async fn next_end(&mut self) -> FileEnd {
        let Some(ended) = self.running.join_next().await else {
            return std::future::pending().await;
        };
        let path = std::mem::take(&mut self.running_path);
        if let Err(reason) = ended.unwrap_or_else(|panicked| Err(panicked.to_string())) {
            if self.failed.len() >= FILES_FAILED_MAX {
                self.failed.pop_front();
            }
            let at = clock::now();
            self.failed.push_back(FailedFile { path, reason, at });
        }
        let file = *self.last_ended.borrow() + 1;
        self.last_ended.send_replace(file);
        let failed = self.failed.back().map(|last| (last.at, last.to_string()));
        FileEnd { file, failed }
    }
}

impl std::fmt::Display for FailedFile {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}: {}", self.path, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(content: &'static [u8]) -> PushedFile {
        PushedFile {
            what: "file",
            path: "files/show".to_owned(),
            content: Ok(Bytes::from_static(content)),
        }
    }

    #[tokio::test]
    async fn waiting_files_are_bounded() {
        let mut files = FileQueue::new(10);
        files.push(pushed(b"0123456789"));
        files.next().expect("the first file");
        files.store(std::future::pending());
        files.push(pushed(b"012345678"));
        assert!(files.has_capacity(), "9 bytes of 10");
        files.push(pushed(b"0"));
        assert!(!files.has_capacity(), "10 bytes of 10");
        assert!(files.next().is_none(), "one file at a time");
        assert_eq!(files.last_unfinished(), Some(3));
    }

    #[tokio::test]
    async fn a_failed_file_is_forgotten_once_it_is_stored() {
        let mut files = FileQueue::new(10);
        let before = clock::now();
        for (content, stored) in [(&b"0"[..], Err("disk full".to_owned())), (b"1", Ok(()))] {
            files.push(pushed(content));
            files.next().expect("the file");
            files.store(std::future::ready(stored));
            let end = files.next_end().await;
            if content == b"0" {
                let (at, reason) = end.failed.expect("failed");
                assert_eq!((end.file, reason.as_str()), (1, "\"files/show\": disk full"));
                assert_eq!(files.failure_after(before), Some(reason.clone()));
                assert_eq!(files.failure_after(at), Some(reason));
                assert_eq!(
                    files.failure_after(clock::now() + std::time::Duration::from_secs(1)),
                    None
                );
            } else {
                assert_eq!(
                    end,
                    FileEnd {
                        file: 2,
                        failed: None
                    }
                );
            }
        }
        assert_eq!(
            (files.last_unfinished(), files.failure_after(before)),
            (None, None)
        );
    }
}
