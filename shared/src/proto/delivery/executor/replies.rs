//! The replies that the executor itself gives.

use super::super::{CommandId, FLIGHT_TTL_MS_MAX};
use super::WAITING_MAX;
use crate::proto::outcome::{Outcome, Reply};

pub(super) fn expired() -> Reply {
    Reply::ended(
        Outcome::Expired,
        "its time to live ran out before it could begin; it will never run",
    )
}

pub(super) fn stopped() -> Reply {
    Reply::refused(
        "emergency stop: this node is stopped, and the action is not marked while_stopped; release it first",
    )
}

pub(super) fn held() -> Reply {
    Reply::refused(
        "held: this node's record of stops could not be read, so that it may have been stopped; release it first",
    )
}

pub(super) fn superseded_by_landing() -> Reply {
    Reply::refused("a landing action came before this one could begin; send it again if it is still wanted")
}

pub(super) fn journal_failed(why: &str) -> Reply {
    Reply::refused(format!("the node's journal cannot be written: {why}"))
}

pub(super) fn file_not_stored(why: &str) -> Reply {
    Reply::refused(format!(
        "a file that was pushed before it could not be stored: {why}"
    ))
}

pub(super) fn busy(slots: usize) -> Reply {
    Reply::refused(format!(
        "busy: {slots} commands run and up to {WAITING_MAX} wait; try again"
    ))
}

pub(super) fn shutting_down() -> Reply {
    Reply::refused("the node was shutting down; it did not begin")
}

pub(super) fn ttl_too_long(ttl_ms: Option<u64>) -> Reply {
    let has = ttl_ms.map_or_else(
        || "it has no time to live".to_owned(),
        |ttl| format!("it has {ttl} ms"),
    );
    Reply::refused(format!(
        "a flight action has at most {FLIGHT_TTL_MS_MAX} ms from issue to start, and {has}"
    ))
}

pub(super) fn identity_conflict(id: CommandId) -> Reply {
    Reply::refused(format!(
        "number {id} was used by another command: the station's store was restored from a backup, or two stations share a key"
    ))
}

pub(super) fn old_epoch(id: CommandId, seen: u64) -> Reply {
    Reply::refused(format!(
        "it is of epoch {}, and epoch {seen} of its station has been seen: an older copy of the station's store is in use",
        id.epoch
    ))
}

pub(super) fn forgotten() -> Reply {
    Reply::ended(
        Outcome::Unknown,
        "too many later commands have come: it is not known any more whether it ran",
    )
}

pub(super) fn crashed() -> Reply {
    Reply::ended(
        Outcome::Unknown,
        "the node's process ended midway; it may or may not have run, and is not run again",
    )
}

/// The reply of an action that was interrupted, with the reason. A success just before the interruption stays a
/// success.
pub(super) fn interrupted_by(why: &str, reply: Reply) -> Reply {
    if reply.state != Outcome::Failed {
        return reply;
    }
    let how = reply.error.unwrap_or_default();
    Reply {
        error: Some(format!("{why}: {how}")),
        ..reply
    }
}
