//! What the server wants, from the moment at which it is known that it may have it until its turn.

use std::time::Instant;

use bytes::Bytes;
use swarm_shared::proto::clever_show::memory_bytes;
use swarm_shared::proto::message::Arguments;

use super::queue::Kind;

/// One thing to be done.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// For the log: what it is, and its name or the path of its file.
    pub(super) what: &'static str,
    pub(super) name: String,
    /// It has not come before then.
    pub(super) since: Instant,
    pub(super) todo: Todo,
}

#[derive(Debug)]
pub(super) enum Todo {
    /// An action or a question of this node.
    Errand {
        action: String,
        arguments: Arguments,
        /// Whoever asked is answered.
        asked: Option<Asked>,
    },
    /// The file is sent, as the answer to this request.
    Fetch { id: String },
    /// The file is kept.
    Push { bytes: Bytes },
    /// Nothing: what came was too long to be read, and may have been a file.
    PassedOver { bytes: u64, max: usize },
}

/// What an answer needs.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: String,
    /// Whether it is to say what may be in a configuration.
    pub(super) with_spec: bool,
}

impl Job {
    /// What it takes while it waits and is at work, in bytes; files are counted [apart](Self::file_bytes).
    pub(super) fn bytes(&self) -> usize {
        let with = match &self.todo {
            Todo::Errand {
                action, arguments, ..
            } => action.len() + memory_bytes(arguments),
            Todo::Fetch { .. } | Todo::Push { .. } | Todo::PassedOver { .. } => 0,
        };
        self.name.len() + with
    }

    /// What it brings, if it is a file.
    pub(super) fn file_bytes(&self) -> usize {
        match &self.todo {
            Todo::Push { bytes } => bytes.len(),
            Todo::Errand { .. } | Todo::Fetch { .. } | Todo::PassedOver { .. } => 0,
        }
    }

    /// What is remembered of it while it is at work.
    pub(super) fn at_work(&self) -> AtWork {
        AtWork {
            kind: self.kind,
            name: self.name.clone(),
            bytes: self.bytes(),
        }
    }
}

/// One that has its turn.
#[derive(Debug)]
pub(super) struct AtWork {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) bytes: usize,
}
