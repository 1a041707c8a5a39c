//! What the server wants, from the moment at which it is known that it may have it until its turn.

use std::time::Instant;

use bytes::Bytes;
use swarm_shared::proto::foreign::clever_show::memory_bytes;
use swarm_shared::proto::message::Arguments;

use super::queue::TaskKind;

/// One thing to be done.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) kind: TaskKind,
    /// For the log: what it is, and its name or the path of its file.
    pub(super) what: &'static str,
    pub(super) name: String,
    /// It has not come before then.
    pub(super) since: Instant,
    pub(super) work: TaskWork,
}

#[derive(Debug)]
pub(super) enum TaskWork {
    /// An action or a question of this node.
    LocalCommand {
        action: String,
        arguments: Arguments,
        /// Whoever asked is answered.
        request: Option<PendingRequest>,
    },
    /// The file is sent, as the answer to this request.
    Fetch { id: String },
    /// The file is kept.
    Push { bytes: Bytes },
    /// Nothing: what came was too long to be read, and may have been a file.
    Oversized { bytes: u64, max: usize },
}

/// What an answer needs.
#[derive(Debug)]
pub(super) struct PendingRequest {
    pub(super) id: String,
    /// Whether it is to say what may be in a configuration.
    pub(super) with_spec: bool,
}

impl Task {
    /// What it takes while it waits and is at work, in bytes; files are counted [apart](Self::file_bytes).
    pub(super) fn bytes(&self) -> usize {
        let with = match &self.work {
            TaskWork::LocalCommand {
                action, arguments, ..
            } => action.len() + memory_bytes(arguments),
            TaskWork::Fetch { .. } | TaskWork::Push { .. } | TaskWork::Oversized { .. } => 0,
        };
        self.name.len() + with
    }

    /// What it brings, if it is a file.
    pub(super) fn file_bytes(&self) -> usize {
        match &self.work {
            TaskWork::Push { bytes } => bytes.len(),
            TaskWork::LocalCommand { .. } | TaskWork::Fetch { .. } | TaskWork::Oversized { .. } => 0,
        }
    }

    /// What is remembered of it while it is at work.
    pub(super) fn running(&self) -> RunningTask {
        RunningTask {
            kind: self.kind,
            name: self.name.clone(),
            bytes: self.bytes(),
        }
    }
}

/// One that has its turn.
#[derive(Debug)]
pub(super) struct RunningTask {
    pub(super) kind: TaskKind,
    pub(super) name: String,
    pub(super) bytes: usize,
}
